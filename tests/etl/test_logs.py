"""docs/contracts/logs.md, sentence by sentence, on hand-made logs."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparsefeed.errors import BadFileError, DataError
from sparsefeed.etl.logs import LogFolder, ReadImpressions
from tests import logs

SPEC = logs.spec()
FIRST = "day=2026-11-02/part-000.parquet"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return logs.write(tmp_path / "logs", days=2, sessions=30)


def read(folder: Path, index: int = 0, spec=SPEC):  # type: ignore[no-untyped-def]
    opened = LogFolder.open(folder, spec)
    return ReadImpressions(spec, opened.actions)(opened.impressions[index])


def test_a_file_becomes_one_partition_with_labels_times_and_features(folder: Path) -> None:
    frame = read(folder)
    raw = pq.read_table(folder / "impressions" / FIRST).to_pandas()
    assert len(frame) == len(raw) == 120
    assert frame["y_click"].tolist() == raw["click"].astype(float).tolist()
    assert frame["_random"].tolist() == (raw["session"] == "random").astype(int).tolist()
    assert frame["member_id"].astype(str).tolist() == raw["member_id"].tolist()
    assert (frame.loc[frame["y_click"] > 0, "t_click"] == frame.loc[frame["y_click"] > 0, "_time"]).all()
    assert (frame.loc[frame["y_click"] == 0, "t_click"] == 0).all()


def test_the_meta_has_the_columns_and_types_of_a_partition(folder: Path) -> None:
    reader = ReadImpressions(SPEC, ())
    frame = read(folder)
    assert list(reader.meta.columns) == list(frame.columns)
    assert [str(t) for t in reader.meta.dtypes] == [str(t) for t in frame.dtypes]
    assert list(reader.project_columns(["y_click", "post_id"]).meta.columns) == ["y_click", "post_id"]


def test_repeated_actions_count_once_and_the_first_time_stands(folder: Path) -> None:
    actions = pq.read_table(folder / "actions" / FIRST).to_pandas()
    liked = actions[actions["action"] == "like"].groupby("impression_id")["time"].min()
    frame = read(folder).set_index("impression_id")
    assert frame["y_like"].sum() == len(liked)
    for impression, moment in liked.items():
        assert frame.loc[impression, "t_like"] == int(moment.timestamp() * 1000)


def test_an_action_after_the_attribution_days_is_not_the_impressions(folder: Path) -> None:
    impression = int(read(folder)["impression_id"].iloc[0])
    for days, expected in ((1, 1.0), (2, 0.0)):
        day = date(2026, 11, 2) + timedelta(days=days)
        late = folder / "actions" / f"day={day}" / "late.parquet"
        moment = logs.START + timedelta(days=days)
        logs.write_table(late, {"impression_id": [impression], "action": ["like"], "time": [moment]})
        frame = read(folder)
        assert frame["y_like"].iloc[0] == expected
        late.unlink()


def test_a_repeated_impression_counts_once(folder: Path) -> None:
    path = folder / "impressions" / FIRST
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table, table.slice(0, 7)]), path)
    assert len(read(folder)) == 120


def test_columns_the_spec_does_not_name_are_ignored(folder: Path) -> None:
    path = folder / "impressions" / FIRST
    table = pq.read_table(path)
    pq.write_table(table.append_column("weather", pa.array(["sun"] * len(table))), path)
    assert "weather" not in read(folder).columns


def test_a_missing_column_is_named_with_its_file_and_the_nearest_name(folder: Path) -> None:
    path = folder / "impressions" / FIRST
    pq.write_table(_renamed(path), path)
    with pytest.raises(DataError, match=r'day=2026-11-02.*column "post_id" is missing; did you mean "postid"'):
        LogFolder.open(folder, SPEC)


def _renamed(path: Path) -> pa.Table:
    table = pq.read_table(path)
    return table.rename_columns(["postid" if n == "post_id" else n for n in table.column_names])


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("post_id", pa.array(range(120)), r'column "post_id" is int64; it must be string'),
        ("hashtags", pa.array(["a"] * 120), r'column "hashtags" is string; it must be list<string>'),
        ("post_length", pa.array(["1"] * 120), r'column "post_length" is string; it must be a number type'),
        ("time", pa.array(["today"] * 120), r'column "time" is string; it must be timestamp'),
    ],
)
def test_a_wrong_type_is_named_before_anything_is_read(
    folder: Path, column: str, values: pa.Array, message: str
) -> None:
    logs.change(folder / "impressions" / FIRST, **{column: values})
    with pytest.raises(DataError, match=message):
        LogFolder.open(folder, SPEC)


def test_a_truncated_file_is_named(folder: Path) -> None:
    path = folder / "impressions" / FIRST
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(BadFileError, match=r"part-000.parquet: not readable as parquet") as caught:
        LogFolder.open(folder, SPEC)
    assert caught.value.path == str(path)


def test_a_file_whose_pages_are_damaged_is_named_when_it_is_read(folder: Path) -> None:
    path = folder / "impressions" / FIRST
    data = bytearray(path.read_bytes())
    data[4:3000] = b"\x00" * 2996
    path.write_bytes(bytes(data))
    with pytest.raises(BadFileError, match=r"part-000.parquet: breaks off or is damaged"):
        read(folder)


def test_a_session_value_that_is_neither_is_named(folder: Path) -> None:
    logs.change(folder / "impressions" / FIRST, session=pa.array(["random"] * 119 + ["exploration"]))
    with pytest.raises(DataError, match=r"\"session\" holds 'exploration'; allowed: \['production', 'random'\]"):
        read(folder)


def test_a_label_that_is_neither_0_nor_1_is_named_with_its_row(folder: Path) -> None:
    logs.change(folder / "impressions" / FIRST, click=pa.array([0.0] * 5 + [0.5] + [1.0] * 114))
    with pytest.raises(DataError, match=r'label "click" is 0.5 in row 5; it must be 0 or 1'):
        read(folder)


def test_an_impression_without_a_time_is_an_error(folder: Path) -> None:
    logs.change(folder / "impressions" / FIRST, time=pa.array([None] + [1] * 119, pa.int64()))
    with pytest.raises(DataError, match=r'"time" has 1 nulls of 120 rows'):
        read(folder)


def test_a_folder_without_impressions_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no day=YYYY-MM-DD"):
        LogFolder.open(tmp_path, SPEC)


def test_string_impression_ids_and_millisecond_times_read_the_same(folder: Path) -> None:
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


def test_impression_ids_of_two_types_are_refused(folder: Path) -> None:
    path = folder / "impressions" / FIRST
    logs.change(path, impression_id=pq.read_table(path)["impression_id"].cast(pa.string()))
    with pytest.raises(DataError, match=r'"impression_id" is text in some files and integer in others'):
        LogFolder.open(folder, SPEC)
