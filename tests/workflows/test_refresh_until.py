"""A day that becomes versions in parts: each from the model of the day before, each by a delta of the one before it."""

from __future__ import annotations

import json
import shutil
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from sparsefeed.errors import DataError, ReleaseError
from sparsefeed.etl.config import ClusterConfig, EtlConfig
from sparsefeed.etl.ids import IdMap
from sparsefeed.etl.moment import Moment
from sparsefeed.models.bundle import Bundle, open_version, read_current, verify, versions
from sparsefeed.models.calibration import Calibration
from sparsefeed.models.config import ModelConfig, TrainConfig
from sparsefeed.models.gate import compare
from sparsefeed.models.store.store import ParameterStore
from sparsefeed.models.torchrec.checkpoint import Checkpoint, finished, identity, load_tables
from sparsefeed.models.torchrec.earlier_ids import earlier_rows
from sparsefeed.models.torchrec.score import Scorer
from sparsefeed.workflows.cli import app
from sparsefeed.workflows.loop import loop
from sparsefeed.workflows.recipe import Recipe
from sparsefeed.workflows.refresh import Refreshed, refresh
from sparsefeed.workflows.release.config import Gate, ReleaseConfig
from sparsefeed.workflows.release.recorded import recorded_of
from sparsefeed.workflows.stages import evaluate_day, export_serving, prepare, train_model
from sparsefeed.workflows.workspace import Workspace
from tests import logs

