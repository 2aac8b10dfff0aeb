"""MemoryTier: tables as sparse folders on disk, memory-mapped: all processes that read them share their pages.

`<folder>/<model>/<table>/{key,emb_vector}` is what `export_hps(folder / model, ...)` writes, and is read as it is.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparsefeed.errors import BundleError
from sparsefeed.lock import only_writer
from sparsefeed.models.store.hps import read_hps
from sparsefeed.models.store.rows import gather
from sparsefeed.models.store.table import NAME_PATTERN
from sparsefeed.models.store.tier import (
    Tier,
    batches,
    check_lookup,
    check_row_bytes,
    check_rows,
    tag,
    unknown_table,
)

__all__ = ["MemoryTier"]

_Table = tuple[NDArray[np.int64], NDArray[np.float32]]  # keys [n], ascending; rows [n, d]
_FOLDER = re.compile(rf"({NAME_PATTERN})|\.({NAME_PATTERN})\.old")


class MemoryTier(Tier):
    """Tables in one folder, one writer at a time.

    A table is mapped when it is first asked for (its keys are read once, to prove their order) and stays as it was
    then, until this tier writes or removes it. A lookup is a binary search per key. A write copies the table, so
    give it all rows at once, as `load` does.

    Args:
        folder: made at the first write.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._table_by_tag: dict[str, _Table] = {}

    def write(self, model: str, table: str, keys: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
        """As `Tier.write`, but all rows or none: written beside, then renamed. Memory: the keys of old and new."""
        name = tag(model, table)
        check_rows(keys, rows)
        if not len(keys):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with only_writer(self.folder):
            old_keys, old_rows = self._read(model, table) or (keys[:0], rows[:0])
            check_row_bytes(model, table, old_rows.shape[1] * 4, rows.shape[1])
            partial = self.folder / model / f".{table}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            try:
                _write_merged(partial, old_keys, old_rows, keys, rows)
                _replace(self.folder / model / table, partial)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            self._table_by_tag.pop(name, None)

    def lookup(self, model: str, table: str, keys: NDArray[np.int64], default: float, out: NDArray[np.float32]) -> int:
        """As `Tier.lookup`."""
        check_lookup(keys, out)
        held_keys, rows = self._mapped(model, table)
        check_row_bytes(model, table, rows.shape[1] * 4, out.shape[1])
        at = np.minimum(np.searchsorted(held_keys, keys), len(held_keys) - 1)
        gather(rows, at, "fp32", rows.shape[1], out)
        is_missing = held_keys[at] != keys
        out[is_missing] = default
        return int(np.count_nonzero(is_missing))

    def num_rows(self, model: str, table: str) -> int:
        """As `Tier.num_rows`, by the files' sizes."""
        return len(self._mapped(model, table)[0])

    def tables(self, model: str) -> tuple[str, ...]:
        """As `Tier.tables`: the folders that hold rows."""
        tag(model, "x")
        if not (self.folder / model).is_dir():
            return ()
        with only_writer(self.folder):
            matches = [_FOLDER.fullmatch(path.name) for path in (self.folder / model).iterdir()]
            names = {match[1] or match[2] for match in matches if match}
            return tuple(sorted(name for name in names if self._read(model, name)))

    def remove(self, model: str) -> None:
        """As `Tier.remove`; who has mapped a table keeps it."""
        prefix = tag(model, "x")[:-1]
        if not (self.folder / model).is_dir():
            return
        with only_writer(self.folder):
            removed = self.folder / f".{model}.removed"  # a removal cut short leaves no half of a model
            shutil.rmtree(removed, ignore_errors=True)
            (self.folder / model).rename(removed)
            shutil.rmtree(removed)
        for name in [name for name in self._table_by_tag if name.startswith(prefix)]:
            del self._table_by_tag[name]

    def close(self) -> None:
        """As `Tier.close`."""
        self._table_by_tag.clear()

    def _mapped(self, model: str, table: str) -> _Table:
        name = tag(model, table)
        if name not in self._table_by_tag:
            found = None
            if self.folder.is_dir():
                with only_writer(self.folder):  # or the two files might be of two writes
                    found = self._read(model, table)
            if found is None:
                raise unknown_table(model, table, self.tables(model))
            self._table_by_tag[name] = found
        return self._table_by_tag[name]

    def _read(self, model: str, table: str) -> _Table | None:
        """Map what is on disk, under the lock; None where there are no rows."""
        place = self.folder / model / table
        old = _old(place)
        if old.is_dir() and not place.exists():
            old.rename(place)  # a writer died between its two renames
        if not place.exists():
            return None
        key_path, vector_path = place / "key", place / "emb_vector"
        key_bytes = key_path.stat().st_size if key_path.exists() else 0
        vector_bytes = vector_path.stat().st_size if vector_path.exists() else 0
        keys, rows = read_hps(place, max(1, vector_bytes * 2 // max(1, key_bytes)))
        if (keys[1:] <= keys[:-1]).any():
            raise BundleError(f"{place}: keys do not ascend; write them into a tier with load(), which sorts them")
        return (keys, rows) if len(keys) else None


def _write_merged(
    folder: Path,
    old_keys: NDArray[np.int64],
    old_rows: NDArray[np.float32],
    keys: NDArray[np.int64],
    rows: NDArray[np.float32],
) -> None:
    order = np.argsort(keys, kind="stable")
    ascending = keys[order]
    is_last = np.append(ascending[1:] != ascending[:-1], True)
    new_keys, new_at = ascending[is_last], order[is_last]
    merged = np.union1d(old_keys, new_keys)
    with (folder / "key").open("xb") as key_file, (folder / "emb_vector").open("xb") as vector_file:
        for part in batches(len(merged)):
            wanted = merged[part]
            at = np.minimum(np.searchsorted(new_keys, wanted), len(new_keys) - 1)
            is_new = new_keys[at] == wanted
            values = np.empty((len(wanted), rows.shape[1]), "<f4")
            values[is_new] = rows[new_at[at[is_new]]]
            values[~is_new] = old_rows[np.searchsorted(old_keys, wanted[~is_new])]
            key_file.write(wanted.astype("<i8", copy=False).data)
            vector_file.write(values.data)


def _replace(place: Path, partial: Path) -> None:
    old = _old(place)
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    partial.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def _old(place: Path) -> Path:
    return place.with_name(f".{place.name}.old")
