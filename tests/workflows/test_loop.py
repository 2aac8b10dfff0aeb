"""Days in a loop: refreshed, trained anew by the schedule, pruned; cut off at any step it goes on."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import asdict
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparsefeed.errors import DataError, ReleaseError
from sparsefeed.etl.config import ClusterConfig, EtlConfig
from sparsefeed.etl.days import AddedDays
from sparsefeed.etl.ids import IdMap, hash_strings
from sparsefeed.etl.snapshot import OVERLAY
from sparsefeed.models.bundle import open_version, read_current, verify, versions
from sparsefeed.models.calibration import Calibration, Platt
from sparsefeed.models.config import ModelConfig, TrainConfig
from sparsefeed.models.gate import GateResult, compare_anew
from sparsefeed.models.torchrec.checkpoint import finished
from sparsefeed.models.torchrec.score import Scorer
from sparsefeed.workflows.loop import LoopDay, loop, read_loop
from sparsefeed.workflows.pruning import prune_workspace
from sparsefeed.workflows.recipe import Recipe
from sparsefeed.workflows.refresh import refresh
from sparsefeed.workflows.release.config import Gate, ReleaseConfig, Schedule
from sparsefeed.workflows.retrain import window
from sparsefeed.workflows.stages import add_day, export_serving, prepare, train_model
from sparsefeed.workflows.workspace import Workspace
from tests import logs
from tests.workflows.killed_loop import kill_loop_at

FIRST = date(2026, 11, 2)
DAYS = [FIRST + timedelta(days=number) for number in range(2, 6)]  # the loop's; the base is of two, and holds one out
RECIPE = Recipe(
    feed=logs.spec(tables=[{"name": n, "dim": 4, "tail_rows": 4} for n in ("member", "creator", "post", "hashtag")]),
    etl=EtlConfig(cluster=ClusterConfig(workers=0), until=DAYS[0]),
    model=ModelConfig(hidden=(4,), cross_rank=2),
    train=TrainConfig(processes=1, batch_size=64),
    release=ReleaseConfig(keep_versions=2, gate=Gate(held_out_rows=100, tolerance=0.5)),
)


def scheduled(**schedule: int) -> Recipe:
    return RECIPE.model_copy(
        update={"release": RECIPE.release.model_copy(update={"schedule": Schedule(**schedule)})}, deep=True
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs of six days; member `once` is there on the first alone."""
    root = logs.write(tmp_path_factory.mktemp("loop") / "logs", days=6, sessions=120)
    path = root / "impressions" / f"day={FIRST}" / "part-000.parquet"
    members = pq.read_table(path)["member_id"].to_pylist()
    logs.change(path, member_id=pa.array(["once" if one == "m0" else one for one in members]))
    return root


@pytest.fixture(scope="module")
def exported(folder: Path) -> Path:
    """A workspace whose base was exported."""
    place = Workspace(folder.parent / "run")
    prepare(RECIPE, place, folder)
    train_model(RECIPE, place)
    export_serving(RECIPE, place)
    return place.root


@pytest.fixture
def place(exported: Path, tmp_path: Path) -> Workspace:
    shutil.copytree(exported, tmp_path / "run", copy_function=shutil.copy2)
    return Workspace(tmp_path / "run")


def has_row(root: Path, member: str) -> bool:
    keys, _ = hash_strings([member], RECIPE.feed.key_seed)
    id_map = IdMap.load(open_version(root, None).ids("member"))
    return bool(id_map.lookup(keys)[0] >= 1 + 1 + 4)


def test_a_loop_goes_on_where_it_stopped(place: Workspace, folder: Path) -> None:
    published: list[tuple[str, str]] = []

    def publish(bundle: str, day: date) -> None:
        published.append((bundle, str(day)))

    first = list(loop(RECIPE, place, folder, max_days=1, publish=publish))
    with place.loop.open("a") as file:
        file.write('{"day": "2026-11-05", "bun')  # as a crash leaves it
    rest = list(loop(RECIPE, place, folder, max_days=1, publish=publish))
    assert [one.day for one in (*first, *rest)] == [str(day) for day in DAYS[:2]]
    assert read_loop(place.loop) == [*first, *rest]
    assert published == [(one.bundle, one.day) for one in (*first, *rest)]
    assert read_current(place.bundles) == rest[0].bundle
    for one in (*first, *rest):
        assert one.delta_bytes > 0
        assert 0 < one.version_bytes < sum(p.stat().st_size for p in place.bundles.rglob("*") if p.is_file())
        assert set(one.quality) == {response.name for response in RECIPE.feed.responses}
    place.loop.write_text("[1]\n")
    with pytest.raises(ReleaseError, match=r"loop\.jsonl: line 1"):
        read_loop(place.loop)


