"""LookupStep: rows of embedding tables -> vectors, in the words of NVIDIA's `hps` backend (docs/contracts/lookup.md).

Notable: the one step that does not join its requests. A gather costs the same per key however many there are, and
joining table-major keys of several requests would copy every vector twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparsefeed.errors import RequestError
from sparsefeed.models.store.store import ParameterStore
from sparsefeed.workflows.serving.steps.step import Step, Tensors, require

__all__ = ["LookupStep"]


class LookupStep(Step[NDArray[np.float32]]):
    """KEYS [1, k], NUMKEYS [1, tables] -> OUTPUT0: one vector per key, flat and table-major."""

    name = "feed_hps"

    def __init__(self, bundle: str, store: ParameterStore) -> None:
        super().__init__(bundle)
        self._store = store

    @classmethod
    def open(cls, parameters: Mapping[str, str]) -> LookupStep:
        """Open a bundle's tables, memory-mapped."""
        return cls(parameters["bundle"], ParameterStore.open(Path(parameters["folder"]) / "tables"))

    def check(self, request: Tensors) -> NDArray[np.float32]:
        """Look the keys up while they are checked: the store does both in one pass over them."""
        keys, num_keys = require(request, "KEYS", np.int64, 2), require(request, "NUMKEYS", np.int32, 2)
        for name, tensor in (("KEYS", keys), ("NUMKEYS", num_keys)):
            if len(tensor) != 1:
                raise RequestError(f"{name}: got shape {list(tensor.shape)}; must be [1, n]")
        return self._store.lookup(keys[0], num_keys[0])

    def compute(self, requests: Sequence[NDArray[np.float32]]) -> list[Tensors]:
        """Name the vectors."""
        return [{"OUTPUT0": vectors} for vectors in requests]
