"""Kernels that release the GIL, run over slices of their input on plain threads.

Not numba's `prange`: its workqueue layer aborts the process when two Python threads launch kernels at
once (a Dask worker, a Triton model), and its OpenMP layer does not survive a fork.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from numba.core import config

__all__ = ["over_slices"]

Result = TypeVar("Result")


def over_slices(
    kernel: Callable[[int, int], Result], num_items: int, min_slice: int, per_thread: int = 1
) -> list[Result]:
    """Call `kernel(start, stop)` on slices that cover [0, num_items) in order.

    As many slices as numba has threads (`NUMBA_NUM_THREADS`), or `per_thread` times as many, so that a thread that
    falls behind holds up less; none shorter than `min_slice` unless it is the only one. A single thread is the calling
    one. The first exception of a slice is raised.
    """
    num_threads = config.NUMBA_NUM_THREADS
    num_slices = max(1, min(num_threads * per_thread, num_items // min_slice))
    bounds = [num_items * i // num_slices for i in range(num_slices + 1)]
    if num_slices == 1 or num_threads == 1:
        return list(map(kernel, bounds[:-1], bounds[1:]))
    with ThreadPoolExecutor(min(num_threads, num_slices)) as pool:
        return list(pool.map(kernel, bounds[:-1], bounds[1:]))
