"""PTX of CUDA kernels, compiled where no GPU is; what it must not contain."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
from numba import cuda, types


def ptx_of(kernel: Any, signature: types.Type, monkeypatch: pytest.MonkeyPatch) -> str:
    """PTX of a kernel of integers for compute capability 8.0; a test without NVVM is skipped."""
    from numba.cuda import dispatcher
    from numba.cuda.cudadrv import nvvm

    try:
        nvvm.NVVM()
    except Exception as error:  # numba and numba-cuda differ in what they raise
        pytest.skip(f"needs NVVM, of the CUDA toolkit: {str(error).splitlines()[0]}")
    # Functions that a kernel calls are compiled for the GPU at hand; there need not be one.
    monkeypatch.setattr(dispatcher, "get_current_device", lambda: SimpleNamespace(compute_capability=(8, 0)))
    ptx, _ = cuda.compile_ptx(kernel.py_func, signature, cc=(8, 0))
    assert ".entry" in ptx
    assert not re.search(r"\.f(32|64)\b", ptx), "int64 and uint64 met and became a float"
    assert ".local" not in ptx, "an array or a tuple went to local memory"
    assert "call" not in re.sub(r"_Z\w+", "", ptx), "a function was not inlined"
    return str(ptx)
