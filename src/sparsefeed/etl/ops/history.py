"""History: what the member engaged with before each impression, and the state serving starts from.

`fit` collects the responses (the events) and the last known features of members and posts; `transform`
looks every row's member up as of the row's time (kernels.history). Events and state hold keys; rows are
made at the very end, by the id maps of the items' tables. A day that is added goes on from the events that the day
before kept of its members, and writes the state of its own members and posts alone.
"""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from merlin.core.dispatch import DataFrameType
from merlin.dag import ColumnSelector
from merlin.schema import ColumnSchema, Schema
from numpy.typing import NDArray

from sparsefeed.errors import DataWarning
from sparsefeed.etl import frame
from sparsefeed.etl.columns import KEY
from sparsefeed.etl.events import EventFiles, KeptEvents
from sparsefeed.etl.ids.keys import hash_strings
from sparsefeed.etl.impressions import IMPRESSION, POSITION, RANDOM, TIME, event_time
from sparsefeed.etl.kernels.history import MOST_EVENTS, Events, as_of
from sparsefeed.etl.ops.map_ids import MapIds, rows_schema
from sparsefeed.etl.ops.statistic import Job, Statistic
from sparsefeed.etl.runs import Runs
from sparsefeed.etl.snapshot import SideWriter, Snapshot, write_header
from sparsefeed.etl.spec import FeedSpec, HistoryFeature, IdFeature, Side
from sparsefeed.etl.state import Keys, LastKnown

__all__ = ["CONTEXT", "History"]

Happened = tuple[int, dict[str, int]]  # when the last thing happened, in ms, and how many of each response
Kind = tuple[str, str]  # the feature that items are of, and the response
_DAY_MS = 86_400_000
_ROWS_AT_ONCE = 500_000  # members or posts of partitions that a job merges at a time

# What a training row carries beside features and labels, for evaluation only: raw column -> written column.
CONTEXT = {IMPRESSION: "impression_id", POSITION: "position", RANDOM: "random"}


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


@dataclass(frozen=True)
class MemberSnapshot:
    """Sort the events, then write the members' side of the snapshot with the histories they have by then.

    Attributes:
        spec: the declaration.
        events: by kind, to be made.
        event_runs: by kind, of the partitions.
        runs: of the partitions' members.
        num_runs: of each, one a partition.
        folder: of the side.
        as_of_ms: the moment of the snapshot.
        from_ms: no row of a later day is earlier.
        previous: events as kept the day before, by kind; None: this is no day that is added.
        kept: events to be kept for the next day, by kind.
    """

    spec: FeedSpec
    events: Mapping[Kind, EventFiles]
    event_runs: Mapping[Kind, Runs]
    runs: Runs
    num_runs: int
    folder: Path
    as_of_ms: int
    from_ms: int
    previous: Mapping[Kind, KeptEvents] | None
    kept: Mapping[Kind, KeptEvents]

    def __call__(self) -> dict[str, Any]:
        """Count and features of the side, for the snapshot's header."""
        shutil.rmtree(self.folder, ignore_errors=True)  # of a worker that died
        num_runs = self.num_runs + self._carry_over()
        for kind, files in self.events.items():
            files.build(self.event_runs[kind], num_runs)
            earlier = self.previous[kind] if self.previous else None
            most, window_ms = self._seen_later(kind)
            self.kept[kind].grow(earlier, files, most, self.from_ms, window_ms)
        ids, lists = _names(self.spec, "member", self.spec.logs.member)
        lists += [history.name for history in self.spec.histories]
        num_dense = len(self.spec.of_kind("dense", side="member"))
        with SideWriter(self.folder, num_dense, ids, lists) as writer:
            for tables in self.runs.ranges(_ROWS_AT_ONCE, self.num_runs):
                state = LastKnown.merge([LastKnown.from_arrow(table) for table in tables])
                now = np.full(len(state.key), self.as_of_ms, np.int64)
                writer.append(
                    state.snapshot({h.name: _of(h, self.events, state.key, now) for h in self.spec.histories})
                )
        return {"count": writer.count, "ids": ids, "lists": lists}

    def _carry_over(self) -> int:
        """Write what the day before kept of this day's members as further runs; returns how many of each kind."""
        number = 0
        for tables in self.runs.ranges(_ROWS_AT_ONCE, self.num_runs) if self.previous else ():
            members = np.unique(np.concatenate([table[KEY].to_numpy() for table in tables]))
            for kind, kept in (self.previous or {}).items():
                self.event_runs[kind].write(self.num_runs + number, kept.of(members))
            number += 1
        return number

    def _seen_later(self, kind: Kind) -> tuple[int, int | None]:
        """How many events of a member the histories of a kind look at, and how far back in ms; None: to the first."""
        histories = [h for h in self.spec.histories if (h.of, h.response) == kind]
        most = max(MOST_EVENTS if h.order == "frequent" else h.max_length for h in histories)
        windows = [math.inf if h.window_days is None else h.window_days * _DAY_MS for h in histories]
        return most, math.ceil(max(windows)) if math.isfinite(max(windows)) else None


