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
import pyarrow.compute as pc
from numpy.typing import NDArray

from sparsefeed.etl.ids.device_strings import DeviceStrings

__all__ = ["arrow", "arrow_column", "device_strings", "from_arrow", "like", "numpy", "ragged", "strings"]


def _is_cudf(column: Any) -> bool:
    return type(column).__module__.split(".")[0] == "cudf"


def arrow(column: Any) -> pa.Array | pa.ChunkedArray:
    """A frame's column as an Arrow array, or several of them; what is dictionary-encoded stays so."""
    if _is_cudf(column):
        return column.to_arrow()
    array = pa.Array.from_pandas(column)
    if isinstance(array, pa.ChunkedArray) and array.num_chunks == 1:
        return array.chunk(0)
    return array


def numpy(column: Any) -> NDArray[Any]:
    """A numeric column without nulls as a numpy array; of Arrow's memory it is a view."""
    if isinstance(column.dtype, pd.ArrowDtype):
        return np.asarray(arrow(column).to_numpy())
    return np.asarray(column.to_numpy())


def strings(column: Any) -> tuple[NDArray[np.int64] | None, pa.Array | pa.ChunkedArray]:
    """An id column: (None, strings) or, for a list column, (offsets int64 [n+1], flat strings)."""
    array = arrow(column)
    if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
        return None, array
    chunks = array.chunks if isinstance(array, pa.ChunkedArray) else [array]
    # A null list is an empty one; its offsets may span anything.
    lengths = [np.asarray(pc.fill_null(pc.list_value_length(chunk), 0).to_numpy(), np.int64) for chunk in chunks]
    flat = pa.chunked_array([chunk.flatten() for chunk in chunks], array.type.value_type)
    return np.r_[0, np.cumsum(np.concatenate([np.empty(0, np.int64), *lengths]))], flat


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


def arrow_column(array: pa.Array | pa.ChunkedArray | NDArray[Any]) -> pd.Series:
    """A column that keeps the memory it is given: no Python object per value, no copy when columns are chosen."""
    if isinstance(array, np.ndarray):
        array = pa.array(array)
    chunked = array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array])
    return pd.Series(pd.arrays.ArrowExtensionArray(chunked))


def ragged(offsets: NDArray[np.int64], values: NDArray[Any]) -> pd.Series:
    """A list column whose row i is values[offsets[i]:offsets[i+1]]."""
    return arrow_column(pa.ListArray.from_arrays(pa.array((offsets - offsets[0]).astype(np.int32)), pa.array(values)))


def from_arrow(columns: dict[str, Any], cudf: bool) -> Any:
    """A frame of columns [n]: numpy arrays, or Arrow arrays of strings or lists."""
    if cudf:
        import cudf as library

        return library.DataFrame.from_arrow(pa.table(columns))
    return like(pd.DataFrame(index=pd.RangeIndex(len(next(iter(columns.values()))))), columns)


def like(frame: Any, columns: dict[str, Any]) -> Any:
    """A frame of the same library and index as `frame`, with these columns: Series, numpy or Arrow arrays."""
    if _is_cudf(frame):
        import cudf

        return cudf.DataFrame({k: cudf.Series(v, index=frame.index) for k, v in columns.items()}, index=frame.index)
    series = {k: v if isinstance(v, pd.Series) else arrow_column(v) for k, v in columns.items()}
    for column in series.values():
        column.index = frame.index
    return pd.DataFrame(series, index=frame.index, copy=False)
