"""Reading pieces of parquet files: only what is asked for, dictionaries where the file has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sparsefeed.errors import DataError
from sparsefeed.etl.ids import hash_ints, hash_strings
from sparsefeed.etl.logs import Piece
from sparsefeed.etl.stored_file import is_remote

__all__ = ["event_keys", "milliseconds", "no_nulls", "read_pieces"]

Value = TypeVar("Value")
_AHEAD = 4  # pieces of remote files on their way at once
_PLAIN_BYTES = 6  # a string that is written plainly takes its length, four bytes, and its text, two at least mostly


def read_pieces(
    pieces: Sequence[Piece], columns: Sequence[str], texts: Sequence[str]
) -> Iterator[tuple[Piece, pa.Table]]:
    """Some columns of each piece; of `texts` those are dictionaries that are one in the file, in all its row groups.

    Arrow would make a dictionary of a plain column too, which costs more than it saves. Remote pieces are fetched a few
    at a time, ahead of the caller.

    Raises:
        BadFileError: names the file that breaks off, is damaged, or is not what it was when it was listed.
        DataError: a store refuses or does not answer.
    """
    read = partial(_read, columns=list(columns), texts=set(texts))
    if len(pieces) < 2 or not is_remote(pieces[0].path):
        yield from ((piece, read(piece)) for piece in pieces)
        return
    with ThreadPoolExecutor(_AHEAD) as pool:
        yield from zip(pieces, pool.map(read, pieces), strict=True)


def _read(piece: Piece, columns: list[str], texts: set[str]) -> pa.Table:
    file = piece.stored
    with file.reading("breaks off or is damaged"):
        footer = file.footer()
        dictionaries = _dictionaries(footer, piece.row_groups, texts)
        with file.parquet(metadata=footer, read_dictionary=dictionaries) as whole:
            # One by one: Arrow can't read dictionaries in lists over several row groups at once.
            groups = [whole.read_row_group(i, columns, use_threads=False) for i in piece.row_groups]
        file.must_be_unchanged()
        return pa.concat_tables(groups)


def _dictionaries(footer: pq.FileMetaData, row_groups: Sequence[int], texts: set[str]) -> list[str]:
    """Paths of the text columns whose chunks take less than plain strings must."""
    groups = [footer.row_group(i) for i in row_groups]
    found = []
    for i in range(footer.num_columns):
        chunks = [group.column(i) for group in groups]
        path = footer.schema.column(i).path
        if path.split(".")[0] in texts and all(
            c.total_uncompressed_size < _PLAIN_BYTES * c.num_values and c.has_dictionary_page for c in chunks
        ):
            found.append(path)
    return found


def no_nulls(piece: Piece, name: str, convert: Callable[[pa.ChunkedArray], Value], table: pa.Table) -> Value:
    """A column that every row needs, converted; DataError names the file."""
    column = table.column(name)
    if column.null_count:
        raise DataError(
            f'{piece.path}: column "{name}" has {column.null_count} nulls of {len(column)} rows; every row needs one'
        )
    return convert(column)


def milliseconds(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Timestamps of any unit, or int64 milliseconds, as int64 milliseconds; there must be no null."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("ms", tz=column.type.tz), safe=False).cast(pa.int64())
    return np.asarray(column.to_numpy(), np.int64)


def event_keys(column: pa.ChunkedArray) -> NDArray[np.uint64]:
    """Keys of impression ids, uint64 [n, 2], equal only where the ids are.

    The first is XXH64 of the id. That of an integer is a bijection, so the second is 0; that of a text is not, so the
    second is XXH64 under another seed (two texts agree in both at 2^-128).
    """
    if pa.types.is_dictionary(column.type) or not pa.types.is_integer(column.type):
        return np.stack([hash_strings(column, seed)[0] for seed in (0, 1)], axis=1)
    keys: NDArray[Any] = np.zeros((len(column), 2), np.uint64)
    keys[:, 0] = hash_ints(column.to_numpy(), 0)
    return keys
