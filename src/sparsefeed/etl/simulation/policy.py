"""What is shown: sessions, the posts retrieved for them and their order.

A random session shows eligible posts uniformly, in random order. A production session retrieves
candidates by reach and orders them by quality, affinity and a hidden relevance that no log holds:
the policy sees of the moment (intent, social closeness) what a model trained on its logs never can.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from sparsefeed.etl.simulation.config import SimulateConfig
from sparsefeed.etl.simulation.response import Visits, affinity, appeal
from sparsefeed.etl.simulation.world import DAY_MS, POST_LIFE_DAYS, World

__all__ = ["NUM_CANDIDATES", "POSTS_PER_SESSION", "Sessions", "draw_sessions"]

POSTS_PER_SESSION = 10
NUM_CANDIDATES = 40  # retrieved by a production session
# The production score; what the logs show weighs little beside what they do not (docs/simulator.md).
APPEAL_WEIGHT = 0.07
AFFINITY_WEIGHT = 0.05
HIDDEN_WEIGHT = 1.0


@dataclass(frozen=True)
class Sessions:
    """The sessions of one chunk, in order of time: who came and what each was shown."""

    visits: Visits
    is_random: NDArray[np.bool_]  # [visits]
    is_explore: NDArray[np.bool_]  # [visits]
    post: NDArray[np.int64]  # [visits, POSTS_PER_SESSION] in the order shown
    hidden: NDArray[np.float32]  # [visits, POSTS_PER_SESSION] relevance of the moment, in no log


def draw_sessions(world: World, config: SimulateConfig, day: int, which: range, rng: np.random.Generator) -> Sessions:
    """Draw those of a day's sessions that `which` numbers; the number gives the place in the day's time."""
    n = len(which)
    share = (np.arange(which.start, which.stop) + rng.random(n)) / config.num_sessions_per_day
    time_ms = world.start_ms + day * DAY_MS + (_time_of_day(share) * (DAY_MS - 1)).astype(np.int64)
    # Members stand in order of joining: those who have joined by the time are a prefix.
    num_joined = np.maximum(np.searchsorted(world.members.join_ms, time_ms, side="right"), 1)
    cumulative = world.members.activity
    member = np.searchsorted(cumulative, rng.random(n) * cumulative[num_joined - 1], side="right")
    is_random = rng.random(n) < config.random_share
    is_explore = rng.random(n) < config.explore_share
    post = np.empty((n, POSTS_PER_SESSION), np.int64)
    hidden = rng.standard_normal((n, POSTS_PER_SESSION), np.float32)
    equal = np.arange(1.0, len(world.posts.birth_ms) + 1)
    post[is_random] = _retrieve(world, time_ms[is_random], equal, POSTS_PER_SESSION, rng)
    ranked = Visits(day, time_ms[~is_random], member[~is_random])
    post[~is_random], hidden[~is_random] = _rank(world, ranked, rng)
    return Sessions(Visits(day, time_ms, member), is_random, is_explore, post, hidden)


def _rank(world: World, visits: Visits, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Show the best posts of those retrieved, best first; also return their hidden relevance."""
    post = _retrieve(world, visits.time_ms, world.posts.reach, NUM_CANDIDATES, rng)
    hidden = rng.standard_normal(post.shape, np.float32)
    score = HIDDEN_WEIGHT * hidden
    score += APPEAL_WEIGHT * appeal(world, visits, post)
    score += AFFINITY_WEIGHT * affinity(world, visits, post)
    best = np.argsort(-score, axis=1)[:, :POSTS_PER_SESSION]
    return np.take_along_axis(post, best, axis=1), np.take_along_axis(hidden, best, axis=1)


def _retrieve(
    world: World, time_ms: NDArray[np.int64], cumulative: NDArray[np.float64], num: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw `num` different posts per time, of those eligible then, by cumulative weight: [times, num]."""
    high = np.searchsorted(world.posts.birth_ms, time_ms, side="right")
    low = np.searchsorted(world.posts.birth_ms, time_ms - POST_LIFE_DAYS * DAY_MS, side="right")
    result: NDArray[np.int64] = _draw_distinct(rng, cumulative, low, high, num)
    return result


@numba.njit(cache=True)
def _draw_distinct(
    rng: np.random.Generator,
    cumulative: NDArray[np.float64],
    low: NDArray[np.int64],
    high: NDArray[np.int64],
    num: int,
) -> NDArray[np.int64]:
    """Draw per row `num` indices of [low, high), one after the other by weight, without replacement."""
    out = np.empty((len(low), num), np.int64)
    for i in range(len(low)):
        below = cumulative[low[i] - 1] if low[i] > 0 else 0.0
        span = cumulative[high[i] - 1] - below
        window = cumulative[low[i] : high[i]]
        for j in range(num):
            drawn = True
            while drawn:  # a draw that is already there is drawn again
                index = low[i] + min(
                    np.searchsorted(window, below + rng.random() * span, side="right"), len(window) - 1
                )
                drawn = False
                for k in range(j):
                    drawn |= out[i, k] == index
                out[i, j] = index
    return out


def _time_of_day(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn a share of the day's sessions into the share of the day gone by then: quiet at 5, busy at 20 o'clock."""
    grid = np.linspace(0, 1, 289)
    density = 1 + 0.7 * np.sin(2 * np.pi * (grid - 0.58))
    cumulative = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return np.interp(share, cumulative / cumulative[-1], grid)
