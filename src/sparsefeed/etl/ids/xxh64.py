"""XXH64, one value at a time: scalar arithmetic that the CPU's kernels and the GPU's compile alike.

Written from the specification, https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md. Nothing here is
peculiar to one processor, so numba compiles the same lines for both and both give the same bits.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["load_word", "xxh64", "xxh64_of_word"]

_PRIME_1 = np.uint64(0x9E3779B185EBCA87)
_PRIME_2 = np.uint64(0xC2B2AE3D27D4EB4F)
_PRIME_3 = np.uint64(0x165667B19E3779F9)
_PRIME_4 = np.uint64(0x85EBCA77C2B2AE63)
_PRIME_5 = np.uint64(0x27D4EB2F165667C5)


@njit(nogil=True, cache=True)
def _rotate(word: np.uint64, bits: int) -> np.uint64:
    return (word << np.uint64(bits)) | (word >> np.uint64(64 - bits))


@njit(nogil=True, cache=True)
def _round(lane: np.uint64, word: np.uint64) -> np.uint64:
    return np.uint64(_rotate(lane + word * _PRIME_2, 31) * _PRIME_1)


@njit(nogil=True, cache=True)
def _merge(state: np.uint64, lane: np.uint64) -> np.uint64:
    return np.uint64((state ^ _round(np.uint64(0), lane)) * _PRIME_1 + _PRIME_4)


@njit(nogil=True, cache=True)
def _word(state: np.uint64, word: np.uint64) -> np.uint64:
    return np.uint64(_rotate(state ^ _round(np.uint64(0), word), 27) * _PRIME_1 + _PRIME_4)


@njit(nogil=True, cache=True)
def _avalanche(state: np.uint64) -> np.uint64:
    state = (state ^ (state >> np.uint64(33))) * _PRIME_2
    state = (state ^ (state >> np.uint64(29))) * _PRIME_3
    return state ^ (state >> np.uint64(32))


@njit(nogil=True, cache=True)
def load_word(data: NDArray[np.uint8], start: int) -> np.uint64:
    """Load eight bytes, little endian, from any address: one load on x86, eight on a GPU."""
    at = np.uint64(start)  # an index that can't be negative, or the compiler does not see the one load
    word = np.uint64(data[at])
    for i in range(1, 8):
        word |= np.uint64(data[at + np.uint64(i)]) << np.uint64(8 * i)
    return word


@njit(nogil=True, cache=True)
def xxh64(data: NDArray[np.uint8], start: int, stop: int, seed: np.uint64) -> np.uint64:
    """Hash data[start:stop]; the caller proves that the bytes are there."""
    at = start
    if stop - start >= 32:
        lane_1 = seed + _PRIME_1 + _PRIME_2
        lane_2 = seed + _PRIME_2
        lane_3 = seed
        lane_4 = seed - _PRIME_1
        while at + 32 <= stop:
            lane_1 = _round(lane_1, load_word(data, at))
            lane_2 = _round(lane_2, load_word(data, at + 8))
            lane_3 = _round(lane_3, load_word(data, at + 16))
            lane_4 = _round(lane_4, load_word(data, at + 24))
            at += 32
        state = _rotate(lane_1, 1) + _rotate(lane_2, 7) + _rotate(lane_3, 12) + _rotate(lane_4, 18)
        state = _merge(_merge(_merge(_merge(state, lane_1), lane_2), lane_3), lane_4)
    else:
        state = seed + _PRIME_5
    state += np.uint64(stop - start)
    while at + 8 <= stop:
        state = _word(state, load_word(data, at))
        at += 8
    if at + 4 <= stop:
        half = np.uint64(0)
        for i in range(4):
            half |= np.uint64(data[at + i]) << np.uint64(8 * i)
        state = _rotate(state ^ (half * _PRIME_1), 23) * _PRIME_2 + _PRIME_3
        at += 4
    while at < stop:
        state = _rotate(state ^ (np.uint64(data[at]) * _PRIME_5), 11) * _PRIME_1
        at += 1
    return np.uint64(_avalanche(state))


@njit(nogil=True, cache=True)
def xxh64_of_word(word: np.uint64, seed: np.uint64) -> np.uint64:
    """Hash the eight bytes of a word, little endian."""
    return np.uint64(_avalanche(_word(seed + _PRIME_5 + np.uint64(8), word)))
