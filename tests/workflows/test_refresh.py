"""A day becomes the next version: refreshed once, gated, and made of a delta."""

from __future__ import annotations

import json
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sparsefeed.errors import BundleError, ReleaseError
from sparsefeed.etl.config import ClusterConfig, EtlConfig
from sparsefeed.etl.ids import IdMap, hash_strings
from sparsefeed.etl.snapshot import Snapshot
from sparsefeed.models.bundle import open_version, read_current, verify, versions
from sparsefeed.models.config import ModelConfig, TrainConfig
from sparsefeed.models.torchrec.checkpoint import finished
from sparsefeed.workflows.cli import app
from sparsefeed.workflows.recipe import Recipe
from sparsefeed.workflows.refresh import refresh
from sparsefeed.workflows.release.config import Gate, ReleaseConfig
from sparsefeed.workflows.stages import export_serving, prepare, train_model
from sparsefeed.workflows.workspace import Workspace
from tests import logs

FIRST = date(2026, 11, 2)
DAYS = [FIRST + timedelta(days=number) for number in (2, 3)]
RECIPE = Recipe(
    feed=logs.spec(tables=[{"name": n, "dim": 4, "tail_rows": 4} for n in ("member", "creator", "post", "hashtag")]),
    etl=EtlConfig(cluster=ClusterConfig(workers=0), until=FIRST + timedelta(days=2)),
    model=ModelConfig(hidden=(4,), cross_rank=2),
    train=TrainConfig(processes=1, batch_size=64),
    release=ReleaseConfig(gate=Gate(held_out_rows=100)),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs of five days; every day has members and posts of its own."""
    return logs.write(tmp_path_factory.mktemp("refresh") / "logs", days=5, sessions=120)


@pytest.fixture(scope="module")
def workspace(folder: Path) -> Workspace:
    """Two days trained and exported."""
    made = Workspace(folder.parent / "run")
    prepare(RECIPE, made, folder)
    train_model(RECIPE, made)
    with pytest.raises(BundleError, match=r"no version of the model of 2026-11-03; run `sparsefeed export` first"):
        refresh(RECIPE, made, DAYS[0], folder)
    export_serving(RECIPE, made)
    return made


def test_a_day_becomes_the_next_version_once(workspace: Workspace, folder: Path) -> None:
    base = open_version(workspace.bundles, None)
    for number, day in enumerate(DAYS, 1):
        before = read_current(workspace.bundles)
        made = refresh(RECIPE, workspace, day, folder)
        version = open_version(workspace.bundles, None)
        assert (version.id, version.manifest.parent, made.parent) == (made.bundle, before, before)
        assert (version.manifest.sequence, version.manifest.trained_days[-1]) == (number, str(day))
        verify(version.path)
        card = (version.path / "MODEL_CARD.md").read_text()
        assert f"bundle {made.bundle}" in card
        assert f"refreshed with {day}" in card
        assert f"training step {version.manifest.step}" in card
        assert refresh(RECIPE, workspace, day, folder).bundle == made.bundle
        assert len(versions(workspace.bundles)) == number + 1
        for table in RECIPE.feed.tables:
            assert IdMap.load(version.ids(table.name)).num_rows >= IdMap.load(base.ids(table.name)).num_rows
    scores = [json.loads((one.path / "metrics.json").read_text())["score"] for one in (base, version)]
    assert scores[0] == scores[1]  # what serves is held against the last whole training
    known, old = (Snapshot.load(one.snapshot) for one in (version, base))
    newest = Snapshot.load(workspace.etl_days / str(DAYS[1]) / "snapshot")
    assert known.as_of_ms == newest.as_of_ms > old.as_of_ms
    assert (known.member.whole().find(np.asarray(old.member.keys)) >= 0).all()
    post = known.post.whole()
    np.testing.assert_array_equal(post.dense[post.find(newest.post.keys)], newest.post.dense)


def test_a_refresh_goes_on_from_the_folded_version(folder: Path, tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    prepare(RECIPE, place, folder)
    train_model(RECIPE, place)
    export_serving(RECIPE, place)
    parent = refresh(RECIPE, place, DAYS[0], folder).bundle

    def fold() -> str:
        done = CliRunner().invoke(app, ["fold", "-w", str(tmp_path)])
        assert done.exit_code == 0, done.output
        made = read_current(place.bundles)
        assert made is not None
        assert f"bundle {made}" in done.output
        return made

    folded = fold()
    assert folded != parent
    assert fold() == folded
    # A call that is repeated finds its version, folded since.
    assert refresh(RECIPE, place, DAYS[0], folder).bundle == read_current(place.bundles) == folded
    made = refresh(RECIPE, place, DAYS[1], folder)
    assert made.parent == folded
    version, before = open_version(place.bundles, made.bundle), open_version(place.bundles, folded)
    assert (version.manifest.parent, version.manifest.sequence) == (folded, 3)
    verify(version.path)
    for table in RECIPE.feed.tables:
        rows = IdMap.load(place.etl_days / str(DAYS[1]) / "ids" / table.name)
        keys, _ = hash_strings([f"{table.name[0]}{i}" for i in range(30)], RECIPE.feed.key_seed)
        known = keys[rows.known(rows.lookup(keys))]
        np.testing.assert_array_equal(IdMap.load(version.ids(table.name)).lookup(known), rows.lookup(known))
    again = refresh(RECIPE, place, DAYS[1], folder)
    assert (again.bundle, again.parent) == (made.bundle, folded)
    assert before.manifest.trained_days[-1] == str(DAYS[0])


def test_of_the_held_out_rows_none_is_trained_and_the_gate_says_what_they_show(workspace: Workspace) -> None:
    said = json.loads(workspace.evaluation_day(DAYS[0]).with_suffix(".gate.json").read_text())
    trained = json.loads((workspace.training_day("ips", DAYS[0]) / "result.json").read_text())["num_samples"]
    rows = json.loads((workspace.etl_days / str(DAYS[0]) / "etl.json").read_text())["num_train_rows"]
    assert 100 <= rows - trained < rows
    assert 0 < said["num_rows"] < rows - trained
    for one in said["responses"].values():
        assert one["increase_at_least"] < one["candidate"] - one["running"]


def test_a_model_that_is_worse_is_no_version_unless_it_is_forced(tmp_path: Path, folder: Path) -> None:
    place = Workspace(tmp_path)
    prepare(RECIPE, place, folder)
    train_model(RECIPE, place)
    export_serving(RECIPE, place)
    before = read_current(place.bundles)
    wild = RECIPE.train.model_copy(update={"dense_learning_rate": 1.0, "table_learning_rate": 3.0, "warmup": 0.0})
    recipe = RECIPE.model_copy(update={"train": wild})
    with pytest.raises(ReleaseError, match=r"2026-11-04: the gate is shut, on \d+ impressions .* click: log loss"):
        refresh(recipe, place, DAYS[0], folder)
    assert (read_current(place.bundles), versions(place.bundles)) == (before, [before])
    made = refresh(recipe, place, DAYS[0], folder, force=True)
    assert read_current(place.bundles) == made.bundle != before
    assert finished(place.training_day("ips", DAYS[0])) is not None


def test_a_day_goes_on_from_the_day_before(workspace: Workspace, folder: Path, tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    prepare(RECIPE, place, folder)
    train_model(RECIPE, place)
    export_serving(RECIPE, place)
    with pytest.raises(Exception, match=r"day 2026-11-04 comes after 2026-11-03; add it before 2026-11-05"):
        refresh(RECIPE, place, DAYS[1], folder)


def test_the_keys_of_a_later_snapshot_win(workspace: Workspace) -> None:
    base = Snapshot.load(workspace.etl / "snapshot")
    keys, _ = hash_strings(["m1"], RECIPE.feed.key_seed)
    assert base.member.find(keys)[0] >= 0
    day = Snapshot.load(workspace.etl_days / str(DAYS[0]) / "snapshot")
    with pytest.raises(BundleError, match="apply it in order"):
        day.must_precede(base, workspace.etl / "snapshot")
