"""History: what the member engaged with before each impression, and the state serving starts from.

`fit` collects the responses (the events) and the last known features of members and posts; `transform`
looks every row's member up as of the row's time (kernels.history). Events and state hold keys; rows are
made at the very end, by the id maps of the items' tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from merlin.core.dispatch import DataFrameType
from merlin.dag import ColumnSelector
from merlin.schema import ColumnSchema, Schema
from numpy.typing import NDArray

from sparsefeed.etl import frame
from sparsefeed.etl.ids.keys import hash_strings
from sparsefeed.etl.impressions import IMPRESSION, POSITION, RANDOM, TIME, event_time
from sparsefeed.etl.kernels.history import Events, as_of
from sparsefeed.etl.ops.map_ids import MapIds, rows_schema
from sparsefeed.etl.ops.statistic import Statistic
from sparsefeed.etl.snapshot import Snapshot
from sparsefeed.etl.spec import FeedSpec, IdFeature, Side
from sparsefeed.etl.state import Keys, LastKnown

__all__ = ["CONTEXT", "History"]

# What a training row carries beside features and labels, for evaluation only: raw column -> written column.
CONTEXT = {IMPRESSION: "impression_id", POSITION: "position", RANDOM: "random"}


@dataclass(frozen=True)
class Partial:
    """What one partition, or many, say of events and state."""

    events: dict[tuple[str, str], tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.uint64]]]  # (of, response)
    member: LastKnown
    post: LastKnown
    end_ms: int


def keys_of(column: Any, seed: int) -> Keys:
    """Keys of an id column, scalar or list; null and empty strings are 0."""
    offsets, values = frame.strings(column)
    keys, _ = hash_strings(values, seed)
    return Keys(keys, None if offsets is None else np.diff(offsets))


def _side(
    part: DataFrameType, spec: FeedSpec, number: int, key: NDArray[np.uint64], side: Side, named: str | None
) -> LastKnown:
    dense = [frame.numpy(part[f.name]).astype(np.float32) for f in spec.of_kind("dense", side=side)]
    state = LastKnown.of_rows(
        key,
        frame.numpy(part[TIME]),
        (number << 32) + np.arange(len(key)),
        np.stack(dense, axis=1) if dense else np.zeros((len(key), 0), np.float32),
        {f.name: keys_of(part[f.name], spec.key_seed) for f in spec.of_kind("id", "ids", side=side) if f.name != named},
    )
    if len(state.key) and state.key[0] == 0:  # null ids sort first and are nobody
        rest = np.arange(1, len(state.key))
        state = LastKnown(
            state.key[1:],
            state.time_ms[1:],
            state.tie[1:],
            state.dense[1:],
            {n: c.take(rest) for n, c in state.ids.items()},
        )
    return state


def collect(part: DataFrameType, spec: FeedSpec, number: int) -> Partial:
    """Events and state of partition `number`."""
    num_rows = len(part)
    member = (
        keys_of(part[spec.logs.member], spec.key_seed).values if spec.logs.member else np.zeros(num_rows, np.uint64)
    )
    events = {}
    for of, response in sorted({(h.of, h.response) for h in spec.histories}):
        moment = frame.numpy(part[event_time(response)])
        item = keys_of(part[of], spec.key_seed).values
        happened = (moment > 0) & (member > 0) & (item > 0)
        events[of, response] = (member[happened], moment[happened], item[happened])
    time_ms = frame.numpy(part[TIME])
    last_event = max((int(moment.max()) for _, moment, _ in events.values() if len(moment)), default=0)
    post = keys_of(part[spec.logs.post], spec.key_seed).values
    return Partial(
        events,
        _side(part, spec, number, member, "member", spec.logs.member),
        _side(part, spec, number, post, "candidate", spec.logs.post),
        max(last_event, int(time_ms.max()) if num_rows else 0),
    )


def merge(parts: Sequence[Partial]) -> Partial:
    """All events; the later state wins."""
    events = {
        name: tuple(np.concatenate(columns) for columns in zip(*(p.events[name] for p in parts), strict=True))
        for name in parts[0].events
    }
    return Partial(
        events,  # type: ignore[arg-type]
        LastKnown.merge([p.member for p in parts]),
        LastKnown.merge([p.post for p in parts]),
        max(p.end_ms for p in parts),
    )


class History(Statistic):
    """Write every `history` feature as a list of rows, and carry the row's context through.

    Args:
        spec: the declaration.
        map_ids: fitted beside this operator; turns item keys into rows.
        folder: where the snapshot goes: `folder/snapshot`.
    """

    def __init__(self, spec: FeedSpec, map_ids: MapIds, folder: Path) -> None:
        super().__init__()
        self.spec = spec
        self.map_ids = map_ids
        self.folder = folder
        self.events: dict[tuple[str, str], Events] = {}

    @property
    def columns(self) -> list[str]:
        """The raw columns the operator reads."""
        features = [f.name for f in self.spec.of_kind("id", "ids", "dense")]
        return [*features, *(event_time(r.name) for r in self.spec.responses), TIME, *CONTEXT]

    def collect(self, part: DataFrameType, number: int) -> Partial:
        """Events and state of a partition."""
        return collect(part, self.spec, number)

    def merge(self, parts: Sequence[Partial]) -> Partial:
        """Events and state of several partitions."""
        return merge(parts)

    def fit_finalize(self, dask_stats: tuple[Partial, list[Any]]) -> None:
        """Sort the events and write the snapshot as of just after the last thing that happened."""
        collected, _ = dask_stats
        self.events = {name: Events.sort(*columns) for name, columns in collected.events.items()}
        as_of_ms = collected.end_ms + 1
        members = collected.member.key
        now = np.full(len(members), as_of_ms, np.int64)
        histories = {
            h.name: as_of(self.events[h.of, h.response], members, now, h.max_length) for h in self.spec.histories
        }
        member, post = collected.member.snapshot(histories), collected.post.snapshot({})
        Snapshot(member, post, as_of_ms, self.spec.key_seed, self.spec.digest).save(self.folder / "snapshot")

    def transform(self, col_selector: ColumnSelector, df: DataFrameType) -> DataFrameType:
        """Lists of rows, most recent first; strictly before the row's time."""
        out: dict[str, Any] = {}
        if self.spec.logs.member:
            member = keys_of(df[self.spec.logs.member], self.spec.key_seed).values
            time_ms = frame.numpy(df[TIME])
            for history in self.spec.histories:
                item = self.spec.feature_by_name[history.of]
                assert isinstance(item, IdFeature)
                offsets, keys = as_of(self.events[history.of, history.response], member, time_ms, history.max_length)
                out[history.name] = frame.ragged(offsets, self.map_ids.maps[item.table].lookup(keys))
        for raw, written in CONTEXT.items():
            out[written] = df[raw]
        return frame.like(df, out)

    def compute_output_schema(
        self, input_schema: Schema, col_selector: ColumnSelector, prev_output_schema: Any = None
    ) -> Schema:
        """int64 lists in their item's domain, then the context."""
        columns = []
        for history in self.spec.histories:
            maps, table = self.map_ids.maps, self.spec.table_of(history).name
            columns.append(rows_schema(history.name, True, maps[table].capacity_rows if maps else None))
        columns.append(ColumnSchema(CONTEXT[IMPRESSION], dtype=input_schema[IMPRESSION].dtype))
        columns += [ColumnSchema(CONTEXT[POSITION], dtype=np.int32), ColumnSchema(CONTEXT[RANDOM], dtype=np.int8)]
        return Schema(columns)

    def clear(self) -> None:
        """Forget the events."""
        self.events = {}
