"""docs/contracts/days.md, sentence by sentence: days added one by one, beside one run over all of them."""

from __future__ import annotations

import json
import shutil
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from sparsefeed.errors import BadFileError, DataError, SpecError
from sparsefeed.etl.config import ClusterConfig, EtlConfig
from sparsefeed.etl.days import AddedDays
from sparsefeed.etl.ids import IdMap, Inverse
from sparsefeed.etl.ids.string_counts import StringCounts
from sparsefeed.etl.ops.map_ids import rare_counts
from sparsefeed.etl.pipeline import run
from sparsefeed.etl.snapshot import Snapshot, SnapshotSide
from sparsefeed.etl.spec import FeedSpec
from tests import logs

CONFIG = EtlConfig(cluster=ClusterConfig(workers=0), partition_rows=100)
FIRST = date(2026, 11, 2)
NUM_DAYS, IN_BASE = 9, 3
LAST = FIRST + timedelta(days=NUM_DAYS - 2)  # the day after is held out by the run over all of it


def drifting_logs(root: Path) -> Path:
    """Logs whose posts and members are others from day to day, some of them rare."""
    logs.write(root, days=NUM_DAYS, sessions=60, seed=3)
    for number, path in enumerate(sorted(root.glob("impressions/*/*.parquet"))):
        table = pq.read_table(path)
        posts = [f"p{int(p[1:]) + 7 * number}" for p in table["post_id"].to_pylist()]
        members = [f"m{(int(m[1:]) + 3 * number) % 31}" for m in table["member_id"].to_pylist()]
        surfaces = pc.if_else(pc.equal(table["surface"], "explore"), "", table["surface"])  # a name may be empty
        logs.change(path, post_id=pa.array(posts), member_id=pa.array(members), surface=surfaces)
    late_likes(root)
    return root


def late_likes(root: Path) -> None:
    """Let likes come up to twenty hours later, in the folder of the day they come on."""
    files = sorted(root.glob("actions/*/*.parquet"))
    actions = pa.concat_tables([pq.read_table(path, partitioning=None) for path in files])
    later = np.random.default_rng(1).integers(0, 20 * 3_600_000, len(actions))
    moments = pa.array(actions["time"].cast(pa.int64()).to_numpy() + later, pa.timestamp("ms", tz="UTC"))
    actions = actions.set_column(actions.schema.get_field_index("time"), "time", moments)
    days = [str(moment.date()) for moment in moments.to_pylist()]
    for path in files:
        path.unlink()
    for day in sorted(set(days)):
        path = root / "actions" / f"day={day}" / "part-000.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(actions.filter(pa.array([other == day for other in days])), path)


def spec() -> FeedSpec:
    """One that counts, looks back in every way there is, and forgets."""
    declared = logs.spec().model_dump(mode="json", exclude_unset=True)
    tables = [table | {"min_count": 30 if table["name"] == "post" else 2} for table in declared["tables"]]
    frequent = {"kind": "history", "name": "often", "of": "creator_id", "response": "click", "max_length": 2}
    recent = {"kind": "history", "name": "lately", "of": "post_id", "response": "click", "max_length": 4}
    more = [frequent | {"order": "frequent"}, recent | {"window_days": 1.5}]
    return logs.spec(tables=tables, features=[*declared["features"], *more])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drifting_logs(tmp_path_factory.mktemp("drifting"))


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run over all days."""
    out = tmp_path_factory.mktemp("whole") / "etl"
    run(spec(), folder, out, CONFIG)
    return out


@pytest.fixture(scope="module")
def days(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> AddedDays:
    """A run over the first days, and the others added one by one."""
    root = tmp_path_factory.mktemp("days")
    run(spec(), folder, root / "etl", CONFIG.model_copy(update={"until": FIRST + timedelta(days=IN_BASE)}))
    added = AddedDays(root / "etl", root / "etl-days")
    for number in range(IN_BASE, NUM_DAYS - 1):
        added.add(spec(), folder, FIRST + timedelta(days=number), CONFIG)
    return added


def folders(days: AddedDays) -> list[Path]:
    return [result.folder for result in days.chain()]


def names(results: list[Path], table: str, rows: Any) -> list[str]:
    """Strings of rows, or the rows of those that are nobody's own."""
    rows = np.asarray(rows, np.int64)
    found = np.array([f"row {row}" for row in rows], object)
    for result in results:
        inverse = Inverse.load(result / "inverse" / table)
        mine = (rows >= inverse.first_row) & (rows < inverse.first_row + len(inverse.offsets) - 1)
        found[mine] = inverse.decode(rows[mine]).to_pylist()
    return found.tolist()


