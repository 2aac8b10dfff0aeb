"""What changed in a map since its base was built: an exact table key -> row, or tombstone.

Open addressing with linear probing at a load of 0.7; an entry's key and row share a cache line. Most keys that are
looked up have no entry: a Bloom filter of two bits a key in one word tells so in a sixteenth of the memory, with some
3 % mistaken. Both can be memory-mapped as they are, and are functions of the content alone, never
of the order of changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sparsefeed.etl.ids.array_folder import StoredArray
from sparsefeed.etl.ids.slots import mix
from sparsefeed.etl.kernels.intrinsics import prefetch

__all__ = ["ABSENT", "TOMBSTONE", "Overlay", "overwrite_block", "row_in"]

TOMBSTONE = -1
ABSENT = -2
_LOAD = 0.7
_NAMES = ("overlay", "overlay_filter")
_U32 = np.uint64(32)


@dataclass(frozen=True)
class Overlay:
    """An immutable table of keys.

    Attributes:
        entries: int64 [capacity, 2]: the key's bits, and its row, TOMBSTONE, or ABSENT where the slot is free.
        filter: uint64 [capacity / 8, rounded up]: a word for every 8 slots.
        num_entries: slots that are not free; the capacity follows from it.
        stored: files that the arrays were read from, by name.
    """

    entries: NDArray[np.int64]
    filter: NDArray[np.uint64]
    num_entries: int
    stored: Mapping[str, StoredArray] = field(default_factory=dict)

    @classmethod
    def empty(cls) -> Overlay:
        """Make the overlay of a map that was just built."""
        return cls._of(np.empty((0, 2), np.int64), np.empty(0, np.uint64), 0)

    @classmethod
    def _of(cls, entries: NDArray[np.int64], words: NDArray[np.uint64], num_entries: int) -> Overlay:
        for array in (entries, words):
            array.setflags(write=False)
        return cls(entries, words, num_entries)

    @classmethod
    def load(
        cls,
        entries: NDArray[np.int64],
        words: NDArray[np.uint64],
        num_entries: int,
        stored: Mapping[str, StoredArray] | None = None,
    ) -> Overlay:
        """Take saved arrays; ValueError where they can't be a table of so many entries and its filter."""
        capacity = _capacity(num_entries)
        fits = entries.dtype == np.int64 and entries.shape == (capacity, 2)
        if not fits or words.dtype != np.uint64 or words.shape != (-(-capacity // 8),):
            raise ValueError("the overlay is no table of keys and rows with its filter")
        return cls(entries, words, num_entries, {n: f for n, f in (stored or {}).items() if n in _NAMES})

    @property
    def nbytes(self) -> int:
        """Bytes of both arrays."""
        return self.entries.nbytes + self.filter.nbytes

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Name the arrays as they are saved."""
        return dict(zip(_NAMES, (self.entries, self.filter), strict=True))

    def __len__(self) -> int:
        return self.num_entries

    def items(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """All entries by ascending key: keys uint64 and rows int64 (TOMBSTONE for a removed key)."""
        used = self.entries[self.entries[:, 1] != ABSENT]
        keys, rows = used[:, 0].copy().view(np.uint64), used[:, 1]
        order = np.argsort(keys)
        return keys[order], rows[order]

    def updated(self, keys: NDArray[np.uint64], rows: NDArray[np.int64]) -> Overlay:
        """Put these entries in or replace them; keys must not repeat among themselves."""
        if not len(keys):
            return self
        old_keys, old_rows = self.items()
        kept = ~np.isin(old_keys, keys)
        all_keys = np.concatenate([old_keys[kept], keys])
        all_rows = np.concatenate([old_rows[kept], rows])
        order = np.argsort(all_keys)
        capacity = _capacity(len(all_keys))
        entries = np.empty((capacity, 2), np.int64)
        entries[:, 0], entries[:, 1] = 0, ABSENT
        words = np.zeros(-(-capacity // 8), np.uint64)
        _insert(entries, words, all_keys[order], all_rows[order])
        return self._of(entries, words, len(all_keys))

    def on_top_of(
        self, keys: NDArray[np.uint64], rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Keys and rows of a base, in any order, with these entries in place of theirs and without tombstones."""
        own_keys, own_rows = self.items()
        live, kept = own_rows != TOMBSTONE, ~np.isin(keys, own_keys)
        return np.concatenate([keys[kept], own_keys[live]]), np.concatenate([rows[kept], own_rows[live]])

    def rows(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Rows of keys: int64 [len(keys)], TOMBSTONE for a removed key, ABSENT for one without an entry."""
        rows = np.full(len(keys), ABSENT, np.int64)
        if len(self.entries):
            _rows(self.entries, np.ascontiguousarray(keys, np.uint64), rows)
        return rows


def _capacity(num_entries: int) -> int:
    return int(num_entries / _LOAD) + 1 if num_entries else 0


@njit(nogil=True, cache=True)
def _home(hashed: np.uint64, num_slots: int) -> np.uint64:
    return ((hashed >> _U32) * np.uint64(num_slots)) >> _U32


@njit(nogil=True, cache=True)
def _next(slot: np.uint64, num_slots: int) -> np.uint64:
    slot += np.uint64(1)
    return np.uint64(slot if slot < np.uint64(num_slots) else np.uint64(0))


@njit(nogil=True, cache=True)
def _filter_bits(hashed: np.uint64) -> np.uint64:
    """Two bits of a word, from bits of the key's hash that its home does not depend on."""
    one = np.uint64(1)
    return (one << (hashed & np.uint64(63))) | (one << ((hashed >> np.uint64(6)) & np.uint64(63)))


@njit(nogil=True, cache=True)
def row_in(entries: NDArray[np.int64], key: np.uint64) -> np.int64:
    """Find the row of one key, or TOMBSTONE or ABSENT; `entries` must not be empty."""
    slot = _home(mix(key, np.uint64(0)), len(entries))
    # Bounded: an altered file may have no free slot.
    for _ in range(len(entries)):
        if entries[slot, 1] == ABSENT or np.uint64(entries[slot, 0]) == key:
            return np.int64(entries[slot, 1])
        slot = _next(slot, len(entries))
    return np.int64(ABSENT)


@njit(nogil=True, cache=True)
def overwrite_block(
    keys: NDArray[np.uint64],
    entries: NDArray[np.int64],
    words: NDArray[np.uint64],
    num_rows: np.uint64,
    chosen: NDArray[np.uint64],
    rows: NDArray[np.int64],
) -> None:
    """Write the rows of those keys that have an entry, ABSENT for a tombstone; the others stay.

    Args:
        keys: uint64 [n].
        entries: the table, not empty.
        words: its filter.
        num_rows: a row beyond, as an altered file may hold, counts as a tombstone.
        chosen: uint64 [at least n], overwritten.
        rows: int64 [n].
    """
    num_chosen = 0
    for i in range(len(keys)):
        hashed = mix(keys[i], np.uint64(0))
        bits = _filter_bits(hashed)
        # No branch: whether a key has an entry can't be guessed.
        chosen[num_chosen] = np.uint64(i)
        num_chosen += (words[_home(hashed, len(entries)) >> np.uint64(3)] & bits) == bits
    for j in range(num_chosen):
        prefetch(entries, 2 * _home(mix(keys[chosen[j]], np.uint64(0)), len(entries)))
    for j in range(num_chosen):
        row = row_in(entries, keys[chosen[j]])
        if row != ABSENT:
            rows[chosen[j]] = row if np.uint64(row) < num_rows else np.int64(ABSENT)


@njit(nogil=True, cache=True)
def _insert(
    entries: NDArray[np.int64], words: NDArray[np.uint64], keys: NDArray[np.uint64], rows: NDArray[np.int64]
) -> None:
    for i in range(len(keys)):
        hashed = mix(keys[i], np.uint64(0))
        slot = _home(hashed, len(entries))
        words[slot >> np.uint64(3)] |= _filter_bits(hashed)
        while entries[slot, 1] != ABSENT:
            slot = _next(slot, len(entries))
        entries[slot, 0], entries[slot, 1] = np.int64(keys[i]), rows[i]


@njit(nogil=True, cache=True)
def _rows(entries: NDArray[np.int64], keys: NDArray[np.uint64], rows: NDArray[np.int64]) -> None:
    for i in range(len(keys)):
        rows[i] = row_in(entries, keys[i])
