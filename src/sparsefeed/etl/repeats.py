"""Repeats: impressions that were logged more than once on a day, found without holding a day's ids in memory.

Logs that are delivered at least once repeat rows, in one file or in several. Every partition leaves its ids' keys as
a run; each range of keys is then sorted, and all but the first row of an id are noted by place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparsefeed.etl.cluster import compute
from sparsefeed.etl.columns import KEY
from sparsefeed.etl.ids.key_order import order_of
from sparsefeed.etl.logs import Partition
from sparsefeed.etl.parquet import event_keys, milliseconds, no_nulls, read_pieces
from sparsefeed.etl.runs import Runs

__all__ = ["Repeats"]

_ROWS_AT_ONCE = 4_000_000
_SHIFT = 32  # place = partition << 32 | row


@dataclass(frozen=True)
class Repeats:
    """The rows that repeat an earlier one of their day.

    Attributes:
        path: of their places, int64, ascending.
    """

    path: Path

    @classmethod
    def find(
        cls,
        partitions: Sequence[Partition],
        impression: str,
        scratch: Path,
        path: Path,
        before: tuple[str, int] | None = None,
    ) -> Repeats:
        """Look through all partitions, day by day; `scratch` is used and removed.

        Args:
            partitions: to be looked through.
            impression: column of the ids.
            scratch: for runs.
            path: of the result.
            before: column of the time, and the moment in ms from which on rows are not looked at; None: all are.
        """
        runs = {p.day: Runs(scratch / f"repeats-{p.day}") for p in partitions}
        compute([partial(_note, p, impression, before, runs[p.day]) for p in partitions])
        num_runs = Counter(p.day for p in partitions)
        found = compute([partial(_repeated, runs[day], num_runs[day]) for day in sorted(runs)])
        for some in runs.values():
            some.remove()
        np.save(path, np.sort(np.concatenate(found)))
        return cls(path)

    def rows(self, partition: Partition) -> NDArray[np.int64]:
        """The rows to drop from a partition: int64, ascending."""
        places = np.load(self.path, mmap_mode="r")
        first, last = np.searchsorted(places, [partition.number << _SHIFT, (partition.number + 1) << _SHIFT])
        return np.asarray(places[first:last]) - (partition.number << _SHIFT)

    def count(self) -> int:
        """How many rows repeat one."""
        return len(np.load(self.path, mmap_mode="r"))


def _note(partition: Partition, impression: str, before: tuple[str, int] | None, runs: Runs) -> int:
    """Write the keys of a partition's impressions, and their places."""
    tables = list(read_pieces(partition.pieces, [impression, *([before[0]] if before else [])], []))
    keys = np.concatenate([no_nulls(piece, impression, event_keys, table) for piece, table in tables])
    order = order_of(keys[:, 0])
    if before:
        time, until_ms = before
        moments = np.concatenate([no_nulls(piece, time, milliseconds, table) for piece, table in tables])
        order = order[moments[order] < until_ms]
    places = (np.int64(partition.number) << _SHIFT) + order
    return runs.write(partition.number, pa.table({KEY: keys[order, 0], "check": keys[order, 1], "place": places}))


def _repeated(runs: Runs, num_runs: int) -> NDArray[np.int64]:
    """Places of all rows of a day but the first of each id."""
    found = [np.empty(0, np.int64)]
    for tables in runs.ranges(_ROWS_AT_ONCE, num_runs):
        whole = pa.concat_tables(tables)
        key, check, place = (whole[name].to_numpy() for name in (KEY, "check", "place"))
        ordered = key[order_of(key)] if len(tables) > 1 else key
        if not (ordered[1:] == ordered[:-1]).any():
            continue
        order = np.lexsort((place, check, key))
        key, check = key[order], check[order]
        again = np.flatnonzero((key[1:] == key[:-1]) & (check[1:] == check[:-1])) + 1
        found.append(place[order[again]])
    return np.concatenate(found)
