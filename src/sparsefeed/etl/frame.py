"""Columns of a pandas or cuDF frame as Arrow arrays, and ragged results back: the one place that tells the two apart.

cuDF columns pass through host memory here (written for RAPIDS 24.02, not run on a GPU yet).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

__all__ = ["arrow", "like", "numpy", "ragged", "strings"]


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
