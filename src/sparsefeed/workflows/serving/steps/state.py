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
from sparsefeed.etl.kernels.state import read_only, take_floats, take_keys, take_lists
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
        at, newer = side.find(own_keys), side.newer or side  # the kernels read `newer` where there is one
        dense = np.empty((len(at), side.dense.shape[1]), np.float32)
        take_floats(read_only(side.dense), read_only(newer.dense), at, dense)
        ones, lengths = np.ones(len(at), np.int64), {}
        for item in lookups:
            lengths[item.name] = ones
            if item.name == own:
                keys[item.name][:, 0] = own_keys
            elif item.kind == "id":
                take_keys(read_only(side.ids[item.name]), read_only(newer.ids[item.name]), at, keys[item.name])
            else:
                lengths[item.name] = np.empty(len(at), np.int64)
                lists = [read_only(array) for array in (*side.lists[item.name], *newer.lists[item.name])]
                take_lists(*lists, at, keys[item.name], lengths[item.name])
        return cls(at != -1, dense, keys, lengths)

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
