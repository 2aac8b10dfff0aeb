"""What is kept: impressions, later actions and the truth, one folder per day (docs/contracts/logs.md).

A chunk of sessions becomes one row group per file and is forgotten, so memory does not grow with the
number of impressions. An action past midnight goes to the next day's file, which is therefore open
while its eve is written: at most two action files are open at a time.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sparsefeed.etl.simulation.policy import POSTS_PER_SESSION, Sessions
from sparsefeed.etl.simulation.response import ACTIONS, Visits, probabilities
from sparsefeed.etl.simulation.world import DAY_MS, HOUR_MS, World

__all__ = ["ACTION_SCHEMA", "IMPRESSION_SCHEMA", "TRUTH_SCHEMA", "LogWriter"]

IMPRESSION_SCHEMA = pa.schema(
    [
        ("impression_id", pa.int64()),
        ("session_id", pa.int64()),
        ("time", pa.timestamp("ms")),
        ("session", pa.string()),
        ("surface", pa.string()),
        ("position", pa.int32()),
        ("member_id", pa.string()),
        ("post_id", pa.string()),
        ("creator_id", pa.string()),
        ("hashtags", pa.list_(pa.string())),
        ("member_activity", pa.float32()),
        ("member_tenure_days", pa.float32()),
        ("member_following", pa.float32()),
        ("post_age_hours", pa.float32()),
        ("post_length", pa.float32()),
        ("creator_followers", pa.float32()),
        ("click", pa.bool_()),
    ]
)
ACTION_SCHEMA = pa.schema([("impression_id", pa.int64()), ("action", pa.string()), ("time", pa.timestamp("ms"))])
TRUTH_SCHEMA = pa.schema(
    [("impression_id", pa.int64()), *((f"p_{name}", pa.float32()) for name in ("click", *ACTIONS))]
)
MEDIAN_DELAY_MS = np.array([6, 25, 60]) * (HOUR_MS / 60)  # from the impression to the action
MAX_DELAY_MS = 20 * HOUR_MS
REPEAT_SHARE = 0.02  # of actions that are logged twice
MAX_REPEAT_MS = HOUR_MS / 10


class LogWriter:
    """Appends chunks of sessions to the files of their days; closes them in order, or on the way out."""

    def __init__(self, out: Path, world: World) -> None:
        self._out = out
        self._world = world
        self._open: dict[tuple[str, int], pq.ParquetWriter] = {}
        self._stack = ExitStack()

    def __enter__(self) -> LogWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def write(self, sessions: Sessions, first_session: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw the responses to these sessions and append all of it; days come in order.

        Returns:
            int64 [2, 4]: impressions with click, like, comment and reshare, in production and random sessions.
        """
        visits = sessions.visits
        for key in [key for key in self._open if key[1] < visits.day]:
            self._open.pop(key).close()
        impression = first_session * POSTS_PER_SESSION + np.arange(sessions.post.size).reshape(sessions.post.shape)
        chance = probabilities(self._world, visits, sessions.post, sessions.hidden, sessions.is_explore)
        # A response after the click is drawn given the click, where its chance is p_response / p_click.
        given = np.concatenate([np.ones_like(chance[..., :1]), np.repeat(chance[..., :1], len(ACTIONS), -1)], -1)
        happened = rng.random(chance.shape) * given < chance
        happened[..., 1:] &= happened[..., :1]
        self._append("impressions", visits.day, self._impressions(sessions, impression, happened[..., 0]))
        truth = [pa.array(column.ravel()) for column in (impression, *np.moveaxis(chance.astype(np.float32), -1, 0))]
        self._append("truth", visits.day, pa.Table.from_arrays(truth, schema=TRUTH_SCHEMA))
        self._write_actions(visits, impression, happened[..., 1:], rng)
        per_session = happened.sum(axis=1)
        return np.stack([per_session[~sessions.is_random].sum(axis=0), per_session[sessions.is_random].sum(axis=0)])

    def _impressions(self, sessions: Sessions, impression: NDArray[np.int64], click: NDArray[np.bool_]) -> pa.Table:
        members, creators, posts = self._world.members, self._world.creators, self._world.posts
        num_sessions, num_shown = sessions.post.shape
        row = np.repeat(np.arange(num_sessions), num_shown)
        time_ms, member, post = sessions.visits.time_ms[row], sessions.visits.member[row], sessions.post.ravel()
        creator = posts.creator[post]
        tenure_days = np.maximum(time_ms - members.join_ms[member], 0) / DAY_MS
        age_hours = (time_ms - posts.birth_ms[post]) / HOUR_MS
        columns = [
            pa.array(impression.ravel()),
            pa.array(impression.ravel() // num_shown),
            pa.array(time_ms).cast(pa.timestamp("ms")),
            pa.array(["production", "random"]).take(pa.array(sessions.is_random[row].astype(np.int8))),
            pa.array(["home", "explore"]).take(pa.array(sessions.is_explore[row].astype(np.int8))),
            pa.array(np.tile(np.arange(1, num_shown + 1, dtype=np.int32), num_sessions)),
            members.id.take(pa.array(member)),
            posts.id.take(pa.array(post)),
            creators.id.take(pa.array(creator)),
            posts.hashtags.take(pa.array(post)),
            pa.array(members.logged_activity[member]),
            pa.array(tenure_days.astype(np.float32)),
            pa.array(members.following[member], from_pandas=True),  # NaN becomes null
            pa.array(age_hours.astype(np.float32)),
            pa.array(posts.length[post]),
            pa.array(creators.followers[creator]),
            pa.array(click.ravel()),
        ]
        return pa.Table.from_arrays(columns, schema=IMPRESSION_SCHEMA)

    def _write_actions(
        self, visits: Visits, impression: NDArray[np.int64], acted: NDArray[np.bool_], rng: np.random.Generator
    ) -> None:
        visit, place, action = np.nonzero(acted)
        n = len(action)
        delay_ms = np.clip(MEDIAN_DELAY_MS[action] * np.exp(rng.normal(0, 1.2, n)), 1000, MAX_DELAY_MS)
        at_ms = visits.time_ms[visit] + delay_ms.astype(np.int64)
        repeated = np.flatnonzero(rng.random(n) < REPEAT_SHARE)
        repeated_ms = at_ms[repeated] + rng.uniform(0, MAX_REPEAT_MS, len(repeated)).astype(np.int64)
        source = np.concatenate([np.arange(n), repeated])
        at_ms = np.concatenate([at_ms, repeated_ms])
        order = np.argsort(at_ms, kind="stable")
        source, at_ms = source[order], at_ms[order]
        columns = [
            pa.array(impression[visit, place][source]),
            pa.array(ACTIONS).take(pa.array(action[source])),
            pa.array(at_ms).cast(pa.timestamp("ms")),
        ]
        table = pa.Table.from_arrays(columns, schema=ACTION_SCHEMA)
        num_today = int(np.searchsorted(at_ms, self._world.start_ms + (visits.day + 1) * DAY_MS))
        self._append("actions", visits.day, table.slice(0, num_today))
        if num_today < len(table):
            self._append("actions", visits.day + 1, table.slice(num_today))

    def _append(self, kind: str, day: int, table: pa.Table) -> None:
        if (kind, day) not in self._open:
            date = np.datetime64(self._world.start_ms + day * DAY_MS, "ms").astype("datetime64[D]")
            path = self._out / kind / f"day={date}" / "part-000.parquet"
            path.parent.mkdir(parents=True)
            self._open[kind, day] = self._stack.enter_context(pq.ParquetWriter(path, table.schema))
        self._open[kind, day].write_table(table)
