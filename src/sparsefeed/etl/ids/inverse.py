"""Rows back to strings, for people and reports; serving never loads it.

One string per admitted row, laid out as Arrow lays out strings (offsets, bytes), so that decoding is one
`take` on memory-mapped buffers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparsefeed.errors import IdError
from sparsefeed.etl.ids.array_folder import read_array_folder, write_array_folder
from sparsefeed.etl.ids.id_map import IdMap
from sparsefeed.etl.ids.keys import Strings, arrow_strings

__all__ = ["Inverse"]

_FORMAT = "sparsefeed.inverse/1"
_HEADER = "inverse.json"


@dataclass(frozen=True, eq=False)
class Inverse:
    """Immutable: row -> string.

    Attributes:
        table: name of the table.
        first_row: the first row that has a string.
        offsets: int64 [rows with a string + 1]: where each string's bytes begin; equal neighbours: none is known.
        data: uint8: UTF-8 bytes of all strings.
    """

    table: str
    first_row: int
    offsets: NDArray[np.int64]
    data: NDArray[np.uint8]

    @classmethod
    def build(cls, id_map: IdMap, strings: Strings, first_row: int | None = None) -> Inverse:
        """Note the string of every admitted row.

        Args:
            id_map: the map.
            strings: at least all admitted ones, repeated or not, in any order; others (rare, unseen, null) are left
                out. Rows whose string is not among them decode to null. Of two strings that read one row, as a rare
                one may whose key is that of an admitted one, the first given is noted: give admitted ones first.
            first_row: rows below are not noted, as an earlier version's inverse has them; None: the map's first.

        Raises:
            IdError: strings of another type, or bytes that are not UTF-8.
        """
        array = arrow_strings(strings)
        chunks = array.chunks if isinstance(array, pa.ChunkedArray) else [array]
        # Which strings there are is all that matters, so a dictionary need not be decoded.
        chunks = [chunk.dictionary if pa.types.is_dictionary(chunk.type) else chunk for chunk in chunks]
        try:
            large = [chunk.cast(pa.large_string()) for chunk in chunks]
        except pa.ArrowInvalid as error:
            raise IdError(
                f"inverse/{id_map.table}: ids that are no text ({error}); allowed: UTF-8; a map takes other bytes, its "
                "inverse does not"
            ) from error
        strings = pa.concat_arrays(large) if large else pa.array([], pa.large_string())
        first_row = id_map.first_row if first_row is None else first_row
        rows = id_map.own_rows(strings)
        source = np.full(id_map.num_rows - first_row, -1, np.int64)
        admitted = np.flatnonzero(rows >= first_row)[::-1]  # of equal rows the last assignment stays
        source[rows[admitted] - first_row] = admitted
        ordered = strings.take(pa.array(source, mask=source < 0)).fill_null("")
        offsets = np.frombuffer(ordered.buffers()[1], np.int64)[ordered.offset : ordered.offset + len(source) + 1]
        data_buffer = ordered.buffers()[2]
        data = np.frombuffer(data_buffer, np.uint8)[: offsets[-1]] if data_buffer is not None else np.empty(0, np.uint8)
        return cls(id_map.table, first_row, offsets, data)

    def decode(self, rows: NDArray[np.int64]) -> pa.LargeStringArray:
        """Strings of rows [n]: null for padding, null, the tail, and removed ids.

        Raises:
            IdError: a row is negative or beyond the last.
        """
        rows = np.asarray(rows, np.int64)
        num_strings = len(self.offsets) - 1
        if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= self.first_row + num_strings):
            wrong = rows[(rows < 0) | (rows >= self.first_row + num_strings)][0]
            raise IdError(
                f"inverse/{self.table}: row {wrong} is not in [0, {self.first_row + num_strings}); "
                "decode the rows of the map this inverse was built for"
            )
        places = np.maximum(rows - self.first_row, 0)
        if num_strings == 0:
            return pa.nulls(len(rows), pa.large_string())
        known = (rows >= self.first_row) & (self.offsets[places + 1] > self.offsets[places])
        starts, stops = self.offsets[places[known]], self.offsets[places[known] + 1]
        if ((starts < 0) | (stops > len(self.data))).any():
            raise IdError(f"inverse/{self.table}: offsets lie outside the data; restore it from its bundle")
        strings = pa.LargeStringArray.from_buffers(num_strings, pa.py_buffer(self.offsets), pa.py_buffer(self.data))
        taken = strings.take(pa.array(places, mask=~known))
        try:
            taken.validate(full=True)
        except pa.ArrowInvalid as error:
            raise IdError(f"inverse/{self.table}: no text ({error}); restore it from its bundle") from error
        return taken

    def save(self, folder: Path | str) -> None:
        """Write the inverse; a reader of the folder meanwhile sees the old one or the new one."""
        header = {"format": _FORMAT, "table": self.table, "first_row": self.first_row}
        write_array_folder(folder, _HEADER, header, {"offsets": self.offsets, "data": self.data})

    @classmethod
    def load(cls, folder: Path | str, mmap: bool = True) -> Inverse:
        """Open a saved inverse; IdError if it is not there, of another format, incomplete, truncated or altered."""
        header, arrays = read_array_folder(folder, _HEADER, _FORMAT, mmap)
        try:
            offsets, data = arrays["offsets"], arrays["data"]
            if offsets.dtype != np.int64 or data.dtype != np.uint8 or offsets.ndim != 1 or data.shape != (offsets[-1],):
                raise ValueError("offsets and data do not fit each other")
            return cls(header["table"], header["first_row"], offsets, data)
        except (KeyError, ValueError, IndexError) as error:
            raise IdError(
                f"{Path(folder) / _HEADER}: cannot be meant ({error!r}); restore the folder from its bundle"
            ) from error