def test_a_retrain_makes_a_base_of_its_window_and_what_nobody_needs_is_removed(place: Workspace, folder: Path) -> None:
    published: list[tuple[str, date]] = []
    days: list[LoopDay] = []
    before = set(versions(place.bundles))
    for one in loop(
        scheduled(retrain_every=2, retrain_days=3),
        place,
        folder,
        publish=lambda bundle, day: published.append((bundle, day)),
    ):
        days.append(one)
        there = set(versions(place.bundles))
        assert has_row(place.bundles, "once") == (len(days) < 3)
        assert has_row(place.bundles, "m1")
        assert read_current(place.bundles) == one.bundle
        assert len(there) == 2
        assert {path.name for path in place.deltas.iterdir()} == {line.day for line in days if line.bundle in there}
        assert (one.pruned_bytes > 0) == bool(before - there or one.retrained)
        before = there
    assert [(one.day, one.retrained) for one in days] == list(
        zip(map(str, DAYS), (False, False, True, False), strict=True)
    )
    assert published == [(one.bundle, day) for one, day in zip(days, DAYS, strict=True)]
    assert (days[0].retrain_s, days[2].retrain_s > 0) == (0.0, True)
    assert [one.base == days[2].base for one in days] == [False, False, True, True]
    summary = json.loads((place.etl / "etl.json").read_text())
    assert (summary["train_days"], summary["eval_days"]) == ([str(DAYS[0]), str(DAYS[1])], [str(DAYS[2])])
    version = open_version(place.bundles, None)
    assert (version.manifest.sequence, version.manifest.trained_days) == (2, tuple(map(str, DAYS)))
    assert version.manifest.parent == days[2].bundle
    verify(version.path)
    assert json.loads(place.retrain_gate(DAYS[2]).read_text())["num_rows"] > 100
    assert not any((place.root / name).exists() for name in ("etl", "etl-days", "training", "training-days"))
    assert (place.base, [path.name for path in (place.root / "bases").iterdir()]) == (str(DAYS[2]), [str(DAYS[2])])
    assert read_loop(place.loop) == days
    assert refresh(RECIPE, place, DAYS[3], folder).bundle == days[3].bundle


def test_current_and_what_a_caller_needs_are_not_pruned_nor_their_deltas(place: Workspace, folder: Path) -> None:
    first = read_current(place.bundles)
    recipe = RECIPE.model_copy(update={"release": RECIPE.release.model_copy(update={"keep_versions": 50})})
    made = list(loop(recipe, place, folder, max_days=2))
    assert first is not None
    assert prune_workspace(place, DAYS[1], (), 1, {first}) > 0
    assert set(versions(place.bundles)) == {first, made[-1].bundle}
    assert [path.name for path in place.deltas.iterdir()] == [made[-1].day]
    assert prune_workspace(place, DAYS[1], (), 1, {first}) == 0


def test_a_retrain_that_is_worse_is_not_in_force_and_the_loop_goes_on_without_it(
    place: Workspace, folder: Path
) -> None:
    gate = Gate(held_out_rows=100)
    wild = RECIPE.train.model_copy(update={"dense_learning_rate": 1.0, "table_learning_rate": 3.0, "warmup": 0.0})
    recipe = scheduled(retrain_every=1)
    recipe = recipe.model_copy(update={"release": recipe.release.model_copy(update={"gate": gate})})
    list(loop(RECIPE, place, folder, max_days=1))
    before = read_current(place.bundles), versions(place.bundles)
    shut = r"2026-11-05: the retrain's gate is shut, on \d+ impressions .*, or give --force"
    with pytest.raises(ReleaseError, match=shut):
        list(loop(recipe.model_copy(update={"train": wild}), place, folder, max_days=1))
    assert (place.base, read_current(place.bundles), versions(place.bundles)) == ("", *before)
    (one,) = loop(RECIPE, place, folder, max_days=1)
    assert (one.day, one.retrained, one.pruned_bytes > 0) == (str(DAYS[1]), False, True)
    assert list((place.root / "bases").iterdir()) == []


def test_several_held_out_days_are_refreshed_after_a_retrain(place: Workspace, folder: Path) -> None:
    recipe = scheduled(retrain_every=1)
    recipe = recipe.model_copy(update={"etl": recipe.etl.model_copy(update={"eval_days": 2})})
    days = list(loop(recipe, place, folder, max_days=2))
    assert days[1].retrained
    assert [str(one.last_day) for one in AddedDays(place.etl, place.etl_days).chain()] == [
        str(FIRST + timedelta(days=1)),
        *map(str, DAYS[:2]),
    ]
    version = open_version(place.bundles, None).manifest
    assert (version.id, version.sequence, version.trained_days[-2:]) == (days[1].bundle, 2, tuple(map(str, DAYS[:2])))


