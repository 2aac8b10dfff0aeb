"""A day added to the ETL, trained from the day before, and what it changed put on a server's bundle as a delta."""

from __future__ import annotations

import json
import shutil
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparsefeed.errors import DataError, SpecError, TrainError
from sparsefeed.etl.config import ClusterConfig, EtlConfig
from sparsefeed.etl.ids import IdMap, Inverse
from sparsefeed.models import metrics
from sparsefeed.models.bundle import open_version
from sparsefeed.models.config import ColdStart, ModelConfig, TrainConfig
from sparsefeed.models.delta import apply_delta, read_changes, write_delta
from sparsefeed.models.evaluate import read_rows
from sparsefeed.models.export import export_bundle
from sparsefeed.models.store.store import ParameterStore
from sparsefeed.models.torchrec.checkpoint import Checkpoint, latest, load_tables
from sparsefeed.models.torchrec.cold_start import first_rows
from sparsefeed.models.torchrec.columns import Rows, num_rows, open_split, read_part
from sparsefeed.models.torchrec.earlier_ids import earlier_rows
from sparsefeed.models.torchrec.score import Scorer
from sparsefeed.models.torchrec.train import train
from sparsefeed.workflows.recipe import Recipe
from sparsefeed.workflows.stages import add_day, evaluate_day, prepare, train_day, train_model
from sparsefeed.workflows.workspace import Workspace
from tests import logs

