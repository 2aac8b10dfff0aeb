"""Loop: every day of the logs that is not there yet judged, refreshed and published, one after the other.

After some days, by the recipe's schedule, all is trained anew first (workflows.retrain), or the version's overlays are
merged into whole files; at a day's end what nobody needs any more is removed. Each step finds its own work done, so a
loop that was cut off goes on where it stopped when it is started again. A line of JSON a day says what the day cost and
how good the model before it was on it.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from sparsefeed.errors import DataError, ReleaseError
from sparsefeed.progress import Progress, silent
from sparsefeed.workflows.pruning import prune_workspace
from sparsefeed.workflows.recipe import Recipe
from sparsefeed.workflows.refresh import refresh
from sparsefeed.workflows.release.log import ReleaseLog
from sparsefeed.workflows.release.release import Release
from sparsefeed.workflows.retrain import held_out_days, retrain
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
        etl_s: seconds until its rows, ids and histories were there, and the model before it judged on them.
        refresh_s: seconds of training, gate and delta.
        publish_s: seconds until running servers answered by it, its canary included; 0 where none was asked for.
        delta_bytes: of the delta's files.
        version_bytes: of the new versions' files that a parent does not share; of all, on a day of a retrain.
        peak_memory_bytes: of this process and the largest of its children, so far.
        quality: response -> AUC, log loss, predicted/actual, on the day's random sessions, of the model before it.
        base: fingerprint of the ETL result that the version goes back to.
        retrained: whether the day's version goes back to a base that was made on this day.
        folded: whether the version's overlays were merged into whole files.
        retrain_s: seconds of the new base: ETL, training, gate and export.
        fold_s: seconds of merging.
        prune_s: seconds of removing.
        pruned_bytes: that the disk got back.
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
    base: str = ""
    retrained: bool = False
    folded: bool = False
    retrain_s: float = 0.0
    fold_s: float = 0.0
    prune_s: float = 0.0
    pruned_bytes: int = 0


def loop(
    recipe: Recipe,
    workspace: Workspace,
    logs: Path | str | None = None,
    *,
    max_days: int | None = None,
    publish: Callable[[str, date], object] | None = None,
    releases: Sequence[Release] = (),
    force: bool = False,
    progress: Progress = silent,
) -> Iterator[LoopDay]:
    """Refresh the days after the last that was, in order; yield each when it is done.

    Args:
        recipe: of the workspace; `release.schedule` says when all is trained anew or folded.
        workspace: with a base that was exported.
        logs: default: the workspace's.
        max_days: stop after so many; None: at the last day of the logs.
        publish: takes the version, of this day, into service; None: versions are made and nothing else.
        releases: servers whose spare bundles are unloaded when a day is done.
        force: also through a gate that is shut.
        progress: told of every step.

    Raises:
        ReleaseError: a day's gate is shut, or publishing failed; the days before it stay.
        SparsefeedError: as of `refresh` and `retrain`.
    """
    from sparsefeed.etl.days import AddedDays
    from sparsefeed.etl.logs import days_of

    base, done = AddedDays(workspace.etl, workspace.etl_days).chain()[0], read_loop(workspace.loop)
    # The base is the last line's, or a retrain of a day that is not done; else the lines are of another run.
    if done and done[-1].base != base.summary["fingerprint"] and workspace.base <= done[-1].day:
        done = []
        workspace.loop.unlink()
    seen, skip = {one.day for one in done}, recipe.etl.on_bad_file == "skip"
    days = days_of(logs or workspace.logs, base.last_day + _DAY, date.max, skip)
    for day in [day for day in days if str(day) not in seen][:max_days]:
        finished = _Day(recipe, workspace, day, logs, force, progress).run(done, publish, releases)
        ReleaseLog(workspace.loop).append(asdict(finished))
        done.append(finished)
        yield finished


@dataclass(frozen=True)
class _Day:
    """One day's steps, in order."""

    recipe: Recipe
    workspace: Workspace
    day: date
    logs: Path | str | None
    force: bool
    progress: Progress

    def run(
        self, done: Sequence[LoopDay], publish: Callable[[str, date], object] | None, releases: Sequence[Release]
    ) -> LoopDay:
        """Do what of it is not done yet; what the log says of it."""
        workspace, clock = self.workspace, _Clock()
        judged, etl_s = self._judge(), clock.lap()
        retrained, retrain_s = self._retrain(), clock.lap()
        rows = add_day(self.recipe, workspace, self.day, self.logs, self.progress)["num_train_rows"]
        made = refresh(self.recipe, workspace, self.day, self.logs, force=self.force, progress=self.progress)
        delta_bytes = _bytes(made.delta)
        version_bytes = _bytes(workspace.bundles / "versions" / made.bundle, own=not retrained)
        refresh_s = clock.lap()
        folded, bundle = not retrained and self._must_fold(done), made.bundle
        if folded:
            self.progress(0, 1, f"{self.day}: merging overlays")
            bundle = _fold(workspace.bundles, made.bundle, self.progress)
            if bundle != made.bundle:  # else it was made before the loop was cut off, and has been counted
                version_bytes += _bytes(workspace.bundles / "versions" / bundle, own=True)
        fold_s = clock.lap() if folded else 0.0
        if publish:
            self.progress(0, 1, f"{self.day}: into service")
            publish(bundle, self.day)
        publish_s = clock.lap() if publish else 0.0
        self.progress(0, 1, f"{self.day}: removing what nobody needs")
        keep = self.recipe.release.keep_versions
        pruned_bytes = prune_workspace(workspace, self.day, releases, keep, {bundle, made.bundle, made.parent})
        self.progress(1, 1, f"{self.day}: done")
        return LoopDay(
            day=str(self.day),
            bundle=bundle,
            rows=rows,
            etl_s=etl_s,
            refresh_s=refresh_s,
            publish_s=publish_s,
            delta_bytes=delta_bytes,
            version_bytes=version_bytes,
            peak_memory_bytes=_peak_memory_bytes(),
            quality={r: _figures(models["refreshed"]) for r, models in judged["responses"].items()},
            base=_base(workspace)["fingerprint"],
            retrained=retrained,
            folded=folded,
            retrain_s=retrain_s if retrained else 0.0,
            fold_s=fold_s,
            prune_s=clock.lap(),
            pruned_bytes=pruned_bytes,
        )

    @property
    def _in_force(self) -> bool:
        """Whether a retrain of this day is; then its base knows nothing of the model before."""
        return self.workspace.base == str(self.day)

    def _judge(self) -> dict[str, Any]:
        path = self.workspace.evaluation_day(self.day)
        if self._in_force and path.exists():
            judged: dict[str, Any] = json.loads(path.read_text("utf-8"))
            return judged
        add_day(self.recipe, self.workspace, self.day, self.logs, self.progress)
        return evaluate_day(self.recipe, self.workspace, self.day, progress=self.progress)

    def _retrain(self) -> bool:
        """Make a new base where it is time, and bring it to the day before this one; whether there is one."""
        from sparsefeed.models.torchrec.checkpoint import finished

        every, etl = self.recipe.release.schedule.retrain_every, _base(self.workspace)
        if not self._in_force:
            if every is None or (self.day - date.fromisoformat(etl["eval_days"][-1])).days < every:
                return False
            retrain(self.recipe, self.workspace, self.day, self.logs, force=self.force, progress=self.progress)
        training = self.workspace.training_day(self.recipe.train.weights, self.day)
        if not finished(training):  # else the days before are done, and what they were made from may be gone
            for earlier in held_out_days(self.recipe, self.workspace, self.day, self.logs)[:-1]:
                refresh(self.recipe, self.workspace, earlier, self.logs, force=self.force, progress=self.progress)
        return True

    def _must_fold(self, done: Sequence[LoopDay]) -> bool:
        """Whether it is time, since the last day whose version was whole: of a fold, a retrain, or the base's own."""
        every = self.recipe.release.schedule.fold_every
        whole = [_base(self.workspace)["train_days"][-1], *(one.day for one in done if one.folded or one.retrained)]
        return every is not None and (self.day - date.fromisoformat(max(whole))).days >= every


def _fold(root: Path, bundle: str, progress: Progress) -> str:
    """Make a version without overlays of this one, and point `current` at it; done before, it is the same again."""
    from sparsefeed.models.bundle import set_current
    from sparsefeed.models.fold import fold

    whole = fold(root, bundle, progress)
    set_current(root, whole)
    return whole


class _Clock:
    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last one."""
        before, self._last = self._last, time.perf_counter()
        return self._last - before


def read_loop(path: Path) -> list[LoopDay]:
    """What a loop wrote; a last line that a crash cut off is none. ReleaseError where another line is not one."""
    days = []
    for number, line in enumerate(ReleaseLog(path).read(), 1):
        try:
            days.append(LoopDay(**line))
        except TypeError as error:
            raise ReleaseError(f"{path}: line {number}: {error}; remove the file, the days themselves stay") from error
    return days


def _base(workspace: Workspace) -> dict[str, Any]:
    etl: dict[str, Any] = json.loads((workspace.etl / "etl.json").read_text("utf-8"))
    return etl


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
