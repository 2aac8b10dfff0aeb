"""The lookup: key -> row in one pass over overlay, function, fingerprint and tail.

`row_of_key` says what a lookup is, one key at a time; a GPU runs it so. The CPU's kernels give the same in blocks
(see mph.positions_of_block) and hash strings and integers on the way, so that no key is ever written to memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sparsefeed.etl.ids.codes import FIRST_TAIL_ROW
from sparsefeed.etl.ids.keys import Ints, Strings, hash_words, over_strings, words_of
from sparsefeed.etl.ids.mph import BLOCK, positions_of_block
from sparsefeed.etl.ids.overlay import ABSENT, overwrite_block, row_in
from sparsefeed.etl.ids.slots import Function, position_of
from sparsefeed.etl.ids.xxh64 import xxh64
from sparsefeed.etl.kernels.threads import over_slices

__all__ = ["FIRST_TAIL_ROW", "NULL_ROW", "PADDING_ROW", "Probe", "Tail", "row_of_key"]

PADDING_ROW = 0
NULL_ROW = 1
_MIN_SLICE = 1 << 15  # ids per thread below which starting a thread costs more than it saves


class Tail(NamedTuple):
    """What ids without a row of their own get, a row of the tail or a code for two: `first` + key mod `size`."""

    first: int
    size: int

    def of_key(self, key: int) -> int:
        """Row or code of one key."""
        return self.first + key % self.size


class Probe(NamedTuple):
    """All that a lookup reads, as kernels take it.

    Attributes:
        function: the base's.
        fingerprints: uint8, uint16, uint32 or uint64 [n]: the low bits of the key at each position.
        rows: uint32 [n]: the row of the key at each position; empty: rows follow positions, from the tail's end on.
        overlay: int64 [capacity, 2], see `Overlay`.
        overlay_filter: uint64 [capacity / 8].
        key_seed: XXH64 seed of the keys.
        num_tail: T, rows of the tail; at least 1.
        tail_first: int64, see `Tail`.
        tail_size: likewise; at least 1.
        num_rows: rows of the map.
    """

    function: Function
    fingerprints: NDArray[np.unsignedinteger[Any]]
    rows: NDArray[np.uint32]
    overlay: NDArray[np.int64]
    overlay_filter: NDArray[np.uint64]
    key_seed: np.uint64
    num_tail: np.uint64
    tail_first: np.int64
    tail_size: np.uint64
    num_rows: np.uint64

    def of_keys(self, keys: NDArray[np.uint64], rows: NDArray[np.int64]) -> None:
        """Write the rows of keys, uint64 [n], into rows, int64 [n]."""
        keys = np.ascontiguousarray(keys, np.uint64)
        if len(keys) < 2 * _MIN_SLICE:  # a request's: slices and their threads cost more than a lookup of hundreds
            _probe_keys(keys, self, rows)
            return
        over_slices(lambda start, stop: _probe_keys(keys[start:stop], self, rows[start:stop]), len(keys), _MIN_SLICE)

    def of_ints(self, values: Ints, rows: NDArray[np.int64]) -> None:
        """Write the rows of integers [n] into rows, int64 [n]."""
        words = words_of(values)
        over_slices(lambda start, stop: _probe_ints(words[start:stop], self, rows[start:stop]), len(words), _MIN_SLICE)

    def of_strings(self, strings: Strings, rows: NDArray[np.int64]) -> None:
        """Write the rows of strings [n] into rows, int64 [n]; NULL_ROW for null and empty ones."""
        out = rows

        def of_buffers(data: NDArray[np.uint8], offsets: NDArray[Any]) -> tuple[NDArray[np.int64]]:
            num = len(offsets) - 1  # of all the strings, of a chunk, or of a dictionary
            rows = out if num == len(out) else np.empty(num, np.int64)
            over_slices(
                lambda start, stop: _probe_strings(data, offsets[start : stop + 1], self, rows[start:stop]),
                len(rows),
                _MIN_SLICE,
            )
            return (rows,)

        (found,) = over_strings(strings, of_buffers, (np.int64(NULL_ROW),))
        if found is not out:
            out[:] = found


@njit(nogil=True, cache=True)
def _tail_row(key: np.uint64, tail_first: np.int64, tail_size: np.uint64) -> np.int64:
    return np.int64(tail_first + np.int64(key % tail_size))


@njit(nogil=True, cache=True)
def row_of_key(key: np.uint64, probe: Probe) -> np.int64:
    """Find the row of one key."""
    row = np.int64(ABSENT)
    if len(probe.overlay):
        row = row_in(probe.overlay, key)
    if row == ABSENT and len(probe.fingerprints):
        position = position_of(key, probe.function)
        width = np.uint64(64 - 8 * probe.fingerprints.itemsize)
        if np.uint64(probe.fingerprints[position]) << width == key << width:
            if len(probe.rows):
                row = np.int64(probe.rows[position])
            else:
                row = np.int64(np.uint64(FIRST_TAIL_ROW) + probe.num_tail + position)
    return np.int64(row if np.uint64(row) < probe.num_rows else _tail_row(key, probe.tail_first, probe.tail_size))


@njit(nogil=True, cache=True)
def _rows_of_block(
    keys: NDArray[np.uint64],
    probe: Probe,
    hashes: NDArray[np.uint64],
    pilots: NDArray[np.uint64],
    places: NDArray[np.uint64],
    rows: NDArray[np.int64],
) -> None:
    """Rows of at most BLOCK keys; the other arrays are BLOCK long and overwritten."""
    # Loops lie in functions of plain arrays: a field of a tuple is counted as a reference at every turn of a loop.
    num_unseen = len(keys)
    if len(probe.fingerprints):
        positions_of_block(keys, probe.function, hashes, pilots, places)
        _load(places[: len(keys)], probe.fingerprints, pilots)
        width = np.uint64(64 - 8 * probe.fingerprints.itemsize)
        first_row = np.uint64(FIRST_TAIL_ROW) + probe.num_tail
        num_unseen = _compare(keys, places, pilots, width, first_row, rows)
        if len(probe.rows):
            num_unseen += _take(probe.rows, first_row, probe.num_rows, rows)
    else:
        rows[:] = ABSENT
    if len(probe.overlay):
        overwrite_block(keys, probe.overlay, probe.overlay_filter, probe.num_rows, places, rows)
        num_unseen = len(keys)
    if num_unseen:  # apart, for a division costs more than all the rest
        _send_to_tail(keys, probe.tail_first, probe.tail_size, rows)


@njit(nogil=True, cache=True)
def _load(
    positions: NDArray[np.uint64], fingerprints: NDArray[np.unsignedinteger[Any]], found: NDArray[np.uint64]
) -> None:
    for i in range(len(positions)):
        found[i] = fingerprints[positions[i]]


@njit(nogil=True, cache=True)
def _compare(
    keys: NDArray[np.uint64],
    positions: NDArray[np.uint64],
    found: NDArray[np.uint64],
    width: np.uint64,
    first_row: np.uint64,
    rows: NDArray[np.int64],
) -> int:
    """Write the rows of keys whose fingerprint is right, ABSENT for the others, and count these."""
    num_unseen = 0
    for i in range(len(keys)):
        seen = found[i] << width == keys[i] << width
        rows[i] = np.int64(first_row + positions[i]) if seen else np.int64(ABSENT)
        num_unseen += 0 if seen else 1
    return num_unseen


@njit(nogil=True, cache=True)
def _take(kept: NDArray[np.uint32], first_row: np.uint64, num_rows: np.uint64, rows: NDArray[np.int64]) -> int:
    """Put the rows kept at positions in place of those that follow them; count those that an altered file made none."""
    num_wrong = 0
    for i in range(len(rows)):
        if rows[i] != ABSENT:
            row = kept[np.uint64(rows[i]) - first_row]
            rows[i] = np.int64(row) if np.uint64(row) < num_rows else np.int64(ABSENT)
            num_wrong += 0 if np.uint64(row) < num_rows else 1
    return num_wrong


@njit(nogil=True, cache=True)
def _send_to_tail(
    keys: NDArray[np.uint64], tail_first: np.int64, tail_size: np.uint64, rows: NDArray[np.int64]
) -> None:
    for i in range(len(keys)):
        if rows[i] == ABSENT:
            rows[i] = _tail_row(keys[i], tail_first, tail_size)


@njit(nogil=True, cache=True)
def _probe_keys(keys: NDArray[np.uint64], probe: Probe, rows: NDArray[np.int64]) -> None:
    """Rows of keys."""
    hashes, pilots, places = np.empty(BLOCK, np.uint64), np.empty(BLOCK, np.uint64), np.empty(BLOCK, np.uint64)
    for start in range(0, len(keys), BLOCK):
        stop = min(start + BLOCK, len(keys))
        _rows_of_block(keys[start:stop], probe, hashes, pilots, places, rows[start:stop])


@njit(nogil=True, cache=True)
def _probe_ints(words: NDArray[np.uint64], probe: Probe, rows: NDArray[np.int64]) -> None:
    """Rows of integers, given as their 64 bits."""
    hashes, pilots, places = np.empty(BLOCK, np.uint64), np.empty(BLOCK, np.uint64), np.empty(BLOCK, np.uint64)
    keys = np.empty(BLOCK, np.uint64)
    for start in range(0, len(words), BLOCK):
        num = min(BLOCK, len(words) - start)
        hash_words(words[start : start + num], probe.key_seed, keys)
        _rows_of_block(keys[:num], probe, hashes, pilots, places, rows[start : start + num])


@njit(nogil=True, cache=True)
def _probe_strings(
    data: NDArray[np.uint8], offsets: NDArray[np.signedinteger[Any]], probe: Probe, rows: NDArray[np.int64]
) -> None:
    """Rows of the strings data[offsets[i]:offsets[i + 1]]; NULL_ROW for an empty one."""
    hashes, pilots, places = np.empty(BLOCK, np.uint64), np.empty(BLOCK, np.uint64), np.empty(BLOCK, np.uint64)
    keys = np.empty(BLOCK, np.uint64)
    for start in range(0, len(rows), BLOCK):
        num = min(BLOCK, len(rows) - start)
        for i in range(num):
            first, last = np.int64(offsets[start + i]), np.int64(offsets[start + i + 1])
            keys[i] = xxh64(data, first, last, probe.key_seed)
        _rows_of_block(keys[:num], probe, hashes, pilots, places, rows[start : start + num])
        for i in range(num):
            if offsets[start + i] == offsets[start + i + 1]:
                rows[start + i] = NULL_ROW
