"""Reading logs beyond the contract's sentences, which tests/contracts/test_logs.py covers."""

from __future__ import annotations

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


def test_the_meta_has_the_columns_and_types_of_a_partition(folder: Path) -> None:
    reader = ReadImpressions(SPEC, ())
    frame = read(folder)
    assert list(reader.meta.columns) == list(frame.columns)
    assert [str(t) for t in reader.meta.dtypes] == [str(t) for t in frame.dtypes]
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
