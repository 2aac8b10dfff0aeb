"""Where a lookup writes: a new array, or one that the caller gives so that its memory is used again."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsefeed.errors import IdError

__all__ = ["output"]


def output(out: NDArray[np.int64] | None, num: int, source: Any) -> NDArray[np.int64]:
    """Return the array to write `num` rows into; kernels check no bounds.

    Args:
        out: int64 [num], writeable and contiguous, or None for a new one.
        num: rows.
        source: what they are computed from.

    Raises:
        IdError: `out` is anything else, or shares memory with an array `source`.
    """
    if out is None:
        return np.empty(num, np.int64)
    fits = isinstance(out, np.ndarray) and out.dtype == np.int64 and out.shape == (num,)
    fits = fits and out.flags.writeable and out.flags.c_contiguous
    if not fits or (isinstance(source, np.ndarray) and np.may_share_memory(out, source)):
        kind = f"{out.dtype} {list(out.shape)}" if isinstance(out, np.ndarray) else type(out).__name__
        raise IdError(
            f"ids: out is {kind}; allowed: a writeable, contiguous numpy array of int64 [{num}] apart from the ids; "
            "leave it out for a new one"
        )
    return out
