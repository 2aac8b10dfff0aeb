"""Distinct strings and how often each was met: a hash table that grows, half a cache line a short string.

Entries lie in the order in which they were met; slots of an open-addressing table hold 32 bits of a string's hash and
the number of its entry. An entry of up to 16 bytes, which ids mostly have, is the text itself: two words, compared with
two words of the column. Longer texts are kept in one piece of memory and compared there. So two strings are one entry
only if they are equal, whatever their hashes and keys. Keys are XXH64, computed once for each distinct string, at the
end; the hash of a short string is cheaper than that, and never leaves the table.

Strings are taken a block at a time, so that the lines that they need are on their way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sparsefeed.etl.ids.key_order import order_of
from sparsefeed.etl.ids.text_words import SHORT, WORD, copy_bytes, hash_of, same_bytes, words_of
from sparsefeed.etl.ids.xxh64 import xxh64
from sparsefeed.etl.kernels.intrinsics import prefetch, store_uint64

__all__ = ["EACH_ONE", "DistinctStrings", "Texts"]

_BLOCK = 256
_STEP = 1 << 15  # strings between two looks at whether the table must grow
_AHEAD = 8
_LINE = 64  # bytes of a cache line
_FIRST, _SECOND, _LENGTH, _COUNT = range(4)  # of an entry; of a long text the first two are its start and its hash
_NUMBER = np.uint64(0xFFFFFFFF)  # the number in a slot, of an entry plus one
EACH_ONE: NDArray[np.int64] = np.empty(0, np.int64)
_NONE_NULL: NDArray[np.bool_] = np.empty(0, np.bool_)
_TO_HASH: NDArray[np.uint64] = np.empty(0, np.uint64)

Texts = tuple[NDArray[np.uint8], NDArray[np.signedinteger[Any]]]
"""data uint8 and offsets int32 or int64 [n + 1]: string i is data[offsets[i]:offsets[i + 1]]; the caller proves that
the offsets lie in the data."""


Words = tuple[np.uint64, np.uint64, np.uint64]
"""A string's two words, or nothing and its hash if it is long, and the hash that the table finds it by."""


class DistinctStrings:
    """Counts strings; null and empty ones are left out.

    Args:
        seed: XXH64 seed of the keys.
    """

    def __init__(self, seed: int) -> None:
        self._seed = np.uint64(seed)
        self._num = 0
        self._entries: NDArray[np.uint64] = np.empty((0, 4), np.uint64)
        self._keys = _TO_HASH  # of the entries, once some were given
        self._slots = np.zeros(16, np.uint64)
        self._text: NDArray[np.uint8] = np.empty(WORD, np.uint8)
        self._text_bytes = 0

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
            keys: uint64 [n], theirs, or [0]: to be hashed; a table is given all keys or none.
        """
        data, offsets = texts
        added, num = 0, len(offsets) - 1
        for start in range(0, num, _STEP):
            stop = min(start + _STEP, num)
            self._reserve(stop - start, int(offsets[stop]) - int(offsets[start]), keyed=len(keys) > 0)
            table = self._slots, self._entries, self._keys, self._text
            found = _add(
                data, offsets, null, weights, keys, start, stop, self._seed, *table, self._num, self._text_bytes
            )
            self._num, self._text_bytes, more = found
            added += more
        return int(added)

    def has(self, texts: Texts, keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which strings [n] with these keys were met: bool [n]; of a table that was given keys."""
        found = np.zeros(len(keys), np.bool_)
        if self._num:
            _find(*texts, keys, self._seed, self._slots, self._entries, self._text, found)
        return found

    def by_key(self) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
        """All strings by ascending key: keys, counts, data and offsets."""
        entries = self._entries[: self._num]
        if len(self._keys):
            keys = self._keys[: self._num]
        else:
            keys = np.empty(self._num, np.uint64)
            _hash(entries, entries.view(np.uint8).reshape(-1), self._text, self._seed, keys)
        order = order_of(keys)
        counts, offsets = np.empty(self._num, np.int64), np.zeros(self._num + 1, np.int64)
        num_bytes = int(entries[:, _LENGTH].sum())
        data = np.empty(num_bytes + SHORT, np.uint8)  # short texts are written as two words
        _gather(entries, self._text, order, counts, data, offsets)
        return keys[order], counts, data[:num_bytes], offsets

    def _reserve(self, num: int, num_bytes: int, keyed: bool) -> None:
        """Make room for so many more strings and bytes."""
        num += self._num
        self._text = _longer(self._text, self._text_bytes, self._text_bytes + num_bytes + WORD)
        self._entries = _longer(self._entries, self._num, num)
        if keyed:
            self._keys = _longer(self._keys, self._num, num)
        if 3 * num > 2 * len(self._slots):
            self._slots = np.empty(1 << (2 * num - 1).bit_length(), np.uint64)
            self._slots.fill(0)  # not zeros: numpy asks for huge pages for this, and they are worth much here
            _refill(self._slots, self._entries[: self._num], self._keys)


