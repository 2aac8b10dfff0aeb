"""Repeated impressions and later actions, found by keys on the disk, against plain Python over the same rows."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparsefeed.etl import actions, repeats
from sparsefeed.etl.logs import LogFolder
from tests import logs

SPEC = logs.spec()
DAY = date(2026, 11, 2)


@pytest.fixture(params=["int64", "string", "dictionary"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Two days; a fifth of the first day's impressions stand again, in the file and in another one."""
    root = logs.write(tmp_path / "logs", days=2, sessions=30)
    as_logged: Callable[[pa.ChunkedArray], pa.ChunkedArray] = {
        "int64": lambda ids: ids,
        "string": lambda ids: ids.cast(pa.string()),
        "dictionary": lambda ids: ids.cast(pa.string()).dictionary_encode(),
    }[request.param]
    for path in root.glob("*/*/*.parquet"):
        logs.change(path, impression_id=as_logged(pq.read_table(path)["impression_id"]))
    path = root / "impressions" / f"day={DAY}" / "part-000.parquet"
    table = pq.read_table(path)
    again = table.take(pa.array(range(0, len(table), 5)))
    pq.write_table(pa.concat_tables([table, again.slice(0, 10)]), path, row_group_size=50)
    pq.write_table(again, path.with_name("part-001.parquet"), row_group_size=7)
    return root


@pytest.mark.parametrize("rows", [40, 10_000])
def test_only_the_first_row_of_an_impression_stays_however_the_files_are_cut(
    root: Path, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeats, "_ROWS_AT_ONCE", 30)
    frame = logs.read(root, SPEC, rows=rows)
    assert len(frame) == 240
    assert not frame["impression_id"].duplicated().any()
    logged = pd.concat([pq.read_table(path).to_pandas() for path in sorted(root.glob("impressions/*/*.parquet"))])
    first = logged.drop_duplicates("impression_id")
    assert frame["impression_id"].tolist() == first["impression_id"].tolist()
    assert frame["post_id"].tolist() == first["post_id"].tolist()
    assert frame["_position"].tolist() == first["position"].tolist()


@pytest.mark.parametrize("rows", [40, 10_000])
def test_labels_are_those_of_a_join_in_plain_python(root: Path, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "_ROWS_AT_ONCE", 10)
    late = DAY + timedelta(days=1)
    ids = pq.read_table(root / "impressions" / f"day={DAY}")["impression_id"].to_pylist()
    moments = [logs.START + timedelta(days=1, minutes=i) for i in range(30)]
    logs.write_table(
        root / "actions" / f"day={late}" / "late.parquet",
        {"impression_id": ids[:30], "action": ["like", "comment", "like"] * 10, "time": moments},
    ) if isinstance(ids[0], int) else pq.write_table(
        pa.table(
            {
                "impression_id": pa.array(ids[:30]),
                "action": ["like", "comment", "like"] * 10,
                "time": pa.array(moments, pa.timestamp("ms", "UTC")),
            }
        ),
        root / "actions" / f"day={late}" / "late.parquet",
    )
    first: dict[object, int] = {}
    for path in root.glob("actions/*/*.parquet"):
        for row in pq.read_table(path).to_pylist():
            if row["action"] == "like":
                moment = int(row["time"].timestamp() * 1000)
                first[row["impression_id"]] = min(first.get(row["impression_id"], moment), moment)
    frame = logs.read(root, SPEC, rows=rows)
    expected = [
        max(first[i], t) if i in first else 0 for i, t in zip(frame["impression_id"], frame["_time"], strict=True)
    ]
    assert frame["t_like"].tolist() == expected
    assert frame["y_like"].tolist() == [float(moment > 0) for moment in expected]
    assert sum(frame["y_like"]) > 25


def test_nothing_but_the_index_and_the_places_stays_in_the_scratch_folder(root: Path, tmp_path: Path) -> None:
    from sparsefeed.etl.impressions import ReadImpressions

    scratch = tmp_path / "scratch"
    read = ReadImpressions.prepare(SPEC, LogFolder.open(root, SPEC), 50, scratch)
    assert read.repeats is not None
    assert read.repeats.count() == 34
    assert sorted(path.name for path in scratch.iterdir()) == ["actions", "repeats.npy"]
    assert sorted(path.name for path in (scratch / "actions").iterdir()) == ["2026-11-02", "2026-11-03"]


def test_an_index_of_any_size_finds_every_action_and_nothing_else(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for num in (0, 1, 3, 5000):
        keys = random.integers(0, 2**64, (num, 2), np.uint64)
        times = random.integers(1, 10**12, num)
        runs = actions.Runs(tmp_path / f"runs-{num}")
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        columns = (keys[order, 0], keys[order, 1], np.zeros(num, np.uint8), times[order])
        runs.write(0, pa.table(dict(zip(actions._COLUMNS, columns, strict=True))))
        assert actions._index(runs, 1, tmp_path / str(num) / str(DAY)) == num
        index = actions.ActionIndex(tmp_path / str(num), ("like",), 0, frozenset([DAY]))
        strangers = keys ^ np.array([0, 1], np.uint64)  # of the same first key
        asked = np.concatenate([keys, strangers])
        assert index.first_times(DAY, asked)["like"].tolist() == [*times.tolist(), *[0] * num]
