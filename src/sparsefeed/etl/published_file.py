"""Files of a published data set: found by name, read in blocks, CSV or parquet, cast to the types that are wanted."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from sparsefeed.errors import BadFileError, DataError, did_you_mean

__all__ = ["SUFFIXES", "find", "find_one", "read", "read_whole"]

SUFFIXES = (".csv", ".csv.gz", ".parquet")
_BLOCK_BYTES = 1 << 25  # of CSV, read and written at once
_BLOCK_ROWS = 1 << 19  # of parquet


def find(source: Path, *patterns: str, what: str) -> list[Path]:
    """Files of the first pattern that has some, below the folder or its `data/`; a pattern names no suffix."""
    for pattern in patterns:
        for folder in (source, source / "data"):
            found = sorted(path for suffix in SUFFIXES for path in folder.glob(pattern + suffix))
            names = [(path.parent, path.name.split(".")[0]) for path in found]
            for path, name in zip(found, names, strict=True):
                if names.count(name) > 1:
                    raise DataError(f"{path}: lies there in another form, too; each row would count twice: leave one")
            if found:
                return found
    wanted = " or ".join(f"{pattern}.csv" for pattern in patterns)
    raise DataError(f"{source}: no {wanted} ({what}), as .csv, .csv.gz or .parquet; give the folder that holds it")


def find_one(source: Path, *patterns: str, what: str) -> Path:
    """Likewise where one file is wanted; DataError where there are several."""
    found = find(source, *patterns, what=what)
    if len(found) > 1:
        raise DataError(f"{source}: {', '.join(f.name for f in found)} are there, one is read ({what}); leave one")
    return found[0]


def read(path: Path, columns: Mapping[str, pa.DataType]) -> Iterator[pa.Table]:
    """Blocks of some columns of a CSV or parquet file, cast to these types; an id that pandas wrote as 4.0 is 4."""
    with _named(path):
        names = _names(path)
    for name in columns:
        if name not in names:
            raise DataError(f'{path}: column "{name}" is missing{did_you_mean(name, names)}; take the published file')
    blocks = _parquet(path, list(columns)) if path.suffix == ".parquet" else _csv(path, columns)
    while True:
        with _named(path):
            block = next(blocks, None)
            if block is None:
                return
            cast = [_cast(block[name], kind) for name, kind in columns.items()]
        yield pa.table(cast, names=list(columns))


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise BadFileError(path, f"cannot be read: {error}; unpack or download it again") from error


def _names(path: Path) -> list[str]:
    if path.suffix == ".parquet":
        return list(pq.read_schema(path).names)
    with pa.input_stream(str(path)) as stream:  # which looks into .gz
        head = stream.read(1 << 16).decode("utf-8-sig", errors="ignore")
    return next(csv.reader(io.StringIO(head)), [])


def _parquet(path: Path, columns: list[str]) -> Iterator[pa.Table]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_BLOCK_ROWS, columns=columns):
            yield pa.Table.from_batches([batch])


def _csv(path: Path, columns: Mapping[str, pa.DataType]) -> Iterator[pa.Table]:
    options = pacsv.ConvertOptions(
        column_types=dict(columns),
        include_columns=list(columns),
        strings_can_be_null=True,
        null_values=["", "nan", "NaN"],
    )
    with pacsv.open_csv(path, pacsv.ReadOptions(block_size=_BLOCK_BYTES), convert_options=options) as reader:
        for batch in reader:
            yield pa.Table.from_batches([batch])


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)  # pandas' null
    column = column.cast(kind, safe=not pa.types.is_timestamp(column.type))  # of nanoseconds, microseconds are enough
    return pc.replace_substring_regex(column, r"^(-?\d+)\.0$", r"\1") if kind == pa.string() else column


def read_whole(path: Path, columns: Mapping[str, pa.DataType]) -> pa.Table:
    """All of a file, in one piece."""
    empty = pa.schema(list(columns.items())).empty_table()
    return pa.concat_tables([empty, *read(path, columns)]).combine_chunks()
