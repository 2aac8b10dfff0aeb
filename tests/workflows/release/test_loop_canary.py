"""A loop on a running server: each day's version gets some members, the day's own requests judge it, and all follow."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from sparsefeed.etl.config import ClusterConfig, EtlConfig
from sparsefeed.models.bundle import read_current, versions
from sparsefeed.models.config import ModelConfig, TrainConfig
from sparsefeed.workflows.cli import app
from sparsefeed.workflows.loop import read_loop
from sparsefeed.workflows.recipe import Recipe
from sparsefeed.workflows.release.config import Gate, Guardrails, ReleaseConfig, Schedule
from sparsefeed.workflows.stages import export_serving, prepare, train_model
from sparsefeed.workflows.workspace import Workspace
from tests import logs
from tests.workflows.release.conftest import serving

pytestmark = pytest.mark.triton
FIRST = logs.START.date()
LENIENT = Guardrails(min_requests=20, p99_ratio=None, psi=None, error_rate=0.9, unknown_rate=0.9)


def recipe_of(folder: Path, guardrails: Guardrails) -> tuple[str, Recipe]:
    recipe = Recipe(
        feed=logs.spec(
            tables=[{"name": n, "dim": 4, "tail_rows": 4} for n in ("member", "creator", "post", "hashtag")]
        ),
        etl=EtlConfig(cluster=ClusterConfig(workers=0), until=FIRST + timedelta(days=2)),
        model=ModelConfig(hidden=(4,), cross_rank=2),
        train=TrainConfig(processes=1, batch_size=64),
        release=ReleaseConfig(
            gate=Gate(held_out_rows=100, tolerance=0.5),
            guardrails=guardrails,
            look_every_s=1.5,
            schedule=Schedule(retrain_every=1, retrain_days=3),
        ),
    )
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    return str(path), recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs of four days."""
    return logs.write(tmp_path_factory.mktemp("canary") / "logs", days=4, sessions=120)


def looped(recipe: str, place: Workspace, *options: str) -> tuple[int, str]:
    arguments = ["loop", "-r", recipe, "-w", str(place.root), "--logs", str(place.root.parent / "logs"), *options]
    done = CliRunner().invoke(app, arguments)
    return done.exit_code, f"{done.output}{done.exception or ''}"


def test_every_day_goes_through_a_canary_and_one_that_is_aborted_stops_the_loop(folder: Path) -> None:
    path, recipe = recipe_of(folder.parent, LENIENT)
    place = Workspace(folder.parent / "run")
    prepare(recipe, place, folder)
    train_model(recipe, place)
    base, _ = export_serving(recipe, place)
    server, served = serving(place.root, place.bundles, base)
    with server:
        status, said = looped(path, place, "--days", "1", "--canary", "50", "--replay")
        assert status == 0, said
        (first,) = read_loop(place.loop)
        assert f"{first.day}: bundle {first.bundle}; ETL" in said
        assert first.publish_s > 0
        assert served.bundle_for("m1") == first.bundle == read_current(place.bundles)
        lines = list(served.release.log.read())
        assert [line["action"] for line in lines[-2:]] == ["canary start", "canary promote"]
        assert lines[-1]["canary_requests"] >= 20

        # Scores of a model trained anew are others than those of the running one: a rail for PSI alone.
        strict, _ = recipe_of(folder.parent, LENIENT.model_copy(update={"psi": 1e-9}))
        status, said = looped(strict, place, "--canary", "50", "--replay")
        assert status == 1
        assert "aborted: score PSI" in said
        assert served.bundle_for("m1") == first.bundle
        assert len(read_loop(place.loop)) == 1
        path, _ = recipe_of(folder.parent, LENIENT)
        status, said = looped(path, place, "--canary", "50", "--replay")
        assert status == 0, said
        second = read_loop(place.loop)[-1]
        assert (second.day, second.retrained) == (str(FIRST + timedelta(days=3)), True)
        assert served.bundle_for("m1") == second.bundle
        assert (place.base, (place.root / "etl").exists()) == (second.day, False)
        assert {first.bundle, second.bundle} <= set(versions(place.bundles))
        assert set(served.release.control.ready()) == {first.bundle, second.bundle}  # the one before, for a rollback


def test_options_that_mean_nothing_together_are_refused(tmp_path: Path) -> None:
    path, _ = recipe_of(tmp_path, LENIENT)
    for options, said in (
        (["--canary", "5", "--publish"], "Invalid value for --canary"),
        (["--replay"], "Invalid value for --replay"),
    ):
        status, output = looped(path, Workspace(tmp_path / "run"), *options)
        assert status == 2
        assert said in output
