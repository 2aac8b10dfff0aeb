"""Reading logs beyond the contract's sentences, which tests/contracts/test_logs.py covers."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparsefeed.errors import BadFileError, DataError
from sparsefeed.etl.impressions import ReadImpressions, columns_of
from sparsefeed.etl.logs import LogFolder
from tests import logs

SPEC = logs.spec()
FIRST = "day=2026-11-02/part-000.parquet"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return logs.write(tmp_path / "logs", days=2, sessions=30)


def read(folder: Path) -> pd.DataFrame:
    return logs.read(folder, SPEC, days=1)


def test_the_meta_has_the_columns_of_a_partition(folder: Path) -> None:
    reader = ReadImpressions(SPEC, columns_of(SPEC))
    assert list(reader.meta.columns) == list(read(folder).columns)
    assert list(reader.project_columns(["y_click", "post_id"]).meta.columns) == ["y_click", "post_id"]


def test_a_file_whose_pages_are_damaged_is_named_when_it_is_read(folder: Path) -> None:
    path = folder / "impressions" / FIRST
    data = bytearray(path.read_bytes())
    data[4:3000] = b"\x00" * 2996
    path.write_bytes(bytes(data))
    with pytest.raises(BadFileError, match=r"part-000.parquet: breaks off or is damaged"):
        read(folder)


def test_a_label_that_is_neither_0_nor_1_is_named_with_its_row(folder: Path) -> None:
    logs.change(folder / "impressions" / FIRST, click=pa.array([0.0] * 5 + [0.5] + [1.0] * 114))
    with pytest.raises(DataError, match=r'label "click" is 0.5 in row 5; it must be 0 or 1'):
        read(folder)


def test_an_action_stamped_before_its_impression_happened_at_the_impression(folder: Path) -> None:
    frame = read(folder)
    liked = frame[frame["y_like"] > 0].iloc[0]
    early = logs.START - timedelta(days=1)
    columns = {"impression_id": [int(liked["impression_id"])], "action": ["like"], "time": [early]}
    logs.write_table(folder / "actions" / FIRST, columns)
    again = read(folder).set_index("impression_id").loc[liked["impression_id"]]
    assert again["t_like"] == again["_time"] == liked["_time"]


def test_large_impression_ids_beside_null_ones_join_exactly(folder: Path) -> None:
    base = 1_200_000_000_000_000_000
    path = folder / "impressions" / FIRST
    logs.change(path, impression_id=pa.array([base + i for i in range(120)]))
    moment = logs.START + timedelta(hours=1)
    columns = {"impression_id": [base + 1, None], "action": ["like"] * 2, "time": [moment] * 2}
    logs.write_table(folder / "actions" / FIRST, columns)
    assert read(folder)["y_like"].tolist() == [0, 1, *[0] * 118]


def test_an_impression_without_an_id_is_an_error(folder: Path) -> None:
    logs.change(folder / "impressions" / FIRST, impression_id=pa.array([None, *range(119)], pa.int64()))
    with pytest.raises(DataError, match=r'"impression_id" has 1 nulls of 120 rows'):
        read(folder)


def test_large_integers_and_infinities_are_read_as_dense_features(folder: Path) -> None:
    logs.change(folder / "impressions" / FIRST, post_length=pa.array([16_777_217] * 120))
    assert read(folder)["post_length"].iloc[0] == 16_777_216
    logs.change(folder / "impressions" / FIRST, post_length=pa.array([float("inf"), 2.0] * 60))
    values = read(folder)["post_length"]
    assert values.isna().sum() == 60
    assert values.iloc[1] == 2.0


def test_a_folder_whose_name_is_no_day_is_named(folder: Path) -> None:
    (folder / "impressions" / "day=2026-11-02").rename(folder / "impressions" / "day=2026-13-45")
    with pytest.raises(DataError, match=r"day=2026-13-45: not a day=YYYY-MM-DD folder"):
        LogFolder.open(folder, SPEC)


def test_a_position_below_1_is_named_with_its_row(folder: Path) -> None:
    logs.change(folder / "impressions" / FIRST, position=pa.array([1, 2, 0] + [4] * 117, pa.int32()))
    with pytest.raises(DataError, match=r'"position" is 0 in row 2; positions count from 1'):
        read(folder)


def test_an_impression_without_a_time_is_an_error(folder: Path) -> None:
    logs.change(folder / "impressions" / FIRST, time=pa.array([None] + [1] * 119, pa.int64()))
    with pytest.raises(DataError, match=r'"time" has 1 nulls of 120 rows'):
        read(folder)


def test_a_folder_without_impressions_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no day=YYYY-MM-DD"):
        LogFolder.open(tmp_path, SPEC)


def test_impression_ids_of_two_types_are_refused(folder: Path) -> None:
    path = folder / "impressions" / FIRST
    logs.change(path, impression_id=pq.read_table(path)["impression_id"].cast(pa.string()))
    with pytest.raises(DataError, match=r'"impression_id" is text in some files and integer in others'):
        LogFolder.open(folder, SPEC)