def named(results: list[Path], rows: pd.DataFrame) -> pd.DataFrame:
    """Training rows by impression, rows of tables replaced by strings; without dense features."""
    out = rows.drop(columns=[f.name for f in spec().dense])
    for feature in spec().lookups:
        table = spec().table_of(feature).name
        if feature.kind == "id":
            out[feature.name] = names(results, table, rows[feature.name])
        else:
            out[feature.name] = [names(results, table, one) for one in rows[feature.name]]
    return out.sort_values("impression_id").reset_index(drop=True)


def test_2_ids_are_those_of_one_run_over_all_days(whole: Path, days: AddedDays) -> None:
    results = folders(days)
    num_base = {}
    for table in spec().tables:
        made = IdMap.load(results[-1] / "ids" / table.name)
        wanted = Inverse.load(whole / "inverse" / table.name)
        expected = wanted.decode(np.arange(wanted.first_row, IdMap.load(whole / "ids" / table.name).num_rows))
        found = names(results, table.name, np.arange(made.first_row, made.num_rows))
        assert sorted(found) == sorted(expected.to_pylist())
        assert made.encode(pa.array(found)).tolist() == list(range(made.first_row, made.num_rows))
        num_base[table.name] = IdMap.load(results[0] / "ids" / table.name).num_admitted, made.num_admitted
    assert num_base["post"][0] < num_base["post"][1]  # some were admitted on the way


def test_2_no_row_moves(days: AddedDays) -> None:
    *_, before, after = (IdMap.load(result / "ids" / "post") for result in folders(days))
    strings = names(folders(days), "post", np.arange(before.first_row, before.num_rows))
    assert after.encode(pa.array(strings)).tolist() == before.encode(pa.array(strings)).tolist()


def test_3_to_4_the_last_days_rows_and_weights_are_those_of_one_run(folder: Path, whole: Path, days: AddedDays) -> None:
    shown = pq.read_table(folder / "impressions" / f"day={LAST}" / "part-000.parquet")["impression_id"]
    expected = logs.training_rows(whole / "train")
    expected = expected[expected["impression_id"].isin(shown.to_pylist())]
    results = folders(days)
    found = logs.training_rows(results[-1] / "train")
    assert len(found) == len(shown)
    pd.testing.assert_frame_equal(named(results, found), named([whole], expected))
    for name in ("clicked_posts", "often", "lately"):
        assert max(map(len, found[name])) == spec().feature_by_name[name].max_length
    assert pq.read_table(results[-1] / "ips.parquet").equals(pq.read_table(whole / "ips.parquet"))


def test_4_a_clock_that_is_wrong_takes_nothing_from_other_members(folder: Path, tmp_path: Path) -> None:
    root = shutil.copytree(folder, tmp_path / "logs")
    path = root / "impressions" / "day=2026-11-05" / "part-000.parquet"
    moments = pq.read_table(path)["time"].to_pylist()
    moments[0] += timedelta(days=100)
    logs.change(path, time=pa.array(moments, pa.timestamp("ms", tz="UTC")))
    days = AddedDays(tmp_path / "etl", tmp_path / "days")
    run(spec(), root, days.base, CONFIG.model_copy(update={"until": date(2026, 11, 5)}))
    for day in (5, 6):
        days.add(spec(), root, date(2026, 11, day), CONFIG)
    run(spec(), root, tmp_path / "whole", CONFIG.model_copy(update={"until": date(2026, 11, 7)}))
    expected, results = logs.training_rows(tmp_path / "whole" / "train"), folders(days)
    found = logs.training_rows(results[-1] / "train")
    expected = expected[expected["impression_id"].isin(found["impression_id"])]
    pd.testing.assert_frame_equal(named(results, found), named([tmp_path / "whole"], expected))


def test_6_dense_features_keep_the_scale_of_the_base(days: AddedDays) -> None:
    first, *_, last = folders(days)
    assert (last / "transform" / "plan.json").read_text() == (first / "transform" / "plan.json").read_text()


def test_5_a_snapshot_holds_the_days_members_and_posts_as_one_run_has_them(whole: Path, days: AddedDays) -> None:
    expected = Snapshot.load(whole / "snapshot")
    *_, last = folders(days)
    found = Snapshot.load(last / "snapshot")
    assert found.as_of_ms == expected.as_of_ms
    assert 0 < len(found.member.keys) < len(expected.member.keys)
    for side, of_all in ((found.member, expected.member), (found.post, expected.post)):
        assert_rows_equal(side, of_all)
    moments = [Snapshot.load(folder / "snapshot").as_of_ms for folder in folders(days)]
    assert moments == sorted(moments)


