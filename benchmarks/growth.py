"""Thirty days of a map: every day 3 % of new ids, 1 % pruned that nobody met for a week, and one fold.

What a lookup must answer is kept beside the map in plain arrays, and every day every id is asked for: rows
do not move between folds, no two are alike, and a pruned id reads the tail.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
from clock import in_turn, threads
from keys import BATCH, keys_of
from numpy.typing import NDArray
from results import Recorder, Row

from sparsefeed.etl.ids import FIRST_TAIL_ROW, IdMap, LastSeen
from sparsefeed.workflows.report.chart import BLUE, GREY, VERMILION, legend

__all__ = ["Day", "Feed", "draw", "growth", "simulate"]

FIRST_DAY = 20_000  # days since 1970-01-01
KEPT_DAYS = 7  # an id that was not seen for so long is pruned
NEW, QUIET = 0.03, 0.01  # shares of the ids, a day
TAIL_ROWS = 1024
NO_ROW = -1


@dataclass(frozen=True)
class Day:
    """What was measured on a day; `folded` tells after a fold from before."""

    day: int
    folded: bool
    num_ids: int
    known_ns: float
    half_unseen_ns: float
    lookup_bytes: int
    disk_bytes: int
    overlay_ids: int
    wrong: int  # answers of the map that were not those of the plain arrays


@dataclass
class Feed:
    """The map and the truth about it.

    Attributes:
        id_map: as the days left it.
        last_seen: of every admitted id.
        keys: uint64: every id that has or had a row since the last fold.
        rows: int64: the row it got, NO_ROW once it is pruned.
        active: bool: whether it is still met every day.
        num_made: counters of `keys_of` that are used up.
    """

    id_map: IdMap
    last_seen: LastSeen
    keys: NDArray[np.uint64]
    rows: NDArray[np.int64]
    active: NDArray[np.bool_]
    num_made: int

    @classmethod
    def begin(cls, num_ids: int, random: np.random.Generator) -> Feed:
        """A map just built, some of whose ids have been quiet for 1 to KEPT_DAYS days."""
        keys = keys_of(0, num_ids)
        id_map = IdMap.build(keys, np.ones(num_ids, np.int64), table="feed", key_seed=0, tail_rows=TAIL_ROWS)
        quiet_days = np.minimum(random.permutation(num_ids) // max(1, int(QUIET * num_ids)) + 1, KEPT_DAYS + 1)
        active = quiet_days > KEPT_DAYS
        seen = [LastSeen.of(keys[quiet_days == d], FIRST_DAY - d) for d in range(1, KEPT_DAYS + 1)]
        last_seen = LastSeen.of(keys[active], FIRST_DAY).merge(*seen)
        return cls(id_map, last_seen, keys, id_map.lookup(keys), active, num_ids)

    def live(self, today: int, random: np.random.Generator) -> None:
        """One day: some ids fall silent, new ones come, and those silent for a week are pruned."""
        num_ids = self.id_map.num_admitted
        active = np.flatnonzero(self.active)
        self.active[random.choice(active, int(QUIET * num_ids), replace=False)] = False
        new = keys_of(self.num_made, self.num_made + int(NEW * num_ids))
        self.num_made += len(new)
        self.id_map, rows = self.id_map.add(new)
        self.keys, self.rows = np.append(self.keys, new), np.append(self.rows, rows)
        self.active = np.append(self.active, np.ones(len(new), np.bool_))
        self.last_seen = self.last_seen.merge(LastSeen.of(self.keys[self.active], today))
        gone = self.last_seen.unseen_since(today - KEPT_DAYS)
        self.id_map, self.last_seen = self.id_map.remove(gone), self.last_seen.without(gone)
        self.rows[np.isin(self.keys, gone)] = NO_ROW

    def fold(self) -> int:
        """Fold; how many rows are not where `old_row` says they were."""
        admitted = self.rows != NO_ROW
        before, self.keys, self.active = self.rows[admitted], self.keys[admitted], self.active[admitted]
        self.id_map, old_row = self.id_map.fold()
        self.rows = self.id_map.lookup(self.keys)
        return int(np.count_nonzero(old_row[self.rows] != before))

    def wrong(self) -> int:
        """Answers that are not the truth: of admitted ids, of pruned ones, and rows given twice."""
        rows, admitted = self.id_map.lookup(self.keys), self.rows != NO_ROW
        own, pruned = rows[admitted], rows[~admitted]
        moved = np.count_nonzero(own != self.rows[admitted])
        alike = len(own) - len(np.unique(own)) + abs(len(own) - self.id_map.num_admitted)
        in_tail = (pruned >= FIRST_TAIL_ROW) & (pruned < self.id_map.first_row)
        return int(moved + alike + np.count_nonzero(~in_tail))

    def measure(self, day: int, folded: bool, wrong: int, folder: Path, random: np.random.Generator) -> Day:
        """Time lookups on one thread, and save."""
        known = random.choice(self.keys[self.rows != NO_ROW], BATCH)
        unseen = keys_of(2**62 + day * BATCH, 2**62 + (day + 1) * BATCH)
        half = np.where(random.random(BATCH) < 0.5, unseen, known)
        out = np.empty(BATCH, np.int64)
        with threads(1):
            times = in_turn(
                {
                    "known": lambda: self.id_map.lookup(known, out=out),
                    "half": lambda: self.id_map.lookup(half, out=out),
                },
                5,
            )
        self.id_map.save(folder)
        return Day(
            day=day,
            folded=folded,
            num_ids=self.id_map.num_admitted,
            known_ns=1e9 * times["known"] / BATCH,
            half_unseen_ns=1e9 * times["half"] / BATCH,
            lookup_bytes=self.id_map.lookup_bytes,
            disk_bytes=sum(path.stat().st_size for path in folder.iterdir()),
            overlay_ids=len(self.id_map.overlay),
            wrong=wrong + self.wrong(),
        )


def simulate(folder: Path, num_ids: int, num_days: int, fold_day: int, seed: int = 0) -> Iterator[Day]:
    """Live `num_days` days from `num_ids` ids; day `fold_day` is given twice, before the fold and after."""
    random = np.random.default_rng(seed)
    feed = Feed.begin(num_ids, random)
    yield feed.measure(0, False, 0, folder, random)
    for day in range(1, num_days + 1):
        feed.live(FIRST_DAY + day, random)
        yield feed.measure(day, False, 0, folder, random)
        if day == fold_day:
            yield feed.measure(day, True, feed.fold(), folder, random)
    shutil.rmtree(folder)


def growth(record: Recorder, folder: Path, plot: Path, num_ids: int = 1_000_000) -> list[Row]:
    """Rows of days 0, 10, 15, 20 and 30, what went wrong on any day, and the plot."""
    days = list(simulate(folder, num_ids, 30, 15))
    draw(days, plot)
    rows = []
    for day in days:
        if day.day in (0, 10, 15, 20, 30):
            case = f"growth, day {day.day}{', folded' if day.folded else ''}"
            rows += [
                record.row(case, "ids", day.num_ids, "ids"),
                record.row(case, "lookup of known ids, one thread", day.known_ns, "ns/id"),
                record.row(case, "lookup of half unseen ids, one thread", day.half_unseen_ns, "ns/id"),
                record.row(case, "bits a lookup reads from, per id", 8 * day.lookup_bytes / day.num_ids, "bits"),
                record.row(case, "bytes on disk, per id", day.disk_bytes / day.num_ids, "B"),
                record.row(case, "ids in the overlay", day.overlay_ids, "ids"),
            ]
    return [*rows, record.row("wrong answers", "30 days of growth", sum(day.wrong for day in days), "ids")]


def draw(days: list[Day], path: Path) -> None:
    """Two plots of the days in one SVG: time of a lookup, and memory."""
    times = {"known ids": ("known_ns", BLUE), "half unseen": ("half_unseen_ns", VERMILION)}
    sizes = {"a lookup reads from": ("lookup_bytes", BLUE), "on disk": ("disk_bytes", GREY)}
    charts = [
        _lines(days, times, "lookup, ns an id, one thread", 1.0),
        _lines(days, sizes, "bits an id", 8.0),
    ]
    chart = alt.hconcat(*charts, spacing=30).resolve_scale(color="independent")
    chart = chart.configure(font="Helvetica, Arial, sans-serif", background="white", padding=8)
    chart = chart.configure_view(stroke=None).configure_legend(orient="top", title=None, labelFontSize=13)
    chart = chart.configure_axis(gridColor="#e4e4e4", labelFontSize=13, titleFontSize=13, titleFontWeight="normal")
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.save(path)


def _lines(days: list[Day], fields: dict[str, tuple[str, str]], title: str, factor: float) -> Any:
    values = [
        # A fold is a step down: its two values stand at the two ends of a short slope.
        {"day": day.day + 0.15 * day.folded, "what": what, "value": factor * getattr(day, field) / _per_id(day, field)}
        for day in days
        for what, (field, _) in fields.items()
    ]
    scale = legend(list(fields), [colour for _, colour in fields.values()])
    lines = (
        alt.Chart(alt.Data(values=values), width=330, height=230)
        .mark_line(strokeWidth=2)
        .encode(
            x=alt.X("day:Q", title="day", axis=alt.Axis(values=[0, 5, 10, 15, 20, 25, 30], grid=False)),
            y=alt.Y("value:Q", title=title, scale=alt.Scale(zero=True), axis=alt.Axis(tickCount=5)),
            color=alt.Color("what:N", scale=scale),
        )
    )
    folds = [{"day": day.day, "text": "fold"} for day in days if day.folded]
    marks = alt.Chart(alt.Data(values=folds)).encode(x="day:Q")
    rule = marks.mark_rule(color="#888", strokeDash=[2, 3])
    text = marks.mark_text(align="left", dx=4, fontSize=12, color="#666").encode(y=alt.value(8), text="text:N")
    return lines + rule + text


def _per_id(day: Day, field: str) -> int:
    """What a field is divided by: times are per id already."""
    return day.num_ids if field.endswith("_bytes") else 1
