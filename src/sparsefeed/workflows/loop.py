"""Loop: every day of the logs that is not there yet judged, refreshed and published, one after the other.

Each step finds its own work done, so a loop that was cut off goes on where it stopped when it is started again. A line
of JSON a day says what the day cost and how good the model before it was on it.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from sparsefeed.errors import DataError, ReleaseError
from sparsefeed.progress import Progress, silent
from sparsefeed.workflows.recipe import Recipe
from sparsefeed.workflows.refresh import refresh
from sparsefeed.workflows.release.log import ReleaseLog
from sparsefeed.workflows.stages import add_day, evaluate_day
from sparsefeed.workflows.workspace import Workspace

__all__ = ["LoopDay", "loop", "read_loop"]

_DAY = timedelta(days=1)


@dataclass(frozen=True)
class LoopDay:
    """What a day gave and took.

    Attributes:
        day: ISO date.
        bundle: the version it became.
        rows: impressions trained or held out.
        etl_s: seconds until its rows, ids and histories were there.
        refresh_s: seconds of training, gate and delta.
        publish_s: seconds until running servers answered by it; 0 where none was asked for.
        delta_bytes: of the delta's files.
        version_bytes: of the new version's files that its parent does not share.
        peak_memory_bytes: of this process and the largest of its children, so far.
        quality: response -> AUC, log loss, predicted/actual, on the day's random sessions, of the model before it.
    """

    day: str
    bundle: str
    rows: int
    etl_s: float
    refresh_s: float
    publish_s: float
    delta_bytes: int
    version_bytes: int
    peak_memory_bytes: int
    quality: dict[str, dict[str, float]]


def loop(
    recipe: Recipe,
    workspace: Workspace,
    logs: Path | str | None = None,
    *,
    max_days: int | None = None,
    publish: Callable[[str], object] | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Iterator[LoopDay]:
    """Refresh the days after the last that was, in order; yield each when it is done.

    Args:
        recipe: of the workspace.
        workspace: with a base that was exported.
        logs: default: the workspace's.
        max_days: stop after so many; None: at the last day of the logs.
        publish: takes a version's id into service; None: versions are made and nothing else.
        force: also through a gate that is shut.
        progress: told of every step.

    Raises:
        ReleaseError: a day's gate is shut, or publishing failed; the days before it stay.
        SparsefeedError: as of `refresh`.
    """
    from sparsefeed.etl.days import AddedDays
    from sparsefeed.etl.logs import days_of

    where = logs or workspace.logs
    base = AddedDays(workspace.etl, workspace.etl_days).chain()[0].last_day
    done = {one.day: one for one in read_loop(workspace.loop)}
    if done and date.fromisoformat(min(done)) <= base:
        done = {}  # of another base
        workspace.loop.unlink()
    days = [
        day for day in days_of(where, base + _DAY, date.max, recipe.etl.on_bad_file == "skip") if str(day) not in done
    ]
    for day in days[:max_days]:
        started = time.perf_counter()
        rows = add_day(recipe, workspace, day, logs, progress)["num_train_rows"]
        judged = evaluate_day(recipe, workspace, day, progress=progress)
        prepared = time.perf_counter()
        made = refresh(recipe, workspace, day, logs, force=force, progress=progress)
        refreshed = time.perf_counter()
        if publish:
            publish(made.bundle)
        finished = LoopDay(
            day=str(day),
            bundle=made.bundle,
            rows=rows,
            etl_s=prepared - started,
            refresh_s=refreshed - prepared,
            publish_s=time.perf_counter() - refreshed if publish else 0.0,
            delta_bytes=_bytes(made.delta),
            version_bytes=_bytes(workspace.bundles / "versions" / made.bundle, own=True),
            peak_memory_bytes=_peak_memory_bytes(),
            quality={r: _figures(models["refreshed"]) for r, models in judged["responses"].items()},
        )
        ReleaseLog(workspace.loop).append(asdict(finished))
        yield finished


def read_loop(path: Path) -> list[LoopDay]:
    """What a loop wrote; a last line that a crash cut off is none. ReleaseError where another line is not one."""
    days = []
    for number, line in enumerate(ReleaseLog(path).read(), 1):
        try:
            days.append(LoopDay(**line))
        except TypeError as error:
            raise ReleaseError(f"{path}: line {number}: {error}; remove the file, the days themselves stay") from error
    return days


def _figures(measured: dict[str, Any]) -> dict[str, float]:
    shown = measured.get("expected", measured)
    return {name: float(shown[name]) for name in ("auc", "log_loss", "predicted_over_actual")}


def _bytes(folder: Path, own: bool = False) -> int:
    if not folder.is_dir():
        raise DataError(f"{folder}: not there any more; run the day again")
    files = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum(file.st_size for file in files if not own or file.st_nlink == 1)


def _peak_memory_bytes() -> int:
    kib = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(kib) * 1024