def assert_rows_equal(side: SnapshotSide, of_all: SnapshotSide) -> None:
    at = of_all.find(side.keys)
    assert (at >= 0).all()
    np.testing.assert_array_equal(side.dense, of_all.dense[at])
    for name, column in side.ids.items():
        np.testing.assert_array_equal(column, of_all.ids[name][at])
    for name, (offsets, values) in side.lists.items():
        theirs, all_values = of_all.lists[name]
        for i, j in enumerate(at):
            mine = values[offsets[i] : offsets[i + 1]]
            np.testing.assert_array_equal(mine, all_values[theirs[j] : theirs[j + 1]], err_msg=name)


def test_1_a_day_holds_what_the_page_says_and_the_same_files_where_nothing_changed(days: AddedDays) -> None:
    results = folders(days)
    wanted = {"train", "spec.json", "ids", "inverse", "transform", "snapshot", "state", "ips.parquet", "etl.json"}
    for result in results[1:]:
        assert {path.name for path in result.iterdir()} == wanted
    for table in spec().tables:  # the base's arrays are the same files
        first, last = (
            {p.name: p.stat().st_ino for p in (r / "ids" / table.name).glob("keys-*.npy")}
            for r in results[:: len(results) - 1]
        )
        assert first == last
    assert not list(days.folder.glob(".*"))


def test_7_state_adds_up_to_what_was_seen(folder: Path, whole: Path, days: AddedDays) -> None:
    *_, last = folders(days)
    found = [StringCounts.from_arrow(table) for table in rare_counts(last, "post").tables()]
    shown = pq.ParquetDataset(folder / "impressions").read(["post_id", "day"])
    shown = shown.filter(pc.less_equal(shown["day"].cast(pa.string()), str(LAST)))
    counted = StringCounts.of(shown["post_id"], 0)
    rare = counted.take(np.flatnonzero(IdMap.load(whole / "ids" / "post").own_rows(counted.strings) < 0))
    assert 0 < len(rare) < len(counted)
    merged = found[0].merge(*found[1:])
    merged = merged.take(np.flatnonzero(np.isin(merged.keys, rare.keys)))  # it forgets ids with a row when it merges
    assert dict(zip(merged.strings.to_pylist(), merged.counts.tolist(), strict=True)) == dict(
        zip(rare.strings.to_pylist(), rare.counts.tolist(), strict=True)
    )
    for state in (last / "state").iterdir():
        assert len(list(state.iterdir())) <= 4


def test_8_a_day_is_added_twice_without_doing_anything(folder: Path, days: AddedDays) -> None:
    before = json.loads((days.folder / str(LAST) / "etl.json").read_text())
    assert days.add(spec(), folder, LAST, CONFIG) == before


def test_8_another_order_is_refused(folder: Path, days: AddedDays, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="day 2026-11-03 is in it, or before it; it ends with 2026-11-04"):
        days.add(spec(), folder, date(2026, 11, 3), CONFIG)
    apart = AddedDays(days.base, tmp_path / "days")
    with pytest.raises(DataError, match="day 2026-11-05 comes after 2026-11-04; add it before 2026-11-07"):
        apart.add(spec(), folder, date(2026, 11, 7), CONFIG)
    with pytest.raises(SpecError, match="was made with another feed"):
        days.add(logs.spec(), folder, LAST, CONFIG)
    with pytest.raises(DataError, match="there is no finished ETL"):
        AddedDays(tmp_path / "none", tmp_path / "days").add(spec(), folder, LAST, CONFIG)


