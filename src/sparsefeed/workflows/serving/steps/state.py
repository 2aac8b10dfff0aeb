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
from sparsefeed.etl.kernels.state import take_floats, take_keys, take_lists
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
        cls,
        side: SnapshotSide,
        own: str | None,
        own_keys: NDArray[np.uint64],
        lookups: Sequence[LookupPlan],
        keys: dict[str, NDArray[np.uint64]],
    ) -> SideState:
        """State of these ids.

        Args:
            side: of the snapshot.
            own: the feature whose key the caller has, so that an unknown id keeps it.
            own_keys: uint64 [n].
            lookups: of the side.
            keys: where the keys are written to, and what the state holds: per lookup uint64 [n, max_length].
        """
        num, at = len(own_keys), side.find(own_keys)
        ones, lengths, others = np.ones(num, np.int64), {}, []
        for item in lookups:
            lengths[item.name] = ones if item.kind == "id" else np.empty(num, np.int64)
            if item.name == own:
                keys[item.name][:, 0] = own_keys
            else:
                others.append(item)
        state = cls(at >= 0, np.empty((num, side.dense.shape[1]), np.float32), keys, lengths)
        state._take(side, at, others, fill=True)
        if side.newer is not None:
            at = side.newer.find(own_keys)
            np.logical_or(state.found, at >= 0, out=state.found)
            state._take(side.newer, at, others, fill=False)
        return state

    def _take(self, side: SnapshotSide, at: NDArray[np.int64], lookups: Sequence[LookupPlan], fill: bool) -> None:
        """Take rows `at` of a side; where that is -1 nothing if `fill`, else what was taken before."""
        side = side.views
        take_floats(side.dense, at, fill, self.dense)
        for item in lookups:
            into = self.keys[item.name]
            if item.kind == "id":
                take_keys(side.ids[item.name], at, fill, into)
            else:
                offsets, values = side.lists[item.name]
                take_lists(offsets, values, at, fill, into, self.lengths[item.name])

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