def _longer(array: NDArray[Any], used: int, wanted: int) -> NDArray[Any]:
    """An array of at least the wanted length, with what is used of this one."""
    if wanted <= len(array):
        return array
    shape = max(wanted, 2 * used), *array.shape[1:]
    num_bytes = int(np.prod(shape)) * array.itemsize
    raw = np.empty(num_bytes + _LINE, np.uint8)
    begin = -raw.ctypes.data % _LINE  # entries over two lines would cost a third of the time
    longer = raw[begin : begin + num_bytes].view(array.dtype).reshape(shape)
    longer[:used] = array[:used]
    return longer


@njit(nogil=True, cache=True)
def _refill(slots: NDArray[np.uint64], entries: NDArray[np.uint64], keys: NDArray[np.uint64]) -> None:
    last = np.uint64(len(slots) - 1)
    for i in range(len(entries)):
        if len(keys):
            mixed = keys[i]
        else:
            mixed = hash_of(entries[i, _FIRST], entries[i, _SECOND], np.int64(entries[i, _LENGTH]))
        place = mixed & last
        while slots[place]:
            place = (place + np.uint64(1)) & last
        slots[place] = (mixed & ~_NUMBER) | np.uint64(i + 1)


@njit(nogil=True, cache=True)
def _is_entry(
    data: NDArray[np.uint8],
    start: int,
    stop: int,
    words: Words,
    entries: NDArray[np.uint64],
    text: NDArray[np.uint8],
    number: int,
) -> bool:
    """Whether data[start:stop] is the text of an entry."""
    if entries[number, _LENGTH] != np.uint64(stop - start) or entries[number, _SECOND] != words[1]:
        return False
    if stop - start <= SHORT:
        return bool(entries[number, _FIRST] == words[0])
    return bool(same_bytes(data, start, text, np.int64(entries[number, _FIRST]), stop - start))


@njit(nogil=True, cache=True)
def _hash_block(
    data: NDArray[np.uint8],
    offsets: NDArray[np.signedinteger[Any]],
    null: NDArray[np.bool_],
    weights: NDArray[np.int64],
    given: NDArray[np.uint64],
    begin: int,
    end: int,
    seed: np.uint64,
    slots: NDArray[np.uint64],
    at: NDArray[np.int64],
    first: NDArray[np.uint64],
    second: NDArray[np.uint64],
    mixed: NDArray[np.uint64],
) -> tuple[int, bool]:
    """Places and words of the strings that count, into the last four; how many they are, and whether any is long."""
    last, size, any_long = np.uint64(len(slots) - 1), 0, False
    for i in range(begin, end):
        start = np.int64(offsets[i])
        length = np.int64(offsets[i + 1]) - start
        if length == 0 or (len(null) and null[i]) or (len(weights) and weights[i] == 0):
            continue
        if length <= SHORT:
            first[size], second[size] = words_of(data, start, length)
        else:
            second[size], any_long = xxh64(data, start, start + length, seed), True
        mixed[size] = given[i] if len(given) else hash_of(first[size], second[size], length)
        at[size] = i
        prefetch(slots, mixed[size] & last)
        size += 1
    return size, any_long


@njit(nogil=True, cache=True)
def _add(
    data: NDArray[np.uint8],
    offsets: NDArray[np.signedinteger[Any]],
    null: NDArray[np.bool_],
    weights: NDArray[np.int64],
    given: NDArray[np.uint64],
    begin: int,
    end: int,
    seed: np.uint64,
    slots: NDArray[np.uint64],
    entries: NDArray[np.uint64],
    keys: NDArray[np.uint64],
    text: NDArray[np.uint8],
    num: int,
    text_bytes: int,
) -> tuple[int, int, int]:
    """Entries and bytes of long texts that there are now, and what was added to the counts."""
    last, added = np.uint64(len(slots) - 1), 0
    at, numbers = np.empty(_BLOCK, np.int64), np.empty(_BLOCK, np.int64)
    mixed, first, second = np.empty(_BLOCK, np.uint64), np.empty(_BLOCK, np.uint64), np.empty(_BLOCK, np.uint64)
    for block in range(begin, end, _BLOCK):
        # Each kind of load has a loop of its own, so that they do not wait for each other.
        size, any_long = _hash_block(
            data, offsets, null, weights, given, block, min(block + _BLOCK, end), seed, slots, at, first, second, mixed
        )
        for i in range(size):
            place = mixed[i] & last
            while slots[place] and (slots[place] ^ mixed[i]) > _NUMBER:
                place = (place + np.uint64(1)) & last
            if not slots[place]:
                start, stop = np.int64(offsets[at[i]]), np.int64(offsets[at[i] + 1])
                words = first[i], second[i], mixed[i]
                text_bytes = _insert(data, start, stop, words, place, slots, entries, keys, text, num, text_bytes)
                num += 1
            numbers[i] = np.int64(slots[place] & _NUMBER) - 1
            prefetch(entries, 4 * numbers[i])
        for i in range(size if any_long else 0):
            if entries[numbers[i], _LENGTH] > np.uint64(SHORT):
                prefetch(text, np.int64(entries[numbers[i], _FIRST]))
        for i in range(size):
            start, stop = np.int64(offsets[at[i]]), np.int64(offsets[at[i] + 1])
            # `_is_entry`, written out: as a call it costs more than all else here.
            same = entries[numbers[i], _LENGTH] == np.uint64(stop - start) and entries[numbers[i], _SECOND] == second[i]
            if stop - start <= SHORT:
                same = same and entries[numbers[i], _FIRST] == first[i]
            elif same:
                same = same_bytes(data, start, text, np.int64(entries[numbers[i], _FIRST]), stop - start)
            if not same:
                words = first[i], second[i], mixed[i]
                place = _place(data, start, stop, words, slots, entries, text)
                if not slots[place]:
                    text_bytes = _insert(data, start, stop, words, place, slots, entries, keys, text, num, text_bytes)
                    num += 1
                numbers[i] = np.int64(slots[place] & _NUMBER) - 1
            weight = weights[at[i]] if len(weights) else 1
            entries[numbers[i], _COUNT] += np.uint64(weight)
            added += weight
    return num, text_bytes, added


