"""The kernel behind every lookup: check a key, find its row, decode it to float32, in one pass.

Rows are random accesses to memory, so the kernel asks for the cache lines of a later row before it needs
them. Indices are unsigned, which spares numba's wrap-around of negative ones and lets LLVM vectorise (3x).
One generic kernel: the decoder is chosen by the stored dtype when numba compiles it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload
from numpy.typing import NDArray

from sparsefeed.etl.kernels.intrinsics import load_uint64, prefetch

__all__ = ["gather_rows", "rank_words"]

_ROWS_AHEAD = 12  # asked for before they are needed: about one DRAM latency of work
_LINE_BYTES = 64
_HALF_TO_SINGLE = np.float32(2.0**112)  # 2^(127 - 15): from fp16's exponent bias to fp32's


def rank_words(rows: NDArray[np.int64], capacity: int) -> NDArray[np.uint64]:
    """Index of ascending rows that answers "which one is row r?" in one memory access.

    Word pairs [ceil(capacity / 64), 2]: the bits of 64 rows, and how many rows stand before them: two bits a
    row of capacity, wherever the overlaid rows lie.
    """
    words = np.zeros(((capacity + 63) // 64, 2), np.uint64)
    bits = np.uint64(1) << (rows & 63).astype(np.uint64)
    np.bitwise_or.at(words[:, 0], rows >> 6, bits)
    np.cumsum(np.bincount(rows >> 6, minlength=len(words))[:-1], out=words[1:, 1].view(np.int64))
    return words


@njit(nogil=True, cache=True)
def gather_rows(
    table: NDArray[Any],
    overlay: NDArray[Any],
    words: NDArray[np.uint64],
    width: int,
    capacity: int,
    rows: NDArray[np.int64],
    out: NDArray[np.float32],
) -> int:
    """Decode rows into `out` [n, d]; -1, or the index of the first key outside [0, capacity).

    Args:
        table: stored rows of the base, flat; a row beyond them that no overlay holds is zero.
        overlay: stored rows that replace or extend the base's, flat, in the order of `words`.
        words: `rank_words` of the overlaid rows; length 0 when there are none.
        width: stored elements per row.
        capacity: rows of base and overlay together.
        rows: int64 [n].
        out: float32 [n, d].
    """
    num_rows = len(rows)
    num_base = len(table) // width
    line = _LINE_BYTES // table.itemsize
    for i in range(num_rows):
        if i + _ROWS_AHEAD < num_rows:
            start = rows[i + _ROWS_AHEAD] * width
            for element in range(start, start + width, line):
                prefetch(table, element)
        row = rows[i]
        if row < 0 or row >= capacity:
            return i
        if len(words):
            bits = words[row >> 6, 0]
            bit = np.uint64(row & 63)
            if (bits >> bit) & np.uint64(1):
                rank = words[row >> 6, 1] + _count_bits(bits & ((np.uint64(1) << bit) - np.uint64(1)))
                _decode(overlay, np.uint64(rank * np.uint64(width)), out, np.uint64(i))
                continue
        if row < num_base:
            _decode(table, np.uint64(row * width), out, np.uint64(i))
        else:
            out[i, :] = 0
    return -1


@njit(nogil=True, cache=True, inline="always")
def _count_bits(bits: np.uint64) -> np.uint64:
    # The classic SWAR sum; LLVM knows it and emits one popcnt.
    bits = bits - ((bits >> np.uint64(1)) & np.uint64(0x5555555555555555))
    bits = (bits & np.uint64(0x3333333333333333)) + ((bits >> np.uint64(2)) & np.uint64(0x3333333333333333))
    bits = (bits + (bits >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (bits * np.uint64(0x0101010101010101)) >> np.uint64(56)


def _decode(source: NDArray[Any], start: np.uint64, out: NDArray[np.float32], i: np.uint64) -> None:
    """Decode the stored row that begins at element `start` into out[i]."""
    raise NotImplementedError("only within compiled code")


@overload(_decode)
def _decoder(source: Any, start: Any, out: Any, i: Any) -> Callable[..., None] | None:
    return {types.float32: _decode_fp32, types.uint16: _decode_fp16, types.uint8: _decode_int8}.get(source.dtype)


def _decode_fp32(source: Any, start: Any, out: Any, i: Any) -> None:
    for j in range(np.uint64(out.shape[1])):
        out[i, j] = source[start + j]


def _decode_fp16(source: Any, start: Any, out: Any, i: Any) -> None:
    # Numba has no fp16 on CPUs. Shifted into place, an fp16 is an fp32 with too small an exponent; the
    # product mends it, of subnormal numbers too. Stored rows hold neither NaN nor infinity.
    for j in range(np.uint64(out.shape[1])):
        half = np.uint32(source[start + j])
        bits = ((half & np.uint32(0x7FFF)) << np.uint32(13)) | ((half & np.uint32(0x8000)) << np.uint32(16))
        out[i, j] = np.uint32(bits).view(np.float32) * _HALF_TO_SINGLE


def _decode_int8(source: Any, start: Any, out: Any, i: Any) -> None:
    num_values = np.uint64(out.shape[1])
    tail = load_uint64(source, start + num_values)
    scale = np.uint32(tail & np.uint64(0xFFFFFFFF)).view(np.float32)
    bias = np.uint32(tail >> np.uint64(32)).view(np.float32)
    for j in range(num_values):
        out[i, j] = np.float32(source[start + j]) * scale + bias
