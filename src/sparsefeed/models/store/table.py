"""TableFile: the rows of one embedding table, memory-mapped, and what deltas changed of them.

A table is one .npy file that never changes. A delta's rows lie beside it as an overlay, stored in the
table's own format, so that a lookup answers bit for bit what a table written whole would answer; a bitmap
with ranks finds an overlaid row in one memory access.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsefeed.errors import BundleError, RequestError
from sparsefeed.models.store.gather import gather_rows, rank_words
from sparsefeed.models.store.rows import (
    DTYPES,
    ROW_FORMATS,
    RowFormat,
    dim_of,
    flat,
    format_of,
    output_for,
    quantise,
    read_only_keys,
    width_of,
)

__all__ = ["NAME_PATTERN", "TableFile"]

NAME_PATTERN = "[A-Za-z0-9_-]{1,120}"
_CHUNK_ROWS = 1 << 16  # rows quantised at a time: the memory of a write
_FOLD_SHARE = 4  # an overlay of more than a quarter of the base's rows is folded into a new base


@dataclass(frozen=True)
class TableFile:
    """One table, open for lookups.

    Attributes:
        name: the table's name.
        row_format: how its rows are stored.
        dim: floats per row.
        rows: capacity_rows; every key is smaller. A row neither in the base nor in the overlay is zero.
        path: the base's file.
        base: stored rows [base rows, width], memory-mapped.
        overlay_rows: int64, ascending: rows that the overlay holds.
        overlay: their stored rows [len(overlay_rows), width], memory-mapped.

    Example:
        >>> TableFile.write(folder, "post", values, "int8")  # doctest: +SKIP
        >>> TableFile.open(folder, "post").lookup(np.array([0, 17]))  # doctest: +SKIP
    """

    name: str
    row_format: RowFormat
    dim: int
    rows: int
    path: Path
    base: NDArray[Any] = field(repr=False)
    overlay_rows: NDArray[np.int64] = field(repr=False)
    overlay: NDArray[Any] = field(repr=False)

    @staticmethod
    def write(folder: Path, name: str, values: NDArray[np.float32], row_format: RowFormat) -> None:
        """Write `<name>.npy` from float32 [rows, dim].

        Raises:
            BundleError: the name cannot be one, row 0 is not zero, dim is no multiple of 4, or a value does not
                fit the format.
        """
        if not re.fullmatch(NAME_PATTERN, name):
            raise BundleError(f'table "{name}": not a name; must match {NAME_PATTERN}')
        if row_format not in ROW_FORMATS:
            raise BundleError(f'table "{name}": got row_format "{row_format}"; allowed: {", ".join(ROW_FORMATS)}')
        if values.ndim != 2 or len(values) < 1 or values.shape[1] % 4 or not values.shape[1]:
            raise BundleError(
                f'table "{name}": got values {list(values.shape)}; must be [rows, dim], rows >= 1, dim a multiple of 4'
            )
        if values[0].any():
            raise BundleError(f'table "{name}": row 0 (padding) is not zero; set it to zero before the export')

        def stored() -> Iterator[NDArray[Any]]:
            for start in range(0, len(values), _CHUNK_ROWS):
                try:
                    yield quantise(values[start : start + _CHUNK_ROWS], row_format)
                except BundleError as error:
                    raise BundleError(f'table "{name}", rows from {start} on: {error}') from error

        shape = (len(values), width_of(row_format, values.shape[1]))
        _write_array(folder / f"{name}.npy", shape, DTYPES[row_format], stored())

    @classmethod
    def open(cls, folder: Path, name: str, capacity_rows: int | None = None) -> TableFile:
        """Memory-map a table and its overlay, if there is one; `capacity_rows` defaults to the base's rows.

        Raises:
            BundleError: a file is missing, cut off, or does not hold rows of a known format.
        """
        path = Path(folder) / f"{name}.npy"
        base = _open_array(path)
        row_format = format_of(base.dtype)
        if row_format is None or base.ndim != 2 or dim_of(row_format, base.shape[1]) < 1:
            raise BundleError(f"{path}: got {base.dtype} {list(base.shape)}; not rows of {', '.join(ROW_FORMATS)}")
        overlay_rows, overlay = np.empty(0, np.int64), base[:0]
        if (Path(folder) / f"{name}.overlay_rows.npy").exists():
            overlay_rows = _open_array(Path(folder) / f"{name}.overlay_rows.npy")
            overlay = _open_array(Path(folder) / f"{name}.overlay.npy")
        rows = len(base) if capacity_rows is None else capacity_rows
        fits = overlay.dtype == base.dtype and overlay.shape == (len(overlay_rows), base.shape[1])
        in_range = not len(overlay_rows) or (overlay_rows[0] > 0 and overlay_rows[-1] < rows)
        if not fits or not in_range or overlay_rows.dtype != np.int64 or (np.diff(overlay_rows) <= 0).any():
            raise BundleError(f"{path}: its overlay is of another table; export the bundle again")
        if rows < len(base):
            raise BundleError(f"{path}: holds {len(base)} rows, its index says {rows}; export the bundle again")
        return cls(name, row_format, dim_of(row_format, base.shape[1]), rows, path, base, overlay_rows, overlay)

    def lookup(self, rows: NDArray[np.int64], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Vectors of int64 rows [n]: float32 [n, dim], into `out` when it is given; no other allocation.

        Raises:
            RequestError: a key is outside [0, capacity); `out` may then be filled in part.
        """
        out = output_for(len(rows), self.dim, out)
        base, overlay, words = self._compiled
        at = gather_rows(base, overlay, words, self.base.shape[1], self.rows, read_only_keys(rows), out)
        if at >= 0:
            raise RequestError(
                f'table "{self.name}": key {rows[at]} (number {at}) is outside [0, {self.rows}), its capacity_rows; '
                "send keys made by this bundle's own id map"
            )
        return out

    @property
    def bytes(self) -> int:
        """Bytes of the mapped files and of the overlay's index in memory."""
        return self.base.nbytes + self.overlay.nbytes + self.overlay_rows.nbytes + self._compiled[2].nbytes

    def replace_rows(
        self, folder: Path, rows: NDArray[np.int64], values: NDArray[np.float32], capacity_rows: int
    ) -> None:
        """Write this table with some rows replaced or added into another folder of the same file system.

        The base is hard-linked and the rows join the overlay (theirs win); once the overlay is more than a quarter
        of the base, both are folded into a new base. This table stays as it is.

        Args:
            folder: where `<name>.npy` and its overlay are written.
            rows: int64, ascending, unique, in [1, capacity_rows).
            values: float32 [len(rows), dim].
            capacity_rows: of the new table; never smaller than this one's.
        """
        stored = quantise(values, self.row_format)
        kept = ~np.isin(self.overlay_rows, rows)
        all_rows = np.concatenate([self.overlay_rows[kept], rows])
        order = np.argsort(all_rows)
        all_rows, all_stored = all_rows[order], np.concatenate([self.overlay[kept], stored])[order]
        path = Path(folder) / f"{self.name}.npy"
        if len(all_rows) * _FOLD_SHARE > len(self.base):
            self._write_folded(path, all_rows, all_stored, capacity_rows)
            return
        os.link(self.path, path)
        if len(all_rows):
            _write_array(path.with_name(f"{self.name}.overlay_rows.npy"), all_rows.shape, all_rows.dtype, [all_rows])
            _write_array(path.with_name(f"{self.name}.overlay.npy"), all_stored.shape, self.base.dtype, [all_stored])

    def fold(self, folder: Path) -> None:
        """Write this table without an overlay into another folder of the same file system; one that has none is linked.

        Args:
            folder: where `<name>.npy` is written.
        """
        path = Path(folder) / f"{self.name}.npy"
        if len(self.overlay_rows):
            self._write_folded(path, self.overlay_rows, self.overlay, self.rows)
        else:
            os.link(self.path, path)

    @cached_property
    def _compiled(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.uint64]]:
        words = rank_words(self.overlay_rows, self.rows if len(self.overlay_rows) else 0)
        return flat(self.base, self.row_format), flat(self.overlay, self.row_format), words

    def _write_folded(self, path: Path, rows: NDArray[np.int64], stored: NDArray[Any], capacity_rows: int) -> None:
        """Write the base with stored rows put in or added."""

        def chunks() -> Iterator[NDArray[Any]]:
            for start in range(0, capacity_rows, _CHUNK_ROWS):
                stop = min(start + _CHUNK_ROWS, capacity_rows)
                chunk = np.zeros((stop - start, self.base.shape[1]), self.base.dtype)
                old = self.base[start:stop]
                chunk[: len(old)] = old
                first, last = np.searchsorted(rows, [start, stop])
                chunk[rows[first:last] - start] = stored[first:last]
                yield chunk

        _write_array(path, (capacity_rows, self.base.shape[1]), self.base.dtype, chunks())


def _write_array(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], chunks: Any) -> None:
    # Plain writes, not a memory map: on a full disk a write is an error, a mapped page kills the process.
    with path.open("xb") as file:
        header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]
        for chunk in chunks:
            file.write(np.ascontiguousarray(chunk).data)


def _open_array(path: Path) -> NDArray[Any]:
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False)).view(np.ndarray)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: not a readable array: {error}; export the bundle again") from error
