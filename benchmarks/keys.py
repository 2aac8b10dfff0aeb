"""Keys that are random to look at and made from a counter: two stretches of the counter never share one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sparsefeed.etl.ids import IdMap

__all__ = ["BATCH", "alike_or_lost", "in_batches", "keys_of"]

BATCH = 1 << 20


def keys_of(first: int, stop: int) -> NDArray[np.uint64]:
    """The keys of the counters [first, stop), made in place: a bijection of the counter (splitmix64's finaliser)."""
    keys = np.empty(stop - first, np.uint64)
    _fill(np.uint64(first), keys)
    return keys


@njit(nogil=True, cache=True)
def _fill(first: np.uint64, keys: NDArray[np.uint64]) -> None:
    for i in range(len(keys)):
        state = (first + np.uint64(i + 1)) * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        keys[i] = state ^ (state >> np.uint64(31))


def in_batches(first: int, stop: int) -> Iterator[NDArray[np.uint64]]:
    """The same keys, a batch at a time."""
    for start in range(first, stop, BATCH):
        yield keys_of(start, min(start + BATCH, stop))


def alike_or_lost(id_map: IdMap, num: int) -> int:
    """Of the keys of [0, num), all admitted: how many do not come back to a row that is theirs alone."""
    taken = np.zeros(id_map.num_rows, np.bool_)
    for keys in in_batches(0, num):
        taken[id_map.lookup(keys)] = True
    return num - int(np.count_nonzero(taken[id_map.first_row :]))
