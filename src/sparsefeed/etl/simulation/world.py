"""Who and what exists: members, creators, posts and hashtags with their latent factors.

Posts are ordered by birth and members by joining, so that "eligible at this time" is one contiguous
range and "joined by this day" a prefix: a session is drawn by binary search, at any scale. The ids'
strings are a bijection of the index that shows nothing of that order.

The equations and the reason of every term are in docs/simulator.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparsefeed.etl.simulation.config import SimulateConfig

__all__ = ["DAY_MS", "HOUR_MS", "NUM_TOPICS", "POST_LIFE_DAYS", "Creators", "Members", "Posts", "World", "build_world"]

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
POST_LIFE_DAYS = 3  # a post is eligible until this age
NUM_TOPICS = 12
NUM_FACTORS = 4  # of interest: few, so that a hundred impressions of a member are enough to learn them
NUM_ACTIONS = 3  # like, comment, reshare
MAX_HASHTAGS = 5
JOIN_SHARE_PER_DAY = 0.02  # new members a day, relative to those there at the start
MOOD_CHANGE = 0.15  # chance a day that a member's short-term topic changes
NULL_SHARE = 0.03  # of member_following

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Members:
    """Members in order of joining; arrays of one row per member."""

    id: pa.Array
    join_ms: Ints
    activity: NDArray[np.float64]  # cumulative weight of being the next session's member
    logged_activity: Floats  # what the platform knows of it: the weight, with noise
    following: Floats  # NaN: null in the log
    propensity: Floats
    interest: Floats  # [members, NUM_FACTORS]
    mood: NDArray[np.int8]  # [days, members] the topic of the day
    action_bias: Floats  # [members, NUM_ACTIONS]


@dataclass(frozen=True)
class Creators:
    """Creators; arrays of one row per creator."""

    id: pa.Array
    followers: Floats
    quality: Floats
    action_bias: Floats  # [creators, NUM_ACTIONS]


@dataclass(frozen=True)
class Posts:
    """Posts in order of birth; arrays of one row per post."""

    id: pa.Array
    birth_ms: Ints
    creator: NDArray[np.int32]
    topic: NDArray[np.int8]
    content: Floats  # [posts, NUM_FACTORS]
    quality: Floats  # of the post itself, its creator and its length
    reach: NDArray[np.float64]  # cumulative weight of being retrieved by the production policy
    length: Floats
    hashtags: pa.ListArray


@dataclass(frozen=True)
class World:
    """The known truth behind the logs."""

    start_ms: int
    members: Members
    creators: Creators
    posts: Posts
    trend: Floats  # [days, NUM_TOPICS] popularity of the topic on that day


def build_world(config: SimulateConfig) -> World:
    """Draw the world of this seed. Memory: about 150 bytes per member and 200 per post."""
    rng = np.random.default_rng([config.seed, 0])
    start = datetime(config.start.year, config.start.month, config.start.day, tzinfo=timezone.utc)
    start_ms = int(start.timestamp()) * 1000
    topics = rng.standard_normal((NUM_TOPICS, NUM_FACTORS))
    topics /= np.linalg.norm(topics, axis=1, keepdims=True)
    topics -= topics.mean(axis=0)
    steps = rng.normal(0, 0.12, (config.days, NUM_TOPICS))
    steps[0] = rng.normal(0, 0.3, NUM_TOPICS)
    trend = np.cumsum(steps - steps.mean(axis=1, keepdims=True), axis=0)
    members = _members(config, start_ms, rng)
    creators = _creators(config, rng)
    posts = _posts(config, start_ms, creators, topics, rng)
    return World(start_ms, members, creators, posts, trend.astype(np.float32))


def _members(config: SimulateConfig, start_ms: int, rng: np.random.Generator) -> Members:
    n = config.num_members
    num_new = int(n * config.days * JOIN_SHARE_PER_DAY / (1 + config.days * JOIN_SHARE_PER_DAY))
    old_ms = start_ms - rng.exponential(400 * DAY_MS, n - num_new)
    new_ms = start_ms + rng.uniform(0, config.days * DAY_MS, num_new)
    activity = _zipf(n, exponent=1.2, shift=n / 100, rng=rng)
    log_activity = _standard(np.log(activity))
    following = np.exp(rng.normal(4 + 0.5 * log_activity, 0.8))
    following[rng.random(n) < NULL_SHARE] = np.nan
    mood = np.empty((config.days, n), np.int8)
    mood[0] = rng.integers(0, NUM_TOPICS, n)
    for day in range(1, config.days):
        fresh = rng.integers(0, NUM_TOPICS, n)
        mood[day] = np.where(rng.random(n) < MOOD_CHANGE, fresh, mood[day - 1])
    return Members(
        id=_ids("m_", n, config.seed),
        join_ms=np.sort(np.concatenate([old_ms, new_ms])).astype(np.int64),
        activity=np.cumsum(activity),
        logged_activity=np.exp(1.5 + log_activity + rng.normal(0, 0.5, n)).astype(np.float32),
        following=np.round(following).astype(np.float32),
        propensity=(0.25 * log_activity + rng.normal(0, 0.7, n)).astype(np.float32),
        interest=rng.standard_normal((n, NUM_FACTORS), np.float32),
        mood=mood,
        action_bias=0.5 * rng.standard_normal((n, NUM_ACTIONS), np.float32),
    )


def _creators(config: SimulateConfig, rng: np.random.Generator) -> Creators:
    n = config.num_creators
    followers = 200 + 1e6 * _zipf(n, exponent=1.0, shift=1.0, rng=rng)
    return Creators(
        id=_ids("c_", n, config.seed),
        followers=np.round(followers).astype(np.float32),
        quality=(0.2 * _standard(np.log(followers)) + rng.normal(0, 0.5, n)).astype(np.float32),
        action_bias=0.5 * rng.standard_normal((n, NUM_ACTIONS), np.float32),
    )


def _posts(
    config: SimulateConfig,
    start_ms: int,
    creators: Creators,
    topics: NDArray[np.float64],
    rng: np.random.Generator,
) -> Posts:
    num_days = config.days + POST_LIFE_DAYS
    n = config.num_posts_per_day * num_days
    birth_ms = start_ms - POST_LIFE_DAYS * DAY_MS + np.sort(rng.uniform(0, num_days * DAY_MS, n)).astype(np.int64)
    output = np.cumsum(_zipf(config.num_creators, exponent=0.7, shift=5.0, rng=rng))
    creator = np.searchsorted(output, rng.uniform(0, output[-1], n), side="right").astype(np.int32)
    home_topic = rng.integers(0, NUM_TOPICS, config.num_creators)
    topic = np.where(rng.random(n) < 0.8, home_topic[creator], rng.integers(0, NUM_TOPICS, n)).astype(np.int8)
    log_length = rng.standard_normal(n)
    quality = creators.quality[creator] + rng.normal(0, 0.5, n) - 0.15 * (log_length**2 - 1)
    reach = creators.followers[creator] ** 0.25 * np.exp(rng.normal(0, 1.0, n))
    return Posts(
        id=_ids("p_", n, config.seed),
        birth_ms=birth_ms,
        creator=creator,
        topic=topic,
        content=(topics[topic] + rng.normal(0, 0.15, (n, NUM_FACTORS))).astype(np.float32),
        quality=(quality - quality.mean()).astype(np.float32),
        reach=np.cumsum(reach),
        length=np.round(np.exp(5 + 0.7 * log_length)).astype(np.float32),
        hashtags=_hashtags(config, topic, rng),
    )


def _hashtags(config: SimulateConfig, topic: NDArray[np.int8], rng: np.random.Generator) -> pa.ListArray:
    """One to five different hashtags per post, of its topic, the frequent ones Zipf-like; drawn by rank."""
    n = len(topic)
    per_topic = config.num_hashtags // NUM_TOPICS
    weight = np.cumsum(1.0 / np.arange(1, per_topic + 1))
    rank = np.searchsorted(weight, rng.uniform(0, weight[-1], (n, MAX_HASHTAGS)), side="right")
    wanted = np.arange(MAX_HASHTAGS) < rng.integers(1, MAX_HASHTAGS + 1, (n, 1))
    for i in range(1, MAX_HASHTAGS):
        wanted[:, i] &= ~(rank[:, :i] == rank[:, i : i + 1]).any(axis=1)
    tag = rank * NUM_TOPICS + topic[:, None]
    offsets = np.concatenate([[0], np.cumsum(wanted.sum(axis=1))]).astype(np.int32)
    names = _ids("h_", config.num_hashtags, config.seed)
    return pa.ListArray.from_arrays(pa.array(offsets), names.take(pa.array(tag[wanted])))


def _zipf(n: int, exponent: float, shift: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Weights (rank + shift)^-exponent with the ranks dealt at random."""
    result: NDArray[np.float64] = (rng.permutation(n) + 1 + shift) ** -exponent
    return result


def _standard(values: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = (values - values.mean()) / max(values.std(), 1e-9)
    return result


def _ids(prefix: str, n: int, seed: int) -> pa.Array:
    """Strings such as "m_9c0e3f5a1b2d4478": SplitMix64's finaliser of the index, so no two are alike.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    salt = np.random.default_rng([seed, ord(prefix[0])]).integers(0, 2**63, dtype=np.uint64)
    x = np.arange(n, dtype=np.uint64) + salt
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    nibbles = np.frombuffer(b"0123456789abcdef", np.uint8)
    width = len(prefix) + 16
    text = np.empty((n, width), np.uint8)
    text[:, : len(prefix)] = np.frombuffer(prefix.encode(), np.uint8)
    for i in range(16):
        text[:, len(prefix) + i] = nibbles[(x >> np.uint64(60 - 4 * i)) & np.uint64(15)]
    offsets = np.arange(n + 1, dtype=np.int32) * np.int32(width)
    return pa.StringArray.from_buffers(n, pa.py_buffer(offsets), pa.py_buffer(text))
