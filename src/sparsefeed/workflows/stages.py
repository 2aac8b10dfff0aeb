"""Stages: what each command does, given a recipe and a workspace. The CLI and the demo are made of these.

A stage that finds its result whole and made from the same input leaves it; one that was interrupted goes
on or begins again. Data flows one way: logs -> etl -> training -> evaluation -> bundle -> server.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from sparsefeed.errors import SpecError, TrainError
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.progress import Progress, silent
from sparsefeed.workflows.recipe import Recipe
from sparsefeed.workflows.workspace import Workspace

__all__ = ["evaluate_models", "export_serving", "prepare", "simulate_logs", "train_model", "write_json"]


def write_json(path: Path, value: Any) -> None:
    """Write JSON beside and rename, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    beside.write_text(json.dumps(value, indent=1) + "\n", "utf-8")
    beside.replace(path)


def simulate_logs(recipe: Recipe, workspace: Workspace, progress: Progress = silent) -> Any:
    """Simulated logs in the workspace; a SimulationSummary."""
    from sparsefeed.etl.simulate import simulate

    if recipe.simulate is None:
        raise SpecError("recipe: has no `simulate`; its logs are real, give them with --logs")
    return simulate(recipe.simulate, workspace.logs, progress)


def prepare(
    recipe: Recipe, workspace: Workspace, logs: Path | None = None, progress: Progress = silent
) -> dict[str, Any]:
    """Run the ETL over the workspace's logs, or others; the content of etl.json."""
    from sparsefeed.etl.pipeline import run

    return run(recipe.feed, logs or workspace.logs, workspace.etl, recipe.etl, progress)


def train_model(recipe: Recipe, workspace: Workspace, weights: str | None = None, progress: Progress = silent) -> Any:
    """Train, or go on where a training of the same data stopped; a TrainResult."""
    from sparsefeed.models.torchrec.train import train

    config = recipe.train if weights is None else recipe.train.model_copy(update={"weights": weights})
    out = workspace.training(config.weights)
    made_from = out / "etl.json"
    etl = (workspace.etl / "etl.json").read_text("utf-8") if (workspace.etl / "etl.json").exists() else ""
    spec = FeedSpec.load(workspace.etl / "spec.json") if etl else recipe.feed
    if not made_from.exists() or made_from.read_text("utf-8") != etl:
        shutil.rmtree(out, ignore_errors=True)  # of other data: nothing of it can be used
        out.mkdir(parents=True)
        made_from.write_text(etl, "utf-8")
    return train(spec, recipe.model, config, workspace.etl, out, progress, resume=True)


def evaluate_models(recipe: Recipe, workspace: Workspace, progress: Progress = silent) -> dict[str, Any]:
    """Measure every trained model of the workspace beside the baselines; writes evaluation.json."""
    from sparsefeed.models.evaluate import evaluate
    from sparsefeed.models.torchrec.checkpoint import latest
    from sparsefeed.models.torchrec.score import Scorer

    spec = FeedSpec.load(workspace.etl / "spec.json")
    checkpoints = {weights: latest(workspace.training(weights)) for weights in ("ips", "none")}
    scorers = {weights: Scorer(spec, path) for weights, path in checkpoints.items() if path is not None}
    if not scorers:
        raise TrainError(f"{workspace.training('ips').parent}: no checkpoint; run `sparsefeed train` first")
    truth = workspace.logs / "truth"
    result = evaluate(spec, workspace.etl, scorers, truth if truth.exists() else None, progress)
    write_json(workspace.evaluation, result)
    return result


def export_serving(recipe: Recipe, workspace: Workspace, progress: Progress = silent) -> tuple[str, list[str]]:
    """Write the trained model as a bundle and its Triton models; (bundle id, model names)."""
    from sparsefeed.models.evaluate import fit_calibration
    from sparsefeed.models.export import export_bundle
    from sparsefeed.models.torchrec.checkpoint import latest
    from sparsefeed.models.torchrec.score import Scorer
    from sparsefeed.workflows.serving.export import export

    checkpoint = latest(workspace.training(recipe.train.weights))
    if checkpoint is None:
        raise TrainError(f"{workspace.training(recipe.train.weights)}: no checkpoint; run `sparsefeed train` first")
    spec = FeedSpec.load(workspace.etl / "spec.json")
    metrics = json.loads(workspace.evaluation.read_text("utf-8")) if workspace.evaluation.exists() else None
    bundle = export_bundle(
        checkpoint,
        workspace.etl,
        workspace.bundles,
        row_format=recipe.serving.row_format,
        calibration=fit_calibration(spec, Scorer(spec, checkpoint), workspace.etl),
        metrics=metrics,
        progress=progress,
    )
    return bundle, export(workspace.bundles, bundle, recipe.serving, workspace.triton_repo)
