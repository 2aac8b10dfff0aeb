"""Kernels of a request's state: rows of a snapshot by key, its lists cut and padded, and what has no row of its own.

A request has hundreds of rows, so that what numpy asks for every call, a few microseconds, is most of its time: each
kernel does in one pass what were five to ten array expressions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = [
    "find_sorted",
    "flag_missing",
    "flag_strange",
    "pad_rows",
    "read_only",
    "take_floats",
    "take_keys",
    "take_lists",
]


@njit(nogil=True, cache=True)
def find_sorted(sorted_keys: NDArray[np.uint64], wanted: NDArray[np.uint64], found: NDArray[np.int64]) -> None:
    """Index of each wanted key, -1 where it is not there.

    All searches go a step at a time: their reads do not wait for each other, as those of one search do.

    Args:
        sorted_keys: uint64 [n], ascending and unique.
        wanted: uint64 [m].
        found: int64 [m], written.
    """
    found[:] = 0
    size = len(sorted_keys)
    while size > 1:
        half = size // 2
        for i in range(len(wanted)):
            middle = found[i] + half
            found[i] = middle if sorted_keys[middle] <= wanted[i] else found[i]
        size -= half
    for i in range(len(wanted)):
        if not len(sorted_keys) or sorted_keys[found[i]] != wanted[i]:
            found[i] = -1


@njit(nogil=True, cache=True)
def take_floats(values: NDArray[np.float32], at: NDArray[np.int64], fill: bool, out: NDArray[np.float32]) -> None:
    """Rows `at` of values [n, D] into out [m, D]; where `at` is -1 NaN if `fill`, else what was there."""
    for i in range(len(at)):
        if fill or at[i] >= 0:
            for j in range(out.shape[1]):
                out[i, j] = values[at[i], j] if at[i] >= 0 else np.float32(np.nan)


@njit(nogil=True, cache=True)
def take_keys(values: NDArray[np.uint64], at: NDArray[np.int64], fill: bool, out: NDArray[np.uint64]) -> None:
    """Values `at` into out [m, 1]; where `at` is -1 0 if `fill`, else what was there."""
    for i in range(len(at)):
        if fill or at[i] >= 0:
            out[i, 0] = values[at[i]] if at[i] >= 0 else np.uint64(0)


@njit(nogil=True, cache=True)
def take_lists(
    offsets: NDArray[np.int64],
    values: NDArray[np.uint64],
    at: NDArray[np.int64],
    fill: bool,
    out: NDArray[np.uint64],
    lengths: NDArray[np.int64],
) -> None:
    """Lists `at`, cut to the width of out [m, L] and 0 beyond their lengths [m].

    Args:
        offsets: int64 [n + 1]: list i is values[offsets[i]:offsets[i + 1]].
        values: uint64, of all lists.
        at: int64 [m], -1 for none.
        fill: whether none is an empty list; else what was there stays.
        out: uint64 [m, L], written.
        lengths: int64 [m], written.
    """
    for i in range(len(at)):
        if not fill and at[i] < 0:
            continue
        start, length = np.int64(0), np.int64(0)
        if at[i] >= 0:
            start = offsets[at[i]]
            length = np.int64(min(offsets[at[i] + 1] - start, out.shape[1]))
        lengths[i] = length
        for j in range(out.shape[1]):
            out[i, j] = values[start + j] if j < length else np.uint64(0)


@njit(nogil=True, cache=True)
def pad_rows(
    keys: NDArray[np.uint64], lengths: NDArray[np.int64], padding: int, null: int, rows: NDArray[np.int64]
) -> None:
    """Overwrite rows [m, L] of a table: `padding` beyond the lengths [m], `null` where the key is 0."""
    for i in range(len(lengths)):
        for j in range(rows.shape[1]):
            if j >= lengths[i]:
                rows[i, j] = padding
            elif keys[i, j] == 0:
                rows[i, j] = null


@njit(nogil=True, cache=True)
def flag_strange(
    rows: NDArray[np.int64],
    keys: NDArray[np.uint64],
    first_row: int,
    null_too: bool,
    bit: int,
    bits: NDArray[np.int32],
) -> None:
    """Set a bit of bits [m] where one of rows [m, L] is before `first_row`; that of a null only if `null_too`."""
    for i in range(len(rows)):
        for j in range(rows.shape[1]):
            if rows[i, j] < first_row and (null_too or keys[i, j] != 0):
                bits[i] |= bit


@njit(nogil=True, cache=True)
def flag_missing(found: NDArray[np.bool_], bit: int, bits: NDArray[np.int32]) -> None:
    """Write bits [m]: `bit` where it was not found, else none."""
    for i in range(len(found)):
        bits[i] = 0 if found[i] else bit


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """A plain view as kernels take it: numba compiles a read-only array apart, and mapped files are so."""
    view = array.view(np.ndarray)
    view.flags.writeable = False
    return view
