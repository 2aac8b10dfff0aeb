"""The distinct strings of a column and how often each stands there: one pass, one cache line a string.

An open-addressing table holds key and entry side by side. Strings are hashed a block ahead of their probes, so that
the lines they need are on their way; a string whose key is there is compared byte by byte with the first that had
it, so two strings of one key are two entries.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sparsefeed.etl.ids.xxh64 import load_word, xxh64
from sparsefeed.etl.kernels.intrinsics import prefetch

__all__ = ["distinct", "is_same", "order_of", "sum_equal"]

_BLOCK = 256
_FREE = -1
_MOST_IN_BUCKET = 64


def distinct(
    data: NDArray[np.uint8], offsets: NDArray[np.signedinteger[Any]], null: NDArray[np.bool_], seed: int
) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
    """Find the distinct strings data[offsets[i]:offsets[i + 1]] that are neither null nor empty.

    Args:
        data: uint8; the caller proves that the offsets lie in it.
        offsets: int32 or int64 [n + 1].
        null: bool [n], or [0] where none is.
        seed: XXH64 seed of the keys.

    Returns:
        Of each distinct string, in order of first appearance: its key uint64, its first index int64, its count int64.
    """
    num = len(offsets) - 1
    bits = max(4, (num + num // 4).bit_length())
    slots = np.empty((1 << bits, 2), np.int64)
    slots[:, 1] = _FREE
    keys, first, counts = np.empty(num, np.uint64), np.empty(num, np.int64), np.empty(num, np.int64)
    num_found = _distinct(data, offsets, null, np.uint64(seed), np.uint64(64 - bits), slots, keys, first, counts)
    return keys[:num_found], first[:num_found], counts[:num_found]


@njit(nogil=True, cache=True)
def is_same(
    data: NDArray[np.uint8],
    offsets: NDArray[np.signedinteger[Any]],
    i: int,
    j: int,
) -> bool:
    """Whether strings i and j are equal."""
    start, other = np.int64(offsets[i]), np.int64(offsets[j])
    length = np.int64(offsets[i + 1]) - start
    if np.int64(offsets[j + 1]) - other != length:
        return False
    same = 0
    while same + 8 <= length and load_word(data, start + same) == load_word(data, other + same):
        same += 8
    while same < length and data[start + same] == data[other + same]:
        same += 1
    return bool(same == length)


@njit(nogil=True, cache=True)
def _distinct(
    data: NDArray[np.uint8],
    offsets: NDArray[np.signedinteger[Any]],
    null: NDArray[np.bool_],
    seed: np.uint64,
    shift: np.uint64,
    slots: NDArray[np.int64],
    keys: NDArray[np.uint64],
    first: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> int:
    num_found, last_slot = 0, np.uint64(len(slots) - 1)
    hashed, suspects = np.empty(_BLOCK, np.uint64), np.empty(_BLOCK, np.int64)
    for start in range(0, len(offsets) - 1, _BLOCK):
        num = min(_BLOCK, len(offsets) - 1 - start)
        for i in range(num):
            key = xxh64(data, np.int64(offsets[start + i]), np.int64(offsets[start + i + 1]), seed)
            hashed[i] = key
            prefetch(slots, 2 * (key >> shift))
        # What is found by its key is counted at once and compared in a loop of its own, whose loads do not wait.
        for i in range(num):
            suspects[i] = -1
            at = start + i
            if offsets[at] == offsets[at + 1] or (len(null) and null[at]):
                continue
            slot = hashed[i] >> shift
            while True:
                entry = slots[slot, 1]
                if entry == _FREE:
                    slots[slot, 0], slots[slot, 1] = np.int64(hashed[i]), num_found
                    keys[num_found], first[num_found], counts[num_found] = hashed[i], at, 1
                    num_found += 1
                    break
                if np.uint64(slots[slot, 0]) == hashed[i]:
                    counts[entry] += 1
                    suspects[i] = entry
                    prefetch(offsets, first[entry])
                    break
                slot = (slot + np.uint64(1)) & last_slot
        for i in range(num):
            if suspects[i] >= 0:
                prefetch(data, np.int64(offsets[first[suspects[i]]]))
        for i in range(num):
            entry = suspects[i]
            if entry >= 0 and not is_same(data, offsets, start + i, first[entry]):
                counts[entry] -= 1
                num_found = _put_apart(
                    data, offsets, start + i, hashed[i], shift, slots, keys, first, counts, num_found
                )
    return num_found


@njit(nogil=True, cache=True)
def _put_apart(
    data: NDArray[np.uint8],
    offsets: NDArray[np.signedinteger[Any]],
    at: int,
    key: np.uint64,
    shift: np.uint64,
    slots: NDArray[np.int64],
    keys: NDArray[np.uint64],
    first: NDArray[np.int64],
    counts: NDArray[np.int64],
    num_found: int,
) -> int:
    """Count a string whose key another has: among all entries of that key, or as a new one."""
    slot, last_slot = key >> shift, np.uint64(len(slots) - 1)
    while slots[slot, 1] != _FREE:
        entry = slots[slot, 1]
        if np.uint64(slots[slot, 0]) == key and is_same(data, offsets, at, first[entry]):
            counts[entry] += 1
            return num_found
        slot = (slot + np.uint64(1)) & last_slot
    slots[slot, 0], slots[slot, 1] = np.int64(key), num_found
    keys[num_found], first[num_found], counts[num_found] = key, at, 1
    return num_found + 1


def order_of(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Find the order that sorts keys, equal ones as they stand.

    Cost: about 15 ns a key where keys are hashes, all or those of a range; `numpy.argsort` where many are alike.
    """
    if not len(keys):
        return np.empty(0, np.int64)
    least = keys.min()
    shift = max(0, int(keys.max() - least).bit_length() - max(1, len(keys).bit_length() - 1))
    num_buckets = (int(keys.max() - least) >> shift) + 1
    order = np.empty(len(keys), np.int64)
    if _order_hashes(keys, least, np.uint64(shift), np.zeros(num_buckets + 1, np.int64), order):
        return order
    return np.argsort(keys, kind="stable")


