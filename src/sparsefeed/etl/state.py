"""State: the last known features of members and posts, collected from partitions and merged by time.

A partition's state and a day's state are the same thing; merging is associative and does not depend on
order. Keys, never rows, so that it outlives an id map (docs/contracts/snapshot.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsefeed.etl.kernels.history import latest
from sparsefeed.etl.snapshot import SnapshotSide

__all__ = ["Keys", "LastKnown"]


@dataclass(frozen=True)
class Keys:
    """A column of id keys: scalar (`lengths` None) or ragged.

    Attributes:
        values: uint64, flat; 0 for null.
        lengths: int64 [n], or None for one value per row.
    """

    values: NDArray[np.uint64]
    lengths: NDArray[np.int64] | None = None

    def take(self, index: NDArray[np.int64]) -> Keys:
        """The rows at `index`, in that order."""
        if self.lengths is None:
            return Keys(self.values[index])
        starts = np.cumsum(self.lengths) - self.lengths
        lengths = self.lengths[index]
        offsets = np.cumsum(lengths) - lengths
        place = np.arange(int(lengths.sum())) - np.repeat(offsets, lengths) + np.repeat(starts[index], lengths)
        return Keys(self.values[place], lengths)

    @classmethod
    def concatenate(cls, parts: Sequence[Keys]) -> Keys:
        """Rows of all parts, in order."""
        lengths = [part.lengths for part in parts if part.lengths is not None]
        values = np.concatenate([part.values for part in parts])
        return cls(values, np.concatenate(lengths) if lengths else None)


@dataclass(frozen=True)
class LastKnown:
    """One row per member or post: its last features and when they were logged.

    Attributes:
        key: uint64 [n], ascending, unique.
        time_ms: int64 [n].
        tie: int64 [n]; decides between rows of the same moment (the row's place in the logs).
        dense: float32 [n, D], raw, NaN for null.
        ids: per other id or list feature of the side.
    """

    key: NDArray[np.uint64]
    time_ms: NDArray[np.int64]
    tie: NDArray[np.int64]
    dense: NDArray[np.float32]
    ids: Mapping[str, Keys]

    @classmethod
    def of_rows(
        cls,
        key: NDArray[np.uint64],
        time_ms: NDArray[np.int64],
        tie: NDArray[np.int64],
        dense: NDArray[np.float32],
        ids: Mapping[str, Keys],
    ) -> LastKnown:
        """The last row of every key."""
        keys, index = latest(key, time_ms, tie)
        return cls(
            keys, time_ms[index], tie[index], dense[index], {name: column.take(index) for name, column in ids.items()}
        )

    @classmethod
    def merge(cls, parts: Sequence[LastKnown]) -> LastKnown:
        """The last row of every key over all parts."""
        return cls.of_rows(
            np.concatenate([p.key for p in parts]),
            np.concatenate([p.time_ms for p in parts]),
            np.concatenate([p.tie for p in parts]),
            np.concatenate([p.dense for p in parts]),
            {name: Keys.concatenate([p.ids[name] for p in parts]) for name in parts[0].ids},
        )

    def snapshot(self, histories: Mapping[str, tuple[NDArray[np.int64], NDArray[np.uint64]]]) -> SnapshotSide:
        """This state as a side of a snapshot; `histories` are (offsets, keys) per history, in the order of `key`."""
        lists = {
            name: (np.r_[np.int64(0), np.cumsum(column.lengths)], column.values)
            for name, column in self.ids.items()
            if column.lengths is not None
        }
        ids = {name: column.values for name, column in self.ids.items() if column.lengths is None}
        return SnapshotSide(self.key, self.dense, ids, {**lists, **histories})
