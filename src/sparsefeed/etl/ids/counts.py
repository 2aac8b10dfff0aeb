"""How often each key was seen: partial counts of partitions, merged into one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsefeed.etl.ids import sorted_keys

__all__ = ["KeyCounts"]


@dataclass(frozen=True, eq=False)
class KeyCounts:
    """Immutable: keys and their counts, 16 bytes a key.

    Attributes:
        keys: uint64 [n], ascending, unique.
        counts: int64 [n], each at least 1.
    """

    keys: NDArray[np.uint64]
    counts: NDArray[np.int64]

    @classmethod
    def from_keys(cls, keys: NDArray[np.uint64]) -> KeyCounts:
        """Count keys: uint64 in any order, repeated as often as they were seen; pass valid ones only."""
        return cls(*sorted_keys.count(keys))

    def merge(self, *others: KeyCounts) -> KeyCounts:
        """Sum the counts of all partitions; neither order nor grouping of merges matters."""
        return KeyCounts(*sorted_keys.merge([(part.keys, part.counts) for part in (self, *others)], largest=False))

    def of(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Look up how often each of these keys was seen: int64 [len(keys)], 0 for never."""
        # Place -1 is the zero after the last count.
        return np.append(self.counts, 0)[sorted_keys.places(self.keys, keys)]

    def __len__(self) -> int:
        return len(self.keys)
