"""Launching of numba's CUDA kernels that give one thread to each row."""

from __future__ import annotations

from typing import Any

__all__ = ["launch"]

_THREADS = 256  # per block


def launch(kernel: Any, num: int, *args: Any) -> None:
    """Start a `cuda.jit` kernel on at least `num` threads, of none nothing; the call returns before they end.

    Threads come in whole blocks: the kernel compares `cuda.grid(1)` with what it has.
    """
    if num:  # a grid may not be empty
        kernel[-(-num // _THREADS), _THREADS](*args)
