"""Figures: what the router saw of each bundle, kept as counts that add up over processes and servers.

Histograms have fixed logarithmic bins, so that those of two processes are added and those of two bundles compared;
a quantile read from one is off by at most half a bin, 2 %.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsefeed.errors import ReleaseError

__all__ = [
    "LATENCY_BINS_MS",
    "SCORE_BINS",
    "Figures",
    "Histogram",
    "ShadowFigures",
    "merge",
    "read_figures",
    "write_figures",
]

# Upper edges; what is above the last falls into one more bin.
LATENCY_BINS_MS = np.geomspace(0.05, 60_000.0, 360)
SCORE_BINS = np.geomspace(1e-6, 1e3, 528)


class Histogram:
    """Counts per bin, the last one for what is above all edges."""

    def __init__(self, edges: NDArray[np.float64], counts: NDArray[np.int64] | None = None) -> None:
        self.edges = edges
        self.counts = np.zeros(len(edges) + 1, np.int64) if counts is None else counts

    def add(self, values: NDArray[Any] | float) -> None:
        """Count values; NaN counts as above all edges."""
        np.add.at(self.counts, np.searchsorted(self.edges, values), 1)

    def quantile(self, share: float) -> float:
        """Upper edge of the bin in which the quantile lies; NaN of nothing."""
        total = int(self.counts.sum())
        if not total:
            return float("nan")
        place = int(np.searchsorted(np.cumsum(self.counts), share * total))
        return float(self.edges[min(place, len(self.edges) - 1)])

    def above(self, limit: float) -> int:
        """How many values lie in bins wholly above `limit`."""
        return int(self.counts[int(np.searchsorted(self.edges, limit)) + 1 :].sum())


@dataclass
class Figures:
    """Of one bundle.

    Attributes:
        requests: answered, or failed though nothing was wrong with them.
        errors: of those failed; the stable bundle may have answered instead.
        refused: that the member's client must mend; not among `requests`.
        posts: scored.
        unknown: of those whose post id has no row of its own.
        strangers: requests whose member id has none.
        latency: of the bundle's answers, milliseconds, seen from the router.
        scores: of all posts.
    """

    requests: int = 0
    errors: int = 0
    refused: int = 0
    posts: int = 0
    unknown: int = 0
    strangers: int = 0
    latency: Histogram = field(default_factory=lambda: Histogram(LATENCY_BINS_MS))
    scores: Histogram = field(default_factory=lambda: Histogram(SCORE_BINS))

    def answered(self, latency_ms: float, score: NDArray[np.float32], unknown: NDArray[np.int32]) -> None:
        """Count an answer: `score` and `unknown` [n] as they are sent."""
        self.requests += 1
        self.latency.add(latency_ms)
        self.posts += len(score)
        self.scores.add(score)
        self.unknown += int(np.count_nonzero(unknown & 2))
        self.strangers += int(len(unknown) > 0 and bool(unknown[0] & 1))

    def failed(self) -> None:
        """Count a failure."""
        self.requests += 1
        self.errors += 1

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        numbers = {name: getattr(self, name) for name in _NUMBERS}
        return {**numbers, "latency": self.latency.counts.tolist(), "scores": self.scores.counts.tolist()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Figures:
        """Read what `to_json` gave."""
        return cls(
            **{name: int(value[name]) for name in _NUMBERS},
            latency=Histogram(LATENCY_BINS_MS, _counts(value["latency"], LATENCY_BINS_MS)),
            scores=Histogram(SCORE_BINS, _counts(value["scores"], SCORE_BINS)),
        )

    def plus(self, other: Figures) -> Figures:
        """The sum."""
        return Figures(
            **{name: getattr(self, name) + getattr(other, name) for name in _NUMBERS},
            latency=Histogram(LATENCY_BINS_MS, self.latency.counts + other.latency.counts),
            scores=Histogram(SCORE_BINS, self.scores.counts + other.scores.counts),
        )


_NUMBERS = ("requests", "errors", "refused", "posts", "unknown", "strangers")


@dataclass
class ShadowFigures:
    """What copies of requests showed of the shadow, beside the answers that were given.

    Attributes:
        copied: handed to the shadow's queue.
        dropped: not copied, since the queue was full.
        compared: answered by the shadow and compared.
        failed: not answered by the shadow.
        same_first: compared requests whose best post is the same.
        difference: of scores, summed absolute, over `posts`.
        largest: absolute difference of a score.
        posts: compared.
    """

    copied: int = 0
    dropped: int = 0
    compared: int = 0
    failed: int = 0
    same_first: int = 0
    difference: float = 0.0
    largest: float = 0.0
    posts: int = 0

    def compare(self, given: NDArray[np.float32], shadow: NDArray[np.float32]) -> None:
        """Count one pair of scores [n]."""
        apart = np.abs(given.astype(np.float64) - shadow)
        self.compared += 1
        self.posts += len(apart)
        self.difference += float(apart.sum())
        self.largest = max(self.largest, float(apart.max()))
        self.same_first += int(np.argmax(given) == np.argmax(shadow))

    def plus(self, other: ShadowFigures) -> ShadowFigures:
        """The sum."""
        added = {name: value + getattr(other, name) for name, value in vars(self).items()}
        return ShadowFigures(**{**added, "largest": max(self.largest, other.largest)})


def merge(files: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Figures], dict[str, ShadowFigures]]:
    """Sum files' contents per bundle."""
    bundles: dict[str, Figures] = {}
    shadows: dict[str, ShadowFigures] = {}
    for content in files:
        for bundle, value in content.get("bundles", {}).items():
            bundles[bundle] = bundles.get(bundle, Figures()).plus(Figures.from_json(value))
        for bundle, value in content.get("shadows", {}).items():
            shadows[bundle] = shadows.get(bundle, ShadowFigures()).plus(ShadowFigures(**value))
    return bundles, shadows


def read_figures(folder: Path) -> tuple[dict[str, Figures], dict[str, ShadowFigures]]:
    """Sum what all processes of a server have written into a folder; ReleaseError for a file that is none."""
    contents = []
    for path in sorted(folder.glob("*.json")):
        try:
            contents.append(json.loads(path.read_text("utf-8")))
            merge(contents[-1:])
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ReleaseError(f"{path}: no figures: {error!r}; remove it") from error
    return merge(contents)


def write_figures(path: Path, bundles: Mapping[str, Figures], shadows: Mapping[str, ShadowFigures]) -> None:
    """Write one process's figures beside and rename."""
    content = {
        "bundles": {bundle: figures.to_json() for bundle, figures in bundles.items()},
        "shadows": {bundle: vars(figures) for bundle, figures in shadows.items()},
    }
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside.write_text(json.dumps(content), "utf-8")
    beside.replace(path)


def _counts(values: Any, edges: NDArray[np.float64]) -> NDArray[np.int64]:
    counts = np.asarray(values, np.int64)
    if counts.shape != (len(edges) + 1,):
        raise ValueError(f"{counts.shape} bins; this program has {len(edges) + 1}")
    return counts
