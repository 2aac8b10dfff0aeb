"""docs/contracts/logs.md, sentence by sentence, on hand-made logs."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparsefeed.errors import BadFileError, DataError
from sparsefeed.etl import pipeline
from sparsefeed.etl.config import ClusterConfig, EtlConfig
from sparsefeed.etl.impressions import ReadImpressions, columns_of
from sparsefeed.etl.logs import LogFolder
from sparsefeed.etl.spec import FeedSpec
from tests import logs

SPEC = logs.spec()
FIRST = "day=2026-11-02/part-000.parquet"
NUM_ROWS = 120  # of each day
IN_PROCESS = EtlConfig(cluster=ClusterConfig(workers=0, gpu=False))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return logs.write(tmp_path / "logs", days=2, sessions=30)


def read(folder: Path, spec: FeedSpec = SPEC) -> pd.DataFrame:
    """The first day's file as the ETL reads it."""
    return logs.read(folder, spec, days=1)


def raw(folder: Path, kind: str = "impressions") -> pd.DataFrame:
    """The first day's file as it was logged."""
    frame = pq.read_table(folder / kind / FIRST).to_pandas()
    assert isinstance(frame, pd.DataFrame)
    return frame


def act(folder: Path, impression: int, moment_of_day: timedelta, days_later: int) -> Path:
    """Log one more `like` in the folder of a later day."""
    path = folder / "actions" / f"day={date(2026, 11, 2) + timedelta(days=days_later)}" / "more.parquet"
    moment = logs.START + timedelta(days=days_later) + moment_of_day
    logs.write_table(path, {"impression_id": [impression], "action": ["like"], "time": [moment]})
    return path


def test_1_every_declared_column_is_read_as_it_was_logged(folder: Path) -> None:
    frame, logged = read(folder), raw(folder)
    assert len(frame) == len(logged) == NUM_ROWS
    for ours, theirs in (("impression_id", "impression_id"), ("_position", "position")):
        assert frame[ours].tolist() == logged[theirs].tolist()
    for ours, theirs in (("member_id",) * 2, ("post_id",) * 2, ("creator_id",) * 2, ("_surface", "surface")):
        assert frame[ours].astype(str).tolist() == logged[theirs].tolist()
    assert [list(tags) for tags in frame["hashtags"]] == [list(tags) for tags in logged["hashtags"]]
    for name in ("member_activity", "post_age_hours", "post_length"):
        pd.testing.assert_series_equal(frame[name], logged[name])
    assert frame["_time"].tolist() == [int(moment.timestamp() * 1000) for moment in logged["time"]]
    assert frame["_random"].tolist() == (logged["session"] == "random").astype(int).tolist()
    assert frame["y_click"].tolist() == logged["click"].astype(float).tolist()


@pytest.mark.parametrize("dtype", [pa.int8(), pa.int64(), pa.float64()])
def test_1_a_label_may_be_0_and_1(folder: Path, dtype: pa.DataType) -> None:
    before = read(folder)
    path = folder / "impressions" / FIRST
    logs.change(path, click=pq.read_table(path)["click"].cast(pa.int8()).cast(dtype))
    assert read(folder)["y_click"].tolist() == before["y_click"].tolist()


def test_1_string_impression_ids_and_millisecond_times_read_the_same(folder: Path) -> None:
    before = read(folder)
    for path in sorted(folder.glob("*/*/*.parquet")):
        table = pq.read_table(path)
        logs.change(
            path,
            impression_id=table["impression_id"].cast(pa.string()),
            time=table["time"].cast(pa.timestamp("ms", "UTC")).cast(pa.int64()),
        )
    after = read(folder)
    assert after["y_like"].tolist() == before["y_like"].tolist()
    assert after["_time"].tolist() == before["_time"].tolist()


def test_1_without_position_surface_and_sessions_their_columns_are_not_asked_for(folder: Path) -> None:
    logs.change(folder / "impressions" / FIRST, position=None, surface=None, session=None)
    frame = read(folder, logs.spec(logs={"position": None, "actions": {}}, sessions=None, ips="none"))
    assert len(frame) == NUM_ROWS
    assert not frame[["_position", "_random"]].to_numpy().any()


