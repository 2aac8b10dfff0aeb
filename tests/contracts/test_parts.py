"""docs/contracts/parts.md, sentence by sentence: a day added in parts, beside the same day added at once."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from sparsefeed.errors import DataError
from sparsefeed.etl.days import AddedDays
from sparsefeed.etl.ids import IdMap, Inverse
from sparsefeed.etl.ids.string_counts import StringCounts
from sparsefeed.etl.moment import Moment
from sparsefeed.etl.ops.map_ids import rare_counts
from sparsefeed.etl.pipeline import run
from sparsefeed.etl.result import finished
from sparsefeed.etl.snapshot import Snapshot, SnapshotSide
from tests import logs
from tests.contracts.test_days import CONFIG, FIRST, assert_rows_equal, drifting_logs, named, names, spec

DAY = FIRST + timedelta(days=3)
NEXT = DAY + timedelta(days=1)
MOMENTS = [Moment.parse(f"{DAY}T{time}") for time in ("08:00:00", "16:00:00")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs in which impressions of the day are repeated in other files, some at another time."""
    root = drifting_logs(tmp_path_factory.mktemp("drifting"))
    path = root / "impressions" / f"day={DAY}" / "part-000.parquet"
    table = pq.read_table(path, partitioning=None)
    again = table.slice(40, 30)
    at = table.schema.get_field_index("time")
    late = again.set_column(at, "time", pc.add(again["time"], pa.scalar(timedelta(hours=9), pa.duration("ms"))))
    pq.write_table(late, path.with_name("a.parquet"))  # before the first ones, by name
    pq.write_table(table.slice(10, 20), path.with_name("z.parquet"))
    return root