FIRST = date(2026, 11, 2)
DAYS = [FIRST + timedelta(days=number) for number in (2, 3)]
RECIPE = Recipe(
    feed=logs.spec(tables=[{"name": n, "dim": 4, "tail_rows": 4} for n in ("member", "creator", "post", "hashtag")]),
    etl=EtlConfig(cluster=ClusterConfig(workers=0), until=FIRST + timedelta(days=2)),
    model=ModelConfig(hidden=(4,), cross_rank=2),
    train=TrainConfig(processes=1, batch_size=64, day_learning_rate=5e-4),
)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Two days trained, two added that have other posts and members."""
    root = tmp_path_factory.mktemp("train-day")
    folder, made = logs.write(root / "logs", days=5, sessions=60), Workspace(root / "run")
    for number, path in enumerate(sorted(folder.glob("impressions/*/*.parquet"))):
        table = pq.read_table(path)
        posts = [f"p{int(post[1:]) + 9 * number}" for post in table["post_id"].to_pylist()]
        members = [f"m{(int(member[1:]) + 4 * number) % 50}" for member in table["member_id"].to_pylist()]
        logs.change(path, post_id=pa.array(posts), member_id=pa.array(members))
    prepare(RECIPE, made, folder)
    train_model(RECIPE, made)
    for day in DAYS:
        add_day(RECIPE, made, day, folder)
        train_day(RECIPE, made, day)
    return made


def checkpoint_of(workspace: Workspace, day: date | None) -> Path:
    found = latest(workspace.training_day("ips", day) if day else workspace.training("ips"))
    assert found is not None
    return found


def test_a_day_goes_on_from_the_day_before_and_is_not_trained_twice(workspace: Workspace) -> None:
    before = [checkpoint_of(workspace, None), *(checkpoint_of(workspace, day) for day in DAYS)]
    said = [Checkpoint.read(path) for path in before]
    assert len({one.start for one in said}) == 3
    assert said[0].start == ""
    result = train_day(RECIPE, workspace, DAYS[1])
    assert (result.checkpoint, result.samples_per_s) == (before[2], 0)
    scorer = Scorer(RECIPE.feed, before[2])
    assert np.isfinite(scorer.score(workspace.etl_days / str(DAYS[1]) / "train")).all()
    with pytest.raises(TrainError, match="whose ids have other rows"):
        scorer.score(workspace.etl_days / str(DAYS[0]) / "train")


def test_a_day_has_a_rate_of_its_own(workspace: Workspace) -> None:
    folders = workspace.training("ips"), *(workspace.training_day("ips", day) for day in DAYS)
    configs = [json.loads((folder / "job.json").read_text())["config"] for folder in folders]
    assert [config["dense_learning_rate"] for config in configs] == [2e-3, 5e-4, 5e-4]


def test_rows_of_ids_that_did_not_come_up_stay_and_tables_grow(workspace: Workspace) -> None:
    before, after = (load_tables(checkpoint_of(workspace, day)) for day in DAYS)
    rows, ids = read_changes(workspace.training_day("ips", DAYS[1]) / "changes")
    for name, values in after.items():
        changed = np.zeros(len(values), bool)
        changed[rows[name].rows] = True
        np.testing.assert_array_equal(
            values[: len(before[name])][~changed[: len(before[name])]], before[name][~changed[: len(before[name])]]
        )
        np.testing.assert_array_equal(values[changed], rows[name].values)
    assert 0 < len(rows["member"].rows) < num_rows(RECIPE.feed, workspace.etl_days / str(DAYS[1]))["member"] - 6
    assert len(ids["post"].upserts) > 0


def test_what_a_day_changed_makes_the_bundle_that_a_whole_export_makes(workspace: Workspace, tmp_path: Path) -> None:
    base = [checkpoint_of(workspace, DAYS[0]), workspace.etl_days / str(DAYS[0])]
    later = [checkpoint_of(workspace, DAYS[1]), workspace.etl_days / str(DAYS[1])]
    # A day of the ETL has no held-out day: the card of a bundle asks for one.
    parent_id = export_bundle(*base, tmp_path / "bundles", row_format="int8")
    whole_id = export_bundle(*later, tmp_path / "whole", row_format="int8")
    parent, whole = open_version(tmp_path / "bundles", parent_id), open_version(tmp_path / "whole", whole_id)
    rows, ids = read_changes(workspace.training_day("ips", DAYS[1]) / "changes")

    def build(folder: Path) -> None:
        shutil.copyfile(whole.path / "dense.onnx", folder / "dense.onnx")
        shutil.copytree(whole.path / "snapshot", folder / "snapshot")

    made = write_delta(
        parent, "next", tmp_path / "delta", step=2, created="2026-11-06T00:00:00+00:00", code_version="0",
        trained_days=(str(DAYS[1]),), rows=rows, ids=ids, build=build,
    )  # fmt: skip
    version = open_version(tmp_path / "bundles", apply_delta(tmp_path / "bundles", made.path))
    stores = [ParameterStore.open(bundle.tables).table_by_name for bundle in (version, whole)]
    for name in stores[1]:
        num = num_rows(RECIPE.feed, later[1])[name]
        got, expected = (store[name].lookup(np.arange(num)) for store in stores)
        np.testing.assert_array_equal(got, expected)
        maps = [IdMap.load(bundle.ids(name)) for bundle in (version, whole)]
        strings = [f"{name[0]}{number}" for number in range(80)]
        np.testing.assert_array_equal(maps[0].encode(strings), maps[1].encode(strings))


def test_the_ids_of_a_day_are_read_as_an_earlier_map_reads_them(workspace: Workspace) -> None:
    chain = [workspace.etl, *(workspace.etl_days / str(day) for day in DAYS)]
    for name, rows in earlier_rows(RECIPE.feed, chain).items():
        first, last = (IdMap.load(folder / "ids" / name) for folder in (chain[0], chain[-1]))
        assert len(rows) == last.num_rows
        np.testing.assert_array_equal(rows[: first.num_rows], np.arange(first.num_rows))
        strings = [f"{name[0]}{number}" for number in range(80)]
        now = last.encode(strings)
        new = now >= first.num_rows
        np.testing.assert_array_equal(rows[now[new]], first.encode(strings)[new])
        assert (rows[first.num_rows :] < first.first_row).all()
    assert new_rows(workspace, "post", ColdStart())[0] < num_rows(RECIPE.feed, chain[-1])["post"]
    with pytest.raises(DataError, match=r"2026-11-05: is no day that was added to .*etl; run"):
        earlier_rows(RECIPE.feed, [chain[0], chain[2]])


def test_a_day_judges_the_models_before_it_as_they_would_have_served_it(workspace: Workspace) -> None:
    chain = [workspace.etl, *(workspace.etl_days / str(day) for day in DAYS)]
    result = evaluate_day(RECIPE, workspace, DAYS[1])
    assert json.loads(workspace.evaluation_day(DAYS[1]).read_text()) == result
    assert (result["models"], result["trained_to"]) == (["refreshed", "base"], str(DAYS[0]))
    rows = read_rows(RECIPE.feed, chain[-1] / "train", random_only=True)
    assert result["num_rows"] == len(rows.labels) > 0
    scorer, columns = Scorer(RECIPE.feed, checkpoint_of(workspace, None)), Rows.columns(RECIPE.feed, weights=False)
    maps = [[IdMap.load(folder / "ids" / name) for folder in (chain[0], chain[-1])] for name in ("member", "post")]
    assert any(early.num_rows < late.num_rows for early, late in maps)
    capacities = dict.fromkeys(num_rows(RECIPE.feed, chain[-1]), 10**6)
    parts = open_split(RECIPE.feed, chain[-1], "train", columns)
    tables = [read_part(RECIPE.feed, part, (*columns, "random"), capacities) for part in parts]
    given = Rows.from_arrow(RECIPE.feed, pa.concat_tables(tables).filter(pa.compute.field("random") == 1))
    earlier = earlier_rows(RECIPE.feed, chain)
    for feature in RECIPE.feed.lookups:
        values, offsets = given.lookups[feature.name]
        given.lookups[feature.name] = earlier[RECIPE.feed.table_of(feature).name][values], offsets
    logits = scorer.score_rows(given)
    scored = scorer.score(chain[-1] / "train", random_only=True, chain=chain)
    np.testing.assert_allclose(scored, logits, atol=1e-6)  # in batches of their own
    p = 1 / (1 + np.exp(-logits[:, 0].astype(float)))
    assert result["responses"]["click"]["base"]["log_loss"] == pytest.approx(metrics.log_loss(rows.labels[:, 0], p))
    assert evaluate_day(RECIPE, workspace, DAYS[0])["models"] == ["refreshed"]
    with pytest.raises(DataError, match="day 2026-11-09 was not added"):
        evaluate_day(RECIPE, workspace, date(2026, 11, 9))


def new_rows(workspace: Workspace, table: str, start: ColdStart) -> tuple[int, np.ndarray]:
    previous, day = workspace.etl, workspace.etl_days / str(DAYS[0])
    return first_rows(RECIPE.feed, {table: start}, day, previous, checkpoint_of(workspace, None))[table]


def test_a_new_id_starts_from_the_tail_row_it_read_before(workspace: Workspace) -> None:
    day, values = workspace.etl_days / str(DAYS[0]), load_tables(checkpoint_of(workspace, None))["post"]
    first, found = new_rows(workspace, "post", ColdStart())
    before = IdMap.load(workspace.etl / "ids" / "post")
    assert first == before.num_rows
    strings = Inverse.load(day / "inverse" / "post").decode(np.arange(first, first + len(found)))
    assert len(found) >= 9
    for string, row in zip(strings.to_pylist(), found, strict=True):
        tail = before.encode([string])[0]
        assert 2 <= tail < before.first_row
        np.testing.assert_array_equal(row, values[tail])


def test_a_new_post_starts_from_its_creators_and_hashtags_rows(workspace: Workspace) -> None:
    tables = load_tables(checkpoint_of(workspace, None))
    known = num_rows(RECIPE.feed, workspace.etl)
    first, found = new_rows(workspace, "post", ColdStart(start="features", features=("creator_id", "hashtags")))
    rows = logs.training_rows(workspace.etl_days / str(DAYS[0]) / "train")
    for number, values in enumerate(found):
        own = rows[rows["post_id"] == first + number]
        beside = [tables["creator"][row] for row in own["creator_id"] if row < known["creator"]]
        beside += [tables["hashtag"][row] for tags in own["hashtags"] for row in tags if row < known["hashtag"]]
        np.testing.assert_allclose(values, np.mean(beside, axis=0), rtol=1e-4, atol=1e-7)


def test_a_new_member_starts_from_members_who_were_shown_the_same(workspace: Workspace) -> None:
    members = load_tables(checkpoint_of(workspace, None))["member"]
    first, found = new_rows(workspace, "member", ColdStart(start="similar", features=("creator_id",)))
    rows = logs.training_rows(workspace.etl_days / str(DAYS[0]) / "train")
    known = rows[rows["member_id"] < first]
    means = {c: members[part["member_id"]].astype(np.float64).mean(axis=0) for c, part in known.groupby("creator_id")}
    for number, values in enumerate(found):
        beside = [means[c] for c in rows[rows["member_id"] == first + number]["creator_id"] if c in means]
        np.testing.assert_allclose(values, np.mean(beside, axis=0), rtol=1e-4, atol=1e-7)


def test_rows_of_new_ids_are_trained_from_what_the_recipe_says(workspace: Workspace, tmp_path: Path) -> None:
    """A rate that moves nothing leaves the first values; on two ranks, each of which fills its own rows."""
    day, starts = workspace.etl_days / str(DAYS[0]), {"post": ColdStart(start="random"), "member": ColdStart()}
    still = {"dense_learning_rate": 1e-30, "table_learning_rate": 1e-30, "processes": 2, "cold_start": starts}
    for sharding in ("row_wise", "table_wise"):
        config = RECIPE.train.model_copy(update={**still, "sharding": dict.fromkeys(("post", "member"), sharding)})
        result = train(
            RECIPE.feed, RECIPE.model, config, day, tmp_path / sharding,
            start_from=checkpoint_of(workspace, None), previous=workspace.etl,
        )  # fmt: skip
        tables, before = load_tables(result.checkpoint), load_tables(checkpoint_of(workspace, None))
        first, found = new_rows(workspace, "member", ColdStart())
        np.testing.assert_array_equal(tables["member"][first : first + len(found)], found)
        np.testing.assert_array_equal(tables["member"][:first], before["member"][:first])
        first, found = new_rows(workspace, "post", ColdStart())
        assert not np.isclose(tables["post"][first : first + len(found)], found).any(axis=1).all()
        assert not (tmp_path / sharding / "new-rows").exists()


def test_ids_that_are_new_themselves_say_nothing_of_others(workspace: Workspace, tmp_path: Path) -> None:
    """Also where they lie beyond the checkpoint's table."""
    previous, day = (
        Path(shutil.copytree(path, tmp_path / path.name)) for path in (workspace.etl, workspace.etl_days / str(DAYS[0]))
    )
    path = previous / "etl.json"
    summary = json.loads(path.read_text())
    summary["num_rows"]["creator"] = 2  # as if no creator had been known, but for the tail
    path.write_text(json.dumps(summary))
    start = {"post": ColdStart(start="features", features=("creator_id",))}
    checkpoint = checkpoint_of(workspace, None)
    _, found = first_rows(RECIPE.feed, start, day, previous, checkpoint)["post"]
    np.testing.assert_array_equal(found, new_rows(workspace, "post", ColdStart())[1])