@dataclass(frozen=True)
class PostSnapshot:
    """Write the posts' side of the snapshot."""

    spec: FeedSpec
    runs: Runs
    num_runs: int
    folder: Path

    def __call__(self) -> dict[str, Any]:
        """Count and features of the side, for the snapshot's header."""
        shutil.rmtree(self.folder, ignore_errors=True)  # of a worker that died
        ids, lists = _names(self.spec, "candidate", self.spec.logs.post)
        num_dense = len(self.spec.of_kind("dense", side="candidate"))
        with SideWriter(self.folder, num_dense, ids, lists) as writer:
            for tables in self.runs.ranges(_ROWS_AT_ONCE, self.num_runs):
                writer.append(LastKnown.merge([LastKnown.from_arrow(table) for table in tables]).snapshot({}))
        return {"count": writer.count, "ids": ids, "lists": lists}


def _of(
    history: HistoryFeature,
    events: Mapping[Kind, EventFiles],
    member: NDArray[np.uint64],
    time_ms: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Items of a history feature, of members as of some moments."""
    window_ms = None if history.window_days is None else int(history.window_days * _DAY_MS)
    of = events[history.of, history.response].events
    return as_of(of, member, time_ms, history.max_length, window_ms, history.order == "frequent")


def _kept(kinds: Sequence[Kind], folder: Path) -> dict[Kind, KeptEvents]:
    return {kind: KeptEvents.at(folder / "state" / f"events-{'-'.join(kind)}") for kind in kinds}


def _names(spec: FeedSpec, side: Side, named: str | None) -> tuple[list[str], list[str]]:
    """Id and list features of a side, without the one that names it."""
    ids = [f.name for f in spec.of_kind("id", side=side) if f.name != named]
    return ids, [f.name for f in spec.of_kind("ids", side=side)]


class History(Statistic):
    """Write every `history` feature as a list of rows, and carry the row's context through.

    Args:
        spec: the declaration.
        map_ids: fitted beside this operator; turns item keys into rows.
        folder: where the snapshot goes, `folder/snapshot`, and what the next day goes on from, `folder/state`; sorted
            events lie in `folder/scratch` meanwhile, runs in `folder/runs`.
        previous: result that this one adds a day to; None: none.

    Attributes:
        from_ms: no row of a later day is earlier; 0 keeps all events for later days.
        until_ms: the snapshot holds nothing that happened then or later; None: it holds all.
    """

    def __init__(self, spec: FeedSpec, map_ids: MapIds, folder: Path, previous: Path | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.map_ids = map_ids
        self.folder = folder
        kinds: list[Kind] = sorted({(h.of, h.response) for h in spec.histories})
        self.events = {kind: EventFiles(folder / "scratch" / f"events-{'-'.join(kind)}") for kind in kinds}
        self.event_runs = {kind: Runs(folder / "runs" / f"events-{'-'.join(kind)}") for kind in kinds}
        self.kept, self.previous = _kept(kinds, folder), _kept(kinds, previous) if previous else None
        self.earliest_as_of_ms = Snapshot.load(previous / "snapshot").as_of_ms if previous else 0
        self.from_ms = 0
        self.until_ms: int | None = None
        self.state_runs = {side: Runs(folder / "runs" / f"state-{side}") for side in ("member", "post")}

    @property
    def columns(self) -> list[str]:
        """The raw columns the operator reads."""
        features = [f.name for f in self.spec.of_kind("id", "ids", "dense")]
        return [*features, *(event_time(r.name) for r in self.spec.responses), TIME, *CONTEXT]

    def collect(self, part: DataFrameType, number: int) -> Happened:
        """Leave a partition's events and state as runs; give when the last thing happened, and how many responses."""
        spec = self.spec
        member = (
            keys_of(part[spec.logs.member], spec.key_seed).values
            if spec.logs.member
            else np.zeros(len(part), np.uint64)
        )
        time_ms = frame.numpy(part[TIME])
        end_ms = int(time_ms.max(initial=0))
        for (of, response), runs in self.event_runs.items():
            moment = frame.numpy(part[event_time(response)])
            item = keys_of(part[of], spec.key_seed).values
            happened = (moment > 0) & (member > 0) & (item > 0)
            runs.write(number, EventFiles.run(Events(member[happened], moment[happened], item[happened])))
            end_ms = max(end_ms, int(moment[happened].max(initial=0)))
        post = keys_of(part[spec.logs.post], spec.key_seed).values
        sides = (("member", member, "member", spec.logs.member), ("post", post, "candidate", spec.logs.post))
        for name, key, side, named in sides:
            state = _side(part, spec, number, key, side, named)  # type: ignore[arg-type]
            self.state_runs[name].write(number, state.to_arrow())
        return end_ms, {r.name: int((frame.numpy(part[event_time(r.name)]) > 0).sum()) for r in spec.responses}

    def merge(self, parts: Sequence[Happened]) -> Happened:
        """The last moment and all responses of several partitions."""
        return max(end_ms for end_ms, _ in parts), {name: sum(num[name] for _, num in parts) for name in parts[0][1]}

    def jobs(self, merged: Happened, num_partitions: int) -> list[Job]:
        """The two sides of the snapshot as of just after the last thing that happened."""
        folder, runs = self.folder / "snapshot", self.state_runs
        member = MemberSnapshot(
            self.spec,
            self.events,
            self.event_runs,
            runs["member"],
            num_partitions,
            folder / "member",
            self._as_of(merged[0]),
            self.from_ms,
            self.previous,
            self.kept,
        )
        return [member, PostSnapshot(self.spec, runs["post"], num_partitions, folder / "post")]

    def fit_finalize(self, dask_stats: tuple[Happened, list[Any]]) -> None:
        """Write the snapshot's header, last, and remove the runs: only now no job can be made again."""
        for runs in (*self.event_runs.values(), *self.state_runs.values()):
            runs.remove()
        (end_ms, num_responses), (member, post) = dask_stats
        for name in (name for name, num in num_responses.items() if num == 0):
            warnings.warn(
                f'response "{name}": no impression has one; look at its name, and at its column or the actions',
                DataWarning,
                stacklevel=2,
            )
        sides = {"member": member, "post": post}
        write_header(self.folder / "snapshot", self._as_of(end_ms), self.spec.key_seed, self.spec.digest, sides)

    def _as_of(self, end_ms: int) -> int:
        """The moment after the last thing that happened, on the days before too; of a part of a day where it ends."""
        after = end_ms + 1 if self.until_ms is None else min(end_ms + 1, self.until_ms)
        return max(after, self.earliest_as_of_ms)

    def transform(self, col_selector: ColumnSelector, df: DataFrameType) -> DataFrameType:
        """Lists of rows, most recent first; strictly before the row's time."""
        out: dict[str, Any] = {}
        if self.spec.logs.member:
            member = keys_of(df[self.spec.logs.member], self.spec.key_seed).values
            time_ms = frame.numpy(df[TIME])
            for history in self.spec.histories:
                item = self.spec.feature_by_name[history.of]
                assert isinstance(item, IdFeature)
                offsets, keys = _of(history, self.events, member, time_ms)
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
            columns.append(rows_schema(history.name, True, self.map_ids.maps.get(self.spec.table_of(history).name)))
        columns.append(ColumnSchema(CONTEXT[IMPRESSION], dtype=input_schema[IMPRESSION].dtype))
        columns += [ColumnSchema(CONTEXT[POSITION], dtype=np.int32), ColumnSchema(CONTEXT[RANDOM], dtype=np.int8)]
        return Schema(columns)

    def clear(self) -> None:
        """Unmap the events; their files stay."""
        self.events = {kind: EventFiles(files.folder) for kind, files in self.events.items()}
