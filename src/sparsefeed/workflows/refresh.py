"""Refresh: a day of logs, or a part of it -> new ids, rows and weights -> a delta -> a new version of what serves.

Every step finds its own work done and leaves it, so a call that was cut off is simply repeated. Nothing here touches a
server: `sparsefeed publish` takes the version into service.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from sparsefeed.errors import BundleError, ReleaseError
from sparsefeed.etl.moment import Moment
from sparsefeed.progress import Progress, silent
from sparsefeed.workflows.recipe import Recipe
from sparsefeed.workflows.release.config import Gate
from sparsefeed.workflows.stages import add_day, days_up_to, read_etl, train_day, training_of, write_json
from sparsefeed.workflows.workspace import Workspace

__all__ = ["Refreshed", "must_not_be_worse", "refresh", "running_model"]


@dataclass(frozen=True)
class Refreshed:
    """A day, or a part of one, that became a version.

    Attributes:
        bundle: the new version's id.
        parent: the version it was made from.
        delta: folder of the delta.
        gate: what was found before (models.gate.GateResult).
    """

    bundle: str
    parent: str
    delta: Path
    gate: Any


def refresh(
    recipe: Recipe,
    workspace: Workspace,
    day: date | Moment,
    logs: Path | str | None = None,
    *,
    force: bool = False,
    progress: Progress = silent,
) -> Refreshed:
    """Make the next version from a day of logs, or from what it has before a moment; `current` becomes it.

    Either begins with the model of the day before; a version that a part of the day became is what the next one is a
    delta of, and no more.

    The day's training leaves `release.gate.held_out_rows` rows out, by whose random sessions the new model is compared
    with the one of `current`.

    Args:
        recipe: of the workspace.
        workspace: with a base that was exported, and every day before this one refreshed.
        day: the next day of the logs, or a moment in it.
        logs: default: the workspace's.
        force: make the version although the gate is shut.
        progress: told of every step.

    Raises:
        DataError: the day is not the next one, or cannot be meant.
        BundleError: no version of the model of the day before.
        ReleaseError: the gate is shut: the new model is worse than the one of `current`. Nothing was published.
    """
    from sparsefeed.etl.days import AddedDays
    from sparsefeed.models.bundle import open_version, set_current, versions
    from sparsefeed.models.calibration import Calibration
    from sparsefeed.models.config import Validation
    from sparsefeed.models.delta import apply_delta
    from sparsefeed.models.export import export_delta
    from sparsefeed.models.fold import latest_fold
    from sparsefeed.models.gate import compare
    from sparsefeed.models.torchrec.score import Scorer

    gate = recipe.release.gate
    add_day(recipe, workspace, day, logs, progress)
    # Each has the ids of the one before it and more: parts of the day lie between it and the day before.
    results = AddedDays(workspace.etl, workspace.etl_days).by_ids(days_up_to(workspace, day))
    parent, before = _parent(recipe, workspace, results[:-1])
    held_out = recipe.train.validation or Validation(rows=gate.held_out_rows)
    trained = recipe.model_copy(update={"train": recipe.train.model_copy(update={"validation": held_out})})
    checkpoint = train_day(trained, workspace, day, progress=progress, changed_from=before).checkpoint
    progress(0, 1, "comparing with what is current")
    spec, _ = read_etl(recipe, workspace)
    running, start = running_model(recipe, workspace, results, len(before) - 1)
    found = compare(
        spec,
        Scorer(spec, checkpoint),
        Scorer(spec, running),
        [result.folder for result in results[start:]],
        Calibration.load(parent.calibration),
        held_out.rows,
        gate.confidence,
    )
    write_json(workspace.gate(results[-1].name), asdict(found))
    if not force:
        must_not_be_worse(found, gate, f"{day}: the gate", "look at the day's logs (`sparsefeed eval --day`)")
    training = training_of(workspace, recipe.train.weights, results)
    metrics = {"num_rows": found.num_rows, "gate": {name: asdict(one) for name, one in found.responses.items()}}
    delta = export_delta(
        checkpoint,
        results[-1].folder,
        training / "changes",
        parent,
        workspace.deltas / results[-1].name,
        metrics=metrics,
        progress=progress,
    )
    made = open_version(workspace.bundles, apply_delta(workspace.bundles, delta.path, progress))
    # Folded since, where the call is repeated.
    bundle = latest_fold(made, [open_version(workspace.bundles, id) for id in versions(workspace.bundles)]).id
    set_current(workspace.bundles, bundle)
    return Refreshed(bundle, parent.id, delta.path, found)


def _parent(recipe: Recipe, workspace: Workspace, results: Sequence[Any]) -> tuple[Any, Sequence[Any]]:
    """The version of the last of these results that became one, the last whole day at the latest, and those up to it.

    It is `current`, if that is of the same model; folded since, its last fold. A part whose refresh did not
    come to its end, or whose gate was shut, is none.
    """
    from sparsefeed.models.bundle import open_version, read_current, versions
    from sparsefeed.models.fold import latest_fold
    from sparsefeed.models.torchrec.checkpoint import Checkpoint, finished

    checkpoint = finished(training_of(workspace, recipe.train.weights, results))
    step = Checkpoint.read(checkpoint).step if checkpoint else -1
    last = results[-1].name
    there = [open_version(workspace.bundles, id) for id in versions(workspace.bundles)]
    found = [one for one in there if (one.manifest.trained_days[-1], one.manifest.step) == (last, step)]
    if not found and "until" in results[-1].summary:
        return _parent(recipe, workspace, results[:-1])
    if not found:
        command = "sparsefeed export" if len(results) == 1 else f"sparsefeed refresh --day {last}"
        raise BundleError(f"{workspace.bundles}: no version of the model of {last}; run `{command}` first")
    # Several: folded, or of another base. The one that serves, or that it came from, is meant; else the newest.
    ids, current = {one.id: one for one in found}, read_current(workspace.bundles)
    parent = open_version(workspace.bundles, current).manifest.parent if current else None
    newest = max(found, key=lambda one: (one.manifest.created, one.manifest.parent in ids))
    return latest_fold(ids.get(current or "") or ids.get(parent or "") or newest, found), results


def must_not_be_worse(found: Any, gate: Gate, what: str, mend: str) -> None:
    """ReleaseError where a GateResult says that a response's log loss grew by more than the gate tolerates."""
    if worse := found.worse(gate.tolerance):
        said = "; ".join(
            f"{name}: log loss {one.candidate:.5f}, of current {one.running:.5f}, more by {one.increase_at_least:.5f} "
            "at least"
            for name, one in worse.items()
        )
        raise ReleaseError(
            f"{what} is shut, on {found.num_rows:,} impressions of random sessions: {said}; {mend}, or give --force"
        )


def running_model(
    recipe: Recipe, workspace: Workspace, results: Sequence[Any], parent: int | None = None
) -> tuple[Path, int]:
    """The model of `current`, and the place of its result among these.

    Where that is none of those before the last, it is `parent`, the place of one of them; by default the one before it.
    """
    from sparsefeed.models.bundle import open_version
    from sparsefeed.models.torchrec.checkpoint import finished

    current = open_version(workspace.bundles, None)
    days = [result.name for result in results[:-1]]
    last = current.manifest.trained_days[-1]
    # Not there: refreshed before, the call is repeated, and the day is compared with what it was then.
    start = days.index(last) if last in days else len(days) - 1 if parent is None else parent
    checkpoint = finished(training_of(workspace, recipe.train.weights, results[: start + 1]))
    assert checkpoint is not None, "train_day has found all of them"
    return checkpoint, start
