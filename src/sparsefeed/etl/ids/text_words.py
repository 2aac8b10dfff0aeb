"""Texts eight bytes at a time: short ones as two words and their hash, long ones compared and copied.

The caller proves that the bytes are there. What is marked `inline` stands in the innermost loops: numba counts the
references of arrays that it hands to another function, which costs more than the function does.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sparsefeed.etl.kernels.intrinsics import load_uint64, store_uint64

__all__ = ["SHORT", "WORD", "copy_bytes", "hash_of", "same_bytes", "words_of"]

WORD, SHORT = 8, 16  # bytes of a word, and of a text that two words hold
_MULTIPLIERS = (np.uint64(0xA0761D6478BD642F), np.uint64(0xE7037ED1A0B428DB), np.uint64(0x8EBC6AF09C88C6E3))


@njit(nogil=True, cache=True, inline="always")
def words_of(data: NDArray[np.uint8], start: int, length: int) -> tuple[np.uint64, np.uint64]:
    """The one to sixteen bytes from `start` on as two words, with zeros after them."""
    if start + SHORT <= len(data):
        # Without branches: lengths are hard to guess.
        first, second = load_uint64(data, start), load_uint64(data, start + WORD)
        unused = np.uint64(8 * max(0, WORD - length))
        first = (first << unused) >> unused
        unused = np.uint64(8 * (SHORT - max(length, WORD + 1)))
        return first, (second << unused) >> unused if length > WORD else np.uint64(0)
    first, second = np.uint64(0), np.uint64(0)
    for i in range(length):
        byte = np.uint64(data[start + i]) << np.uint64(8 * (i % WORD))
        if i < WORD:
            first |= byte
        else:
            second |= byte
    return first, second


@njit(nogil=True, cache=True, inline="always")
def hash_of(first: np.uint64, second: np.uint64, length: int) -> np.uint64:
    """Hash of a short text; a longer one's is its second word."""
    if length > SHORT:
        return second
    mixed = (first ^ np.uint64(length)) * _MULTIPLIERS[0]
    mixed = ((mixed ^ (mixed >> np.uint64(32))) + second) * _MULTIPLIERS[1]
    mixed = (mixed ^ (mixed >> np.uint64(29))) * _MULTIPLIERS[2]
    return mixed ^ (mixed >> np.uint64(32))


@njit(nogil=True, cache=True, inline="always")
def same_bytes(data: NDArray[np.uint8], start: int, text: NDArray[np.uint8], other: int, length: int) -> bool:
    """Whether two long texts are equal."""
    at = 0
    while at + WORD < length and load_uint64(data, start + at) == load_uint64(text, other + at):
        at += WORD
    at = min(at, length - WORD)  # the last word overlaps the one before
    return bool(load_uint64(data, start + at) == load_uint64(text, other + at))


@njit(nogil=True, cache=True)
def copy_bytes(data: NDArray[np.uint8], start: int, length: int, to: NDArray[np.uint8], at: int) -> int:
    """Copy data[start:start + length], a word at least, to to[at:]; returns the end."""
    for copied in range(0, length - WORD, WORD):
        store_uint64(to, at + copied, load_uint64(data, start + copied))
    store_uint64(to, at + length - WORD, load_uint64(data, start + length - WORD))
    return at + length