FIRST = date(2026, 11, 2)
DAYS = [FIRST + timedelta(days=number) for number in (2, 3)]
MOMENTS = [Moment.parse(f"{DAYS[0]}T{time}") for time in ("10:00:00", "17:00:00")]
RECIPE = Recipe(
    feed=logs.spec(tables=[{"name": n, "dim": 4, "tail_rows": 4} for n in ("member", "creator", "post", "hashtag")]),
    etl=EtlConfig(cluster=ClusterConfig(workers=0), until=FIRST + timedelta(days=2)),
    model=ModelConfig(hidden=(4,), cross_rank=2),
    train=TrainConfig(processes=1, batch_size=64),
    release=ReleaseConfig(gate=Gate(held_out_rows=60)),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs of five days; posts and members are others from hour to hour."""
    root = logs.write(tmp_path_factory.mktemp("until") / "logs", days=5, sessions=120)
    for number, path in enumerate(sorted(root.glob("impressions/*/*.parquet"))):
        table = pq.read_table(path)
        hour = [9 * number + row // 60 for row in range(len(table))]
        posts = [f"p{int(p[1:]) + h}" for p, h in zip(table["post_id"].to_pylist(), hour, strict=True)]
        members = [f"m{(int(m[1:]) + h) % 60}" for m, h in zip(table["member_id"].to_pylist(), hour, strict=True)]
        logs.change(path, post_id=pa.array(posts), member_id=pa.array(members))
    return root


@pytest.fixture(scope="module")
def base(folder: Path) -> Workspace:
    """Two days trained and exported; tests go on in copies."""
    made = Workspace(folder.parent / "base")
    prepare(RECIPE, made, folder)
    train_model(RECIPE, made)
    export_serving(RECIPE, made)
    return made


def copied(base: Workspace, root: Path) -> Workspace:
    return Workspace(shutil.copytree(base.root, root, dirs_exist_ok=True))


@pytest.fixture(scope="module")
def parted(folder: Path, base: Workspace) -> tuple[Workspace, list[Refreshed]]:
    """The first day in two parts and whole, then the second; and what each call made."""
    place = copied(base, folder.parent / "parted")
    made = []
    for of in (*MOMENTS, *DAYS):
        made.append(refresh(RECIPE, place, of, folder))
        assert refresh(RECIPE, place, of, folder).bundle == made[-1].bundle  # repeated: there is nothing to do
        assert read_current(place.bundles) == made[-1].bundle
    return place, made


@pytest.fixture(scope="module")
def plain(folder: Path, base: Workspace) -> Workspace:
    """The same days, each whole."""
    place = copied(base, folder.parent / "plain")
    for day in DAYS:
        refresh(RECIPE, place, day, folder)
    return place


def manifests(place: Workspace, made: list[Refreshed]) -> list[Any]:
    return [open_version(place.bundles, one.bundle).manifest for one in made]


def test_every_version_is_a_delta_of_the_one_before_it(parted: tuple[Workspace, list[Refreshed]]) -> None:
    place, made = parted
    said = manifests(place, made)
    assert [one.sequence for one in said] == [1, 2, 3, 4]
    assert [one.parent for one in made[1:]] == [one.bundle for one in made[:-1]]
    assert len(versions(place.bundles)) == 5
    base = ("2026-11-02", "2026-11-03")
    assert [one.trained_days for one in said] == [
        (*base, "2026-11-04T100000"),
        (*base, "2026-11-04T170000"),
        (*base, "2026-11-04"),
        (*base, "2026-11-04", "2026-11-05"),
    ]
    for one in made:
        verify(place.bundles / "versions" / one.bundle)
    assert sorted(path.name for path in place.deltas.iterdir()) == sorted(map(str, (*MOMENTS, *DAYS)))
    card = (place.bundles / "versions" / made[0].bundle / "MODEL_CARD.md").read_text()
    assert "refreshed with 2026-11-04T100000, " in card


def test_parts_and_the_day_begin_with_the_model_of_the_day_before(parted: tuple[Workspace, list[Refreshed]]) -> None:
    place, _ = parted
    names = [str(of) for of in (*MOMENTS, *DAYS)]
    found = {name: finished(place.training_day("ips", name)) for name in names}
    base = finished(place.training("ips"))
    assert base is not None
    starts = [Checkpoint.read(path).start for path in found.values() if path]
    day = found[str(DAYS[0])]
    assert day is not None
    assert starts == [identity(base)] * 3 + [identity(day)]
    samples = [json.loads((place.training_day("ips", n) / "result.json").read_text())["num_samples"] for n in names]
    assert samples[0] < samples[1] < samples[2]


def test_a_version_holds_the_ids_and_rows_of_its_own_model(parted: tuple[Workspace, list[Refreshed]]) -> None:
    place, made = parted
    for one, of in zip(made, (*MOMENTS, *DAYS), strict=True):
        version, checkpoint = open_version(place.bundles, one.bundle), finished(place.training_day("ips", str(of)))
        assert checkpoint is not None
        trained, store = load_tables(checkpoint), ParameterStore.open(version.tables).table_by_name
        for name, values in trained.items():
            wanted, got = IdMap.load(place.etl_days / str(of) / "ids" / name), IdMap.load(version.ids(name))
            strings = [f"{name[0]}{number}" for number in range(150)]
            np.testing.assert_array_equal(got.encode(strings), wanted.encode(strings))
            rows = np.arange(1, wanted.num_rows)
            np.testing.assert_array_equal(store[name].lookup(rows), values[rows])


def test_versions_made_after_parts_answer_as_those_made_without(
    parted: tuple[Workspace, list[Refreshed]], plain: Workspace
) -> None:
    place, made = parted
    news = [IdMap.load(place.etl_days / str(of) / "ids" / "post").num_rows for of in (*MOMENTS, *DAYS)]
    assert news == sorted(set(news))  # ids came with every one
    for day, one in zip(DAYS, made[2:], strict=True):
        without = next(v for v in all_versions(plain) if v.manifest.trained_days[-1] == str(day))
        answers = [
            recorded_of(p.bundles, v) for p, v in ((place, open_version(place.bundles, one.bundle)), (plain, without))
        ]
        for got, expected in zip(*(answer.requests for answer in answers), strict=True):
            assert (got.member, got.posts) == (expected.member, expected.posts)
            np.testing.assert_allclose(got.score, expected.score, rtol=1e-5)
    gates = [json.loads(p.evaluation_day(DAYS[1]).with_suffix(".gate.json").read_text()) for p in (place, plain)]
    for name, one in gates[0]["responses"].items():
        assert one["candidate"] == pytest.approx(gates[1]["responses"][name]["candidate"], rel=1e-5)
        assert one["running"] == pytest.approx(gates[1]["responses"][name]["running"], rel=1e-5)


def all_versions(place: Workspace) -> list[Bundle]:
    return [open_version(place.bundles, id) for id in versions(place.bundles)]


def test_a_part_answers_for_posts_that_the_day_brought(parted: tuple[Workspace, list[Refreshed]]) -> None:
    place, made = parted
    base, version = (open_version(place.bundles, id) for id in (made[0].parent, made[0].bundle))
    known = [IdMap.load(one.ids("post")) for one in (base, version)]
    new = [
        f"p{n}"
        for n in range(150)
        if known[0].encode([f"p{n}"])[0] < known[0].first_row <= known[1].encode([f"p{n}"])[0]
    ]
    assert new
    assert all(np.isfinite(one.score).all() for one in recorded_of(place.bundles, version).requests)


def test_the_gate_compares_with_the_part_that_serves(parted: tuple[Workspace, list[Refreshed]]) -> None:
    place, made = parted
    names = [str(MOMENTS[1]), str(DAYS[0])]
    running, candidate = (finished(place.training_day("ips", name)) for name in names)
    assert running is not None
    assert candidate is not None
    calibration = Calibration.load(open_version(place.bundles, made[1].bundle).calibration)
    scorers = [Scorer(RECIPE.feed, path) for path in (candidate, running)]
    chain = [place.etl_days / name for name in names]
    assert compare(RECIPE.feed, *scorers, chain, calibration, 60) == made[2].gate
    known, later = (IdMap.load(result / "ids" / "post") for result in chain)
    rows = earlier_rows(RECIPE.feed, chain)["post"]
    strings = [f"p{number}" for number in range(150)]
    own = later.encode(strings) >= later.first_row
    np.testing.assert_array_equal(rows[later.encode(strings)[own]], known.encode(strings)[own])


def test_a_day_that_is_whole_is_judged_without_its_parts(
    parted: tuple[Workspace, list[Refreshed]], plain: Workspace
) -> None:
    results = [evaluate_day(RECIPE, place, DAYS[1]) for place in (parted[0], plain)]
    assert results[0]["trained_to"] == str(DAYS[0])
    for response, models in results[0]["responses"].items():
        for name in ("refreshed", "base"):
            assert models[name]["log_loss"] == pytest.approx(
                results[1]["responses"][response][name]["log_loss"], rel=1e-5
            )


def test_a_loop_goes_on_after_a_part_and_a_part_after_a_loop(folder: Path, base: Workspace, tmp_path: Path) -> None:
    place = copied(base, tmp_path)
    first = refresh(RECIPE, place, MOMENTS[0], folder)
    (day,) = loop(RECIPE, place, folder, max_days=1)
    assert day.day == str(DAYS[0])
    assert open_version(place.bundles, day.bundle).manifest.parent == first.bundle
    with pytest.raises(DataError, match="no impression of 2026-11-05, the next day, is before 2026-11-04T170000"):
        refresh(RECIPE, place, MOMENTS[1], folder)
    then = refresh(RECIPE, place, Moment.parse(f"{DAYS[1]}T12:00:00+02:00"), folder)
    assert (then.parent, then.delta.name) == (day.bundle, "2026-11-05T100000")


def test_a_part_that_was_cut_off_or_refused_is_in_nobodys_way(folder: Path, base: Workspace, tmp_path: Path) -> None:
    place = copied(base, tmp_path)
    before = read_current(place.bundles)

    def stop(done: int, total: int, what: str) -> None:
        if what == "comparing with what is current":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refresh(RECIPE, place, MOMENTS[0], folder, progress=stop)
    assert versions(place.bundles) == [before] == [read_current(place.bundles)]
    wild = RECIPE.train.model_copy(update={"dense_learning_rate": 1.0, "table_learning_rate": 3.0, "warmup": 0.0})
    with pytest.raises(ReleaseError, match="2026-11-04T170000: the gate is shut"):
        refresh(RECIPE.model_copy(update={"train": wild}), place, MOMENTS[1], folder)
    made = refresh(RECIPE, place, DAYS[0], folder)
    assert made.parent == before
    assert IdMap.load(open_version(place.bundles, made.bundle).ids("post")).num_rows == (
        IdMap.load(place.etl_days / str(DAYS[0]) / "ids" / "post").num_rows
    )
    summaries = [json.loads((place.etl_days / str(of) / "etl.json").read_text()) for of in (MOMENTS[1], DAYS[0])]
    assert summaries[1]["ids_from"] == summaries[0]["fingerprint"]


def test_the_command_wants_a_day_or_a_moment(tmp_path: Path) -> None:
    runner = CliRunner()
    for options in ([], ["--day", "2026-11-04", "--until", "2026-11-04T10:00:00"]):
        refused = runner.invoke(app, ["refresh", "-w", str(tmp_path), *options])
        assert refused.exit_code == 2
        assert "--day, or --until" in refused.output
    refused = runner.invoke(app, ["refresh", "-w", str(tmp_path), "--until", "noon"])
    assert isinstance(refused.exception, DataError)
    assert '"noon": not a moment' in str(refused.exception)
