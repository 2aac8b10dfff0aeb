"""EventFiles: responses of members to items on the disk, sorted by member and time, mapped by whoever asks.

Events of all partitions come as runs by member; each range of members is sorted by itself and appended, so sorting
needs memory for a range alone, and no worker is ever sent the events. What later days can still see of them is kept
as segments, so that a day is added without reading those before it.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparsefeed.etl.columns import KEY, open_columns, ranges, write_columns
from sparsefeed.etl.kernels.history import Events
from sparsefeed.etl.runs import Runs
from sparsefeed.etl.segments import Segments

__all__ = ["EventFiles", "KeptEvents"]

_ROWS_AT_ONCE = 4_000_000
_SCHEMA = pa.schema({KEY: pa.uint64(), "time_ms": pa.int64(), "item": pa.uint64()})  # the key is the member's


@dataclass(frozen=True)
class EventFiles:
    """Events of one kind; pickles as its folder.

    Attributes:
        folder: of the columns.
    """

    folder: Path

    @staticmethod
    def run(events: Events) -> pa.Table:
        """Events of a partition as a run, by member."""
        return _table(Events.sort(events.member, events.time_ms, events.item))

    def build(self, runs: Runs, num_runs: int) -> int:
        """Merge the runs, so many; returns the number of events."""
        shutil.rmtree(self.folder, ignore_errors=True)  # of a worker that died
        return write_columns(self.folder, _SCHEMA, (_sorted(tables) for tables in runs.ranges(_ROWS_AT_ONCE, num_runs)))

    @cached_property
    def events(self) -> Events:
        """The events, memory-mapped."""
        return Events(*(column.to_numpy() for column in open_columns(self.folder, _SCHEMA).columns))

    def __getstate__(self) -> dict[str, Path]:
        return {"folder": self.folder}


@dataclass(frozen=True)
class KeptEvents:
    """The events of one kind that a later row can still see, as of the end of a day.

    Attributes:
        segments: of a member the newest that has it holds all.
    """

    segments: Segments

    @classmethod
    def at(cls, folder: Path) -> KeptEvents:
        """Those kept in a folder."""
        return cls(Segments(folder, _SCHEMA))

    def of(self, members: NDArray[np.uint64]) -> pa.Table:
        """The events of members [n], ascending and unique, as a run."""
        return _sorted([self.segments.newest(members)])

    def grow(
        self, previous: KeptEvents | None, files: EventFiles, most: int, from_ms: int, window_ms: int | None
    ) -> None:
        """Keep what was kept before and the events of `files`, which are all that the members in it have.

        Args:
            previous: as of the day before.
            files: events, `previous`'s of the same members among them.
            most: a later row sees so many events of a member, the last.
            from_ms: no later row is earlier; events from then on are all kept, for a row may lie between them.
            window_ms: a later row sees no event that is older; None: it sees all.
        """
        since_ms = 0 if window_ms is None else from_ms - window_ms
        events = open_columns(files.folder, _SCHEMA)
        parts = (_seen(part, most, from_ms, since_ms) for (part,) in ranges([events], _ROWS_AT_ONCE))
        self.segments.grow(previous.segments if previous else None, parts, partial(_newer_of_each, since_ms))


def _table(events: Events) -> pa.Table:
    return pa.table([events.member, events.time_ms, events.item], _SCHEMA)


def _sorted(tables: Sequence[pa.Table]) -> pa.Table:
    whole = pa.concat_tables(tables)
    return _table(Events.sort(*(whole[name].to_numpy() for name in _SCHEMA.names)))


def _seen(events: pa.Table, most: int, from_ms: int, since_ms: int) -> pa.Table:
    """Of every member the events from `from_ms` on, and the last before it that are not too old."""
    member, time_ms = events[KEY].to_numpy(), events["time_ms"].to_numpy()
    ends = np.flatnonzero(np.append(member[1:] != member[:-1], True)[: len(member)]) + 1
    before = time_ms < from_ms
    counted = np.r_[0, np.cumsum(before)]
    to_last = np.repeat(counted[ends], np.diff(ends, prepend=0)) - counted[:-1]
    return events.filter(pa.array((~before | (to_last <= most)) & (time_ms >= since_ms)))


def _newer_of_each(since_ms: int, newer: pa.Table, older: pa.Table) -> pa.Table:
    """Of a member the newer events; whatever is too old by now is left out."""
    rest = ~np.isin(older[KEY].to_numpy(), newer[KEY].to_numpy()) & (older["time_ms"].to_numpy() >= since_ms)
    whole = pa.concat_tables([newer, older.filter(pa.array(rest))])
    order = np.argsort(whole[KEY].to_numpy(), kind="stable")  # of two sorted parts: they are merged
    return whole.take(pa.array(order)).combine_chunks()
