"""Columns of a pandas or cuDF frame as arrays, and results back: the one place that tells the two apart.

Of a cuDF frame, numbers (`values`) and strings that are no dictionary (`device_strings`) are read where they lie;
lists and dictionaries pass through host memory, both ways. What a function does for cuDF was written for cuDF 24.02
and has not been run, for cuDF was not where a GPU was ("not run", below); every ETL test runs what it does for pandas.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sparsefeed.etl.ids.device_strings import DeviceStrings
from sparsefeed.etl.kernels.arrays import to_host

__all__ = [
    "Column",
    "Frame",
    "arrow",
    "arrow_column",
    "device_strings",
    "from_arrow",
    "like",
    "narrow",
    "numpy",
    "ragged",
    "strings",
    "values",
    "with_nulls",
]

Column: TypeAlias = Any  # pandas.Series or cudf.Series; neither has types to check by
Frame: TypeAlias = Any  # pandas.DataFrame or cudf.DataFrame
Arrow: TypeAlias = "pa.Array | pa.ChunkedArray"


def with_nulls(array: pa.Array) -> NDArray[Any]:
    """The numbers of an Arrow array [n] where they lie; at a null stands any."""
    return np.asarray(pa.Array.from_buffers(array.type, len(array), [None, array.buffers()[1]], 0, array.offset))


def _nan_for_null(array: Arrow) -> Arrow:
    return pc.fill_null(array, np.nan) if array.null_count and pa.types.is_floating(array.type) else array


def _is_cudf(column: Column | Frame) -> bool:
    return type(column).__module__.split(".")[0] == "cudf"


def arrow(column: Column) -> Arrow:
    """A frame's column as an Arrow array, or several of them; what is dictionary-encoded stays so.

    cuDF: copied to host memory. Not run.
    """
    if _is_cudf(column):
        return column.to_arrow()
    array = pa.Array.from_pandas(column)
    if isinstance(array, pa.ChunkedArray) and array.num_chunks == 1:
        return array.chunk(0)
    return array


def numpy(column: Column) -> NDArray[Any]:
    """A numeric column as a numpy array [n], NaN for a float's null; of Arrow's memory it is a view if it has none.

    cuDF: copied to host memory. Not run.
    """
    if isinstance(column.dtype, pd.ArrowDtype):
        return np.asarray(_nan_for_null(arrow(column)).to_numpy())
    return np.asarray(column.to_numpy())


def values(column: Column) -> NDArray[Any]:
    """A numeric column where it lies, for kernels that take numpy and CuPy alike: [n].

    pandas: as `numpy`. cuDF: a CuPy array over the column's own memory, so kernels must not write it. Not run.
    """
    array: NDArray[Any] = column.values if _is_cudf(column) else numpy(column)
    return array


def strings(column: Column) -> tuple[NDArray[np.int64] | None, Arrow]:
    """An id column: (None, strings) or, for a list column, (offsets int64 [n+1], flat strings).

    cuDF: copied to host memory. Not run.
    """
    array = arrow(column)
    if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
        return None, array
    chunks = array.chunks if isinstance(array, pa.ChunkedArray) else [array]
    # A null list is an empty one; its offsets may span anything.
    lengths = [np.asarray(pc.fill_null(pc.list_value_length(chunk), 0).to_numpy(), np.int64) for chunk in chunks]
    flat = pa.chunked_array([chunk.flatten() for chunk in chunks], array.type.value_type)
    return np.r_[0, np.cumsum(np.concatenate([np.empty(0, np.int64), *lengths]))], flat


def device_strings(column: Column) -> DeviceStrings | None:
    """A cuDF column of strings in device memory, not copied; None for any other column, a dictionary's too.

    The buffers come by the dataframe interchange protocol (`__dataframe__`), which is the same in every cuDF whose
    columns keep their characters here or there. Not run; tests/gpu/test_ids.py would.
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


def arrow_column(array: Arrow | NDArray[Any]) -> pd.Series:
    """A pandas column over the memory it is given: no Python object per value, no copy when columns are chosen."""
    if isinstance(array, np.ndarray):
        array = pa.array(array)
    chunked = array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array])
    return pd.Series(pd.arrays.ArrowExtensionArray(chunked))


def ragged(offsets: NDArray[np.int64], values: NDArray[Any]) -> pa.ListArray:
    """A list column whose row i is values[offsets[i]:offsets[i+1]], in host memory.

    Args:
        offsets: int64 [n + 1], numpy's or on a device.
        values: [at least offsets[n]], likewise.
    """
    offsets, values = to_host(offsets), to_host(values)
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))


def from_arrow(columns: Mapping[str, Any], cudf: bool) -> Frame:
    """A frame of columns [n]: numpy arrays, or Arrow arrays of strings or lists.

    cuDF: uploaded, `narrow` first. Not run, but for `narrow`.

    Raises:
        ArrowInvalid: a column of more than 2 GiB of text, in cuDF; smaller partitions (`etl.partition_rows`) fit.
    """
    if cudf:
        import cudf as library

        return library.DataFrame.from_arrow(pa.table({name: narrow(column) for name, column in columns.items()}))
    return like(pd.DataFrame(index=pd.RangeIndex(len(next(iter(columns.values()))))), columns)


def narrow(column: Arrow | NDArray[Any]) -> Arrow | NDArray[Any]:
    """A column as cuDF 24.02 reads it: offsets of 32 bits, no dictionaries within lists, and no null floats."""
    if isinstance(column, np.ndarray):
        return column
    column = _nan_for_null(column)
    kind = column.type
    if pa.types.is_dictionary(kind):
        if not pa.types.is_large_string(kind.value_type):
            return column
        chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        of_text = pa.dictionary(kind.index_type, pa.string())
        narrowed = [pa.DictionaryArray.from_arrays(c.indices, c.dictionary.cast(pa.string())) for c in chunks]
        return pa.chunked_array(narrowed, of_text)
    return column.cast(_narrow_type(kind))


def _narrow_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_narrow_type(kind.value_type))
    if pa.types.is_dictionary(kind):
        return _narrow_type(kind.value_type)
    return pa.string() if pa.types.is_large_string(kind) else kind


def like(frame: Frame, columns: Mapping[str, Any]) -> Frame:
    """A frame of the same library and index as `frame`, with these columns [n]: Series, numpy or Arrow arrays.

    cuDF: CuPy's and numba's device arrays stay on the device, the others are uploaded. Not run.
    """
    if _is_cudf(frame):
        import cudf

        return cudf.DataFrame({k: cudf.Series(v, index=frame.index) for k, v in columns.items()}, index=frame.index)
    series = {k: v if isinstance(v, pd.Series) else arrow_column(v) for k, v in columns.items()}
    for column in series.values():
        column.index = frame.index
    return pd.DataFrame(series, index=frame.index, copy=False)
