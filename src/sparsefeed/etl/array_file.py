"""ArrayFile: a .npy file written piece by piece, so that an array need not be in memory to be on the disk."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["ArrayFile"]

_HEADER_BYTES = 128  # what numpy writes for arrays of any length that exists


class ArrayFile:
    """Appends rows to an array file; its header, which says how many there are, is written by `close`.

    Example:
        >>> with ArrayFile(Path("keys.npy"), np.uint64) as keys:  # doctest: +SKIP
        ...     keys.append(np.arange(5, dtype=np.uint64))
    """

    def __init__(self, path: Path, dtype: DTypeLike, width: int | None = None) -> None:
        """Begin a file.

        Args:
            path: of the file, replaced if it is there.
            dtype: of the array.
            width: columns of a two-dimensional array; None: it has one dimension.
        """
        self.num_rows = 0
        self._dtype = np.dtype(dtype)
        self._width = width
        self._stream = path.open("wb")
        self._stream.write(bytes(_HEADER_BYTES))

    def append(self, rows: NDArray[Any]) -> None:
        """Write rows after those there are."""
        self._stream.write(np.ascontiguousarray(rows, self._dtype).data)
        self.num_rows += len(rows)

    def close(self) -> None:
        """Write the header."""
        if self._stream.closed:
            return
        shape = (self.num_rows,) if self._width is None else (self.num_rows, self._width)
        text = f"{{'descr': {self._dtype.str!r}, 'fortran_order': False, 'shape': {shape}, }}"
        self._stream.seek(0)
        self._stream.write(b"\x93NUMPY\x01\x00" + (_HEADER_BYTES - 10).to_bytes(2, "little"))
        self._stream.write(text.ljust(_HEADER_BYTES - 11).encode("latin1") + b"\n")
        self._stream.close()

    def __enter__(self) -> ArrayFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
