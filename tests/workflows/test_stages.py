"""Stages refuse what does not belong together: models and ids of different runs, recipes that moved on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparsefeed.errors import DataError, ServeError, SpecError, TrainError
from sparsefeed.etl.config import ClusterConfig, EtlConfig
from sparsefeed.etl.ids import IdMap
from sparsefeed.models.bundle import open_version, read_current, versions
from sparsefeed.models.calibration import Calibration
from sparsefeed.models.config import CalibrationKind, ModelConfig, TrainConfig
from sparsefeed.models.evaluate import fit_calibration
from sparsefeed.models.torchrec.checkpoint import latest
from sparsefeed.models.torchrec.score import Scorer
from sparsefeed.workflows.recipe import Recipe
from sparsefeed.workflows.release.recorded import _score, recorded_of
from sparsefeed.workflows.serving.config import ServingConfig
from sparsefeed.workflows.stages import evaluate_models, export_serving, prepare, read_etl, train_model
from sparsefeed.workflows.workspace import Workspace
from tests import logs

RECIPE = Recipe(
    feed=logs.spec(),
    etl=EtlConfig(cluster=ClusterConfig(workers=0)),
    model=ModelConfig(hidden=(4,), cross_rank=2),
    train=TrainConfig(processes=1, batch_size=64),
)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """ETL and training done on one set of logs."""
    root = tmp_path_factory.mktemp("stages")
    made = Workspace(root / "run")
    prepare(RECIPE, made, logs.write(root / "logs", days=2, sessions=40))
    train_model(RECIPE, made)
    return made


def test_a_finished_training_is_not_trained_again(workspace: Workspace) -> None:
    assert train_model(RECIPE, workspace).samples_per_s == 0


def test_a_recipe_that_moved_on_is_told_what_changed(workspace: Workspace) -> None:
    fewer = [{"name": "click", "column": "click"}, {"name": "like"}]
    moved = RECIPE.model_copy(update={"feed": logs.spec(responses=fewer)})
    message = r"another feed than the recipe's \(responses changed\); run `sparsefeed etl`"
    for stage in (train_model, evaluate_models, export_serving):
        with pytest.raises(SpecError, match=message):
            stage(moved, workspace)
    other = RECIPE.model_copy(update={"model": ModelConfig(hidden=(8,))})
    with pytest.raises(TrainError, match=r"another model \(.*hidden: .*4.* there, .*8.* asked for"):
        train_model(other, workspace)
    with pytest.raises(TrainError, match=r"another model than the recipe's; run `sparsefeed train`"):
        export_serving(other, workspace)


def test_metrics_of_another_checkpoint_are_not_sealed_into_a_bundle(workspace: Workspace) -> None:
    result = evaluate_models(RECIPE, workspace)
    bundle, _ = export_serving(RECIPE, workspace)
    sealed = json.loads((workspace.bundles / "versions" / bundle / "metrics.json").read_text())
    assert sealed["responses"]["click"]["auc"] == result["responses"]["click"]["ips"]["auc"]
    result["checkpoints"] = {"ips": "of another"}
    workspace.evaluation.write_text(json.dumps(result))
    bundle, _ = export_serving(RECIPE, workspace)
    kept = json.loads((workspace.bundles / "versions" / bundle / "metrics.json").read_text())
    assert kept == {"score": sealed["score"]}  # the scores are this very checkpoint's
    assert kept["score"]["num_rows"] == result["num_rows"]
    assert sum(kept["score"]["shares"]) == pytest.approx(1)


def test_a_bundle_holds_requests_of_its_own_ids_with_the_scores_its_steps_give(workspace: Workspace) -> None:
    bundle, _ = export_serving(RECIPE, workspace)
    version = open_version(workspace.bundles, bundle)
    found = recorded_of(workspace.bundles, version)
    members = [request.member for request in found.requests]
    assert members[-2:] == ["", "sparsefeed-stranger"]
    for table, texts in (("member", members[:-2]), ("post", found.requests[0].posts[:-1])):
        known = IdMap.load(version.ids(table))
        assert len(set(texts)) == len(texts) > 1
        assert known.known(known.encode(list(texts))).all()
    assert _score(version.path, [(one.member, list(one.posts)) for one in found.requests]) == found
    assert len({score for one in found.requests for score in one.score}) > 20


def _budgeted(dense_budget_ms: float) -> Recipe:
    serving = ServingConfig(dense_budget_ms=dense_budget_ms, budget_candidates=8)
    return RECIPE.model_copy(update={"serving": serving})


def test_a_bundle_over_the_budget_is_not_published_unless_it_is_wanted(workspace: Workspace, tmp_path: Path) -> None:
    made = Workspace(tmp_path / "run")
    (tmp_path / "run").mkdir()
    for name in ("etl", "training"):
        (made.root / name).symlink_to((workspace.root / name).resolve())
    with pytest.raises(ServeError, match=r"serving\.dense_budget_ms: .* takes .* ms for 8 candidates .* --over-budget"):
        export_serving(_budgeted(1e-9), made)  # less than any step takes
    assert (versions(made.bundles), read_current(made.bundles), made.triton_repo.exists()) == ([], None, False)
    assert not list((made.bundles / "versions").glob(".*.partial"))

    said: list[str] = []
    bundle, models = export_serving(_budgeted(1e-9), made, over_budget=True, note=said.append)
    assert (versions(made.bundles), read_current(made.bundles), len(models)) == ([bundle], bundle, 4)
    assert said[0].endswith("over budget")

    # The bundle that serves is as it was, whatever a refused one would have been.
    with pytest.raises(ServeError, match="nothing was published"):
        export_serving(_budgeted(1e-9), made)
    assert read_current(made.bundles) == bundle


def test_a_bundle_within_the_budget_is_the_one_without(workspace: Workspace) -> None:
    said: list[str] = []
    bundle, _ = export_serving(_budgeted(1e9), workspace, note=said.append)
    assert said[0].startswith("dense step: ")
    assert "over" not in said[0]
    assert bundle == export_serving(RECIPE, workspace, over_budget=True, note=said.append)[0]
    assert said[1:] == ["--over-budget changes nothing: the recipe has no serving.dense_budget_ms"]


@pytest.mark.parametrize("kind", ["none", "isotonic"])
def test_a_model_is_calibrated_and_measured_as_the_recipe_says(workspace: Workspace, kind: CalibrationKind) -> None:
    recipe = RECIPE.model_copy(update={"serving": ServingConfig(calibration=kind)})
    spec, _ = read_etl(recipe, workspace)
    checkpoint = latest(workspace.training("ips"))
    assert checkpoint is not None
    bundle, _ = export_serving(recipe, workspace)
    exported = Calibration.load(workspace.bundles / "versions" / bundle / "calibration.json")
    assert exported == fit_calibration(spec, Scorer(spec, checkpoint), workspace.etl, kind)
    with pytest.MonkeyPatch.context() as patch:
        asked: list[str] = []
        patch.setattr(Calibration, "fit", lambda *_, kind: asked.append(kind) or Calibration.identity(spec))
        evaluate_models(recipe, workspace, against=())
    assert asked == [kind, kind]  # each half by the other


def test_a_model_is_measured_beside_the_baselines_asked_for(workspace: Workspace) -> None:
    result = evaluate_models(RECIPE, workspace, against=("logistic", "mlp", "lightgbm_ids"))
    assert result["models"] == ["ips", "logistic", "mlp", "lightgbm_ids", "constant"]
    for models in result["responses"].values():
        assert all(0 < quality["log_loss"] < 2 for quality in models.values())


def test_without_an_etl_training_is_refused_and_nothing_is_lost(workspace: Workspace) -> None:
    done = workspace.etl / "etl.json"
    away = done.rename(workspace.root / "away.json")
    try:
        for stage in (train_model, evaluate_models, export_serving):
            with pytest.raises(DataError, match=r"no finished ETL; run `sparsefeed etl` first"):
                stage(RECIPE, workspace)
        assert latest(workspace.training("ips")) is not None
    finally:
        away.rename(done)


def test_a_model_is_never_joined_to_the_ids_of_another_etl(workspace: Workspace, tmp_path: Path) -> None:
    # Last in this module: it replaces the ETL's result.
    checkpoint = latest(workspace.training("ips"))
    assert checkpoint is not None
    prepare(RECIPE, workspace, logs.write(tmp_path / "other", days=3, sessions=50, seed=1))
    spec, _ = read_etl(RECIPE, workspace)
    with pytest.raises(TrainError, match=r"no model of this ETL run; run `sparsefeed train` first"):
        evaluate_models(RECIPE, workspace)
    with pytest.raises(TrainError, match=r"was trained on ETL run .*, whose ids have other rows"):
        export_serving(RECIPE, workspace)
    with pytest.raises(TrainError, match=r"whose ids have other rows"):
        Scorer(spec, checkpoint).score(workspace.etl / "eval")
    assert train_model(RECIPE, workspace).samples_per_s > 0
    export_serving(RECIPE, workspace)