@njit(nogil=True, cache=True)
def _order_hashes(
    keys: NDArray[np.uint64],
    least: np.uint64,
    shift: np.uint64,
    starts: NDArray[np.int64],
    order: NDArray[np.int64],
) -> bool:
    """Spread keys by their high bits, a few to a bucket, and sort each bucket; False where a bucket gets too many."""
    for key in keys:
        starts[((key - least) >> shift) + np.uint64(1)] += 1
    for bucket in range(len(starts) - 1):
        if starts[bucket + 1] > _MOST_IN_BUCKET:
            return False
        starts[bucket + 1] += starts[bucket]
    for i in range(len(keys)):
        bucket = (keys[i] - least) >> shift
        order[starts[bucket]] = i
        starts[bucket] += 1
    first = 0
    for bucket in range(len(starts) - 1):  # starts[bucket] is now its end
        for i in range(first + 1, starts[bucket]):
            moved = order[i]
            j = i
            while j > first and keys[order[j - 1]] > keys[moved]:
                order[j] = order[j - 1]
                j -= 1
            order[j] = moved
        first = starts[bucket]
    return True


@njit(nogil=True, cache=True)
def sum_equal(
    keys: NDArray[np.uint64],
    order: NDArray[np.int64],
    data: NDArray[np.uint8],
    offsets: NDArray[np.signedinteger[Any]],
    counts: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sum the counts of equal strings.

    Args:
        keys: uint64 [n].
        order: int64 [n]: sorts the keys.
        data: of the strings.
        offsets: [n + 1], likewise.
        counts: int64 [n].

    Returns:
        One index of every distinct string, by ascending key, and the sum of its counts; both int64.
    """
    chosen, sums = np.empty(len(keys), np.int64), np.empty(len(keys), np.int64)
    num_chosen = first_of_key = 0
    for i in order:
        if num_chosen == first_of_key or keys[chosen[first_of_key]] != keys[i]:
            first_of_key = num_chosen
        place = first_of_key
        while place < num_chosen and not is_same(data, offsets, chosen[place], i):
            place += 1
        if place == num_chosen:
            chosen[place], sums[place] = i, 0
            num_chosen += 1
        sums[place] += counts[i]
    return chosen[:num_chosen], sums[:num_chosen]
