"""Runs: all rows come back once, range by range, each range no larger than asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sparsefeed.errors import DataError
from sparsefeed.etl.columns import KEY
from sparsefeed.etl.runs import Runs


def run_of(keys: np.ndarray, number: int) -> pa.Table:
    keys = np.sort(keys)
    return pa.table({KEY: keys, "from": np.full(len(keys), number), "text": [f"{k:x}" for k in keys]})


@pytest.mark.parametrize("rows", [1, 37, 1000, 10**6])
def test_every_row_comes_back_once_and_equal_keys_in_one_range(tmp_path: Path, rows: int) -> None:
    runs, random = Runs(tmp_path / "runs"), np.random.default_rng(0)
    shared = random.integers(0, 2**64, 50, np.uint64)
    written = []
    for number in range(5):
        keys = np.append(random.integers(0, 2**64, 100 * number, np.uint64), shared)
        runs.write(number, run_of(keys, number))
        written += keys.tolist()
    seen: list[int] = []
    before = -1
    for tables in runs.ranges(rows, 5):
        keys = np.concatenate([table[KEY].to_numpy() for table in tables])
        assert all(len(table) for table in tables)
        assert all(t["text"].to_pylist() == [f"{k:x}" for k in t[KEY].to_pylist()] for t in tables)
        assert int(keys.min()) > before
        before = int(keys.max())
        assert len(keys) <= 3 * rows + 60
        seen += keys.tolist()
    assert sorted(seen) == sorted(written)


def test_the_ends_of_the_keys_are_in_some_range(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "runs")
    runs.write(0, run_of(np.array([0, 2**63, 2**64 - 1], np.uint64), 0))
    assert sum(len(table) for tables in runs.ranges(1, 1) for table in tables) == 3


def test_a_run_written_again_replaces_itself_and_no_runs_are_no_ranges(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "runs")
    assert list(runs.ranges(10, 0)) == []
    runs.write(3, run_of(np.arange(5, dtype=np.uint64), 1))
    runs.write(3, run_of(np.arange(7, dtype=np.uint64), 2))
    runs.write(4, run_of(np.empty(0, np.uint64), 2))
    (tables,) = runs.ranges(10, 2)
    assert [len(table) for table in tables] == [7]
    with pytest.raises(
        DataError, match=r"2 runs, 3 were written; the workspace must be on a disk that all workers reach"
    ):
        next(runs.ranges(10, 3))
    assert len(list(runs.folder.iterdir())) == 2
    runs.remove()
    assert not runs.folder.exists()
