"""Load on a server over gRPC: closed, so many requests in flight, or open, so many a second whatever becomes of them.

One process, no thread of ours: gRPC calls back. Requests are made once and sent again and again.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tritonclient.grpc as triton

__all__ = ["Generator", "Outcome"]

Request = tuple[str, list[str]]
_WAIT_S = 30.0  # for answers after the last request
_SWITCH_S = 0.0005


@dataclass
class Outcome:
    """What became of the requests of one run.

    Attributes:
        seconds: from the first request to the last answer.
        answered_ms: latency of each that was answered.
        refused_ms: of each that was refused as UNAVAILABLE.
        errors: messages of all others.
    """

    seconds: float = 0.0
    answered_ms: list[float] = field(default_factory=list)
    refused_ms: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def num_requests(self) -> int:
        """All that have an outcome."""
        return len(self.answered_ms) + len(self.refused_ms) + len(self.errors)

    def goodput(self, within_ms: float = math.inf) -> float:
        """Answers a second that came in time."""
        return sum(latency <= within_ms for latency in self.answered_ms) / self.seconds

    def quantile_ms(self, q: float) -> float:
        """Of the latencies of answers; NaN without one."""
        return float(np.quantile(self.answered_ms, q)) if self.answered_ms else math.nan


class Generator:
    """Sends a list of requests in turn to one model."""

    def __init__(self, url: str, model: str, requests: Sequence[Request]) -> None:
        self._client = triton.InferenceServerClient(url)
        self._model = model
        self._inputs = [_tensors(member, posts) for member, posts in requests]
        self._next = 0

    def closed(self, in_flight: int, seconds: float) -> Outcome:
        """Keep so many requests in flight for so long."""
        outcome, lock, done = Outcome(), threading.Lock(), threading.Semaphore(0)
        started = time.perf_counter()
        until = started + seconds

        def again() -> None:
            if time.perf_counter() < until:
                self._send(outcome, lock, again)
            else:
                done.release()

        for _ in range(in_flight):
            self._send(outcome, lock, again)
        for _ in range(in_flight):
            done.acquire(timeout=seconds + _WAIT_S)
        outcome.seconds = time.perf_counter() - started
        return outcome

    def open(self, per_second: float, seconds: float) -> Outcome:
        """Send so many requests a second, evenly, for so long, whether or not they are answered."""
        outcome, lock, done = Outcome(), threading.Lock(), threading.Semaphore(0)
        # Else the one that sends, always behind, keeps the answers waiting for Python's lock, 5 ms each time.
        before = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_S)
        total, started = int(per_second * seconds), time.perf_counter()
        for i in range(total):
            ahead = started + i / per_second - time.perf_counter()
            if ahead > 0:
                time.sleep(ahead)
            self._send(outcome, lock, done.release)
        for _ in range(total):
            done.acquire(timeout=_WAIT_S)
        outcome.seconds = time.perf_counter() - started
        sys.setswitchinterval(before)
        return outcome

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _send(self, outcome: Outcome, lock: threading.Lock, then: Any) -> None:
        inputs = self._inputs[self._next % len(self._inputs)]
        self._next += 1
        sent = time.perf_counter()

        def answered(result: Any, error: Any) -> None:
            taken_ms = 1e3 * (time.perf_counter() - sent)
            with lock:
                if error is None:
                    outcome.answered_ms.append(taken_ms)
                elif str(error.status()) == "StatusCode.UNAVAILABLE":
                    outcome.refused_ms.append(taken_ms)
                else:
                    outcome.errors.append(str(error))
            then()

        self._client.async_infer(self._model, inputs, answered)


def _tensors(member: str, posts: Sequence[str]) -> list[Any]:
    tensors = []
    for name, texts in (("member_id", [member]), ("post_ids", posts)):
        tensor = triton.InferInput(name, [len(texts)], "BYTES")
        tensor.set_data_from_numpy(np.array([text.encode() for text in texts], object))
        tensors.append(tensor)
    return tensors
