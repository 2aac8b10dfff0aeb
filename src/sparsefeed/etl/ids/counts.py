"""How often each key was seen: partial counts of partitions, merged into one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["KeyCounts"]


@dataclass(frozen=True)
class KeyCounts:
    """Keys and their counts.

    Attributes:
        keys: uint64 [n], ascending, unique.
        counts: int64 [n], each at least 1.
    """

    keys: NDArray[np.uint64]
    counts: NDArray[np.int64]

    @classmethod
    def from_keys(cls, keys: NDArray[np.uint64]) -> KeyCounts:
        """Count keys: uint64 in any order, repeated as often as they were seen; pass valid ones only."""
        unique, counts = np.unique(keys, return_counts=True)
        return cls(unique.astype(np.uint64, copy=False), counts.astype(np.int64, copy=False))

    def merge(self, *others: KeyCounts) -> KeyCounts:
        """Sum the counts of all partitions; neither order nor grouping of merges matters."""
        keys = np.concatenate([self.keys, *(other.keys for other in others)])
        counts = np.concatenate([self.counts, *(other.counts for other in others)])
        # A stable sort merges runs that are already sorted in linear time.
        order = np.argsort(keys, kind="stable")
        keys, counts = keys[order], counts[order]
        first = np.flatnonzero(np.concatenate([keys[:1] == keys[:1], keys[1:] != keys[:-1]]))
        summed = np.add.reduceat(counts, first) if len(keys) else counts
        return KeyCounts(keys[first], summed)

    def of(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Look up how often each of these keys was seen: int64 [len(keys)], 0 for never."""
        if not len(self.keys):
            return np.zeros(len(keys), np.int64)
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[places] == keys, self.counts[places], 0)

    def __len__(self) -> int:
        return len(self.keys)
