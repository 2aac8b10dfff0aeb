"""What changed in a map since its base was built: an exact table key -> row, or tombstone.

Open addressing with linear probing at a load of at most one half; both arrays can be memory-mapped as
they are. The table is a function of its content alone, never of the order of changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sparsefeed.etl.kernels.intrinsics import prefetch

__all__ = ["TOMBSTONE", "Overlay"]

TOMBSTONE = -1
_FREE = -2
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_BLOCK = 64  # keys whose loads are in flight together


@dataclass(frozen=True)
class Overlay:
    """An immutable table of keys.

    Attributes:
        keys: uint64 [capacity], capacity 0 or a power of two.
        rows: int64 [capacity]: a row, TOMBSTONE, or -2 where the slot is free.
    """

    keys: NDArray[np.uint64]
    rows: NDArray[np.int64]

    @classmethod
    def empty(cls) -> Overlay:
        """Make the overlay of a map that was just built."""
        return cls(np.empty(0, np.uint64), np.empty(0, np.int64))

    def __len__(self) -> int:
        return int(np.count_nonzero(self.rows != _FREE))

    def __bool__(self) -> bool:
        return len(self.keys) > 0

    def items(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """All entries by ascending key: keys uint64 and rows int64 (TOMBSTONE for a removed key)."""
        used = self.rows != _FREE
        keys, rows = self.keys[used], self.rows[used]
        order = np.argsort(keys)
        return keys[order], rows[order]

    def updated(self, keys: NDArray[np.uint64], rows: NDArray[np.int64]) -> Overlay:
        """Put these entries in or replace them; keys must not repeat among themselves."""
        old_keys, old_rows = self.items()
        kept = ~np.isin(old_keys, keys)
        all_keys = np.concatenate([old_keys[kept], keys])
        all_rows = np.concatenate([old_rows[kept], rows])
        if not len(all_keys):
            return self
        order = np.argsort(all_keys)
        capacity = 1 << int(2 * len(all_keys) - 1).bit_length()
        table_keys, table_rows = np.zeros(capacity, np.uint64), np.full(capacity, _FREE, np.int64)
        _insert(table_keys, table_rows, all_keys[order], all_rows[order])
        for array in (table_keys, table_rows):
            array.setflags(write=False)
        return Overlay(table_keys, table_rows)

    def apply(self, keys: NDArray[np.uint64], rows: NDArray[np.int64], first_tail: int, num_tail: int) -> None:
        """Overwrite the rows of those keys that have an entry; a tombstone sends its key to the tail.

        Args:
            keys: uint64 [n].
            rows: int64 [n], changed in place.
            first_tail: first row of the tail.
            num_tail: rows of the tail.
        """
        if self:
            keys = np.ascontiguousarray(keys, np.uint64)
            _probe(self.keys, self.rows, keys, rows, np.uint64(first_tail), np.uint64(num_tail))


@njit(nogil=True, cache=True)
def _insert(
    table_keys: NDArray[np.uint64], table_rows: NDArray[np.int64], keys: NDArray[np.uint64], rows: NDArray[np.int64]
) -> None:
    mask = np.uint64(len(table_keys) - 1)
    for i in range(len(keys)):
        slot = ((keys[i] * _GOLDEN) >> np.uint64(20)) & mask
        while table_rows[slot] != _FREE:
            slot = (slot + np.uint64(1)) & mask
        table_keys[slot], table_rows[slot] = keys[i], rows[i]


@njit(nogil=True, cache=True)
def _probe(
    table_keys: NDArray[np.uint64],
    table_rows: NDArray[np.int64],
    keys: NDArray[np.uint64],
    rows: NDArray[np.int64],
    first_tail: np.uint64,
    num_tail: np.uint64,
) -> None:
    mask = np.uint64(len(table_keys) - 1)
    for start in range(0, len(keys), _BLOCK):
        stop = min(start + _BLOCK, len(keys))
        for i in range(start, stop):
            slot = ((keys[i] * _GOLDEN) >> np.uint64(20)) & mask
            prefetch(table_keys, slot)
            prefetch(table_rows, slot)
        for i in range(start, stop):
            slot = ((keys[i] * _GOLDEN) >> np.uint64(20)) & mask
            while table_rows[slot] != _FREE:
                if table_keys[slot] == keys[i]:
                    row = table_rows[slot]
                    rows[i] = row if row >= 0 else np.int64(first_tail + keys[i] % num_tail)
                    break
                slot = (slot + np.uint64(1)) & mask
