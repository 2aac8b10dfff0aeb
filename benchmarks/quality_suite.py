"""The suite `quality`: the ranker beside its baselines on random sessions of a held-out day, over five feeds.

The feeds are the simulator's, equal but for the seed; none was looked at before. All models see the same rows. What is
measured is the expected metric, under the true probabilities; a bound is the 95 % one of a paired difference over the
seeds, by Student's t. merlin-models takes a minute a feed, so it is trained on the first of them alone; the ranker's
figures beside it are those of the same feeds.

A feed has 2,000 members who see 430 posts a week (MEMBERS): of 20,000 with 43, as the demo has, not even all that is
true of the posts would tell half of what a member wants (docs/log.md).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
from knowable import knowable
from merlin_models import MERLIN_MODELS, scores_of_merlin_models
from numpy.typing import NDArray
from refresh import refreshed
from results import Recorder, Row

from sparsefeed.models import metrics
from sparsefeed.models.calibration import Calibration
from sparsefeed.models.evaluate import Baseline, read_rows
from sparsefeed.models.store.rows import dequantise, quantise
from sparsefeed.models.torchrec.checkpoint import load_tables
from sparsefeed.models.torchrec.score import Scorer
from sparsefeed.workflows.console import stage
from sparsefeed.workflows.recipe import Recipe, load_recipe
from sparsefeed.workflows.stages import evaluate_models, prepare, published_logs, simulate_logs, train_model
from sparsefeed.workflows.workspace import Workspace

__all__ = ["quality"]

REFRESHED = 3  # days
SEEDS = (101, 102, 103, 104, 105)
MERLIN_SEEDS = SEEDS[:3]
MEMBERS = 2_000
BASELINES: dict[Baseline, str] = {
    "logistic": "logistic regression",
    "lightgbm": "LightGBM without ids",
    "lightgbm_ids": "LightGBM with encoded ids",
    "mlp": "MLP without ids",
}
NAMES = {**BASELINES, "constant": "constant", "none": "no weights"}
TREES: tuple[Baseline, ...] = ("lightgbm", "lightgbm_ids")
DRAWN, KNOWABLE = "the drawn probabilities", "what a request can tell"
ALL = "all responses"
Values = Mapping[tuple[str, str, str], list[float]]  # (response, model, metric) -> by seed


def quality(recipe: Recipe, workspace: Workspace, record: Recorder) -> list[Row]:
    """KuaiRand, whose files may not be there or be others than before; then every feed in turn, means and bounds."""
    assert recipe.simulate is not None
    real = _kuairand(record, Workspace(workspace.root.parent / "quality" / "kuairand"))
    found: dict[tuple[str, str, str], list[float]] = {}
    for number, seed in enumerate(SEEDS):
        simulated = recipe.simulate.model_copy(update={"seed": seed, "num_members": MEMBERS})
        own = recipe.model_copy(update={"simulate": simulated})
        with stage(f"feed {number + 1} of {len(SEEDS)}") as progress:
            folder = Workspace(workspace.root.parent / "quality" / str(seed))
            peers = workspace.root.parent / "peers-merlin-models" if seed in MERLIN_SEEDS else None
            for key, value in _measure(own, folder, progress, peers).items():
                found.setdefault(key, []).append(value)
    responses = [response.name for response in recipe.feed.responses]
    rows = [row for response in responses for row in _rows(record, response, found)] + [_int8(record, found)]
    return rows + _refreshed(record, recipe, workspace.root.parent / "quality" / "refresh") + real


def _refreshed(record: Recorder, recipe: Recipe, root: Path) -> list[Row]:
    """A model refreshed daily beside one trained anew, after REFRESHED days of the first feed; the worst response."""
    assert recipe.simulate is not None
    simulated = recipe.simulate.model_copy(update={"seed": SEEDS[0], "num_members": MEMBERS})
    with stage("refresh") as progress:
        own = recipe.model_copy(update={"simulate": simulated})
        judged = refreshed(own, root, REFRESHED, (REFRESHED,), progress)[-1]
    assert judged.retrained is not None
    below = {name: anew["auc"] - judged.refreshed[name]["auc"] for name, anew in judged.retrained.items()}
    return [record.row(ALL, "auc, daily refresh below a daily retrain by", max(below.values()), "")]


def _kuairand(record: Recorder, workspace: Workspace) -> list[Row]:
    """The recipe `kuairand` on a slice (policy_*) in a folder kuairand* of SPARSEFEED_DATA, where one is; observed."""
    folders = sorted(Path(os.environ.get("SPARSEFEED_DATA", "")).glob("kuairand*/policy_*"))
    if not folders or "SPARSEFEED_DATA" not in os.environ:
        return []
    recipe = load_recipe("kuairand")
    with stage("KuaiRand") as progress:
        published_logs("kuairand", folders[0].parent, workspace, progress)
        prepare(recipe, workspace)
        train_model(recipe, workspace)
        result = evaluate_models(recipe, workspace, progress, TREES)
    return [
        record.row(f"KuaiRand, {response}", metric, models["none"][metric], "", BASELINES[trees], models[trees][metric])
        for response, models in result["responses"].items()
        for trees in TREES
        for metric in ("auc", "log_loss")
    ]


def _measure(
    recipe: Recipe, workspace: Workspace, progress: Any, peers: Path | None
) -> dict[tuple[str, str, str], float]:
    simulate_logs(recipe, workspace)
    prepare(recipe, workspace)
    progress(0, 1, "training without weights")
    train_model(recipe, workspace, "none")
    progress(0, 1, "training")
    checkpoint = train_model(recipe, workspace, "ips").checkpoint
    result = evaluate_models(recipe, workspace, progress, list(BASELINES))
    values = {
        (response, model, metric): measured["expected"][metric]
        for response, models in result["responses"].items()
        for model, measured in models.items()
        for metric in ("auc", "log_loss", "predicted_over_actual")
    }
    for response, measured in result["calibrated"].items():
        values[response, "calibrated", "predicted_over_actual"] = measured["predicted_over_actual"]
    rows = read_rows(recipe.feed, workspace.etl / "eval", workspace.logs / "truth", random_only=True)
    assert rows.truth is not None
    assert recipe.simulate is not None
    scores = {"drawn": rows.truth, "knowable": knowable(recipe.simulate, workspace.logs, rows.impression)}
    scores["int8"] = _of_int8_rows(recipe, workspace, checkpoint)
    if peers:
        progress(0, 1, "training merlin-models' DLRM and DCN")
        scores |= scores_of_merlin_models(workspace.etl, peers)
    for model, probability in scores.items():
        for r, response in enumerate(result["responses"]):
            for metric, measure in (("auc", metrics.auc), ("log_loss", metrics.log_loss)):
                values[response, model, metric] = measure(rows.truth[:, r], probability[:, r])
    return values


def _of_int8_rows(recipe: Recipe, workspace: Workspace, checkpoint: Path) -> NDArray[np.float32]:
    """Probabilities of the ranker with the rows that a bundle of row_format int8 serves."""
    scorer = Scorer(recipe.feed, checkpoint)
    for name, table in load_tables(checkpoint).items():
        scorer.replace_table(name, dequantise(quantise(table, "int8"), "int8"))
    logits = scorer.score(workspace.etl / "eval", random_only=True)
    return Calibration.identity(recipe.feed).probability(logits)


def _rows(record: Recorder, response: str, found: Values) -> list[Row]:
    def of(model: str, metric: str) -> NDArray[np.float64]:
        return np.array(found[response, model, metric])

    rows = []
    for model, name in (NAMES | MERLIN_MODELS).items():
        for metric, sign in (("auc", 1), ("log_loss", -1)):
            theirs = of(model, metric)
            ours = of("ips", metric)[: len(theirs)]  # of the same feeds, the first ones
            rows.append(record.row(response, metric, float(ours.mean()), "", name, float(theirs.mean())))
            ahead = _lower_bound(sign * (ours - theirs))
            rows.append(record.row(response, f"{metric}, ahead by at least", ahead, "", name))
    for truth, name in (("drawn", DRAWN), ("knowable", KNOWABLE)):
        for metric in ("auc", "log_loss"):
            best = _best_trees(of, metric)
            closed = (of("ips", metric) - of(best, metric)) / (of(truth, metric) - of(best, metric))
            rows.append(
                record.row(response, metric, float(of("ips", metric).mean()), "", name, of(truth, metric).mean())
            )
            rows.append(record.row(response, f"{metric}, share of the gap closed", float(closed.mean()), "", name))
    over = "predicted_over_actual"
    rows.append(
        record.row(response, over, float(of("ips", over).mean()), "", NAMES["none"], float(of("none", over).mean()))
    )
    rows.append(record.row(response, over, float(of("calibrated", over).mean()), "", "calibrated"))
    return rows


def _best_trees(of: Any, metric: str) -> str:
    means = {name: of(name, metric).mean() for name in TREES}
    return max(means, key=means.__getitem__) if metric == "auc" else min(means, key=means.__getitem__)


def _int8(record: Recorder, found: Values) -> Row:
    """The largest upper bound of the change over the responses, either way."""
    bounds = []
    for response in dict.fromkeys(key[0] for key in found):
        change = np.array(found[response, "int8", "auc"]) - np.array(found[response, "ips", "auc"])
        bounds.append(max(-_lower_bound(-change), -_lower_bound(change)))
    return record.row(ALL, "auc, change by int8 rows at most", float(max(bounds)), "")


def _lower_bound(differences: NDArray[np.float64]) -> float:
    """Of the mean, one end of the two-sided 95 % interval."""
    error = differences.std(ddof=1) / np.sqrt(len(differences))
    return float(differences.mean() - scipy.stats.t.ppf(0.975, len(differences) - 1) * error)
