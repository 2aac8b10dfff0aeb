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

__all__ = ["ACTIONS", "affinity", "appeal", "examination", "probabilities"]

ACTIONS = ("like", "comment", "reshare")
# Intercepts that give random sessions rates of about 0.12, 0.04, 0.015 and 0.012.
CLICK_INTERCEPT = -2.2
ACTION_INTERCEPT = np.array([-1.05, -2.35, -2.6], np.float32)
ACTION_AFFINITY = np.array([0.5, 0.3, 0.3], np.float32)
ACTION_HIDDEN = np.array([0.3, 0.2, 0.2], np.float32)
HIDDEN_EFFECT = 0.7  # of the hidden relevance on the click
INTEREST_EFFECT = 0.8
MOOD_EFFECT = 1.4
FADE_EFFECT = 0.35
HOME_EXPONENT = 0.5
EXPLORE_EXPONENT = 0.25

Floats = NDArray[np.float32]


def appeal(world: World, day: int, time_ms: NDArray[np.int64], post: NDArray[np.int64]) -> Floats:
    """Log odds that a post has with everyone: quality, the trend of its topic, and fading with age."""
    age_hours = (time_ms - world.posts.birth_ms[post]) / HOUR_MS
    fade = FADE_EFFECT * (np.log1p(age_hours / 6).astype(np.float32) - 1.6)
    result: Floats = world.posts.quality[post] + world.trend[day, world.posts.topic[post]] - fade
    return result


def affinity(world: World, day: int, member: NDArray[np.int64], post: NDArray[np.int64]) -> Floats:
    """Log odds that a post has with this member: lasting interest, and the short-term topic of the day."""
    long_term = np.einsum("...f,...f->...", world.members.interest[member], world.posts.content[post])
    short_term = world.members.mood[day, member] == world.posts.topic[post]
    result: Floats = INTEREST_EFFECT * long_term + np.float32(MOOD_EFFECT) * short_term
    return result


def examination(position: NDArray[np.int64], is_explore: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Chance that the post at this position (from 1) is looked at; the same for both kinds of session."""
    return position ** -np.where(is_explore, EXPLORE_EXPONENT, HOME_EXPONENT)


def probabilities(
    world: World,
    day: int,
    time_ms: NDArray[np.int64],
    member: NDArray[np.int64],
    post: NDArray[np.int64],
    hidden: Floats,
    examined: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Probability of click, like, comment, reshare: [..., 4]; actions are marginal of the click."""
    liking = affinity(world, day, member, post)
    logit = CLICK_INTERCEPT + appeal(world, day, time_ms, post) + liking
    logit = logit + world.members.propensity[member] + HIDDEN_EFFECT * hidden
    click = examined * _sigmoid(logit)
    action_logit = ACTION_INTERCEPT + liking[..., None] * ACTION_AFFINITY + hidden[..., None] * ACTION_HIDDEN
    action_logit = action_logit + world.members.action_bias[member]
    action_logit = action_logit + world.creators.action_bias[world.posts.creator[post]]
    return np.concatenate([click[..., None], click[..., None] * _sigmoid(action_logit)], axis=-1)


def _sigmoid(x: Floats) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-x.astype(np.float64)))
