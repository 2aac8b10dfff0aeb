"""Segments: what is known by key at the end of a day, grown by a day at a time at the cost of the day.

A day's table is put beside those of the days before, whose files are linked, not copied. A table that is less than
twice as large as the one after it is merged with that, so n days make about log2(n) tables, each row is written
about log2(n) times, and looking keys up asks few tables.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparsefeed.etl.columns import KEY, open_columns, ranges, write_columns

__all__ = ["Segments", "rows_of"]

_ROWS_AT_ONCE = 2_000_000
_TIMES_AS_LARGE = 2


@dataclass(frozen=True)
class Segments:
    """Tables by ascending key in numbered folders, a greater number for a later day.

    Attributes:
        folder: of the folders.
        schema: of the tables; `key` first.
    """

    folder: Path
    schema: pa.Schema

    def tables(self) -> list[pa.Table]:
        """All tables, mapped, the newest first."""
        return [open_columns(path, self.schema) for path in reversed(self._paths())]

    def grow(
        self,
        previous: Segments | None,
        parts: Iterable[pa.Table],
        merge: Callable[[pa.Table, pa.Table], pa.Table],
    ) -> None:
        """Make the segments of `previous` and one more; what the folder held is gone.

        Args:
            previous: those of the day before; None: there are none.
            parts: of the new table, each of greater keys than the one before.
            merge: of the rows of a newer and an older table with keys in one range makes those that are to stay.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        for path in previous._paths() if previous else []:
            _link(path, self.folder / path.name)
        number = 1 + max((int(path.name) for path in self._paths()), default=0)
        size = write_columns(self.folder / f"{number:06d}", self.schema, parts)
        while len(paths := self._paths()) > 1:
            older, newer = paths[-2:]
            tables = [open_columns(path, self.schema) for path in (newer, older)]
            if len(tables[1]) >= _TIMES_AS_LARGE * max(size, 1):
                break
            number += 1
            merged = (merge(*cut) for cut in ranges(tables, _ROWS_AT_ONCE))
            size = write_columns(self.folder / f"{number:06d}", self.schema, merged)
            del tables, merged  # some file systems remove no file that is mapped
            shutil.rmtree(older)
            shutil.rmtree(newer)

    def newest(self, keys: NDArray[np.uint64]) -> pa.Table:
        """All rows of each key from the newest table that has any.

        Args:
            keys: uint64 [n], ascending, unique.
        """
        found = [self.schema.empty_table()]
        for table in self.tables():
            found.append(rows_of(table, keys))
            keys = keys[~np.isin(keys, found[-1][KEY].to_numpy())]
        return pa.concat_tables(found)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.iterdir()) if self.folder.is_dir() else []


def rows_of(table: pa.Table, keys: NDArray[np.uint64]) -> pa.Table:
    """The rows of a table that have one of the keys.

    Args:
        table: by ascending key.
        keys: uint64 [n], ascending, unique.
    """
    known = table[KEY].to_numpy()
    starts, stops = np.searchsorted(known, keys), np.searchsorted(known, keys, "right")
    lengths = stops - starts
    places = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
    return table.take(pa.array(places))


def _link(folder: Path, to: Path) -> None:
    to.mkdir()
    for path in folder.iterdir():
        try:
            os.link(path, to / path.name)
        except OSError:  # of another disk, or one without links
            shutil.copy2(path, to / path.name)
