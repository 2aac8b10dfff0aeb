"""Router: who answers a request, what is done when they cannot, and the count of it all. Nothing of Triton.

Notable: only the stable bundle's failure is the member's. A canary, or a bundle someone is pinned to, that fails is
counted against it, and the stable bundle answers. A request that must be mended is refused by whoever got it.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from sparsefeed.errors import ReleaseError
from sparsefeed.workflows.release.routing.figures import Figures, ShadowFigures, write_figures
from sparsefeed.workflows.release.routing.route_file import RouteFile
from sparsefeed.workflows.release.routing.routes import Routes, Shadow

__all__ = ["Answer", "Copies", "Epoch", "Router", "epoch_name", "fault"]

Given = TypeVar("Given")
_OF_A_STEP = re.compile(r'bundle "[^"]*", feed_\w+: ')  # as Step.run names what must be mended
_NO_FAULT = "this is no fault of the request"
_BUSY = ("Exceeds maximum queue size", "Request timeout expired")


@dataclass(frozen=True)
class Epoch:
    """Figures by bundle while one canary ran."""

    bundles: dict[str, Figures]
    shadows: dict[str, ShadowFigures]


@dataclass(frozen=True)
class Answer(Generic[Given]):
    """What a bundle made of a request.

    Attributes:
        given: whatever is passed on to the client, an error included.
        score: float32 [n]; None: there is no answer.
        unknown: int32 [n].
        refused: the client must mend the request; no other bundle would take it either.
    """

    given: Given
    score: NDArray[np.float32] | None
    unknown: NDArray[np.int32] | None
    refused: bool = False


def fault(message: str) -> Literal["INVALID_ARG", "UNAVAILABLE", "INTERNAL"]:
    """Whose fault an error is: the request's, nobody's (the queue is full), or the server's.

    This version of Triton gives the caller of a model within the server the text of an error, and no code.
    """
    if _OF_A_STEP.search(message) and _NO_FAULT not in message:
        return "INVALID_ARG"
    return "UNAVAILABLE" if any(words in message for words in _BUSY) else "INTERNAL"


class Copies(Protocol):
    """Where copies of requests for the shadow go."""

    def offer(self, shadow: Shadow, request: Any, score: NDArray[np.float32]) -> bool:
        """Take a copy at once, or return False: it waits for nothing."""

    def close(self) -> None:
        """Take no more."""


class Router:
    """Routes requests by a route file that is looked at on each.

    Args:
        path: of the route file; it must be good at the start. Later, one that is not leaves the last good routes.
        figures: the folder this process writes its figures to, every `every_s` seconds; None: nowhere.
        copies: takes copies for the shadow; None: there never is one.
        every_s: seconds.
        clock: seconds, from anywhere.
    """

    def __init__(
        self,
        path: Path,
        figures: Path | None = None,
        copies: Copies | None = None,
        every_s: float = 1.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._file = RouteFile(path)
        self._routes = self._file.read()
        self._copies = copies
        self._clock = clock
        self._folder, self._name = figures, f"{os.getpid()}-{time.time_ns()}.json"
        self._owed = 0.0  # of a copy: the percent's fraction, so that 10 % is every tenth
        self.trouble = ""
        self._epochs: dict[str, Epoch] = {}
        self._ended = threading.Event()
        self._writer: threading.Thread | None = None
        if figures is not None:
            self._writer = threading.Thread(target=self._write_on, args=(every_s,), daemon=True)
            self._writer.start()

    @property
    def routes(self) -> Routes:
        """As the file has them now; the last good ones where it has none."""
        try:
            routes = self._file.read()
        except ReleaseError as error:
            self.trouble = str(error)
        else:
            if routes is not self._routes:
                self.trouble = ""
                self._routes = routes
        return self._routes

    def route(self, member: bytes, ask: Callable[[str], Answer[Given]], request: Any = None) -> Given:
        """Answer a request.

        Args:
            member: its member id.
            ask: asks a bundle.
            request: what a copy is made of, when there is a shadow.
        """
        routes = self.routes
        epoch = self._epoch(routes)
        choice = routes.choose(member)
        answer = self._ask(epoch, choice.bundle, ask)
        if answer.score is None and not answer.refused:
            now = self.routes
            other = now.stable if choice.reason != "stable" else now.choose(member).bundle
            if other != choice.bundle:  # the routes moved on while we asked, or the canary cannot
                answer = self._ask(epoch, other, ask)
        if routes.shadow is not None and answer.score is not None:
            self._copy(epoch, routes.shadow, request, answer.score)
        return answer.given

    def close(self) -> None:
        """Write the figures a last time."""
        self._ended.set()
        if self._writer is not None:
            self._writer.join()
        if self._copies is not None:
            self._copies.close()

    def figures(self) -> Epoch:
        """What was counted since the canary began, or since there is none."""
        return self._epoch(self.routes)

    def _epoch(self, routes: Routes) -> Epoch:
        name = epoch_name(routes)
        epoch = self._epochs.get(name)
        if epoch is None:
            # The one before is still written once more; those before it were.
            self._epochs = dict([*list(self._epochs.items())[-1:], (name, Epoch({}, {}))])
            epoch = self._epochs[name]
        return epoch

    def _ask(self, epoch: Epoch, bundle: str, ask: Callable[[str], Answer[Given]]) -> Answer[Given]:
        begun = self._clock()
        answer = ask(bundle)
        figures = epoch.bundles.get(bundle)
        if figures is None:
            figures = epoch.bundles[bundle] = Figures()
        if answer.score is not None and answer.unknown is not None:
            figures.answered(1000 * (self._clock() - begun), answer.score, answer.unknown)
        elif answer.refused:
            figures.refused += 1
        else:
            figures.failed()
        return answer

    def _copy(self, epoch: Epoch, shadow: Shadow, request: Any, score: NDArray[np.float32]) -> None:
        self._owed += shadow.percent / 100
        if self._copies is None or self._owed < 1:
            return
        self._owed -= 1
        figures = epoch.shadows.setdefault(shadow.bundle, ShadowFigures())
        if self._copies.offer(shadow, request, score):
            figures.copied += 1
        else:
            figures.dropped += 1

    def _write_on(self, every_s: float) -> None:
        ended = False
        while not ended:
            ended = self._ended.wait(every_s)
            assert self._folder is not None
            for name, epoch in list(self._epochs.items()):
                # A full disk must not end the router: the judge sees figures that stand still. A bundle's first
                # request while we write is written the next time.
                with contextlib.suppress(OSError, RuntimeError):
                    write_figures(self._folder / name / self._name, epoch.bundles, epoch.shadows)


def epoch_name(routes: Routes) -> str:
    """What figures are counted for: one canary, or no canary; the folder they are in."""
    return routes.canary.salt if routes.canary is not None else "no-canary"
