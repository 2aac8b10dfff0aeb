"""Stages: what each command does, given a recipe and a workspace. The CLI and the demo are made of these.

A stage that finds its result whole and made from the same input leaves it; one that was interrupted goes
on or begins again. Data flows one way: logs -> etl -> training -> evaluation -> bundle -> server.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, Literal

from sparsefeed.errors import DataError, SpecError, TrainError
from sparsefeed.etl.moment import Moment
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.lock import only_writer
from sparsefeed.progress import Progress, silent
from sparsefeed.workflows.recipe import Recipe
from sparsefeed.workflows.workspace import Workspace

__all__ = [
    "Weights",
    "add_day",
    "days_up_to",
    "evaluate_day",
    "evaluate_models",
    "explain_etl",
    "export_serving",
    "prepare",
    "published_logs",
    "read_etl",
    "simulate_logs",
    "train_day",
    "train_model",
    "training_of",
    "write_json",
]

Weights = Literal["ips", "none"]


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


def published_logs(dataset: Any, source: Path, workspace: Workspace, progress: Progress = silent) -> Any:
    """Logs of a published data set in the workspace; an etl.datasets.LogsSummary."""
    from sparsefeed.etl.datasets import write_logs

    return write_logs(dataset, source, workspace.logs, progress)


def prepare(
    recipe: Recipe, workspace: Workspace, logs: Path | str | None = None, progress: Progress = silent
) -> dict[str, Any]:
    """Run the ETL over the workspace's logs, or others; the content of etl.json."""
    from sparsefeed.etl.days import AddedDays
    from sparsefeed.etl.pipeline import run

    summary = run(recipe.feed, logs or workspace.logs, workspace.etl, recipe.etl, progress)
    outdated = AddedDays(workspace.etl, workspace.etl_days).outdated()
    notes = [f"{path}: was added to what is no longer there; add the day again, or remove it" for path in outdated]
    return {**summary, "warnings": [*summary["warnings"], *notes]}


