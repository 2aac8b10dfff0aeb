"""The way through HugeCTR on the command line: rows, check, plan, the script on the stub, its run, a bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner, Result

from sparsefeed.errors import SparsefeedError
from sparsefeed.models.bundle import open_version
from sparsefeed.models.hugectr.exchange import HugectrRun
from sparsefeed.models.hugectr.formats import read_dump
from sparsefeed.models.plan import Plan
from sparsefeed.models.store.store import ParameterStore
from sparsefeed.models.torchrec.checkpoint import Checkpoint, finished, latest
from sparsefeed.workflows.cli import app
from sparsefeed.workflows.workspace import Workspace
from tests import logs
from tests.models.hugectr.scripts import run_script

Invoke = Callable[..., Result]


@pytest.fixture
def invoke(tmp_path: Path) -> Invoke:
    """A command on the test's recipe and workspace, in this process."""
    recipe = {
        "feed": logs.spec().model_dump(mode="json"),
        "etl": {"cluster": {"workers": 0}},
        "model": {"hidden": [6], "cross_rank": 2},
        "train": {"processes": 1, "batch_size": 64},
    }
    (tmp_path / "feed.yaml").write_text(yaml.safe_dump(recipe))

    def call(*words: object) -> Result:
        place = ["-r", tmp_path / "feed.yaml", "-w", tmp_path / "work"] if words[0] not in ("hugectr", "hps") else []
        return CliRunner().invoke(app, [str(word) for word in (*words, *place)])

    return call


def done(result: Result) -> str:
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_from_logs_to_a_bundle_and_back(
    logs_folder: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Workspace(tmp_path / "work")
    # A model of our own, and its weights for HugeCTR.
    done(invoke("etl", "--logs", logs_folder))
    done(invoke("train"))
    done(invoke("plan", "--gpus", "2", "--batch-size", "64", "--out", tmp_path / "plan.json"))
    said = done(invoke("export", "--for", "hugectr", tmp_path / "weights", "--plan", tmp_path / "plan.json"))
    trained = latest(place.training("ips"))
    assert trained is not None
    assert "weights of" in said
    # The rows of HugeCTR, its script, and a run: the stub writes zeros, so those weights stand for it.
    done(invoke("etl", "--logs", logs_folder, "--for", "hugectr"))
    assert "no problem" in done(invoke("hugectr", "check", place.etl))
    plan = Plan.load(tmp_path / "plan.json")
    graph = run_script(monkeypatch, tmp_path, place.etl, plan, "--from", str(tmp_path / "weights"))
    assert graph.called("load_dense_weights")
    step = HugectrRun.read(tmp_path / "out").step
    shutil.rmtree(tmp_path / "out" / "embeddings")
    shutil.copytree(tmp_path / "weights" / "embeddings", tmp_path / "out" / "embeddings")
    shutil.copy(next((tmp_path / "weights").glob("*.model")), tmp_path / "out" / f"model_dense_{step}.model")
    with pytest.raises(SparsefeedError, match="holds the rows HugeCTR reads"):
        done(invoke("train"))
    said = done(invoke("export", "--from", "hugectr", tmp_path / "out"))
    assert "taken:" in said
    assert "bundle" in said
    checkpoint = latest(place.training("ips"))
    assert checkpoint is not None
    assert Checkpoint.read(checkpoint).step == step
    done(invoke("eval"))
    done(invoke("etl", "--logs", logs_folder))  # its ids are the same
    with pytest.raises(SparsefeedError, match="is a model of HugeCTR, which is at its end"):
        done(invoke("train"))
    assert finished(place.training("ips")) == checkpoint
    # What is served is what the run held.
    version = open_version(place.bundles)
    store = ParameterStore.open(version.tables)
    run = HugectrRun.read(tmp_path / "out")
    dumped = iter(read_dump(tmp_path / "out" / "embeddings"))
    for table in run.tables:
        rows = np.concatenate([next(dumped).rows for _ in range(table.parts)], axis=1)
        keys = np.arange(1, table.rows)
        np.testing.assert_array_equal(store.table_by_name[table.name].lookup(keys), rows[1:])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("export", "--from", "torchrec", "run"), "got torchrec; allowed: hugectr DIR"),
        (("export", "--from", "other", "run"), "'other' is not one of"),
        (("export", "--plan", "plan.json"), "says how --for cuts columns"),
        (("export", "--for", "hugectr", "weights", "--hps", "hps"), "writes no bundle; leave --from, --hps and"),
        (("etl", "--for", "tensorflow"), "'tensorflow' is not one of"),
    ],
)
def test_what_an_option_does_not_take(invoke: Invoke, words: tuple[str, ...], message: str) -> None:
    result = invoke(*words)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


def test_runs_of_another_model_and_folders_that_are_none(logs_folder: Path, tmp_path: Path, invoke: Invoke) -> None:
    done(invoke("etl", "--logs", logs_folder, "--for", "hugectr"))
    (tmp_path / "run").mkdir()
    run = {
        "spec_digest": logs.spec().digest, "etl": "x", "step": 1, "tables": [],
        "model": {"hidden": [7], "gate": True, "interactions": True, "cross_layers": 2, "cross_rank": 2},
        "dense_floats": 1,
    }  # fmt: skip
    (tmp_path / "run" / "hugectr.json").write_text(json.dumps(run))
    for words, message in (
        (
            ("export", "--from", "hugectr", tmp_path / "run"),
            r"trained with hidden \(7,\), the recipe's model has \(6,\)",
        ),
        (("export", "--from", "hugectr", tmp_path), "not a finished run of HugeCTR"),
        (("export", "--for", "hugectr", tmp_path / "weights"), "no finished model; run `sparsefeed train` first"),
        (("hugectr", "check", tmp_path), "is no result of `sparsefeed etl --for hugectr`"),
    ):
        with pytest.raises(SparsefeedError, match=message):
            done(invoke(*words))


def test_a_weighted_run_is_not_taken_for_an_unweighted_model(logs_folder: Path, tmp_path: Path, invoke: Invoke) -> None:
    done(invoke("etl", "--logs", logs_folder, "--for", "hugectr"))
    recipe = yaml.safe_load((tmp_path / "feed.yaml").read_text())
    (tmp_path / "feed.yaml").write_text(yaml.safe_dump({**recipe, "train": {**recipe["train"], "weights": "none"}}))
    with pytest.raises(SparsefeedError, match=r"HugeCTR's rows are weighted, the recipe says train.weights: none"):
        done(invoke("export", "--from", "hugectr", tmp_path / "run"))
    assert not Workspace(tmp_path / "work").training("none").exists()


def test_a_run_is_not_taken_for_a_model_that_hugectr_cannot_say(
    logs_folder: Path, tmp_path: Path, invoke: Invoke
) -> None:
    done(invoke("etl", "--logs", logs_folder, "--for", "hugectr"))
    recipe = yaml.safe_load((tmp_path / "feed.yaml").read_text())
    recipe["model"]["cross_residual"] = False
    (tmp_path / "feed.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "run").mkdir()
    run = {
        "spec_digest": logs.spec().digest, "etl": "x", "step": 1, "tables": [], "dense_floats": 1,
        "model": {"hidden": [6], "gate": True, "interactions": True, "cross_layers": 2, "cross_rank": 2},
    }  # fmt: skip
    (tmp_path / "run" / "hugectr.json").write_text(json.dumps(run))
    with pytest.raises(SparsefeedError, match="trained with cross_residual True, the recipe's model has False"):
        done(invoke("export", "--from", "hugectr", tmp_path / "run"))
