"""Lists of a ragged column, some rows in any order: what a shuffled batch is made of.

Rows lie anywhere in a buffer larger than the caches, so each loop asks for the lines of rows further on.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sparsefeed.etl.kernels.intrinsics import prefetch

__all__ = ["gather_lists", "list_lengths"]

_AHEAD = 16


@njit(nogil=True, cache=True)
def list_lengths(offsets: NDArray[np.int64], rows: NDArray[np.int64], lengths: NDArray[np.int64]) -> int:
    """Write the lengths of some rows' lists; returns their sum.

    Args:
        offsets: int64 [n + 1]: list i is values[offsets[i]:offsets[i + 1]].
        rows: int64 [m], each below n.
        lengths: int64 [m], written.
    """
    total = 0
    for i in range(len(rows)):
        if i + _AHEAD < len(rows):
            prefetch(offsets, rows[i + _AHEAD])
        lengths[i] = offsets[rows[i] + 1] - offsets[rows[i]]
        total += lengths[i]
    return total


@njit(nogil=True, cache=True)
def gather_lists(
    values: NDArray[np.int64], offsets: NDArray[np.int64], rows: NDArray[np.int64], out: NDArray[np.int64]
) -> None:
    """Write the lists of some rows one after the other.

    Args:
        values: int64, of all lists.
        offsets: int64 [n + 1]: list i is values[offsets[i]:offsets[i + 1]].
        rows: int64 [m], each below n.
        out: int64, as long as the lists of these rows are together.
    """
    at = np.uint64(0)  # signed indices are asked each time whether they count from the end: half the speed
    for i in range(len(rows)):
        if i + 2 * _AHEAD < len(rows):
            prefetch(offsets, rows[i + 2 * _AHEAD])
        if i + _AHEAD < len(rows):
            further = rows[i + _AHEAD]
            for line in range(offsets[further], offsets[further + 1] + 7, 8):
                prefetch(values, line)
        begin = np.uint64(offsets[rows[i]])
        length = np.uint64(offsets[rows[i] + 1]) - begin
        for k in range(length):
            out[at + np.uint64(k)] = values[begin + np.uint64(k)]
        at += length
