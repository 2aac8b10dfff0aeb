"""Changes: what a trained day changed of the checkpoint and the ids before it, as a delta holds it.

A row is changed where any of its values is another one, so training need not note what it touched. Rows that no id has
yet are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sparsefeed.errors import TrainError
from sparsefeed.etl.ids import IdMap, Inverse, hash_strings
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.delta import IdChange, RowChange

__all__ = ["id_changes", "row_changes"]

_ROWS_AT_ONCE = 1 << 18
Tables = Mapping[str, npt.NDArray[np.float32]]


def row_changes(before: Tables, after: Tables, num_rows: Mapping[str, int]) -> dict[str, RowChange]:
    """Rows that differ, and rows that are new, of each table that has some.

    Args:
        before: tables by name, float32 [capacity_rows, dim].
        after: likewise; none is shorter.
        num_rows: rows of `after` that ids have.
    """
    changes = {}
    for name, values in after.items():
        old, found = before[name], []
        for start in range(1, num_rows[name], _ROWS_AT_ONCE):
            stop = min(start + _ROWS_AT_ONCE, num_rows[name])
            compared = max(start, min(stop, len(old)))
            differ = (values[start:compared] != old[start:compared]).any(axis=1)
            found += [start + np.flatnonzero(differ), np.arange(compared, stop)]
        rows = np.concatenate([np.empty(0, np.int64), *found])
        if len(rows):
            changes[name] = RowChange(rows, np.asarray(values[rows], np.float32))
    return changes


def id_changes(spec: FeedSpec, day: Path, previous: Path) -> dict[str, IdChange]:
    """Keys of the ids that got a row on a day, of each table that has some.

    Args:
        spec: the declaration.
        day: ETL result of the day.
        previous: ETL result that it was added to.

    Raises:
        TrainError: two ids of a table have one 64-bit key, which a delta cannot tell apart.
    """
    changes = {}
    for table in spec.tables:
        before, after = (IdMap.load(folder / "ids" / table.name) for folder in (previous, day))
        rows = np.arange(before.num_rows, after.num_rows)
        if not len(rows):
            continue
        keys, _ = hash_strings(Inverse.load(day / "inverse" / table.name).decode(rows), spec.key_seed)
        if after.exceptions.num_extra > before.exceptions.num_extra:
            raise TrainError(
                f'{day}: table "{table.name}": two ids have one key since this day, which no delta can say; '
                "export a whole bundle"
            )
        changes[table.name] = IdChange(keys, rows, np.empty(0, np.uint64))
    return changes
