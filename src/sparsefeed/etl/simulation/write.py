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
from sparsefeed.etl.simulation.response import ACTIONS, examination, probabilities
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

    def write(self, day: int, sessions: Sessions, first_session: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw the responses of these sessions of one day and append them.

        Returns:
            int64 [2, 4]: impressions with click, like, comment and reshare, in production and random sessions.
        """
        for key in [key for key in self._open if key[1] < day]:
            self._open.pop(key).close()
        k = POSTS_PER_SESSION
        row = np.repeat(np.arange(len(sessions.time_ms)), k)
        session_id = first_session + row
        position = np.tile(np.arange(1, k + 1), len(sessions.time_ms))
        time_ms, member, post = sessions.time_ms[row], sessions.member[row], sessions.post.ravel()
        impression = session_id * k + position - 1
        examined = examination(position, sessions.is_explore[row])
        chance = probabilities(self._world, day, time_ms, member, post, sessions.hidden.ravel(), examined)
        # A response after the click is drawn given the click: its chance is p_response / p_click.
        happened = rng.random(chance.shape) * np.where(np.arange(chance.shape[1]) == 0, 1, chance[:, :1]) < chance
        happened[:, 1:] &= happened[:, :1]
        self._append("impressions", day, self._impressions(sessions, row, impression, position, happened[:, 0]))
        truth = [pa.array(impression), *(pa.array(p.astype(np.float32)) for p in chance.T)]
        self._append("truth", day, pa.Table.from_arrays(truth, schema=TRUTH_SCHEMA))
        self._write_actions(day, impression, time_ms, happened[:, 1:], rng)
        is_random = sessions.is_random[row]
        return np.stack([happened[~is_random].sum(axis=0), happened[is_random].sum(axis=0)])

    def _impressions(
        self,
        sessions: Sessions,
        row: NDArray[np.int64],
        impression: NDArray[np.int64],
        position: NDArray[np.int64],
        click: NDArray[np.bool_],
    ) -> pa.Table:
        members, creators, posts = self._world.members, self._world.creators, self._world.posts
        time_ms, member, post = sessions.time_ms[row], sessions.member[row], sessions.post.ravel()
        creator = posts.creator[post]
        tenure_days = np.maximum(time_ms - members.join_ms[member], 0) / DAY_MS
        age_hours = (time_ms - posts.birth_ms[post]) / HOUR_MS
        columns = [
            pa.array(impression),
            pa.array(impression // POSTS_PER_SESSION),
            pa.array(time_ms).cast(pa.timestamp("ms")),
            pa.array(["production", "random"]).take(pa.array(sessions.is_random[row].astype(np.int8))),
            pa.array(["home", "explore"]).take(pa.array(sessions.is_explore[row].astype(np.int8))),
            pa.array(position.astype(np.int32)),
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
            pa.array(click),
        ]
        return pa.Table.from_arrays(columns, schema=IMPRESSION_SCHEMA)

    def _write_actions(
        self,
        day: int,
        impression: NDArray[np.int64],
        time_ms: NDArray[np.int64],
        acted: NDArray[np.bool_],
        rng: np.random.Generator,
    ) -> None:
        row, action = np.nonzero(acted)
        delay_ms = np.clip(MEDIAN_DELAY_MS[action] * np.exp(rng.normal(0, 1.2, len(row))), 1000, MAX_DELAY_MS)
        at_ms = time_ms[row] + delay_ms.astype(np.int64)
        again = np.flatnonzero(rng.random(len(row)) < REPEAT_SHARE)
        again_ms = at_ms[again] + rng.uniform(0, MAX_REPEAT_MS, len(again)).astype(np.int64)
        at_ms = np.concatenate([at_ms, again_ms])
        order = np.argsort(at_ms, kind="stable")
        source = np.concatenate([np.arange(len(row)), again])[order]
        at_ms = at_ms[order]
        table = pa.Table.from_arrays(
            [
                pa.array(impression[row[source]]),
                pa.array(ACTIONS).take(pa.array(action[source])),
                pa.array(at_ms).cast(pa.timestamp("ms")),
            ],
            schema=ACTION_SCHEMA,
        )
        num_today = int(np.searchsorted(at_ms, self._world.start_ms + (day + 1) * DAY_MS))
        self._append("actions", day, table.slice(0, num_today))
        if num_today < len(table):
            self._append("actions", day + 1, table.slice(num_today))

    def _append(self, kind: str, day: int, table: pa.Table) -> None:
        if (kind, day) not in self._open:
            date = np.datetime64(self._world.start_ms + day * DAY_MS, "ms").astype("datetime64[D]")
            path = self._out / kind / f"day={date}" / "part-000.parquet"
            path.parent.mkdir(parents=True)
            self._open[kind, day] = self._stack.enter_context(pq.ParquetWriter(path, table.schema))
        self._open[kind, day].write_table(table)
