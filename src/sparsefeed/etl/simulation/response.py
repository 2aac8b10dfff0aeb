"""What follows an impression: the probability of every response, and the labels drawn from it.

A click needs the post to be examined (position, surface) and to be wanted; a like, comment or
reshare needs the click. The probabilities are marginal of examination: what an ideal model that
knew the position and the hidden relevance would answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsefeed.etl.simulation.world import HOUR_MS, World

__all__ = ["ACTIONS", "Visits", "affinity", "appeal", "examination", "probabilities"]

ACTIONS = ("like", "comment", "reshare")
# Intercepts that give random sessions rates of about 0.12, 0.04, 0.015 and 0.012.
CLICK_INTERCEPT = -2.55
ACTION_INTERCEPT = np.array([-1.3, -2.5, -2.85], np.float32)
ACTION_AFFINITY = np.array([0.4, 0.25, 0.25], np.float32)
ACTION_HIDDEN = np.array([0.3, 0.2, 0.2], np.float32)
HIDDEN_EFFECT = 0.8  # of the hidden relevance on the click
INTEREST_EFFECT = 1.3
MOOD_EFFECT = 1.4
FADE_EFFECT = 0.35
HOME_EXPONENT = 0.5
EXPLORE_EXPONENT = 0.25

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Visits:
    """Members who open the feed on one day, in order of time; what they are shown has shape [visits, posts]."""

    day: int
    time_ms: NDArray[np.int64]  # [visits]
    member: NDArray[np.int64]  # [visits]


def appeal(world: World, visits: Visits, post: NDArray[np.int64]) -> Floats:
    """Log odds that a post has with everyone: quality, the trend of its topic, and fading with age."""
    age_hours = (visits.time_ms[:, None] - world.posts.birth_ms[post]) / HOUR_MS
    fade = FADE_EFFECT * (np.log1p(age_hours / 6).astype(np.float32) - 1.6)
    result: Floats = world.posts.quality[post] + world.trend[visits.day, world.posts.topic[post]] - fade
    return result


def affinity(world: World, visits: Visits, post: NDArray[np.int64]) -> Floats:
    """Log odds that a post has with this member: lasting interest, and the short-term topic of the day."""
    long_term = np.einsum("vf,vpf->vp", world.members.interest[visits.member], world.posts.content[post])
    short_term = world.members.mood[visits.day, visits.member][:, None] == world.posts.topic[post]
    result: Floats = INTEREST_EFFECT * long_term + np.float32(MOOD_EFFECT) * short_term
    return result


def examination(num_positions: int, is_explore: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Chance that a position is looked at, the same for both kinds of session: [visits, positions], 1 at the top."""
    position = np.arange(1, num_positions + 1)
    exponent = np.where(is_explore, EXPLORE_EXPONENT, HOME_EXPONENT)
    result: NDArray[np.float64] = position ** -exponent[:, None]
    return result


def probabilities(
    world: World, visits: Visits, post: NDArray[np.int64], hidden: Floats, is_explore: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Give the probability of click, like, comment, reshare: [visits, posts, 4]; actions are marginal of the click."""
    liking = affinity(world, visits, post)
    logit = CLICK_INTERCEPT + appeal(world, visits, post) + liking
    logit = logit + world.members.propensity[visits.member][:, None] + HIDDEN_EFFECT * hidden
    click = examination(post.shape[1], is_explore) * _sigmoid(logit)
    action_logit = ACTION_INTERCEPT + liking[..., None] * ACTION_AFFINITY + hidden[..., None] * ACTION_HIDDEN
    action_logit = action_logit + world.members.action_bias[visits.member][:, None]
    action_logit = action_logit + world.creators.action_bias[world.posts.creator[post]]
    return np.concatenate([click[..., None], click[..., None] * _sigmoid(action_logit)], axis=-1)


def _sigmoid(x: Floats) -> NDArray[np.float64]:
    result: NDArray[np.float64] = 1 / (1 + np.exp(-x.astype(np.float64)))
    return result
