"""SideState: the raw features of the members or posts of a call, from the snapshot and the overrides.

Notable: all rows of all requests are read at once; ids stay keys here (docs/contracts/ids.md sentence 8), and
become rows of tables in the transform alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sparsefeed.etl.ids.keys import hash_strings
from sparsefeed.etl.plan import DensePlan, LookupPlan
from sparsefeed.etl.snapshot import SnapshotSide
from sparsefeed.workflows.serving.steps.overrides import Value

__all__ = ["SideState"]


@dataclass(frozen=True)
class SideState:
    """Raw features of n members or posts.

    Attributes:
        found: bool [n], whether the snapshot has the row.
        dense: float32 [n, D], NaN for null.
        keys: Per lookup, uint64 [n, max_length], 0 for null and beyond the length.
        lengths: Per lookup, int64 [n]; 1 for an `id` feature, null or not.
        texts: Per overridden lookup, (row, place, string) of every id that a request brought along as a string.
    """

    found: NDArray[np.bool_]
    dense: NDArray[np.float32]
    keys: dict[str, NDArray[np.uint64]]
    lengths: dict[str, NDArray[np.int64]]
    texts: dict[str, list[tuple[int, int, str]]] = field(default_factory=dict)

    @classmethod
    def read(
        cls, side: SnapshotSide, own: str | None, own_keys: NDArray[np.uint64], lookups: Sequence[LookupPlan]
    ) -> SideState:
        """State of these ids; `own` is the feature whose key the caller has, so that an unknown id keeps it."""
        index = side.find(own_keys)
        found = index >= 0
        at = index[found]
        num = len(own_keys)
        dense = np.full((num, side.dense.shape[1]), np.nan, np.float32)
        dense[found] = np.asarray(side.dense)[at]
        keys: dict[str, NDArray[np.uint64]] = {}
        lengths: dict[str, NDArray[np.int64]] = {}
        for item in lookups:
            column = np.zeros((num, item.max_length), np.uint64)
            length = np.ones(num, np.int64)
            if item.name == own:
                column[:, 0] = own_keys
            elif item.kind == "id":
                column[found, 0] = np.asarray(side.ids[item.name])[at]
            else:
                offsets, values = (np.asarray(array) for array in side.lists[item.name])
                length[:] = 0
                length[found] = np.minimum(offsets[at + 1] - offsets[at], item.max_length)
                inside = np.arange(item.max_length) < length[:, None]
                starts = np.zeros(num, np.int64)
                starts[found] = offsets[at]
                column[inside] = values[(starts[:, None] + np.arange(item.max_length))[inside]]
            keys[item.name], lengths[item.name] = column, length
        return cls(found, dense, keys, lengths)

    def override(self, changes: Iterable[tuple[int, Mapping[str, Value]]], dense: DensePlan, key_seed: int) -> None:
        """Replace features of single rows, in place; ids beyond a feature's `max_length` are dropped, in order."""
        strings: list[str] = []
        places: list[tuple[str, int, int]] = []
        for row, values in changes:
            for name, value in values.items():
                if not isinstance(value, tuple):
                    self.dense[row, dense.names.index(name)] = value
                    continue
                kept = value[: self.keys[name].shape[1]]
                self.keys[name][row] = 0
                self.lengths[name][row] = len(kept)
                strings += kept
                places += [(name, row, i) for i in range(len(kept))]
        if not strings:
            return
        keys, _ = hash_strings(strings, key_seed)
        for (name, row, i), key, string in zip(places, keys, strings, strict=True):
            self.keys[name][row, i] = key
            self.texts.setdefault(name, []).append((row, i, string))