@pytest.mark.parametrize(
    ("table", "start", "message"),
    [
        ("pots", {}, '"pots" is not a table; did you mean "post"'),
        ("post", {"start": "features"}, "features go with `features` and `similar`, one at least"),
        ("post", {"start": "tail", "features": ("creator_id",)}, "with no other start"),
        (
            "post",
            {"start": "features", "features": ("creatr_id",)},
            'no id, ids or history feature; did you mean "creator_id"',
        ),
        ("post", {"start": "similar", "features": ("clicked_posts",)}, "reads the table itself"),
        ("hashtag", {"start": "similar", "features": ("clicked_posts",)}, "are all lists; name an `id` feature"),
    ],
)
def test_a_cold_start_that_cannot_be_meant_is_named(
    workspace: Workspace, tmp_path: Path, table: str, start: dict[str, object], message: str
) -> None:
    config = RECIPE.train.model_copy(update={"cold_start": {table: ColdStart.model_validate(start)}})
    with pytest.raises(SpecError, match=message):
        train(RECIPE.feed, RECIPE.model, config, workspace.etl, tmp_path)


def test_days_are_trained_in_order_and_anew_where_what_they_began_from_is_another(workspace: Workspace) -> None:
    # Last in this module: it trains the base again.
    with pytest.raises(DataError, match=r"day 2026-11-09 was not added; there: 2026-11-04, 2026-11-05"):
        train_day(RECIPE, workspace, date(2026, 11, 9))
    away = workspace.training_day("ips", DAYS[0]).rename(workspace.root / "away")
    with pytest.raises(
        TrainError, match=r"no finished model to go on from; run `sparsefeed train --day 2026-11-04` first"
    ):
        train_day(RECIPE, workspace, DAYS[1])
    away.rename(workspace.training_day("ips", DAYS[0]))
    done = workspace.training("ips") / "result.json"
    said = done.read_text()
    done.write_text("")  # as a full disk leaves it
    with pytest.raises(TrainError, match=r"no finished model to go on from; run `sparsefeed train` first"):
        train_day(RECIPE, workspace, DAYS[0])
    assert train_model(RECIPE, workspace).step > 0
    assert done.read_text() != said or json.loads(said)["step"] == json.loads(done.read_text())["step"]
    shutil.rmtree(workspace.training("ips"))
    train_model(RECIPE.model_copy(update={"train": RECIPE.train.model_copy(update={"seed": 5})}), workspace)
    with pytest.raises(
        TrainError, match=r"began from a model that is no more; run `sparsefeed train --day 2026-11-04` again"
    ):
        train_day(RECIPE, workspace, DAYS[1])
    assert train_day(RECIPE, workspace, DAYS[0]).samples_per_s > 0
    assert train_day(RECIPE, workspace, DAYS[1]).samples_per_s > 0
