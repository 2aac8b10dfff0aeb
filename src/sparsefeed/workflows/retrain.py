"""Retrain: a new base from a window of days, made beside the one in force, which nothing touches.

Ids that the window does not show have no row in it. Every step finds its own work done, so a call that was cut off is
simply repeated; the new base is in force when one file names it (Workspace.put_in_force), and the old one is whole
until the loop prunes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from sparsefeed.etl.config import EtlConfig
from sparsefeed.progress import Progress, silent
from sparsefeed.workflows.recipe import Recipe
from sparsefeed.workflows.refresh import must_not_be_worse, running_model
from sparsefeed.workflows.stages import (
    add_day,
    days_up_to,
    evaluate_models,
    export_serving,
    prepare,
    read_etl,
    train_model,
    write_json,
)
from sparsefeed.workflows.workspace import Workspace

__all__ = ["held_out_days", "retrain", "window"]

_DAY = timedelta(days=1)


def retrain(
    recipe: Recipe,
    workspace: Workspace,
    day: date,
    logs: Path | str | None = None,
    *,
    force: bool = False,
    progress: Progress = silent,
) -> str:
    """Make ETL, model and version anew from the days up to this one, and put them in force as the base.

    The last `etl.eval_days` of them are held out, as of any base: they calibrate the model, their random sessions of
    this day are its gate, and they are then refreshed like other days.

    Args:
        recipe: of the workspace.
        workspace: whose base in force has the day added (`sparsefeed etl --day`), and every day before it trained.
        day: the last day that is read.
        logs: default: the workspace's.
        force: put it in force although the gate is shut.
        progress: told of every step.

    Returns:
        The version that the new base became; `current`, and served by nobody yet.

    Raises:
        ReleaseError: the gate is shut: the new model is worse than the one of `current`. The old base goes on.
        SparsefeedError: as of `prepare`, `train_model` and `export_serving`; the old base goes on.
    """
    place = Workspace(workspace.root, of_base=str(day))
    _, before = read_etl(recipe, workspace)
    etl = window(recipe.etl, before, day, recipe.release.schedule.retrain_days)
    anew = recipe.model_copy(update={"etl": etl})
    prepare(anew, place, logs or workspace.logs, progress)
    checkpoint = train_model(anew, place, progress=progress).checkpoint
    for held_out in held_out_days(recipe, place, day, logs):
        add_day(recipe, place, held_out, logs, progress)
    progress(0, 2, "comparing the model trained anew with what is current")
    found = _compared(anew, workspace, place, day, checkpoint)
    if not force:
        mend = (
            "the base before goes on without `release.schedule.retrain_every`; look at the days that the retrain read"
        )
        must_not_be_worse(found, recipe.release.gate, f"{day}: the retrain's gate", mend)
    evaluate_models(anew, place, progress, against=())
    bundle, _ = export_serving(anew, place, progress)
    progress(1, 2, f"base of {day} exported")
    place.put_in_force()
    progress(2, 2, f"base of {day} in force")
    return bundle


def held_out_days(recipe: Recipe, place: Workspace, day: date, logs: Path | str | None = None) -> list[date]:
    """The days after those that a base was fitted on, up to this one, which are refreshed on it."""
    from sparsefeed.etl.days import AddedDays
    from sparsefeed.etl.logs import days_of

    first = AddedDays(place.etl, place.etl_days).chain()[0].last_day + _DAY
    return days_of(logs or place.logs, first, day, recipe.etl.on_bad_file == "skip")


def window(etl: EtlConfig, before: Mapping[str, Any], day: date, days: int | None) -> EtlConfig:
    """The days that a retrain reads.

    Args:
        etl: the recipe's.
        before: etl.json of the base in force; as many days as it has that are only fitted on, the new one has, too.
        day: the last one.
        days: how many, this one included; None: from `etl.since` on.
    """
    if days is None:
        return etl.model_copy(update={"until": day})
    since, train_from = day - (days - 1) * _DAY, None
    if before.get("days_before"):
        first, trained = (date.fromisoformat(before[name][0]) for name in ("days_before", "train_days"))
        train_from = since + (trained - first)
    return etl.model_copy(update={"since": since, "until": day, "train_from": train_from})


def _compared(recipe: Recipe, workspace: Workspace, place: Workspace, day: date, checkpoint: Path) -> Any:
    """What the gate finds; found before, it is what the old base's model was worth when that was still current."""
    from sparsefeed.models.bundle import open_version
    from sparsefeed.models.calibration import Calibration
    from sparsefeed.models.gate import GateResult, compare_anew
    from sparsefeed.models.torchrec.checkpoint import identity
    from sparsefeed.models.torchrec.score import Scorer

    path, candidate = workspace.retrain_gate(day), identity(checkpoint)
    if path.exists() and (said := json.loads(path.read_text("utf-8"))).get("candidate") == candidate:
        return GateResult.of(said)
    spec, _ = read_etl(recipe, place)
    results = days_up_to(workspace, day)
    running, start = running_model(recipe, workspace, results)
    found = compare_anew(
        spec,
        Scorer(spec, checkpoint),
        [result.folder for result in days_up_to(place, day)],
        Scorer(spec, running),
        [result.folder for result in results[start:]],
        Calibration.load(open_version(workspace.bundles, None).calibration),
        recipe.serving.calibration,
        recipe.release.gate.confidence,
    )
    write_json(path, {"candidate": candidate, **asdict(found)})
    return found
