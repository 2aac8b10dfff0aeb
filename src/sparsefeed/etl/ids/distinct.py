"""Distinct strings and how often each was met: a table that grows, one cache line a string.

An open-addressing table holds key and entry side by side; the text of every entry is kept in one piece of memory.
Strings are hashed a block ahead of their probes, so that the lines they need are on their way; a string whose
key is there is compared byte by byte with the text that has it, so two strings of one key are two entries.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sparsefeed.etl.ids.xxh64 import load_word, xxh64
from sparsefeed.etl.kernels.intrinsics import prefetch, store_uint64

__all__ = ["EACH_ONE", "DistinctStrings", "Texts", "order_of"]

_BLOCK = 256
_STEP = 1 << 15  # strings between two looks at whether the table must grow
_MOST_IN_BUCKET = 64
_AHEAD = 8
_SLACK = 8  # bytes after all texts, so that a word can be loaded at the last one
_KEY, _COUNT, _START, _STOP = range(4)  # of an entry; a free one stops at 0, for no text that is counted is empty
EACH_ONE: NDArray[np.int64] = np.empty(0, np.int64)
_NONE_NULL: NDArray[np.bool_] = np.empty(0, np.bool_)
_TO_HASH: NDArray[np.uint64] = np.empty(0, np.uint64)

Texts = tuple[NDArray[np.uint8], NDArray[np.signedinteger[Any]]]
"""data uint8 and offsets int32 or int64 [n + 1]: string i is data[offsets[i]:offsets[i + 1]]; the caller proves that
the offsets lie in the data."""


class DistinctStrings:
    """Counts strings; null and empty ones are left out.

    Args:
        seed: XXH64 seed of the keys.
    """

    def __init__(self, seed: int) -> None:
        self._seed = np.uint64(seed)
        self._num = 0
        self._table = _free_places(16)
        self._text = np.empty(_SLACK, np.uint8)
        self._num_bytes = 0

    def __len__(self) -> int:
        return self._num

    def add(
        self,
        texts: Texts,
        null: NDArray[np.bool_] = _NONE_NULL,
        weights: NDArray[np.int64] = EACH_ONE,
        keys: NDArray[np.uint64] = _TO_HASH,
    ) -> int:
        """Count strings; returns the sum of what was added to the counts.

        Args:
            texts: n strings.
            null: bool [n], or [0] where none is.
            weights: int64 [n], how often each counts, 0: not at all; or [0]: once.
            keys: uint64 [n], theirs, or [0]: to be hashed.
        """
        data, offsets = texts
        added, num = 0, len(offsets) - 1
        for start in range(0, num, _STEP):
            stop = min(start + _STEP, num)
            self._reserve(stop - start, int(offsets[stop]) - int(offsets[start]))
            state = self._table, self._text, self._num, self._num_bytes
            found = _add(data, offsets, null, weights, keys, start, stop, self._seed, *state)
            self._num, self._num_bytes, more = found
            added += more
        return int(added)

    def has(self, texts: Texts, keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which strings [n] with these keys were met: bool [n]."""
        found = np.empty(len(keys), np.bool_)
        _find(*texts, keys, self._table, self._text, found)
        return found

    def by_key(self) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
        """All strings by ascending key: keys, counts, data and offsets."""
        used = np.flatnonzero(self._table[:, _STOP])
        order = used[order_of(self._table[used, _KEY].view(np.uint64))]
        keys, counts, offsets = (
            np.empty(self._num, np.uint64),
            np.empty(self._num, np.int64),
            np.zeros(self._num + 1, np.int64),
        )
        data = np.empty(self._num_bytes, np.uint8)
        _gather(self._table, self._text, order, keys, counts, data, offsets)
        return keys, counts, data, offsets

    def _reserve(self, num: int, num_bytes: int) -> None:
        """Make room for so many more strings and bytes."""
        if self._num_bytes + num_bytes + _SLACK > len(self._text):
            text = np.empty(max(self._num_bytes + num_bytes, 2 * len(self._text)) + _SLACK, np.uint8)
            text[: self._num_bytes] = self._text[: self._num_bytes]
            self._text = text
        if 3 * (self._num + num) > 2 * len(self._table):
            table = _free_places(1 << (2 * (self._num + num) - 1).bit_length())
            _refill(table, self._table)
            self._table = table


def _free_places(num: int) -> NDArray[np.int64]:
    table = np.empty((num, 4), np.int64)  # not zeros: numpy asks for huge pages for this, and they are worth much here
    table[:, _STOP] = 0
    return table


@njit(nogil=True, cache=True)
def _refill(table: NDArray[np.int64], old: NDArray[np.int64]) -> None:
    last = np.uint64(len(table) - 1)
    for i in range(len(old)):
        if old[i, _STOP]:
            at = np.uint64(old[i, _KEY]) & last
            while table[at, _STOP]:
                at = (at + np.uint64(1)) & last
            for k in range(4):
                table[at, k] = old[i, k]


@njit(nogil=True, cache=True)
def _is_entry(
    data: NDArray[np.uint8], start: int, stop: int, table: NDArray[np.int64], text: NDArray[np.uint8], at: np.uint64
) -> bool:
    """Whether data[start:stop] is the text of an entry."""
    other, length = table[at, _START], stop - start
    if table[at, _STOP] - other != length:
        return False
    same = 0
    while same + 8 <= length:
        if load_word(data, start + same) != load_word(text, other + same):
            return False
        same += 8
    left = length - same
    if left == 0:
        return True
    if start + same + 8 <= len(data):  # a loop over so few bytes costs a wrong guess
        differ = load_word(data, start + same) ^ load_word(text, other + same)
        return bool(differ << np.uint64(64 - 8 * left) == np.uint64(0))
    while same < length and data[start + same] == text[other + same]:
        same += 1
    return bool(same == length)


