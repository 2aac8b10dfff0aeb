"""numpy or CuPy: which of the two a kernel's arrays are of, and their way to host memory.

Kernels whose arithmetic is elementwise, a gather or a reduction are written once, in what the two libraries have in
common: `xp = array_module(values)`, then `xp.where(...)`. CuPy is imported only where an array of it is given.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["array_module", "to_host"]


def array_module(array: Any) -> Any:
    """The library of an array: `cupy` for one of CuPy's, `numpy` for anything else."""
    if type(array).__module__.partition(".")[0] == "cupy":
        import cupy

        return cupy
    return np


def to_host(array: Any) -> NDArray[Any]:
    """The same numbers in host memory: numpy's arrays as they are; CuPy's and numba's device arrays are copied.

    The copy waits for what writes the array on the default stream.
    """
    if isinstance(array, np.ndarray):
        return array
    return np.asarray(array.get() if hasattr(array, "get") else array.copy_to_host())