def test_8_days_made_from_what_was_replaced_must_be_added_again(folder: Path, days: AddedDays, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(days.base, root / "etl")
    shutil.copytree(days.folder, root / "etl-days")
    copy = AddedDays(root / "etl", root / "etl-days")
    header = root / "etl-days" / "2026-11-05" / "etl.json"
    header.write_text(json.dumps(json.loads(header.read_text()) | {"fingerprint": "another"}))
    with pytest.raises(
        DataError, match=r"day 2026-11-06 comes after 2026-11-05; add it before .*; .* is no longer there"
    ):
        copy.add(spec(), folder, LAST, CONFIG)
    assert [result.last_day for result in copy.chain()] == [date(2026, 11, 4), date(2026, 11, 5)]


def test_8_days_of_an_earlier_base_are_in_nobodys_way(folder: Path, tmp_path: Path) -> None:
    days = AddedDays(tmp_path / "etl", tmp_path / "days")
    for until, added in ((5, (5, 6)), (7, (7, 8))):
        run(spec(), folder, days.base, CONFIG.model_copy(update={"until": date(2026, 11, until)}))
        for day in added:
            days.add(spec(), folder, date(2026, 11, day), CONFIG)
        assert [result.last_day.day for result in days.chain()] == [until - 1, *added]
    assert [path.name for path in days.outdated()] == ["2026-11-05", "2026-11-06"]


def test_8_a_day_without_a_row_is_no_day(folder: Path, days: AddedDays, tmp_path: Path) -> None:
    root = shutil.copytree(folder, tmp_path / "logs")
    path = root / "impressions" / "day=2026-11-05" / "part-000.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    apart = AddedDays(days.base, tmp_path / "days")
    apart.add(spec(), root, date(2026, 11, 6), CONFIG)
    assert [result.last_day.day for result in apart.chain()] == [4, 6]


def test_8_an_unreadable_day_is_skipped_where_that_is_asked_for(folder: Path, days: AddedDays, tmp_path: Path) -> None:
    root = shutil.copytree(folder, tmp_path / "logs")
    (root / "impressions" / "day=2026-11-05" / "part-000.parquet").write_bytes(b"")
    apart = AddedDays(days.base, tmp_path / "days")
    with pytest.raises(BadFileError, match="not readable as parquet"):
        apart.add(spec(), root, date(2026, 11, 6), CONFIG)
    skip = CONFIG.model_copy(update={"on_bad_file": "skip"})
    with pytest.raises(DataError, match="no impression of 2026-11-05 can be read there"):
        apart.add(spec(), root, date(2026, 11, 5), skip)
    apart.add(spec(), root, date(2026, 11, 6), skip)
    assert [result.last_day.day for result in apart.chain()] == [4, 6]


def test_8_a_day_whose_actions_may_still_come_says_so(folder: Path, days: AddedDays, tmp_path: Path) -> None:
    root = shutil.copytree(folder, tmp_path / "logs")
    for path in root.glob("*/day=*"):
        if path.name > "day=2026-11-05":
            shutil.rmtree(path)
    apart = AddedDays(days.base, tmp_path / "days")
    (warning,) = [w for w in apart.add(spec(), root, date(2026, 11, 5), CONFIG)["warnings"] if "may still come" in w]
    assert warning.startswith(f"{root}: no actions of 2026-11-06 are there yet, when responses to 2026-11-05")
    complete = apart.add(spec(), folder, date(2026, 11, 5), CONFIG)["warnings"]
    assert not [w for w in complete if "may still come" in w]


def test_8_a_result_that_kept_nothing_is_refused(folder: Path, days: AddedDays, tmp_path: Path) -> None:
    copy = AddedDays(shutil.copytree(days.base, tmp_path / "etl"), tmp_path / "days")
    header = copy.base / "etl.json"
    header.write_text(json.dumps(json.loads(header.read_text()) | {"format": 1}))
    with pytest.raises(DataError, match="an older version made it, and kept nothing to go on from"):
        copy.add(spec(), folder, date(2026, 11, 5), CONFIG)


def test_8_a_base_that_is_replaced_meanwhile_is_noticed(folder: Path, days: AddedDays, tmp_path: Path) -> None:
    copy = AddedDays(shutil.copytree(days.base, tmp_path / "etl"), tmp_path / "days")

    def replace(done: int, total: int, what: str) -> None:
        header = copy.base / "etl.json"
        header.write_text(json.dumps(json.loads(header.read_text()) | {"fingerprint": "another"}))

    with pytest.raises(DataError, match="was replaced meanwhile; run again"):
        copy.add(spec(), folder, date(2026, 11, 5), CONFIG, replace)
    assert not [path for path in copy.folder.iterdir() if not path.name.startswith(".")]


def test_9_nothing_of_a_day_that_fails_stays(folder: Path, days: AddedDays, tmp_path: Path) -> None:
    root = shutil.copytree(folder, tmp_path / "logs")
    path = root / "impressions" / "day=2026-11-05" / "part-000.parquet"
    logs.change(path, position=pa.array(pc.subtract(pq.read_table(path)["position"], 9)))
    apart = AddedDays(days.base, tmp_path / "days")
    with pytest.raises(DataError, match="positions count from 1"):
        apart.add(spec(), root, date(2026, 11, 5), CONFIG)
    assert not list(apart.folder.iterdir())
