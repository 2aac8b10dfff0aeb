"""Readings: what a step has counted, for whoever publishes it (docs/howto/serve.md lists the names).

Notable: a step counts in numbers of its own, microseconds a request; names and labels are made when somebody reads,
once a second.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["FAMILIES", "SECONDS", "Backlog", "Meter", "Reading"]

# name -> (kind, what it is). Counters only grow while the process lives; gauges are of now.
FAMILIES: dict[str, tuple[str, str]] = {
    "sparsefeed_requests_total": ("counter", "Requests of a step by outcome: ok, refused (the client's fault), failed"),
    "sparsefeed_calls_total": ("counter", "Calls of a step; requests over calls is how many were joined"),
    "sparsefeed_compute_seconds_total": ("counter", "Seconds a step computed, over all its processes"),
    "sparsefeed_compute_seconds_bucket": ("counter", "Calls of a step that took at most `le` seconds"),
    "sparsefeed_candidates_total": ("counter", "Posts that were asked for"),
    "sparsefeed_unknown_total": ("counter", "Posts of an answer with this bit of `unknown`"),
    "sparsefeed_score_mean": ("gauge", "Mean score of the last minutes, of one process of the dense step"),
    "sparsefeed_score_window_posts": ("gauge", "Posts in the window of sparsefeed_score_mean and _psi"),
    "sparsefeed_score_psi": ("gauge", "Population stability index of the window's scores against the held-out ones"),
    "sparsefeed_score_reference_mean": ("gauge", "Mean score of the held-out rows"),
}
SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # upper bounds of the buckets
_MANY = 256  # answers


class Reading(NamedTuple):
    """One number: a counter's total since the process began, or a gauge's value."""

    name: str
    value: float
    labels: tuple[tuple[str, str], ...] = ()


class Backlog:
    """Arrays of answers that are counted together: when somebody reads, or when there are many.

    In a process that has just woken up, the few numpy calls of a count took 50 us of a request.

    Args:
        count: Takes all of them as one; never called by two threads at a time.
    """

    def __init__(self, count: Callable[[NDArray[Any]], None]) -> None:
        self._count_all = count
        self._waiting: list[NDArray[Any]] = []
        self._lock = threading.Lock()  # readings are made beside the requests

    def add(self, values: NDArray[Any]) -> None:
        """Take those of one answer; they must not change any more."""
        with self._lock:
            self._waiting.append(values)
            if len(self._waiting) == _MANY:
                self._count()

    def count(self) -> None:
        """Count what is waiting."""
        with self._lock:
            self._count()

    def _count(self) -> None:
        if self._waiting:
            together, self._waiting = np.concatenate(self._waiting), []
            self._count_all(together)


class Meter:
    """What every step counts: requests by outcome, calls, and how long they took."""

    def __init__(self) -> None:
        self._outcomes = {"ok": 0, "refused": 0, "failed": 0}
        self._num_calls = 0
        self._seconds = 0.0
        self._buckets = [0] * (len(SECONDS) + 1)

    def add(self, seconds: float, *, ok: int = 0, refused: int = 0, failed: int = 0) -> None:
        """Count one call."""
        for outcome, count in (("ok", ok), ("refused", refused), ("failed", failed)):
            self._outcomes[outcome] += count
        self._num_calls += 1
        self._seconds += seconds
        self._buckets[bisect_left(SECONDS, seconds)] += 1

    def readings(self) -> Iterator[Reading]:
        """Everything counted so far."""
        for outcome, count in self._outcomes.items():
            yield Reading("sparsefeed_requests_total", count, (("outcome", outcome),))
        yield Reading("sparsefeed_calls_total", self._num_calls)
        yield Reading("sparsefeed_compute_seconds_total", self._seconds)
        for bound, count in zip((*map(str, SECONDS), "+Inf"), accumulate(self._buckets), strict=True):
            yield Reading("sparsefeed_compute_seconds_bucket", count, (("le", bound),))
