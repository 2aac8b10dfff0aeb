"""Load on a server over gRPC: closed, so many requests in flight, or open, so many a second whatever becomes of them.

One process, no thread of ours: gRPC calls back. Requests are made once, as bytes, and sent again and again; answers are
not looked into. tritonclient, which makes both anew each time, would take 0.3 ms more of the cores that the
server needs.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

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
        self._channel = grpc.insecure_channel(url)
        self._call = self._channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        self._requests = [_bytes(model, member, posts) for member, posts in requests]
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
        self._channel.close()

    def _send(self, outcome: Outcome, lock: threading.Lock, then: Any) -> None:
        request = self._requests[self._next % len(self._requests)]
        self._next += 1
        sent = time.perf_counter()

        def ended(call: Any) -> None:
            taken_ms = 1e3 * (time.perf_counter() - sent)
            code = call.code()
            with lock:
                if code is grpc.StatusCode.OK:
                    outcome.answered_ms.append(taken_ms)
                elif code is grpc.StatusCode.UNAVAILABLE:
                    outcome.refused_ms.append(taken_ms)
                else:
                    outcome.errors.append(f"{code}: {call.details()}")
            then()

        self._call.future(request).add_done_callback(ended)


def _bytes(model: str, member: str, posts: Sequence[str]) -> bytes:
    """A ModelInferRequest; texts are their length in four bytes and themselves."""
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, texts in (("member_id", [member]), ("post_ids", posts)):
        request.inputs.add(name=name, datatype="BYTES", shape=[len(texts)])
        encoded = [text.encode() for text in texts]
        request.raw_input_contents.append(b"".join(len(one).to_bytes(4, "little") + one for one in encoded))
    message: bytes = request.SerializeToString()
    return message
