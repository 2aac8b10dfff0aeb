"""The loops of `history` as CUDA kernels, a thread to a row, around the functions that the CPU runs.

Run on an H100 (tests/gpu; docs/howto/gpu.md says with what), compiled to PTX for compute capability 8.0 and run under
numba's simulator. Kernels run on numba's default stream, which is CuPy's too unless told otherwise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda
from numpy.typing import NDArray

from sparsefeed.etl.kernels.history import MOST_EVENTS, Events, Steps, bounds, frequent_items, last_items
from sparsefeed.etl.kernels.launch import launch

__all__ = ["ON_DEVICE"]

_MOST_THREADS = 1 << 14  # that count at once: their scratch takes 128 MiB


@cuda.jit
def _ends(
    event_member: NDArray[np.uint64],
    event_time: NDArray[np.int64],
    member: NDArray[np.uint64],
    time_ms: NDArray[np.int64],
    end: NDArray[np.int64],
    length: NDArray[np.int64],
) -> None:
    i = cuda.grid(1)
    if i < len(end):
        first, stop = bounds(event_member, event_time, member[i], time_ms[i])
        end[i], length[i] = stop, stop - first


@cuda.jit
def _walk_back(
    event_item: NDArray[np.uint64], end: NDArray[np.int64], offsets: NDArray[np.int64], out: NDArray[np.uint64]
) -> None:
    i = cuda.grid(1)
    if i < len(end):
        last_items(event_item, end[i], out, offsets[i], offsets[i + 1])


@cuda.jit
def _most_frequent(
    event_item: NDArray[np.uint64],
    end: NDArray[np.int64],
    length: NDArray[np.int64],
    distinct: NDArray[np.uint64],
    counts: NDArray[np.int64],
    items: NDArray[np.uint64],
    lengths: NDArray[np.int64],
) -> None:
    # Every thread has a row of scratch in global memory and takes one row in so many: as local memory the driver
    # would set it aside for every thread that the device can hold.
    thread = cuda.grid(1)
    if thread < len(distinct):
        i = thread
        while i < len(end):
            lengths[i] = frequent_items(event_item, end[i], length[i], distinct[thread], counts[thread], items, i)
            i += len(distinct)


def _ends_on_device(events: Events, member: Any, time_ms: Any, end: Any, length: Any) -> None:
    launch(_ends, len(end), events.member, events.time_ms, member, time_ms, end, length)


def _walk_back_on_device(event_item: Any, end: Any, offsets: Any, out: Any) -> None:
    launch(_walk_back, len(end), event_item, end, offsets, out)


def _most_frequent_on_device(event_item: Any, end: Any, length: Any, items: Any, lengths: Any) -> None:
    num_threads = min(len(end), _MOST_THREADS)
    scratch = [cuda.device_array((num_threads, MOST_EVENTS), kind) for kind in (np.uint64, np.int64)]
    launch(_most_frequent, num_threads, event_item, end, length, *scratch, items, lengths)


ON_DEVICE = Steps(_ends_on_device, _walk_back_on_device, _most_frequent_on_device)
