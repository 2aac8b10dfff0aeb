"""Columns of a pandas or cuDF frame as Arrow arrays, and ragged results back: the one place that tells the two apart.

A cuDF column of strings is read where it lies (`device_strings`); other cuDF columns pass through host memory.
Written for RAPIDS 24.02, not run on a GPU yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from sparsefeed.etl.ids.device_strings import DeviceStrings

__all__ = ["arrow", "device_strings", "like", "numpy", "ragged", "strings"]


def _is_cudf(column: Any) -> bool:
    return type(column).__module__.split(".")[0] == "cudf"


def arrow(column: Any) -> pa.Array:
    """A frame's column as one Arrow array; pandas categoricals stay dictionary-encoded."""
    if _is_cudf(column):
        return column.to_arrow()
    array = pa.Array.from_pandas(column)
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def numpy(column: Any) -> NDArray[Any]:
    """A numeric column as a numpy array."""
    return np.asarray(column.to_numpy())


def strings(column: Any) -> tuple[NDArray[np.int64] | None, pa.Array]:
    """An id column: (None, strings) or, for a list column, (offsets int64 [n+1], flat strings)."""
    array = arrow(column)
    if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
        return None, array
    offsets = array.offsets.to_numpy().astype(np.int64)
    if array.null_count:
        # A null list is an empty one; its offsets may span anything.
        keep = np.where(array.is_valid().to_numpy(zero_copy_only=False), np.diff(offsets), 0)
        return np.r_[0, np.cumsum(keep)], array.flatten()
    return offsets - offsets[0], array.flatten()


def device_strings(column: Any) -> DeviceStrings | None:
    """A cuDF column of strings in device memory, not copied; None for any other column.

    The buffers come by the dataframe interchange protocol (`__dataframe__`), which is the same in every cuDF whose
    columns keep their characters here or there.
    """
    if not _is_cudf(column) or len(column) == 0 or column.dtype != np.dtype(object):  # not strings, but lists or others
        return None
    buffers = column.to_frame("ids").__dataframe__().get_column(0).get_buffers()
    (data, _), (offsets, (_, offset_bits, _, _)) = buffers["data"], buffers["offsets"]
    mask = buffers["validity"]
    return DeviceStrings(
        _Buffer(data, np.dtype(np.uint8), data.bufsize),
        _Buffer(offsets, np.dtype(f"int{offset_bits}"), len(column) + 1),
        None if mask is None else _Buffer(mask[0], np.dtype(np.uint8), mask[0].bufsize),
    )


@dataclass(frozen=True)
class _Buffer:
    """A buffer of the interchange protocol as CUDA libraries take arrays; it keeps the memory alive."""

    buffer: Any
    dtype: np.dtype[Any]
    num_items: int

    @property
    def shape(self) -> tuple[int]:
        return (self.num_items,)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (self.buffer.ptr, False), "version": 3}


def ragged(offsets: NDArray[np.int64], values: NDArray[Any]) -> pd.Series:
    """A list column whose row i is values[offsets[i]:offsets[i+1]]."""
    return pd.Series(np.split(values, offsets[1:-1]) if len(offsets) > 1 else [], dtype=object)


def like(frame: Any, columns: dict[str, Any]) -> Any:
    """A frame of the same library and index as `frame`, with these columns."""
    if _is_cudf(frame):
        import cudf

        return cudf.DataFrame({k: cudf.Series(v, index=frame.index) for k, v in columns.items()}, index=frame.index)
    out = pd.DataFrame(index=frame.index)
    for name, column in columns.items():
        if isinstance(column, pd.Series):
            column.index = frame.index
        out[name] = column
    return out