@njit(nogil=True, cache=True)
def _add(
    data: NDArray[np.uint8],
    offsets: NDArray[np.signedinteger[Any]],
    null: NDArray[np.bool_],
    weights: NDArray[np.int64],
    given: NDArray[np.uint64],
    first: int,
    last: int,
    seed: np.uint64,
    table: NDArray[np.int64],
    text: NDArray[np.uint8],
    num_found: int,
    num_bytes: int,
) -> tuple[int, int, int]:
    last_place, added = np.uint64(len(table) - 1), 0
    keys, places, wanted = np.empty(_BLOCK, np.uint64), np.empty(_BLOCK, np.uint64), np.empty(_BLOCK, np.bool_)
    for block in range(first, last, _BLOCK):
        num = min(_BLOCK, last - block)
        for i in range(num):
            at = block + i
            start, stop = np.int64(offsets[at]), np.int64(offsets[at + 1])
            keys[i] = given[at] if len(given) else xxh64(data, start, stop, seed)
            prefetch(table, 4 * (keys[i] & last_place))
            wanted[i] = start != stop and not (len(null) and null[at]) and not (len(weights) and weights[at] == 0)
        # Each kind of load has a loop of its own, so that they do not wait for each other.
        for i in range(num):
            if wanted[i]:
                place = keys[i] & last_place
                while table[place, _STOP] and np.uint64(table[place, _KEY]) != keys[i]:
                    place = (place + np.uint64(1)) & last_place
                if not table[place, _STOP]:
                    num_bytes = _put(data, offsets, block + i, keys[i], table, text, place, num_bytes)
                    num_found += 1
                places[i] = place
                prefetch(text, table[place, _START])
        for i in range(num):
            if wanted[i]:
                at, place = block + i, places[i]
                start, stop = np.int64(offsets[at]), np.int64(offsets[at + 1])
                if not _is_entry(data, start, stop, table, text, place):
                    place = _place(data, start, stop, keys[i], table, text)
                    if not table[place, _STOP]:
                        num_bytes = _put(data, offsets, at, keys[i], table, text, place, num_bytes)
                        num_found += 1
                weight = weights[at] if len(weights) else 1
                table[place, _COUNT] += weight
                added += weight
    return num_found, num_bytes, added


@njit(nogil=True, cache=True)
def _copy(data: NDArray[np.uint8], start: int, length: int, to: NDArray[np.uint8], at: int) -> None:
    """Copy data[start:start + length] to to[at:]; up to seven bytes after it are overwritten, where they are there."""
    copied = 0
    while copied < length and start + copied + 8 <= len(data) and at + copied + 8 <= len(to):
        store_uint64(to, at + copied, load_word(data, start + copied))
        copied += 8
    while copied < length:
        to[at + copied] = data[start + copied]
        copied += 1


@njit(nogil=True, cache=True)
def _put(
    data: NDArray[np.uint8],
    offsets: NDArray[np.signedinteger[Any]],
    at: int,
    key: np.uint64,
    table: NDArray[np.int64],
    text: NDArray[np.uint8],
    place: np.uint64,
    num_bytes: int,
) -> int:
    """Write a string that was not met before, with a count of 0; returns the bytes of all texts."""
    begin, length = np.int64(offsets[at]), np.int64(offsets[at + 1]) - np.int64(offsets[at])
    _copy(data, begin, length, text, num_bytes)
    table[place, _KEY], table[place, _COUNT] = np.int64(key), 0
    table[place, _START], table[place, _STOP] = num_bytes, num_bytes + length
    return int(num_bytes + length)


@njit(nogil=True, cache=True)
def _place(
    data: NDArray[np.uint8],
    start: int,
    stop: int,
    key: np.uint64,
    table: NDArray[np.int64],
    text: NDArray[np.uint8],
) -> np.uint64:
    """Where data[start:stop] stands among all entries of its key, or the free place where it would."""
    last_place = np.uint64(len(table) - 1)
    place = key & last_place
    while table[place, _STOP] and (
        np.uint64(table[place, _KEY]) != key or not _is_entry(data, start, stop, table, text, place)
    ):
        place = (place + np.uint64(1)) & last_place
    return np.uint64(place)


@njit(nogil=True, cache=True)
def _find(
    data: NDArray[np.uint8],
    offsets: NDArray[np.signedinteger[Any]],
    keys: NDArray[np.uint64],
    table: NDArray[np.int64],
    text: NDArray[np.uint8],
    found: NDArray[np.bool_],
) -> None:
    for i in range(len(keys)):
        place = _place(data, np.int64(offsets[i]), np.int64(offsets[i + 1]), keys[i], table, text)
        found[i] = table[place, _STOP] != 0


@njit(nogil=True, cache=True)
def _gather(
    table: NDArray[np.int64],
    text: NDArray[np.uint8],
    order: NDArray[np.int64],
    keys: NDArray[np.uint64],
    counts: NDArray[np.int64],
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
) -> None:
    """Copy entries one after the other."""
    for i in range(len(order)):
        if i + 2 * _AHEAD < len(order):
            prefetch(table, 4 * order[i + 2 * _AHEAD])
        if i + _AHEAD < len(order):
            prefetch(text, table[order[i + _AHEAD], _START])
        place = order[i]
        keys[i], counts[i] = np.uint64(table[place, _KEY]), table[place, _COUNT]
        start, length = table[place, _START], table[place, _STOP] - table[place, _START]
        _copy(text, start, length, data, offsets[i])
        offsets[i + 1] = offsets[i] + length


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
