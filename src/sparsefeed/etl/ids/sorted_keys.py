"""Ascending keys, no two alike, with one number each: the form of partial results that merge in linear time.

`KeyCounts` adds the numbers of equal keys, `LastSeen` keeps the largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sparsefeed.etl.ids.keys import checked_keys

__all__ = ["Column", "count", "merge", "places"]

Column: TypeAlias = tuple[NDArray[np.uint64], NDArray[np.signedinteger[Any]]]
"""keys uint64 [n], ascending, unique; numbers [n], int32 or int64."""


def count(keys: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Count keys given in any order: the unique ones ascending, and how often each stands there (int64).

    Cost: about 40 ns a key and up to 40 bytes a key while it runs, whatever the keys are.
    """
    ordered = _sorted(checked_keys(keys))
    first = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)])
    return ordered[first], np.diff(first, append=len(ordered))


def places(ascending: NDArray[np.uint64], keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Find keys among ascending ones: int64 [len(keys)], the index of each, -1 where it is absent."""
    keys = checked_keys(keys)
    if not len(ascending):
        return np.full(len(keys), -1, np.int64)
    found = np.minimum(np.searchsorted(ascending, keys), len(ascending) - 1)
    return np.where(ascending[found] == keys, found, -1)


def merge(columns: Sequence[Column], largest: bool) -> Column:
    """Merge columns two by two: of equal keys the sum of the numbers, or the largest.

    Neither order nor grouping of the columns matters.

    Args:
        columns: at least one, all with numbers of one type.
        largest: keep the largest number rather than the sum.
    """
    while len(columns) > 1:
        pairs = [columns[i : i + 2] for i in range(0, len(columns), 2)]
        columns = [_merge_two(pair[0], pair[1], largest) if len(pair) == 2 else pair[0] for pair in pairs]
    return columns[0]


def _merge_two(a: Column, b: Column, largest: bool) -> Column:
    keys = np.empty(len(a[0]) + len(b[0]), np.uint64)
    numbers = np.empty(len(keys), a[1].dtype)
    num = _zip(*a, *b, largest, keys, numbers)
    for array in (keys, numbers):
        array.resize(num, refcheck=False)  # a slice would keep the memory of the whole
    return keys, numbers


@njit(nogil=True, cache=True)
def _zip(
    a_keys: NDArray[np.uint64],
    a_numbers: NDArray[np.signedinteger[Any]],
    b_keys: NDArray[np.uint64],
    b_numbers: NDArray[np.signedinteger[Any]],
    largest: bool,
    keys: NDArray[np.uint64],
    numbers: NDArray[np.signedinteger[Any]],
) -> int:
    """Write the union; returns its length."""
    a = b = num = 0
    while a < len(a_keys) or b < len(b_keys):
        if b == len(b_keys) or (a < len(a_keys) and a_keys[a] < b_keys[b]):
            keys[num], numbers[num] = a_keys[a], a_numbers[a]
            a += 1
        elif a == len(a_keys) or b_keys[b] < a_keys[a]:
            keys[num], numbers[num] = b_keys[b], b_numbers[b]
            b += 1
        else:
            keys[num] = a_keys[a]
            numbers[num] = max(a_numbers[a], b_numbers[b]) if largest else a_numbers[a] + b_numbers[b]
            a += 1
            b += 1
        num += 1
    return num


@njit(nogil=True, cache=True)
def _sorted(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Sort by one byte after the other, the lowest first: several times faster than comparing."""
    byte = np.uint64(255)
    starts = np.zeros((8, 256), np.int64)
    for key in keys:
        for place in range(8):
            starts[place, (key >> np.uint64(8 * place)) & byte] += 1
    source, target = keys.copy(), np.empty_like(keys)
    for place in range(8):
        start = starts[place]
        if start.max() == len(keys):  # all keys have the same byte here
            continue
        start[:] = np.cumsum(start) - start
        shift = np.uint64(8 * place)
        for key in source:
            value = (key >> shift) & byte
            target[start[value]] = key
            start[value] += 1
        source, target = target, source
    return source
