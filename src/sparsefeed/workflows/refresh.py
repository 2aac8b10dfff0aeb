"""Refresh: a day of logs -> new ids, rows and weights -> a delta -> a new version of what serves.

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
from sparsefeed.progress import Progress, silent
from sparsefeed.workflows.recipe import Recipe
from sparsefeed.workflows.release.config import Gate
from sparsefeed.workflows.stages import add_day, days_up_to, read_etl, train_day, training_of, write_json
from sparsefeed.workflows.workspace import Workspace

__all__ = ["Refreshed", "must_not_be_worse", "refresh", "running_model"]


@dataclass(frozen=True)
class Refreshed:
    """A day that became a version.

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
    day: date,
    logs: Path | str | None = None,
    *,
    force: bool = False,
    progress: Progress = silent,
) -> Refreshed:
    """Make the next version from a day of logs; `current` becomes it.

    The day's training leaves `release.gate.held_out_rows` rows out, by whose random sessions the new model is compared
    with the one of `current`.

    Args:
        recipe: of the workspace.
        workspace: with a base that was exported, and every day before this one refreshed.
        day: the next day of the logs.
        logs: default: the workspace's.
        force: make the version although the gate is shut.
        progress: told of every step.

    Raises:
        DataError: the day is not the next one, or cannot be meant.
        BundleError: no version of the model that the day goes on from.
        ReleaseError: the gate is shut: the new model is worse than the one of `current`. Nothing was published.
    """
    from sparsefeed.models.bundle import open_version, set_current
    from sparsefeed.models.calibration import Calibration
    from sparsefeed.models.config import Validation
    from sparsefeed.models.delta import apply_delta
    from sparsefeed.models.export import export_delta
    from sparsefeed.models.gate import compare
    from sparsefeed.models.torchrec.score import Scorer

    gate = recipe.release.gate
    add_day(recipe, workspace, day, logs, progress)
    results = days_up_to(workspace, day)
    parent = _version_of(recipe, workspace, results[:-1])
    held_out = recipe.train.validation or Validation(rows=gate.held_out_rows)
    trained = recipe.model_copy(update={"train": recipe.train.model_copy(update={"validation": held_out})})
    checkpoint = train_day(trained, workspace, day, progress=progress).checkpoint
    progress(0, 1, "comparing with what is current")
    spec, _ = read_etl(recipe, workspace)
    running, start = running_model(recipe, workspace, results)
    found = compare(
        spec,
        Scorer(spec, checkpoint),
        Scorer(spec, running),
        [result.folder for result in results[start:]],
        Calibration.load(parent.calibration),
        held_out.rows,
        gate.confidence,
    )
    write_json(workspace.gate(day), asdict(found))
    if not force:
        must_not_be_worse(found, gate, f"{day}: the gate", "look at the day's logs (`sparsefeed eval --day`)")
    training = training_of(workspace, recipe.train.weights, results)
    metrics = {"num_rows": found.num_rows, "gate": {name: asdict(one) for name, one in found.responses.items()}}
    delta = export_delta(
        checkpoint,
        results[-1].folder,
        training / "changes",
        parent,
        workspace.deltas / str(day),
        metrics=metrics,
        progress=progress,
    )
    bundle = apply_delta(workspace.bundles, delta.path, progress)
    set_current(workspace.bundles, bundle)
    return Refreshed(open_version(workspace.bundles, bundle).id, parent.id, delta.path, found)


def _version_of(recipe: Recipe, workspace: Workspace, results: Sequence[Any]) -> Any:
    """The version that serves the model trained on the last of these results."""
    from sparsefeed.models.bundle import open_version, read_current, versions
    from sparsefeed.models.torchrec.checkpoint import Checkpoint, finished

    checkpoint = finished(training_of(workspace, recipe.train.weights, results))
    step = Checkpoint.read(checkpoint).step if checkpoint else -1
    last = str(results[-1].last_day)
    there = [open_version(workspace.bundles, id) for id in versions(workspace.bundles)]
    found = [one for one in there if (one.manifest.trained_days[-1], one.manifest.step) == (last, step)]
    if not found:
        command = "sparsefeed export" if len(results) == 1 else f"sparsefeed refresh --day {last}"
        raise BundleError(f"{workspace.bundles}: no version of the model of {last}; run `{command}` first")
    # Several: folded, or of another base. The one that serves, or that it came from, is meant; else the newest.
    ids, current = {one.id: one for one in found}, read_current(workspace.bundles)
    parent = open_version(workspace.bundles, current).manifest.parent if current else None
    newest = max(found, key=lambda one: (one.manifest.created, one.manifest.parent in ids))
    return ids.get(current or "") or ids.get(parent or "") or newest


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


def running_model(recipe: Recipe, workspace: Workspace, results: Sequence[Any]) -> tuple[Path, int]:
    """The model of `current`, and the place of its result among these."""
    from sparsefeed.models.bundle import open_version
    from sparsefeed.models.torchrec.checkpoint import finished

    current = open_version(workspace.bundles, None)
    days = [str(result.last_day) for result in results]
    last = current.manifest.trained_days[-1]
    if last not in days[:-1]:
        # Refreshed before: the call is repeated, and the day is compared with the one before it.
        last = days[-2]
    start = days.index(last)
    checkpoint = finished(training_of(workspace, recipe.train.weights, results[: start + 1]))
    assert checkpoint is not None, "train_day has found all of them"
    return checkpoint, start