def test_2_the_day_of_a_folder_is_the_day_of_the_action(folder: Path) -> None:
    # Of an impression of the first day, liked after midnight: found in the second day's folder.
    impression = int(raw(folder)["impression_id"][raw(folder)["click"] == 0].iloc[-1])
    assert read(folder).set_index("impression_id").loc[impression, "y_like"] == 0
    act(folder, impression, timedelta(minutes=20), days_later=1)
    assert read(folder).set_index("impression_id").loc[impression, "y_like"] == 1


def test_2_actions_carry_their_impression_name_and_time(folder: Path) -> None:
    path = folder / "actions" / FIRST
    for column in ("impression_id", "action", "time"):
        table = pq.read_table(path)
        logs.change(path, **{column: None})
        with pytest.raises(DataError, match=rf'actions.*column "{column}" is missing'):
            LogFolder.open(folder, SPEC)
        pq.write_table(table, path)
    logs.change(path, action=pa.array(["bookmark"] * pq.read_metadata(path).num_rows))
    assert read(folder)["y_like"].sum() == 0  # no response has that name


def test_3_repeated_actions_count_once_and_the_first_time_stands(folder: Path) -> None:
    actions = raw(folder, "actions")
    assert actions["impression_id"].duplicated().any()
    path = act(folder, int(actions["impression_id"].iloc[0]), timedelta(hours=1), days_later=1)  # and again, later
    liked = actions[actions["action"] == "like"].groupby("impression_id")["time"].min()
    frame = read(folder).set_index("impression_id")
    assert path.exists()
    assert frame["y_like"].sum() == len(liked)
    for impression, moment in liked.items():
        assert frame.loc[impression, "t_like"] == int(moment.timestamp() * 1000)


def test_3_a_label_columns_event_is_at_the_impressions_time(folder: Path) -> None:
    frame = read(folder)
    clicked = frame["y_click"] > 0
    assert 0 < clicked.sum() < NUM_ROWS
    assert (frame["t_click"] == frame["_time"].where(clicked, 0)).all()


@pytest.mark.parametrize(("attribution_days", "days_later", "counts"), [(1, 1, 1), (1, 2, 0), (0, 1, 0), (2, 2, 1)])
def test_3_an_action_after_the_attribution_days_is_not_the_impressions(
    folder: Path, attribution_days: int, days_later: int, counts: int
) -> None:
    spec = logs.spec(logs={"surface": "surface", "actions": {"attribution_days": attribution_days}})
    impression = int(raw(folder)["impression_id"].iloc[0])
    act(folder, impression, timedelta(0), days_later)
    assert read(folder, spec).set_index("impression_id").loc[impression, "y_like"] == counts


def test_4_of_a_repeated_impression_the_first_row_is_kept(folder: Path) -> None:
    path = folder / "impressions" / FIRST
    table, before = pq.read_table(path), read(folder)
    other = table.slice(0, 7).set_column(table.schema.get_field_index("post_id"), "post_id", pa.array(["other"] * 7))
    pq.write_table(pa.concat_tables([table, other]), path)
    after = read(folder)
    assert after["post_id"].astype(str).tolist() == before["post_id"].astype(str).tolist()


def test_4_the_number_dropped_is_reported(folder: Path, tmp_path: Path) -> None:
    path = folder / "impressions" / FIRST
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table, table.slice(0, 7)]), path)
    summary = pipeline.run(SPEC, folder, tmp_path / "etl", IN_PROCESS)
    assert summary["num_train_rows"] == NUM_ROWS
    assert 'column "impression_id": 7 of 247 rows repeat an id; dropped' in summary["warnings"]


def test_5_columns_the_spec_does_not_name_are_ignored(folder: Path) -> None:
    before = read(folder)
    path = folder / "impressions" / FIRST
    table = pq.read_table(path)
    pq.write_table(table.append_column("weather", pa.array(["sun"] * len(table))), path)
    pd.testing.assert_frame_equal(read(folder), before)


