"""Load on a server: clients that ask all the time, and what became of each request."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from sparsefeed.errors import ServeError
from sparsefeed.workflows.serving.client import FeedClient, RetryPolicy

__all__ = ["Asked", "Load", "kill", "stubs"]

NEVER = RetryPolicy(max_share=0, burst=0)


@dataclass(frozen=True)
class Asked:
    """One request: when it was sent and over (monotonic seconds), its scores or its error."""

    begun_s: float
    ended_s: float
    scores: bytes | None
    error: str = ""


@dataclass
class Load:
    """Clients in threads, each asking for one post list again and again while the `with` block lasts."""

    url: Callable[[], str]
    num_clients: int = 3
    retry: RetryPolicy = NEVER
    member: str = "m6"
    posts: tuple[str, ...] = ("p6", "p7", "p8")
    asked: list[Asked] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(self.num_clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, answers: int, limit_s: float) -> float:
        """Seconds until so many requests, all sent from now on, were answered."""
        begun = time.monotonic()
        while sum(one.scores is not None and one.begun_s > begun for one in list(self.asked)) < answers:
            assert time.monotonic() - begun < limit_s, self.asked[-5:]
            time.sleep(0.01)
        return time.monotonic() - begun

    def _ask(self) -> None:
        with FeedClient(self.url(), "b1", timeout_s=5.0, retry=self.retry) as client:
            while not self._over.is_set():
                begun = time.monotonic()
                try:
                    scores = client.rank(self.member, self.posts).score.tobytes()
                    self.asked.append(Asked(begun, time.monotonic(), scores))
                except ServeError as error:
                    self.asked.append(Asked(begun, time.monotonic(), None, str(error)))
                    time.sleep(0.01)


def stubs(server_process_id: int) -> dict[str, list[int]]:
    """Process ids of a server's Python stubs, by model."""
    found: dict[str, list[int]] = {}
    for listed in Path(f"/proc/{server_process_id}/task").glob("*/children"):
        for child in map(int, listed.read_text().split()):
            words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
            models = [Path(word).parent.parent.name for word in words if word.endswith("/model.py")]
            if models:
                found.setdefault(models[0], []).append(child)
    return found


def kill(process_id: int) -> None:
    """End a process at once, without its knowledge."""
    os.kill(process_id, signal.SIGKILL)
