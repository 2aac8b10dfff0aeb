"""Columns: a table by ascending key on the disk, a .npy file per column, written part by part, mapped whole.

Each column opens as one array however many parts it was written in, so it can be searched without being read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparsefeed.etl.array_file import ArrayFile

__all__ = ["KEY", "open_columns", "ranges", "write_columns"]

KEY = "key"  # uint64, ascending: the column that every table here has


def write_columns(folder: Path, schema: pa.Schema, parts: Iterable[pa.Table]) -> int:
    """Write tables one after the other, each of no lesser keys than the one before; returns the number of rows.

    Args:
        folder: made.
        schema: numbers and large_string.
        parts: with these columns, without nulls.
    """
    folder.mkdir(parents=True)
    with ExitStack() as stack:

        def begin(name: str, dtype: Any) -> ArrayFile:
            return stack.enter_context(ArrayFile(folder / f"{name}.npy", dtype))

        texts = [field.name for field in schema if pa.types.is_large_string(field.type)]
        files = {f.name: begin(f.name, np.uint8 if f.name in texts else f.type.to_pandas_dtype()) for f in schema}
        ends = {name: begin(f"{name}.offsets", np.int64) for name in texts}
        for end in ends.values():
            end.append(np.zeros(1, np.int64))
        for part in parts:
            for name, file in files.items():
                for chunk in part[name].chunks:
                    if name not in texts:
                        file.append(chunk.to_numpy())
                        continue
                    offsets = np.frombuffer(chunk.buffers()[1], np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
                    ends[name].append(file.num_rows + offsets[1:] - offsets[0])
                    data = chunk.buffers()[2]
                    if data is not None:
                        file.append(np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]])
        return files[KEY].num_rows


def open_columns(folder: Path, schema: pa.Schema) -> pa.Table:
    """Map what `write_columns` wrote: a table of one chunk."""
    columns = []
    for field in schema:
        values = _mapped(folder / f"{field.name}.npy")
        if pa.types.is_large_string(field.type):
            offsets = _mapped(folder / f"{field.name}.offsets.npy")
            buffers = pa.py_buffer(offsets), pa.py_buffer(values)
            columns.append(pa.LargeStringArray.from_buffers(len(offsets) - 1, *buffers))
        else:
            columns.append(pa.array(values))
    return pa.table(columns, schema)


def ranges(tables: Sequence[pa.Table], rows: int) -> Iterator[list[pa.Table]]:
    """Cut tables at the same keys, so that a range has about `rows` rows over all; a slice of each, empty or not.

    Keys are hashes, so ranges of equal width hold about as much.
    """
    num_ranges = -(-sum(map(len, tables)) // rows)
    bounds = [np.uint64((i << 64) // num_ranges) for i in range(1, num_ranges)]
    cuts = [np.r_[0, np.searchsorted(table[KEY].to_numpy(), bounds), len(table)].astype(int) for table in tables]
    for i in range(num_ranges):
        yield [t.slice(cut[i], cut[i + 1] - cut[i]) for t, cut in zip(tables, cuts, strict=True)]


def _mapped(path: Path) -> NDArray[Any]:
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False)).view(np.ndarray)
