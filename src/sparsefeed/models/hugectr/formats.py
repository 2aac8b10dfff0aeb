"""HugeCTR's files, read and written in numpy: the dense `.model`, the embedding dump, and HPS's `.bin` tables.

All little endian. Layouts are those of HugeCTR 24.06's sources (core23_network.cpp, parameter_IO.cpp,
database_backend.hpp); no file of a real run was at hand, so readers are strict: a size, type or table that is not as it
should be is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparsefeed.errors import BadFileError
from sparsefeed.progress import Progress, silent

__all__ = [
    "DumpedTable",
    "put_rows",
    "read_bin",
    "read_dense",
    "read_dump",
    "write_bin",
    "write_dense",
    "write_dump",
]

_META_INTS, _HEADER_INTS = 5, 32
_KEY_INT64, _VALUE_FLOAT32 = 1, 0
_KEYS, _WEIGHTS = 1, 2  # first number of a header
_BIN = b"bin\0"
_BLOCK_ROWS = 1 << 18


@dataclass(frozen=True)
class DumpedTable:
    """One table of an embedding dump.

    Attributes:
        number: HugeCTR's, by the order of first lookup, parts of columns counted each.
        keys: int64 [n].
        rows: float32 [n, dim].
    """

    number: int
    keys: NDArray[np.int64]
    rows: NDArray[np.float32]


def write_dense(path: Path, arrays: Sequence[NDArray[np.float32]]) -> None:
    """Write a `.model`: float32, no header, the arrays one after the other."""
    with path.open("wb") as file:
        for array in arrays:
            file.write(np.ascontiguousarray(array, "<f4").data)


def read_dense(path: Path, shapes: Sequence[tuple[int, ...]]) -> list[NDArray[np.float32]]:
    """Read a `.model` whose layers have parameters of these shapes, in the order they were added.

    Raises:
        BadFileError: The file is missing, has another number of floats, or holds one that is no number.
    """
    wanted = sum(int(np.prod(shape)) for shape in shapes)
    try:
        size = path.stat().st_size
        if size != 4 * wanted:
            raise BadFileError(path, f"has {size} bytes; a model of these layers has {4 * wanted}: another shape's")
        flat = np.fromfile(path, "<f4")
    except OSError as error:
        raise BadFileError(path, f"not readable: {error}") from error
    if not np.isfinite(flat).all():
        raise BadFileError(path, f"float {int(np.argmin(np.isfinite(flat)))} is no number; the training diverged")
    starts = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes)])
    return [flat[low:high].reshape(shape) for low, high, shape in zip(starts, starts[1:], shapes, strict=False)]


def write_dump(folder: Path, tables: Sequence[DumpedTable], collection: int = 0) -> None:
    """Write what `embedding_load` takes: `embedding_collection_<n>/` with `meta_data`, `key<i>` and `weight<i>`."""
    place = folder / f"embedding_collection_{collection}"
    place.mkdir(parents=True)
    meta = np.array([len(tables), _KEY_INT64, _VALUE_FLOAT32, 0, 0], "<i4").tobytes()
    meta += np.array([table.number for table in tables], "<i4").tobytes()
    meta += np.array([len(table.keys) for table in tables], "<u8").tobytes()
    meta += np.array([table.rows.shape[1] for table in tables], "<i4").tobytes()
    for table in tables:
        for kind, name, values in ((_KEYS, "key", table.keys), (_WEIGHTS, "weight", table.rows)):
            header = np.zeros(_HEADER_INTS, "<i4")
            header[:2] = kind, table.number
            with (place / f"{name}{table.number}").open("wb") as file:
                file.write(header.tobytes())
                for start in range(0, len(values), _BLOCK_ROWS):  # one that is cut in columns need not be copied whole
                    block = values[start : start + _BLOCK_ROWS]
                    file.write(np.ascontiguousarray(block, "<i8" if kind == _KEYS else "<f4").data)
    (place / "meta_data").write_bytes(meta)


def read_dump(folder: Path, collection: int = 0) -> list[DumpedTable]:
    """Memory-map an embedding dump, in the order its metadata have.

    Raises:
        BadFileError: A file is missing or has another size, type or table than the metadata say.
    """
    place = folder / f"embedding_collection_{collection}"
    path = place / "meta_data"
    try:
        meta = path.read_bytes()
    except OSError as error:
        raise BadFileError(path, f"not readable: {error}; name the folder that embedding_dump wrote") from error
    if len(meta) < 4 * _META_INTS:
        raise BadFileError(path, f"has {len(meta)} bytes; metadata begin with {4 * _META_INTS}")
    num, key_type, value_type = (int(value) for value in np.frombuffer(meta, "<i4", 3))
    if num < 1 or len(meta) != 4 * _META_INTS + 16 * num:
        raise BadFileError(path, f"has {len(meta)} bytes; {num} tables need {4 * _META_INTS + 16 * max(num, 1)}")
    if (key_type, value_type) != (_KEY_INT64, _VALUE_FLOAT32):
        raise BadFileError(
            path, f"says keys of type {key_type} and values of type {value_type}; allowed: int64 (1) and float32 (0)"
        )
    start = 4 * _META_INTS
    numbers = np.frombuffer(meta, "<i4", num, start)
    counts = np.frombuffer(meta, "<u8", num, start + 4 * num)
    dims = np.frombuffer(meta, "<i4", num, start + 12 * num)
    if len(set(numbers.tolist())) != num:
        raise BadFileError(path, f"names tables {numbers.tolist()}; each may occur once")
    tables = []
    for number, count, dim in zip(numbers.tolist(), counts.tolist(), dims.tolist(), strict=True):
        keys = _mapped(place / f"key{number}", _KEYS, number, "<i8", (count,))
        rows = _mapped(place / f"weight{number}", _WEIGHTS, number, "<f4", (count, dim))
        tables.append(DumpedTable(number, keys, rows))
    return tables


def _mapped(path: Path, kind: int, number: int, dtype: str, shape: tuple[int, ...]) -> NDArray:
    header = 4 * _HEADER_INTS
    wanted = header + int(np.prod(shape)) * np.dtype(dtype).itemsize
    try:
        size = path.stat().st_size
        if size != wanted:
            raise BadFileError(path, f"has {size} bytes; its metadata say {wanted}")
        found = np.fromfile(path, "<i4", 2).tolist()
        if found != [kind, number]:
            raise BadFileError(path, f"begins with {found}; must begin with {[kind, number]}: a file of another table")
        if not shape[0]:
            return np.empty(shape, dtype)
        return np.memmap(path, dtype, "r", header, shape)
    except OSError as error:
        raise BadFileError(path, f"not readable: {error}; dump the tables again") from error


def write_bin(path: Path, keys: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
    """Write an HPS table dump: a header of 16 bytes, then key and row after key and row."""
    dim = rows.shape[1]
    pairs = np.empty(len(keys), [("key", "<i8"), ("row", "<f4", (dim,))])
    pairs["key"], pairs["row"] = keys, rows
    with path.open("wb") as file:
        file.write(_BIN + np.array([1, 8, 4 * dim], "<u4").tobytes())
        file.write(pairs.data)


def read_bin(path: Path) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Read an HPS table dump: keys int64 [n] and rows float32 [n, dim].

    Raises:
        BadFileError: The file is missing, is none, is of another version or key size, or is cut off.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadFileError(path, f"not readable: {error}") from error
    if content[:4] != _BIN or len(content) < 16:
        raise BadFileError(path, f"begins with {content[:4]!r}; a table dump begins with {_BIN!r} and 12 bytes more")
    version, key_bytes, row_bytes = np.frombuffer(content, "<u4", 3, 4).tolist()
    if (version, key_bytes) != (1, 8) or not row_bytes or row_bytes % 4:
        raise BadFileError(
            path, f"says version {version}, keys of {key_bytes} bytes, rows of {row_bytes}; allowed: 1, 8, floats"
        )
    if (len(content) - 16) % (8 + row_bytes):
        raise BadFileError(path, f"has {len(content)} bytes; is no whole number of pairs of {8 + row_bytes}: cut off")
    pairs = np.frombuffer(content, [("key", "<i8"), ("row", "<f4", (row_bytes // 4,))], offset=16)
    return np.ascontiguousarray(pairs["key"]), np.ascontiguousarray(pairs["row"])


def put_rows(
    path: Path, parts: Sequence[DumpedTable], out: NDArray[np.float32], name: str, progress: Progress = silent
) -> None:
    """Write one table of its dumped parts of columns into `out`, float32 [rows, dim], block by block.

    Args:
        path: where the dump lies, for errors.
        parts: whole rows, or equal parts of their columns, in order.
        out: every row is written; may be memory-mapped.
        name: of the table.
        progress: told of the rows.

    Raises:
        BadFileError: The parts are not of this table: another dim, a key that is missing, too large or there twice, a
            float that is no number.
    """
    rows, dim = out.shape
    width = dim // len(parts)
    if dim % len(parts):
        raise BadFileError(path, f'table "{name}": {dim} columns cannot be {len(parts)} equal parts')
    for number, part in enumerate(parts):
        where = f'table "{name}", part {number}'
        if part.rows.shape[1] != width:
            raise BadFileError(path, f"{where}: rows of {part.rows.shape[1]} floats; must have {width}")
        if len(part.keys) != rows:
            raise BadFileError(path, f"{where}: {len(part.keys)} keys; HugeCTR dumps all rows of a table, {rows}")
        seen = np.zeros(rows, bool)
        for start in range(0, rows, _BLOCK_ROWS):
            progress(start, rows, where)
            block = slice(start, start + _BLOCK_ROWS)
            keys, values = np.asarray(part.keys[block]), part.rows[block]
            if keys.min() < 0 or keys.max() >= rows:
                bad = keys.min() if keys.min() < 0 else keys.max()
                raise BadFileError(path, f"{where}: key {bad}; allowed: 0 to {rows - 1}, its rows")
            if not np.isfinite(values).all():
                bad = keys[np.argmin(np.isfinite(values).all(axis=1))]
                raise BadFileError(path, f"{where}: the row of key {bad} holds no numbers; the training diverged")
            ordered = np.sort(keys)
            twice = np.concatenate([keys[seen[keys]], ordered[1:][ordered[1:] == ordered[:-1]]])
            if len(twice):
                raise BadFileError(path, f"{where}: key {twice[0]} occurs twice; dumped by several processes?")
            seen[keys] = True
            out[keys, number * width : (number + 1) * width] = values
