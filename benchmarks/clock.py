"""Clock: times of calls, taken so that a slow moment of the machine falls on all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numba.core.config

__all__ = ["Stopwatch", "clocked", "in_turn", "on_device", "threads", "times_in_turn"]


def in_turn(calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each call: all are called once, then all again, so that drift cancels in their ratios."""
    return {name: statistics.median(seconds) for name, seconds in times_in_turn(calls, repeats).items()}


def times_in_turn(calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every call, in the order taken."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - started)
    return times


def on_device(launch: Callable[[], object]) -> float:
    """Seconds of device time of what a call launches on numba's default stream, by CUDA events: warm, best of five."""
    from numba import cuda

    launch()
    found = []
    for _ in range(5):
        start, stop = cuda.event(), cuda.event()
        start.record()
        launch()
        stop.record()
        stop.synchronize()
        found.append(start.elapsed_time(stop) / 1e3)
    return min(found)


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let the kernels use so many threads meanwhile."""
    before = numba.core.config.NUMBA_NUM_THREADS
    numba.core.config.NUMBA_NUM_THREADS = number
    try:
        yield
    finally:
        numba.core.config.NUMBA_NUM_THREADS = before


@dataclass
class Stopwatch:
    """Seconds and calls counted so far."""

    seconds: float = 0.0
    num_calls: int = 0
    running: bool = False


@contextmanager
def clocked(*places: tuple[Any, str]) -> Iterator[Stopwatch]:
    """Clock functions where the product calls them, each given as (module or class, name).

    The real function runs. A clocked call inside another is a part of it and not counted twice.
    """
    watch = Stopwatch()
    with ExitStack() as stack:
        for owner, name in places:
            original = getattr(owner, name)
            setattr(owner, name, _clocking(original, watch))
            stack.callback(setattr, owner, name, original)
        yield watch


def _clocking(function: Callable[..., Any], watch: Stopwatch) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        if watch.running:
            return function(*args, **options)
        watch.running, started = True, time.perf_counter()
        try:
            return function(*args, **options)
        finally:
            watch.seconds += time.perf_counter() - started
            watch.num_calls += 1
            watch.running = False

    return call
