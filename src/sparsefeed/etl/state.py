"""State: the last known features of members and posts, collected from partitions and merged by time.

A partition's state and a day's state are the same thing; merging is associative and does not depend on
order. Keys, never rows, so that it outlives an id map (docs/contracts/snapshot.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparsefeed.etl.columns import KEY
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

    def to_arrow(self) -> pa.Table:
        """Write as a table by ascending key."""
        columns: dict[str, Any] = {KEY: self.key, "time_ms": self.time_ms, "tie": self.tie}
        columns |= {f"dense_{i}": self.dense[:, i] for i in range(self.dense.shape[1])}
        for name, column in self.ids.items():
            values = pa.array(column.values)
            if column.lengths is not None:
                offsets = np.r_[np.int64(0), np.cumsum(column.lengths)]
                values = pa.LargeListArray.from_arrays(pa.array(offsets), values)
            columns[f"id_{name}"] = values
        return pa.table(columns)

    @classmethod
    def from_arrow(cls, table: pa.Table) -> LastKnown:
        """Read what `to_arrow` wrote, or some rows of it in a row."""
        dense = [table[name].to_numpy() for name in table.column_names if name.startswith("dense_")]
        ids = {}
        for name in table.column_names:
            if name.startswith("id_"):
                column = table[name].combine_chunks()
                column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
                if pa.types.is_large_list(column.type):
                    lengths = np.asarray(column.value_lengths().to_numpy(), np.int64)
                    ids[name.removeprefix("id_")] = Keys(column.flatten().to_numpy(), lengths)
                else:
                    ids[name.removeprefix("id_")] = Keys(column.to_numpy())
        return cls(
            table[KEY].to_numpy(),
            table["time_ms"].to_numpy(),
            table["tie"].to_numpy(),
            np.stack(dense, axis=1) if dense else np.zeros((len(table), 0), np.float32),
            ids,
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