@pytest.mark.timeout(900)
def test_killed_at_any_step_a_loop_goes_on_and_nothing_of_the_old_base_is_lost(place: Workspace, folder: Path) -> None:
    recipe, whole = scheduled(retrain_every=1, retrain_days=3), Workspace(place.root.with_name("whole"))
    list(loop(recipe, place, folder, max_days=1))
    shutil.copytree(place.root, whole.root, copy_function=shutil.copy2)
    (expected,) = loop(recipe, whole, folder, max_days=1)
    before = read_current(place.bundles)
    for step, current_is_old, base in (
        ("writing the evaluation parquet", True, ""),  # of the retrain
        ("comparing the model trained anew", True, ""),
        (f"base of {DAYS[1]} exported", False, ""),
        (f"base of {DAYS[1]} in force", False, str(DAYS[1])),
        ("comparing with what is current", False, str(DAYS[1])),
        (f"{DAYS[1]}: removing", False, str(DAYS[1])),
    ):
        assert kill_loop_at(step, recipe, place.root, folder) == -signal.SIGKILL, step
        old = AddedDays(place.root / "etl", place.root / "etl-days").chain()
        assert [one.last_day for one in old] == [DAYS[0] - timedelta(days=1), *DAYS[:2]], step
        assert finished(place.root / "training" / "ips") is not None, step
        assert (place.base, read_current(place.bundles) == before) == (base, current_is_old), step
        verify(open_version(place.bundles, None).path)
    assert kill_loop_at(f"{DAYS[1]}: done", recipe, place.root, folder) == -signal.SIGKILL
    assert not (place.root / "etl").exists()
    (found,) = loop(recipe, place, folder, max_days=1)
    assert (found.day, found.rows, found.retrained, found.quality) == (
        expected.day,
        expected.rows,
        True,
        expected.quality,
    )
    mine, theirs = (open_version(where.bundles, None) for where in (place, whole))
    assert mine.manifest.trained_days == theirs.manifest.trained_days
    for path in sorted(theirs.tables.glob("*.npy")):
        assert (mine.tables / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_folded_version_takes_the_place_of_the_days_and_the_next_day_goes_on_from_it(
    place: Workspace, folder: Path
) -> None:
    recipe, published = scheduled(fold_every=2), list[str]()

    def into_service(bundle: str, day: date) -> None:
        published.append(bundle)
        if len(published) == 2:
            raise KeyboardInterrupt  # cut off after the fold

    with pytest.raises(KeyboardInterrupt):
        list(loop(recipe, place, folder, publish=into_service))
    days = [*read_loop(place.loop), *loop(recipe, place, folder, publish=into_service)]
    assert [one.folded for one in days] == [False, True, False, True]
    snapshots = [open_version(place.bundles, one.bundle).snapshot for one in days[-2:]]  # those before are removed
    assert [(snapshot / OVERLAY).exists() for snapshot in snapshots] == [True, False]
    assert published == [days[0].bundle, days[1].bundle, *(one.bundle for one in days[1:])]
    assert read_current(place.bundles) == days[3].bundle
    third = open_version(place.bundles, days[2].bundle).manifest
    assert (third.parent, days[1].fold_s > 0, days[2].fold_s) == (days[1].bundle, True, 0.0)
    assert min(one.version_bytes for one in days) > 0


def test_a_model_is_neither_better_nor_worse_than_itself_and_better_than_one_shifted(
    place: Workspace, folder: Path
) -> None:
    add_day(RECIPE, place, DAYS[0], folder)
    checkpoint = finished(place.training("ips"))
    assert checkpoint is not None
    model, chain = Scorer(RECIPE.feed, checkpoint), [place.etl, place.etl_days / str(DAYS[0])]
    same = compare_anew(RECIPE.feed, model, chain, model, chain, Calibration.identity(RECIPE.feed), "none")
    rows = logs.training_rows(chain[1] / "train")
    assert same.num_rows == rows["random"].sum()
    shifted = Calibration(responses={response.name: Platt(shift=2.0) for response in RECIPE.feed.responses})
    other = compare_anew(RECIPE.feed, model, chain, model, chain, shifted, "none")
    for name, one in same.responses.items():
        assert (one.candidate, one.increase_at_least) == (one.running, 0.0)
        assert other.responses[name].candidate == one.candidate < other.responses[name].running
        assert other.responses[name].increase_at_least < -0.1
    assert GateResult.of(asdict(other)) == other
    with pytest.raises(DataError, match=r"no impression of a random session that is in .*etl/train, too"):
        compare_anew(RECIPE.feed, model, chain, model, chain[:1], shifted, "none")


def test_a_window_moves_with_the_day_and_keeps_its_days_that_are_only_fitted_on() -> None:
    etl = EtlConfig(since=FIRST, train_from=FIRST + timedelta(days=2))
    before = {"days_before": ["2026-11-02", "2026-11-03"], "train_days": ["2026-11-04"]}
    moved = window(etl, before, date(2026, 12, 10), 10)
    assert (moved.since, moved.train_from, moved.until) == (date(2026, 12, 1), date(2026, 12, 3), date(2026, 12, 10))
    assert window(etl, {"days_before": []}, date(2026, 12, 10), 10).train_from is None
    grown = window(etl, before, date(2026, 12, 10), None)
    assert (grown.since, grown.train_from, grown.until) == (FIRST, etl.train_from, date(2026, 12, 10))
