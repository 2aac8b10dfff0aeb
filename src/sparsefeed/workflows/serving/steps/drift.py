"""ScoreWindow: scores of the last minutes beside those of the held-out rows.

    PSI = sum over bins of (a - e) ln(a / e)

a: share of the window's scores in a bin, e: share of the held-out ones; the bins are the held-out scores' quantiles.
By convention in credit scoring, below 0.1 is no change and above 0.25 one to look into. Both shares are smoothed by
half a score per bin, so that an empty bin does not make it infinite.

Notable: the held-out rows are the random sessions', whose posts no policy chose, and so are a request's candidates
before they are ranked; production impressions would have scores of their own.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsefeed.errors import BundleError
from sparsefeed.workflows.serving.steps.readings import Backlog, Reading

__all__ = ["FEWEST", "ScoreReference", "ScoreWindow"]

FEWEST = 200  # scores, below which the index would be noise: its expectation without any drift is (bins - 1) / scores


@dataclass(frozen=True)
class ScoreReference:
    """The held-out scores: `edges` [B - 1] between bins, ascending, `shares` [B], which add up to 1, and the mean."""

    edges: NDArray[np.float64]
    shares: NDArray[np.float64]
    mean: float

    @classmethod
    def load(cls, metrics: Path) -> ScoreReference | None:
        """Read `score` of a bundle's metrics.json; None where it has none.

        Raises:
            BundleError: It has, but not what models.score_bins writes.
        """
        if not metrics.exists():
            return None
        try:
            found: Any = json.loads(metrics.read_text("utf-8")).get("score")
            if found is None:
                return None
            edges, shares = np.array(found["edges"], np.float64), np.array(found["shares"], np.float64)
            fits = edges.ndim == 1 and shares.shape == (len(edges) + 1,) and (np.diff(edges) > 0).all()
            if not (fits and np.isclose(shares.sum(), 1)):
                raise ValueError(f"{len(edges)} edges, {len(shares)} shares")
            return cls(edges, shares, float(found["mean"]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{metrics}: `score` cannot be read: {error!r}; export the bundle again") from error


@dataclass
class _Slot:
    number: int  # of the slot of time
    counts: NDArray[np.int64]  # of scores, by bin
    total: float = 0.0


class ScoreWindow:
    """Counts scores by bin, in slots of time that are dropped one by one.

    Args:
        reference: None counts the mean alone.
        window_s: How far back it looks.
        slots: That it moves on by.
        clock: Seconds, from anywhere.
    """

    def __init__(
        self,
        reference: ScoreReference | None,
        window_s: float = 300.0,
        slots: int = 10,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reference = reference
        self._edges = np.zeros(0) if reference is None else reference.edges
        self._slot_s, self._slots, self._clock = window_s / slots, slots, clock
        self._kept: deque[_Slot] = deque()
        self._lock = threading.Lock()  # readings are made beside the requests
        self._backlog, self._now = Backlog(self._count), -1

    def add(self, scores: NDArray[np.float32]) -> None:
        """Take the scores of one answer."""
        now = int(self._clock() / self._slot_s)
        if now != self._now:
            self._backlog.count()  # into the slot that they came in
            self._now = now
        self._backlog.add(scores)

    def _count(self, scores: NDArray[np.float32]) -> None:
        counts = np.bincount(np.searchsorted(self._edges, scores, side="right"), minlength=len(self._edges) + 1)
        with self._lock:
            if not self._kept or self._kept[-1].number != self._now:
                self._kept.append(_Slot(self._now, np.zeros_like(counts)))
            self._kept[-1].counts += counts
            self._kept[-1].total += float(scores.sum(dtype=np.float64))

    def readings(self) -> Iterator[Reading]:
        """The window's mean and number of scores, and the index where there are enough of them."""
        self._backlog.count()
        oldest = int(self._clock() / self._slot_s) - self._slots
        counts, total = np.zeros(len(self._edges) + 1, np.int64), 0.0
        with self._lock:
            while self._kept and self._kept[0].number <= oldest:
                self._kept.popleft()
            for slot in self._kept:
                counts += slot.counts
                total += slot.total
        num = int(counts.sum())
        yield Reading("sparsefeed_score_window_posts", num)
        if num:
            yield Reading("sparsefeed_score_mean", total / num)
        if self._reference is None:
            return
        yield Reading("sparsefeed_score_reference_mean", self._reference.mean)
        if num >= FEWEST:
            added = 0.5 * len(counts)
            actual = (counts + 0.5) / (num + added)
            expected = (self._reference.shares * num + 0.5) / (num + added)
            yield Reading("sparsefeed_score_psi", float(((actual - expected) * np.log(actual / expected)).sum()))