def refused(folder: Path, tmp_path: Path, message: str, error: type[DataError] = DataError) -> DataError:
    """The ETL refuses the logs and writes nothing."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=message) as caught:
        pipeline.run(SPEC, folder, tmp_path / "etl", IN_PROCESS)
    assert sorted(tmp_path.rglob("*")) == before
    return caught.value


def test_5_a_missing_column_is_named_with_its_file_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    path = folder / "impressions" / FIRST
    table = pq.read_table(path)
    pq.write_table(table.rename_columns(["postid" if n == "post_id" else n for n in table.column_names]), path)
    refused(folder, tmp_path, r'day=2026-11-02.*column "post_id" is missing; did you mean "postid"')


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("impression_id", [0.5] * NUM_ROWS, r'"impression_id" is double; it must be int64 or string'),
        ("post_id", range(NUM_ROWS), r'"post_id" is int64; it must be string'),
        ("hashtags", ["a"] * NUM_ROWS, r'"hashtags" is string; it must be list<string>'),
        ("post_length", ["1"] * NUM_ROWS, r'"post_length" is string; it must be a number type'),
        ("position", [1.5] * NUM_ROWS, r'"position" is double; it must be an integer type'),
        ("time", ["today"] * NUM_ROWS, r'"time" is string; it must be timestamp'),
        ("click", ["yes"] * NUM_ROWS, r'"click" is string; it must be bool, or 0 and 1'),
    ],
)
def test_5_a_wrong_type_is_named_before_anything_is_written(
    folder: Path, tmp_path: Path, column: str, values: Any, message: str
) -> None:
    logs.change(folder / "impressions" / FIRST, **{column: pa.array(values)})
    refused(folder, tmp_path, f"part-000.parquet: column {message}")


def test_5_a_file_that_is_not_parquet_is_named_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    path = folder / "impressions" / FIRST
    path.write_bytes(path.read_bytes()[:2000])
    error = refused(folder, tmp_path, r"part-000.parquet: not readable as parquet", BadFileError)
    assert isinstance(error, BadFileError)
    assert error.path == str(path)


def test_6_some_null_or_empty_ids_read_row_one_and_are_told(folder: Path, tmp_path: Path) -> None:
    creators = raw(folder)["creator_id"].tolist()
    creators[3], creators[7] = None, ""
    logs.change(folder / "impressions" / FIRST, creator_id=pa.array(creators))
    spec = logs.spec(logs={"surface": "surface", "actions": {}, "max_null_share": 0.05})
    summary = pipeline.run(spec, folder, tmp_path / "etl", IN_PROCESS)
    assert f'column "creator_id": 2 of {NUM_ROWS} ids are null or empty; they read row 1' in summary["warnings"]
    (train,) = (tmp_path / "etl" / "train").glob("*.parquet")
    rows = pq.read_table(train).to_pandas().set_index("impression_id")["creator_id"]
    assert rows[rows == 1].index.tolist() == [3, 7]


def test_6_too_many_null_ids_are_an_error_naming_column_and_share(folder: Path, tmp_path: Path) -> None:
    logs.change(folder / "impressions" / FIRST, creator_id=pa.array([None] * 12 + ["c1"] * 108))
    with pytest.raises(DataError, match=r'"creator_id": 12 of 120 ids are null or empty, 10.00%; logs.max_null_share'):
        pipeline.run(SPEC, folder, tmp_path / "etl", IN_PROCESS)
    assert not (tmp_path / "etl").exists()


def test_7_a_session_value_that_is_neither_is_named(folder: Path) -> None:
    logs.change(folder / "impressions" / FIRST, session=pa.array(["random"] * 119 + ["exploration"]))
    with pytest.raises(DataError, match=r"\"session\" holds 'exploration'; allowed: \['production', 'random'\]"):
        read(folder)


def test_8_a_url_gives_what_the_folder_gives(folder: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/contract/logs", recursive=True)
    try:
        pd.testing.assert_frame_equal(logs.read("memory://contract/logs", SPEC), logs.read(folder, SPEC))
    finally:
        memory.rm("/contract", recursive=True)


@pytest.mark.parametrize("what", ["gone", "changed"])
def test_8_a_file_that_is_not_what_it_was_is_an_error_that_names_it(folder: Path, what: str) -> None:
    path = folder / "impressions" / FIRST
    (partition, *_) = LogFolder.open(folder, SPEC).partitions(1000)
    path.unlink() if what == "gone" else path.touch()
    with pytest.raises(BadFileError, match=f"^{path}: (is not there any more|was changed since the run began)"):
        ReadImpressions(SPEC, columns_of(SPEC))(partition)
