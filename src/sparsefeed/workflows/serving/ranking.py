"""Ranking: what a client gets for a member and posts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ranking"]


@dataclass(frozen=True)
class Ranking:
    """The answer to one request; all of length n stand in the order of `posts`.

    Attributes:
        posts: As asked.
        probability: Per response, float32 [n]: calibrated, in (0, 1).
        score: float32 [n]: sum of probability * score_weight.
        unknown: Per post, what the bundle did not know: names of `UNKNOWN_BITS`.
        bundle: The version that answered.
    """

    posts: tuple[str, ...]
    probability: Mapping[str, NDArray[np.float32]]
    score: NDArray[np.float32]
    unknown: tuple[frozenset[str], ...]
    bundle: str

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Posts by score, the best first; of equal scores the one asked for first."""
        return tuple(self.posts[i] for i in np.argsort(-self.score, kind="stable"))
