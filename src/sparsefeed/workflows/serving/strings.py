"""Strings as Triton's Python backend hands them over: each with its length before it, decoded in our way.

Notable: the backend decodes a request's strings before it calls the model, by a function that it looks up in its own
Python module. There, strings whose lengths do not add up, which any client can send, are an exception that nobody
catches: every request of the call answers INTERNAL, with a traceback. `read_strings` takes the place of that function,
and gives an array that says what is wrong with it, so that the one request is refused by name. It is also faster.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["GarbledStrings", "read_strings"]


class GarbledStrings(np.ndarray[Any, Any]):
    """Stands for strings that cannot be read; `cause` says why. It has no elements."""

    cause: str

    @classmethod
    def of(cls, cause: str) -> GarbledStrings:
        """Make one."""
        made = np.empty(0, object).view(cls)
        made.cause = cause
        return made

    def reshape(self, *_: Any, **__: Any) -> GarbledStrings:  # type: ignore[override]
        """Itself: the backend asks for the request's shape."""
        return self


class _Strings(np.ndarray[Any, Any]):
    """An object array that is garbled when it is asked for another number of elements than it has."""

    def reshape(self, *shape: Any, **_: Any) -> Any:
        """The shape that the request states, as an ordinary array."""
        wanted = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        if math.prod(wanted) != self.size:
            return GarbledStrings.of(
                f"holds {self.size} strings, but its shape {list(wanted)} says {math.prod(wanted)}"
            )
        return np.asarray(self).reshape(wanted)


def read_strings(encoded: NDArray[np.uint8] | bytes) -> NDArray[Any]:
    """Decode strings, each after its length in 4 bytes, little-endian, into an object array of bytes.

    Whatever is wrong, and a reshape to another number of elements, gives a GarbledStrings.
    """
    raw = bytes(encoded)
    texts: list[bytes] = []
    at, end = 0, len(raw)
    while at < end:
        start = at + 4
        stop = start + int.from_bytes(raw[at:start], "little")
        if start > end or stop > end:
            return GarbledStrings.of(
                f"string {len(texts)} has {max(end - start, 0)} bytes left, but its length says {stop - start}"
            )
        texts.append(raw[start:stop])
        at = stop
    array = np.empty(len(texts), object)
    array[:] = texts
    return array.view(_Strings)
