"""Embedding rows as stored: fp32, fp16, or int8 with a scale and a bias per row.

int8 is fbgemm's fused 8-bit row-wise layout, bit for bit: d bytes q, float32 scale, float32 bias, little
endian, so fbgemm reads our files and we read its arrays.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sparsefeed.errors import BundleError
from sparsefeed.models.store.gather import gather_rows

__all__ = [
    "DTYPES",
    "ROW_FORMATS",
    "RowFormat",
    "dequantise",
    "dim_of",
    "flat",
    "format_of",
    "gather",
    "output_for",
    "quantise",
    "read_only_keys",
    "width_of",
]

RowFormat = Literal["fp32", "fp16", "int8"]
ROW_FORMATS: tuple[RowFormat, ...] = ("fp32", "fp16", "int8")
DTYPES: dict[RowFormat, np.dtype[Any]] = {
    "fp32": np.dtype("<f4"),
    "fp16": np.dtype("<f2"),
    "int8": np.dtype("u1"),
}

_LARGEST: dict[RowFormat, float] = {
    "fp32": float(np.finfo(np.float32).max),
    "fp16": float(np.finfo(np.float16).max),
    "int8": float(np.finfo(np.float32).max) / 2,  # max - min must be finite too
}
_TAIL_BYTES = 8  # scale and bias behind the q of an int8 row


def width_of(row_format: RowFormat, dim: int) -> int:
    """Elements per stored row of `dim` floats."""
    return dim + _TAIL_BYTES if row_format == "int8" else dim


def dim_of(row_format: RowFormat, width: int) -> int:
    """Floats per row of `width` stored elements."""
    return width - _TAIL_BYTES if row_format == "int8" else width


def format_of(dtype: np.dtype[Any]) -> RowFormat | None:
    """Return the row format stored with this dtype; None when there is none."""
    return next((name for name, stored in DTYPES.items() if stored == dtype), None)


def quantise(values: NDArray[np.float32], row_format: RowFormat) -> NDArray[Any]:
    """Store rows: float32 [n, d] -> [n, width] of the format's dtype.

    int8: q = round_half_even((x - min) * (255 / (max - min + 1e-8))), scale = (max - min) / 255, bias = min, all in
    float32: `FloatToFused8BitRowwiseQuantized` of fbgemm. The error of a value is at most scale / 2 and
    rounding; a row of equal values is exact.

    Raises:
        BundleError: a value is NaN or too large for the format; the row is named.
    """
    rows = np.ascontiguousarray(values, np.float32)
    good = np.abs(rows) <= _LARGEST[row_format]
    if not good.all():
        row, column = np.argwhere(~good)[0]
        raise BundleError(
            f"row {row}: value {rows[row, column]} cannot be stored as {row_format}; finite values up to "
            f"{_LARGEST[row_format]:.6g} can; look at the training run (learning rate) or choose row_format fp32"
        )
    if row_format != "int8":
        return rows.astype(DTYPES[row_format])
    num_rows, dim = rows.shape
    out = np.empty((num_rows, dim + _TAIL_BYTES), np.uint8)
    if num_rows:
        low = rows.min(axis=1, keepdims=True) + np.float32(0)  # -0 becomes 0: equal rows, equal bytes
        span = rows.max(axis=1, keepdims=True) - low
        inverse = np.float32(255) / (span + np.float32(1e-8))
        out[:, :dim] = np.rint((rows - low) * inverse)
        out[:, dim:] = np.hstack([span / np.float32(255), low]).astype("<f4").view(np.uint8)
    return out


def dequantise(table: NDArray[Any], row_format: RowFormat) -> NDArray[np.float32]:
    """Read all stored rows [n, width] -> float32 [n, d]: the values that a lookup gives."""
    return gather(table, np.arange(len(table)), row_format, dim_of(row_format, table.shape[1]))


def gather(
    table: NDArray[Any],
    rows: NDArray[np.int64],
    row_format: RowFormat,
    dim: int,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Read rows of a stored table, float32 [n, dim], into `out` when it is given.

    Raises:
        IndexError: a row is outside [0, len(table)); `out` may then be filled in part.
        ValueError: `table` or `out` has not the shape and dtype of `row_format` and `dim`.
    """
    if table.dtype != DTYPES[row_format] or table.shape[1:] != (width_of(row_format, dim),):
        raise ValueError(
            f"table: got {table.dtype} {list(table.shape)}; {row_format} rows of {dim} floats are "
            f"{DTYPES[row_format]} [n, {width_of(row_format, dim)}]"
        )
    out = output_for(len(rows), dim, out)
    stored, no_words = flat(table, row_format), np.empty((0, 2), np.uint64)
    at = gather_rows(stored, stored[:0], no_words, table.shape[1], len(table), read_only_keys(rows), out)
    if at >= 0:
        raise IndexError(f"rows[{at}]: got {rows[at]}; the table has rows [0, {len(table)})")
    return out


def output_for(num_rows: int, dim: int, out: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """`out`, proven to hold float32 [num_rows, dim] (the kernel checks no bounds), or a new array."""
    if out is None:
        return np.empty((num_rows, dim), np.float32)
    if out.dtype != np.float32 or out.shape != (num_rows, dim) or not out.flags.c_contiguous:
        raise ValueError(f"out: got {out.dtype} {list(out.shape)}; must be C-ordered float32 [{num_rows}, {dim}]")
    return out


def flat(table: NDArray[Any], row_format: RowFormat) -> NDArray[Any]:
    """Return stored rows as the kernel takes them: one dimension, fp16 as its bits, read-only."""
    return _read_only(table.reshape(-1).view(np.uint16 if row_format == "fp16" else table.dtype))


def read_only_keys(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return keys as the kernel takes them: contiguous and read-only; TypeError when they are not int64."""
    return _read_only(np.ascontiguousarray(np.asarray(rows).astype(np.int64, casting="safe", copy=False)))


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    # Numba types a read-only array apart: giving it no other kind compiles one kernel per format, not four.
    view = array.view(np.ndarray)
    view.flags.writeable = False
    return view