def add_day(
    recipe: Recipe,
    workspace: Workspace,
    day: date | Moment,
    logs: Path | str | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Add a day of logs to the workspace's ETL, or its part before a moment; the content of its etl.json."""
    from sparsefeed.etl.days import AddedDays

    days, where = AddedDays(workspace.etl, workspace.etl_days), logs or workspace.logs
    if isinstance(day, Moment):
        return days.add_part(recipe.feed, where, day, recipe.etl, progress)
    return days.add(recipe.feed, where, day, recipe.etl, progress)


def explain_etl(recipe: Recipe, workspace: Workspace, logs: Path | str | None = None) -> Any:
    """What `prepare` would do, as a list of etl.explain.Stage; nothing is written."""
    from sparsefeed.etl.explain import explain

    return explain(recipe.feed, logs or workspace.logs, recipe.etl)


def read_etl(recipe: Recipe, workspace: Workspace) -> tuple[FeedSpec, dict[str, Any]]:
    """The spec and etl.json of the workspace's ETL; SpecError when the recipe has moved on since."""
    path = workspace.etl / "etl.json"
    if not path.exists():
        raise DataError(f"{workspace.etl}: there is no finished ETL; run `sparsefeed etl` first")
    spec = FeedSpec.load(workspace.etl / "spec.json")
    if spec.digest != recipe.feed.digest:
        changed = [key for key in type(spec).model_fields if getattr(spec, key) != getattr(recipe.feed, key)]
        raise SpecError(
            f"{workspace.etl}: was made with another feed than the recipe's ({', '.join(changed)} changed); "
            "run `sparsefeed etl` and `sparsefeed train` again, or go back to that recipe"
        )
    return spec, json.loads(path.read_text("utf-8"))


def train_model(
    recipe: Recipe, workspace: Workspace, weights: Weights | None = None, progress: Progress = silent
) -> Any:
    """Train, or go on where a training of the same data stopped; a TrainResult."""
    from sparsefeed.models.torchrec.train import train

    spec, etl = read_etl(recipe, workspace)
    config = recipe.train if weights is None else recipe.train.model_copy(update={"weights": weights})
    out = workspace.training(config.weights)
    with _alone(out, etl["fingerprint"], ""):
        return train(spec, recipe.model, config, workspace.etl, out, progress, resume=True)


def train_day(
    recipe: Recipe,
    workspace: Workspace,
    day: date | Moment,
    weights: Weights | None = None,
    progress: Progress = silent,
    changed_from: Sequence[Any] = (),
) -> Any:
    """Train a day that was added to the ETL, or a part of it, from the model of the day before; a TrainResult.

    Leaves a checkpoint in the workspace's `training_day`, and in `changes/` beside it what changed since the model of
    the day before, or that of the last of other results: rows and ids, as a delta holds them (docs/contracts/delta.md).
    """
    from sparsefeed.models.changes import id_changes, row_changes
    from sparsefeed.models.delta import write_changes
    from sparsefeed.models.torchrec.checkpoint import finished, identity, load_tables
    from sparsefeed.models.torchrec.columns import num_rows
    from sparsefeed.models.torchrec.train import train

    spec, _ = read_etl(recipe, workspace)
    config = recipe.train.of_a_day.model_copy(update={"weights": weights or recipe.train.weights})
    results = days_up_to(workspace, day)
    compared = list(changed_from) or results[:-1]
    added, previous = results[-1].folder, results[-2].folder
    before = training_of(workspace, config.weights, results[:-1])
    _must_be_in_a_row(workspace, config.weights, [result.last_day for result in results[1:-1]])
    start_from, last = finished(before), finished(training_of(workspace, config.weights, compared))
    assert start_from is not None
    assert last is not None
    out = workspace.training_day(config.weights, results[-1].name)
    with _alone(out, results[-1].summary["fingerprint"], identity(start_from)):
        result = train(
            spec, recipe.model, config, added, out, progress, resume=True, start_from=start_from, previous=previous
        )
        rows = row_changes(load_tables(last), load_tables(result.checkpoint), num_rows(spec, added))
        shutil.rmtree(out / "changes", ignore_errors=True)
        write_changes(out / "changes", rows, id_changes(spec, added, compared[-1].folder))
        return result


def days_up_to(workspace: Workspace, day: date | Moment) -> list[Any]:
    """The base and the days that were added, up to this one, or to this part of one; DataError where it was not."""
    from sparsefeed.etl.days import AddedDays

    return AddedDays(workspace.etl, workspace.etl_days).up_to(day)


def training_of(workspace: Workspace, weights: Weights, results: Sequence[Any]) -> Path:
    """Where the model of a base, or of it and days added to it, is trained."""
    if len(results) == 1:
        return workspace.training(weights)
    return workspace.training_day(weights, results[-1].name)


def _must_be_in_a_row(workspace: Workspace, weights: Weights, days: Sequence[date]) -> None:
    """TrainError where the base, or a day after it, is not trained to its end, or from another model than there is."""
    from sparsefeed.models.torchrec.checkpoint import Checkpoint, finished, identity

    start = ""
    for day in (None, *days):
        folder = workspace.training_day(weights, str(day)) if day else workspace.training(weights)
        option, checkpoint = f" --day {day}" if day else "", finished(folder)
        if checkpoint is None:
            raise TrainError(f"{folder}: no finished model to go on from; run `sparsefeed train{option}` first")
        if Checkpoint.read(checkpoint).start != start:
            raise TrainError(f"{folder}: began from a model that is no more; run `sparsefeed train{option}` again")
        start = identity(checkpoint)


@contextmanager
def _alone(out: Path, etl: str, start: str) -> Iterator[None]:
    """Be the only one who trains into a folder; what was trained there on other ids or from another start goes."""
    from sparsefeed.models.torchrec.checkpoint import Checkpoint, latest

    out.mkdir(parents=True, exist_ok=True)
    with only_writer(out, wait=False) as alone:
        if not alone:
            raise TrainError(f"{out}: another training is writing it now; wait for it, or name another workspace")
        checkpoint = latest(out)
        if checkpoint is not None:
            found = Checkpoint.read(checkpoint)
            if (found.etl, found.start) != (etl, start):
                for path in out.iterdir():  # not the folder: its lock is what others wait for
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield


def evaluate_models(
    recipe: Recipe, workspace: Workspace, progress: Progress = silent, against: Sequence[Any] = ("lightgbm",)
) -> dict[str, Any]:
    """Measure every model of the workspace trained on its ETL, beside the baselines; writes evaluation.json.

    The `mlp` among them has about as many parameters as the first model, all rows of its tables counted.
    """
    from sparsefeed.models.evaluate import evaluate
    from sparsefeed.models.torchrec.checkpoint import Checkpoint, identity, latest, load_model
    from sparsefeed.models.torchrec.score import Scorer

    spec, etl = read_etl(recipe, workspace)
    names: tuple[Weights, ...] = ("ips", "none")
    found = {weights: latest(workspace.training(weights)) for weights in names}
    checkpoints = {
        weights: path
        for weights, path in found.items()
        if path is not None and Checkpoint.read(path).etl == etl["fingerprint"]
    }
    if not checkpoints:
        raise TrainError(f"{workspace.training('ips').parent}: no model of this ETL run; run `sparsefeed train` first")
    truth = Path(etl["logs"]) / "truth"
    scorers: dict[str, Scorer] = {weights: Scorer(spec, path) for weights, path in checkpoints.items()}
    dense, tables = load_model(next(iter(checkpoints.values())), spec)
    num_parameters = sum(one.numel() for one in dense.parameters()) + sum(table.size for table in tables.values())
    known = truth if truth.exists() else None
    result = evaluate(
        spec, workspace.etl, scorers, known, progress, against, num_parameters, recipe.serving.calibration
    )
    result["checkpoints"] = {weights: identity(path) for weights, path in checkpoints.items()}
    write_json(workspace.evaluation, result)
    return result


def evaluate_day(
    recipe: Recipe, workspace: Workspace, day: date, weights: Weights | None = None, progress: Progress = silent
) -> dict[str, Any]:
    """Measure on a day's random sessions the models of the days before it; writes the day's evaluation.

    `refreshed` is the model of the day before, whether or not the day itself was trained since; `base`, where that is
    another one, the model without any added day.
    """
    from sparsefeed.models import evaluate
    from sparsefeed.models.torchrec.checkpoint import finished
    from sparsefeed.models.torchrec.score import Scorer

    spec, etl = read_etl(recipe, workspace)
    weights = weights or recipe.train.weights
    results = days_up_to(workspace, day)
    _must_be_in_a_row(workspace, weights, [result.last_day for result in results[1:-1]])
    folders = [result.folder for result in results]
    models = {}
    for name, number in (("refreshed", len(results) - 1), ("base", 1)):
        checkpoint = finished(training_of(workspace, weights, results[:number]))
        assert checkpoint is not None, "they are in a row"
        if name == "refreshed" or number < len(results) - 1:
            models[name] = Scorer(spec, checkpoint), folders[number - 1 :]
    truth = Path(etl["logs"]) / "truth"
    result = evaluate.evaluate_day(spec, models, truth if truth.exists() else None, progress)
    result |= {"day": str(day), "trained_to": str(results[-2].last_day)}
    write_json(workspace.evaluation_day(str(day)), result)
    return result


def export_serving(
    recipe: Recipe,
    workspace: Workspace,
    progress: Progress = silent,
    over_budget: bool = False,
    note: Callable[[str], object] = lambda _: None,
) -> tuple[str, list[str]]:
    """Write the trained model as a bundle and its Triton models; (bundle id, model names).

    With a budget of time (`serving.dense_budget_ms`) the dense step is measured first, and `note` told of it.
    ServeError where it takes longer, unless `over_budget`: nothing is published then, and `current` is as it was.
    """
    from sparsefeed.models.evaluate import fit_calibration, score_held_out
    from sparsefeed.models.export import export_bundle
    from sparsefeed.models.score_bins import score_bins
    from sparsefeed.models.torchrec.checkpoint import Checkpoint, latest
    from sparsefeed.models.torchrec.score import Scorer
    from sparsefeed.workflows.release.recorded import record
    from sparsefeed.workflows.serving.cost import check_budget
    from sparsefeed.workflows.serving.export import export

    budgeted = recipe.serving.dense_budget_ms is not None

    def check(folder: Path) -> None:
        if budgeted:
            note(check_budget(folder, recipe.serving, over_budget=over_budget, progress=progress))
        record(folder, workspace.etl / "inverse")

    spec, _ = read_etl(recipe, workspace)
    checkpoint = latest(workspace.training(recipe.train.weights))
    if checkpoint is None:
        raise TrainError(f"{workspace.training(recipe.train.weights)}: no checkpoint; run `sparsefeed train` first")
    if Checkpoint.read(checkpoint).model != recipe.model:
        raise TrainError(f"{checkpoint}: is of another model than the recipe's; run `sparsefeed train` again")
    if over_budget and not budgeted:
        note("--over-budget changes nothing: the recipe has no serving.dense_budget_ms")
    scorer = Scorer(spec, checkpoint)
    held_out = score_held_out(spec, scorer, workspace.etl)
    calibration = fit_calibration(spec, scorer, workspace.etl, recipe.serving.calibration, held_out)
    bundle = export_bundle(
        checkpoint,
        workspace.etl,
        workspace.bundles,
        row_format=recipe.serving.row_format,
        calibration=calibration,
        int8=recipe.serving.int8_limits if recipe.serving.dense_format == "int8" else None,
        note=note,
        metrics=_metrics(workspace, recipe.train.weights, checkpoint),
        scores=score_bins(spec, calibration, held_out.logits) if held_out else None,
        check=check,
        progress=progress,
    )
    return bundle, export(workspace.bundles, bundle, recipe.serving, workspace.triton_repo)


def _metrics(workspace: Workspace, weights: Weights, checkpoint: Path) -> dict[str, Any] | None:
    """What evaluation.json says of this very checkpoint, if anything."""
    from sparsefeed.models.torchrec.checkpoint import identity

    if not workspace.evaluation.exists():
        return None
    result = json.loads(workspace.evaluation.read_text("utf-8"))
    if result.get("checkpoints", {}).get(weights) != identity(checkpoint):
        return None
    responses = {response: models[weights] for response, models in result["responses"].items()}
    return {"num_rows": result["num_rows"], "responses": responses}