@njit(nogil=True, cache=True)
def _insert(
    data: NDArray[np.uint8],
    start: int,
    stop: int,
    words: Words,
    place: np.uint64,
    slots: NDArray[np.uint64],
    entries: NDArray[np.uint64],
    keys: NDArray[np.uint64],
    text: NDArray[np.uint8],
    num: int,
    text_bytes: int,
) -> int:
    """Make data[start:stop] entry `num`, with a count of 0; returns the bytes of all long texts."""
    entries[num, _FIRST], entries[num, _SECOND], mixed = words
    if stop - start > SHORT:
        entries[num, _FIRST] = np.uint64(text_bytes)
        text_bytes = copy_bytes(data, start, stop - start, text, text_bytes)
    entries[num, _LENGTH], entries[num, _COUNT] = np.uint64(stop - start), np.uint64(0)
    if len(keys):
        keys[num] = mixed
    slots[place] = (mixed & ~_NUMBER) | np.uint64(num + 1)
    return text_bytes


@njit(nogil=True, cache=True)
def _place(
    data: NDArray[np.uint8],
    start: int,
    stop: int,
    words: Words,
    slots: NDArray[np.uint64],
    entries: NDArray[np.uint64],
    text: NDArray[np.uint8],
) -> np.uint64:
    """The slot of data[start:stop] among all of its hash, or the free one where it would stand."""
    last, mixed = np.uint64(len(slots) - 1), words[2]
    place = mixed & last
    while slots[place]:
        alike = (slots[place] ^ mixed) <= _NUMBER
        number = np.int64(slots[place] & _NUMBER) - 1
        if alike and _is_entry(data, start, stop, words, entries, text, number):
            break
        place = (place + np.uint64(1)) & last
    return place


@njit(nogil=True, cache=True)
def _find(
    data: NDArray[np.uint8],
    offsets: NDArray[np.signedinteger[Any]],
    keys: NDArray[np.uint64],
    seed: np.uint64,
    slots: NDArray[np.uint64],
    entries: NDArray[np.uint64],
    text: NDArray[np.uint8],
    found: NDArray[np.bool_],
) -> None:
    for i in range(len(keys)):
        start, stop = np.int64(offsets[i]), np.int64(offsets[i + 1])
        if stop - start <= SHORT:
            first, second = words_of(data, start, stop - start)
        else:
            first, second = np.uint64(0), xxh64(data, start, stop, seed)
        words = first, second, keys[i]
        found[i] = slots[_place(data, start, stop, words, slots, entries, text)] != 0


@njit(nogil=True, cache=True)
def _hash(
    entries: NDArray[np.uint64],
    bytes_of_entries: NDArray[np.uint8],
    text: NDArray[np.uint8],
    seed: np.uint64,
    keys: NDArray[np.uint64],
) -> None:
    """XXH64 of each entry's text."""
    for i in range(len(entries)):
        length = np.int64(entries[i, _LENGTH])
        if length > SHORT:
            keys[i] = entries[i, _SECOND]
        else:
            keys[i] = xxh64(bytes_of_entries, 32 * i, 32 * i + length, seed)


@njit(nogil=True, cache=True)
def _gather(
    entries: NDArray[np.uint64],
    text: NDArray[np.uint8],
    order: NDArray[np.int64],
    counts: NDArray[np.int64],
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
) -> None:
    """Copy entries one after the other."""
    for i in range(len(order)):
        if i + 2 * _AHEAD < len(order):
            prefetch(entries, 4 * order[i + 2 * _AHEAD])
        if i + _AHEAD < len(order) and entries[order[i + _AHEAD], _LENGTH] > np.uint64(SHORT):
            prefetch(text, np.int64(entries[order[i + _AHEAD], _FIRST]))
        at = order[i]
        counts[i], length = np.int64(entries[at, _COUNT]), np.int64(entries[at, _LENGTH])
        if length > SHORT:
            copy_bytes(text, np.int64(entries[at, _FIRST]), length, data, offsets[i])
        else:  # the next text is written over what is too much
            store_uint64(data, offsets[i], entries[at, _FIRST])
            store_uint64(data, offsets[i] + WORD, entries[at, _SECOND])
        offsets[i + 1] = offsets[i] + length
