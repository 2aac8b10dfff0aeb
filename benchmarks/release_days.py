"""Fourteen days refreshed one by one: a refresh's seconds and bytes beside a day's share of the base and what changed.

    python benchmarks/release_days.py

A day's share of the base is the seconds of its ETL, training and export, times the day's rows over the base's. What a
day changed is counted from its delta: rows as they are stored, 16 bytes per new id, the day's members and posts as they
are stored, and the files that every version has of its own.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))

from results import Recorder, Row, append

from sparsefeed.models.bundle import open_version
from sparsefeed.models.delta import Delta, verify_delta
from sparsefeed.models.fold import fold
from sparsefeed.models.store.rows import DTYPES, width_of
from sparsefeed.progress import Progress, silent
from sparsefeed.workflows.console import console, quiet_libraries, stage
from sparsefeed.workflows.recipe import Recipe, load_recipe
from sparsefeed.workflows.refresh import refresh
from sparsefeed.workflows.stages import add_day, export_serving, prepare, simulate_logs, train_model
from sparsefeed.workflows.workspace import Workspace

__all__ = ["Base", "Day", "release_days", "rows_of"]

BASE_DAYS, DAYS, _ENDS = 6, 14, 3
CASE = f"{DAYS} days refreshed"
FEED = {  # a small feed with days that are long enough to be more than the start of processes
    "num_members": 2_000,
    "num_creators": 200,
    "num_posts_per_day": 240,
    "num_hashtags": 150,
    "num_sessions_per_day": 10_000,
}


@dataclass(frozen=True)
class Base:
    """What the first days took, whole."""

    rows: int
    seconds: float


@dataclass(frozen=True)
class Day:
    """What a refresh took.

    Attributes:
        rows: impressions of the day.
        etl_s: seconds until its training rows were there.
        seconds: of all, until `current` was the new version.
        delta_bytes: of the delta's files.
        changed_bytes: of what the day changed.
        version_bytes: of the new version's files that its parent does not share.
    """

    rows: int
    etl_s: float
    seconds: float
    delta_bytes: int
    changed_bytes: int
    version_bytes: int


def release_days(recipe: Recipe, record: Recorder, folder: Path, progress: Progress = silent) -> list[Row]:
    """Make the base, refresh every day after it, and fold once at the end.

    Args:
        recipe: with `simulate`, whose sizes are set here.
        record: makes the rows.
        folder: of logs and workspace; empty.
        progress: told of every day.
    """
    assert recipe.simulate is not None
    first = recipe.simulate.start
    simulate = recipe.simulate.model_copy(update={**FEED, "days": BASE_DAYS + DAYS + 1})
    until = first + timedelta(days=BASE_DAYS)
    small = recipe.model_copy(update={"simulate": simulate, "etl": recipe.etl.model_copy(update={"until": until})})
    place = Workspace(folder)
    simulate_logs(small, place)
    progress(0, DAYS, "the base")
    started = time.perf_counter()
    rows = prepare(small, place)["num_train_rows"]
    train_model(small, place)
    export_serving(small, place)
    base, days = Base(rows, time.perf_counter() - started), []
    for number in range(DAYS):
        progress(number, DAYS, "days")
        day = first + timedelta(days=BASE_DAYS + number)
        started = time.perf_counter()
        rows = add_day(small, place, day)["num_train_rows"]
        prepared = time.perf_counter()
        made = refresh(small, place, day)
        ended = time.perf_counter()
        version = open_version(place.bundles)
        files = [path.stat() for path in version.path.rglob("*") if path.is_file()]
        days.append(
            Day(
                rows,
                prepared - started,
                ended - started,
                _bytes(made.delta),
                changed_bytes(verify_delta(made.delta)),
                sum(file.st_size for file in files if file.st_nlink == 1),
            )
        )
    started = time.perf_counter()
    fold(place.bundles, made.bundle)
    return [*rows_of(record, base, days), record.row(CASE, "a fold after them", time.perf_counter() - started, "s")]


def changed_bytes(delta: Delta) -> int:
    """Bytes of what a delta changes, as a version stores it."""
    of_format = delta.manifest.row_format
    total = 0
    for change in delta.rows.values():
        total += len(change.rows) * width_of(of_format, change.values.shape[1]) * DTYPES[of_format].itemsize
    for ids in delta.ids.values():
        total += 16 * (len(ids.upserts) + len(ids.deletes))
    whole = [path for path in delta.path.iterdir() if path.name not in ("tables", "ids", "SHA256SUMS", "READY")]
    return total + sum(_bytes(path) for path in whole)


def rows_of(record: Recorder, base: Base, days: list[Day]) -> list[Row]:
    """The rows, of days in order."""
    shares = [day.seconds / (base.seconds * day.rows / base.rows) for day in days]
    bytes_ = [day.delta_bytes / day.changed_bytes for day in days]
    early, late = days[:_ENDS], days[-_ENDS:]

    def grown(name: str, unit: str) -> Row:
        last, of_first = (statistics.mean(getattr(day, name) for day in some) for some in (late, early))
        return record.row(CASE, f"{name} of the last {_ENDS} days", last, unit, f"of the first {_ENDS}", of_first)

    return [
        record.row(CASE, "seconds, times a day's share of the base, median", statistics.median(shares), "times"),
        record.row(CASE, "seconds, times a day's share of the base, worst", max(shares), "times"),
        record.row(CASE, "bytes, times what the day changed, median", statistics.median(bytes_), "times"),
        record.row(CASE, "bytes, times what the day changed, worst", max(bytes_), "times"),
        record.row(CASE, "a refresh takes", statistics.median(day.seconds for day in days), "s"),
        record.row(CASE, "of it ETL", statistics.median(day.etl_s for day in days), "s"),
        record.row(CASE, "a day's share of the base", base.seconds * days[0].rows / base.rows, "s"),
        grown("seconds", "s"),
        grown("delta_bytes", "B"),
        grown("version_bytes", "B"),
    ]


def _bytes(path: Path) -> int:
    return sum(one.stat().st_size for one in [path, *path.rglob("*")] if one.is_file())


def main() -> None:
    """Run and record this case alone."""
    quiet_libraries()
    with tempfile.TemporaryDirectory(prefix="sparsefeed-days-") as scratch, stage("days") as progress:
        rows = release_days(
            load_recipe("tiny"), Recorder("release", "python benchmarks/release_days.py"), Path(scratch), progress
        )
    append(rows)
    for row in rows:
        beside = f"  {row.peer} {row.peer_value:.4g}, ratio {row.ratio:.3f}" if row.ratio else ""
        console.print(f"{row.metric:52} {row.value:14.4f} {row.unit}{beside}", soft_wrap=True)


if __name__ == "__main__":
    main()