@pytest.fixture(scope="module")
def base(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("base") / "etl"
    run(spec(), folder, out, CONFIG.model_copy(update={"until": DAY}))
    return out


@pytest.fixture(scope="module")
def parted(folder: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> AddedDays:
    """The day in two parts and then whole, and the day after it."""
    days = AddedDays(base, tmp_path_factory.mktemp("parted"))
    for moment in MOMENTS:
        days.add_part(spec(), folder, moment, CONFIG)
    for day in (DAY, NEXT):
        days.add(spec(), folder, day, CONFIG)
    return days


@pytest.fixture(scope="module")
def plain(folder: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> AddedDays:
    """The same days without parts."""
    days = AddedDays(base, tmp_path_factory.mktemp("plain"))
    for day in (DAY, NEXT):
        days.add(spec(), folder, day, CONFIG)
    return days


@pytest.fixture(scope="module")
def cut(folder: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> AddedDays:
    """The day of logs that end at the last moment."""
    root = tmp_path_factory.mktemp("cut")
    cut_off(shutil.copytree(folder, root / "logs"), MOMENTS[-1], "impressions")
    days = AddedDays(base, root / "days")
    days.add(spec(), root / "logs", DAY, CONFIG)
    return days


def cut_off(root: Path, moment: Moment, kind: str) -> None:
    for path in root.glob(f"{kind}/*/*.parquet"):
        table = pq.read_table(path, partitioning=None)
        if path.parent.name >= f"day={DAY}":
            kept = table.filter(pc.less(table["time"].cast(pa.int64()), moment.ms))
            pq.write_table(kept, path) if len(kept) else path.unlink()


def part(days: AddedDays, moment: Moment) -> Path:
    return days.folder / str(moment)


def rows(days: AddedDays, of: Path) -> pd.DataFrame:
    return named([days.base, of], logs.training_rows(of / "train"))


def test_1_to_2_a_part_is_the_day_of_logs_whose_impressions_end_there(parted: AddedDays, cut: AddedDays) -> None:
    found, expected = part(parted, MOMENTS[-1]), cut.folder / str(DAY)
    assert {path.name for path in found.iterdir()} == {path.name for path in expected.iterdir()}
    pd.testing.assert_frame_equal(rows(parted, found), rows(cut, expected))
    assert pq.read_table(found / "ips.parquet").equals(pq.read_table(expected / "ips.parquet"))
    summary = finished(found)
    assert (summary["until"], summary["train_days"]) == ("2026-11-05T160000", [str(DAY)])
    dense = [f.name for f in spec().dense]
    frames = [logs.training_rows(one / "train").sort_values("impression_id")[dense] for one in (found, expected)]
    pd.testing.assert_frame_equal(*(frame.reset_index(drop=True) for frame in frames))
    for table in spec().tables:
        assert strings_of(found, table.name) == strings_of(expected, table.name)


def strings_of(result: Path, table: str) -> list[str]:
    """Strings of the ids that got their rows on the result's day."""
    inverse = Inverse.load(result / "inverse" / table)
    return sorted(inverse.decode(np.arange(len(inverse.offsets) - 1) + inverse.first_row).to_pylist())


def test_1_each_impression_before_the_moment_is_there_once(folder: Path, parted: AddedDays) -> None:
    for moment in MOMENTS:
        shown = [pq.read_table(path, partitioning=None) for path in folder.glob(f"impressions/day={DAY}/*.parquet")]
        ids = pa.concat_tables(shown).filter(pc.less(pa.concat_tables(shown)["time"].cast(pa.int64()), moment.ms))[
            "impression_id"
        ]
        found = logs.training_rows(part(parted, moment) / "train")["impression_id"]
        assert sorted(found) == sorted(set(ids.to_pylist()))
        (warning,) = [w for w in finished(part(parted, moment))["warnings"] if "repeat an id" in w]
        assert warning.endswith(f"{len(ids) - len(found)} of {len(ids)} rows repeat an id; dropped")


def test_3_labels_alone_look_past_the_moment(folder: Path, plain: AddedDays, tmp_path: Path) -> None:
    root = shutil.copytree(folder, tmp_path / "logs")
    for kind in ("impressions", "actions"):
        cut_off(root, MOMENTS[-1], kind)
    run(spec(), root, tmp_path / "etl", CONFIG.model_copy(update={"until": DAY}))  # as it was known at the moment
    then, later = (AddedDays(tmp_path / "etl", tmp_path / name) for name in ("then", "later"))
    then.add(spec(), root, DAY, CONFIG)
    later.add_part(spec(), folder, MOMENTS[-1], CONFIG)
    results = part(later, MOMENTS[-1]), then.folder / str(DAY)
    found, known = (rows(then, result).set_index("impression_id") for result in results)
    day = rows(plain, plain.folder / str(DAY)).set_index("impression_id").loc[found.index]
    labels = [f"y_{response.name}" for response in spec().responses]
    pd.testing.assert_frame_equal(found[labels], day[labels])
    assert known["y_like"].sum() < found["y_like"].sum()  # some came later
    histories = [f.name for f in spec().histories]
    pd.testing.assert_frame_equal(found[histories], known[histories])
    snapshots = [Snapshot.load(result / "snapshot") for result in results]
    assert snapshots[1].as_of_ms < snapshots[0].as_of_ms == MOMENTS[-1].ms
    for name in ("member", "post"):
        sides = [without(getattr(snapshot, name), "lately") for snapshot in snapshots]  # a window ends with the moment
        assert len(sides[0].keys) == len(sides[1].keys)
        assert_rows_equal(*sides)


def without(side: SnapshotSide, feature: str) -> SnapshotSide:
    return replace(side, lists={name: of for name, of in side.lists.items() if name != feature})


def test_4_the_day_after_its_parts_is_the_day_without_them(parted: AddedDays, plain: AddedDays) -> None:
    found, expected = (days.folder / str(DAY) for days in (parted, plain))
    pd.testing.assert_frame_equal(rows(parted, found), rows(plain, expected))
    assert pq.read_table(found / "ips.parquet").equals(pq.read_table(expected / "ips.parquet"))
    snapshots = [Snapshot.load(one / "snapshot") for one in (found, expected)]
    assert snapshots[0].as_of_ms == snapshots[1].as_of_ms
    for side in ("member", "post"):
        assert_rows_equal(getattr(snapshots[0], side), getattr(snapshots[1], side))
    for table in spec().tables:
        assert strings_of(found, table.name) == strings_of(expected, table.name)
        counts = [counted(one, table.name) for one in (found, expected)]
        assert counts[0] == counts[1]


def counted(result: Path, table: str) -> dict[str, int]:
    """How often each id was counted that has no row."""
    totals: dict[str, int] = {}
    for one in map(StringCounts.from_arrow, rare_counts(result, table).tables()):
        for text, number in zip(one.strings.to_pylist(), one.counts.tolist(), strict=True):
            totals[text] = totals.get(text, 0) + number
    own = set(strings_of(result, table))
    return {text: number for text, number in totals.items() if text not in own}


def test_4_an_id_keeps_the_row_that_it_got_in_a_part(parted: AddedDays, plain: AddedDays) -> None:
    results = [parted.base, *(part(parted, moment) for moment in MOMENTS), parted.folder / str(DAY)]
    summaries = [finished(result) for result in results]
    assert [one.get("previous") for one in summaries] == [None, *[summaries[0]["fingerprint"]] * 3]
    assert [one.get("ids_from") for one in summaries] == [None, None, *(one["fingerprint"] for one in summaries[1:3])]
    maps = [IdMap.load(result / "ids" / "post") for result in results]
    grown = [one.num_rows for one in maps]
    assert grown == sorted(set(grown))  # every one has more
    for earlier, later, result in zip(maps[1:], maps[2:], results[2:], strict=False):
        inverse = Inverse.load(result / "inverse" / "post")
        assert inverse.first_row == maps[0].num_rows
        strings = inverse.decode(np.arange(inverse.first_row, earlier.num_rows))
        assert later.encode(strings).tolist() == earlier.encode(strings).tolist()
    without = IdMap.load(plain.folder / str(DAY) / "ids" / "post")
    strings = names(results[-1:], "post", np.arange(maps[0].num_rows, maps[-1].num_rows))
    assert maps[-1].encode(strings).tolist() != without.encode(strings).tolist()
    assert sorted(maps[-1].encode(strings)) == sorted(without.encode(strings))


def test_5_the_next_day_goes_on_from_the_whole_day(parted: AddedDays, plain: AddedDays) -> None:
    assert [result.name for result in parted.chain()[1:]] == [str(DAY), str(NEXT)]
    found, expected = (
        named([one.folder for one in days.chain()], logs.training_rows(days.folder / str(NEXT) / "train"))
        for days in (parted, plain)
    )
    pd.testing.assert_frame_equal(found, expected)
    tables = [pq.read_table(days.folder / str(NEXT) / "ips.parquet") for days in (parted, plain)]
    assert tables[0].equals(tables[1])


def test_6_a_part_is_left_as_it_is_and_the_day_has_what_came_later(folder: Path, base: Path, tmp_path: Path) -> None:
    root, days = shutil.copytree(folder, tmp_path / "logs"), AddedDays(base, tmp_path / "days")
    path = root / "impressions" / f"day={DAY}" / "part-000.parquet"
    table = pq.read_table(path, partitioning=None)
    pq.write_table(table.slice(20), path)
    summary = days.add_part(spec(), root, MOMENTS[0], CONFIG)
    pq.write_table(table.slice(0, 20), path.with_name("late.parquet"))
    assert days.add_part(spec(), root, MOMENTS[0], CONFIG) == summary == finished(part(days, MOMENTS[0]))
    later = days.add_part(spec(), root, MOMENTS[1], CONFIG)
    assert set(table["impression_id"].to_pylist()[:20]) < set(
        logs.training_rows(part(days, MOMENTS[1]) / "train")["impression_id"]
    )
    whole = days.add(spec(), root, DAY, CONFIG)
    assert summary["num_train_rows"] < later["num_train_rows"] < whole["num_train_rows"] == len(table)
    for moment in MOMENTS:
        shutil.rmtree(part(days, moment))
    assert days.add(spec(), root, DAY, CONFIG) == whole  # needs them no more
    with pytest.raises(DataError, match=r"has the ids of a part of its day that is no longer in .*; put that back"):
        days.by_ids(days.up_to(DAY))


@pytest.mark.parametrize("text", ["2026-11-05", "noon", "2026-11-05T12:00:00.5", "20261105", "2026-11-05T25:00", ""])
def test_7_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"not a moment \(.*\); give a day and a time to the second, as 2026-11-09T12"):
        Moment.parse(text)


def test_7_a_moment_is_of_utc_unless_it_says_otherwise() -> None:
    noon = datetime(2026, 11, 5, 12, tzinfo=timezone.utc)
    for text in ("2026-11-05T12:00:00", "2026-11-05T12:00:00Z", "2026-11-05T13:00:00+01:00", "2026-11-05T120000"):
        assert Moment.parse(text).at == noon
    assert str(Moment.parse("2026-11-05T00:30:00+01:00")) == "2026-11-04T233000"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2026-11-05T12:00:00", "no impression of 2026-11-06, the next day, is before 2026-11-05T120000; the first is"),
        ("2026-11-06T00:00:00", "no impression of 2026-11-06, the next day, is before 2026-11-06T000000; the first is"),
        ("2026-11-06T23:59:59", "2026-11-06, the next day, end at 2026-11-06T23:.*, before 2026-11-06T235959; give a"),
        ("2026-11-07T12:00:00", "2026-11-06, the next day, end at .*, or --day 2026-11-06 once the day is whole"),
        ("2026-11-03T12:00:00", "no impression can be read there that is of a day after 2026-11-05, which is there"),
    ],
)
def test_7_a_moment_that_is_not_in_the_next_day_is_refused(
    folder: Path, plain: AddedDays, tmp_path: Path, text: str, said: str
) -> None:
    days = AddedDays(plain.base, tmp_path / "days")
    shutil.copytree(plain.folder / str(DAY), days.folder / str(DAY))
    with pytest.raises(DataError, match=said):
        days.add_part(spec(), folder, Moment.parse(text), CONFIG)
    assert [path.name for path in days.folder.iterdir()] == [str(DAY)]  # 8: and nothing of it stays


def test_7_a_moment_before_the_last_part_is_refused(folder: Path, parted: AddedDays, tmp_path: Path) -> None:
    days = AddedDays(parted.base, tmp_path / "days")
    shutil.copytree(part(parted, MOMENTS[1]), part(days, MOMENTS[1]))
    with pytest.raises(DataError, match="the part until 2026-11-05T160000 is there; give a later moment than that"):
        days.add_part(spec(), folder, MOMENTS[0], CONFIG)
    with pytest.raises(DataError, match=r"day 2026-11-05 comes after 2026-11-04; add it before 2026-11-06"):
        days.add(spec(), folder, NEXT, CONFIG)  # a part is no day


def test_8_nothing_of_a_part_that_fails_stays(folder: Path, base: Path, tmp_path: Path) -> None:
    root, days = shutil.copytree(folder, tmp_path / "logs"), AddedDays(base, tmp_path / "days")
    path = root / "impressions" / f"day={DAY}" / "part-000.parquet"
    logs.change(path, position=pa.array(pc.subtract(pq.read_table(path)["position"], 9)))
    with pytest.raises(DataError, match="positions count from 1"):
        days.add_part(spec(), root, MOMENTS[0], CONFIG)
    assert not list(days.folder.iterdir())


def test_0_parts_of_an_earlier_base_are_named_as_outdated(
    folder: Path, parted: AddedDays, plain: AddedDays, tmp_path: Path
) -> None:
    days = AddedDays(tmp_path / "etl", parted.folder)
    run(spec(), folder, days.base, CONFIG.model_copy(update={"until": DAY - timedelta(days=1)}))
    assert [path.name for path in days.outdated()] == sorted([*map(str, MOMENTS), str(DAY), str(NEXT)])
    assert parted.outdated() == []
