"""What lies on the disk between the passes: arrays written piece by piece, events, state of members and posts."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefeed.etl import events
from sparsefeed.etl.array_file import ArrayFile
from sparsefeed.etl.events import EventFiles
from sparsefeed.etl.kernels.history import Events
from sparsefeed.etl.runs import Runs
from sparsefeed.etl.snapshot import SideWriter, SnapshotSide
from tests.etl.test_state import plain, row, state


@pytest.mark.parametrize("dtype", [np.uint64, np.float32, np.int32])
@pytest.mark.parametrize("width", [None, 0, 3])
@pytest.mark.parametrize("cuts", [[], [0], [5], [0, 2, 2, 9]])
def test_an_array_written_piece_by_piece_is_numpys_own_file(
    tmp_path: Path, dtype: type, width: int | None, cuts: list[int]
) -> None:
    whole = np.arange(10 * (1 if width is None else width)).astype(dtype)
    whole = whole if width is None else whole.reshape(10, width)
    whole = whole[: cuts[-1] if cuts else 0]
    with ArrayFile(tmp_path / "ours.npy", dtype, width) as file:
        for start, stop in zip([0, *cuts], cuts, strict=False):
            file.append(whole[start:stop])
    np.save(tmp_path / "numpys.npy", whole)
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "numpys.npy").read_bytes()


@pytest.mark.parametrize("rows_at_once", [1, 7, 10**6])
def test_events_of_many_partitions_are_sorted_as_all_at_once(
    tmp_path: Path, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_ROWS_AT_ONCE", rows_at_once)
    random = np.random.default_rng(0)
    members = random.integers(0, 2**64, 20, np.uint64)
    columns = random.choice(members, 300), random.integers(1, 50, 300), random.integers(0, 9, 300).astype(np.uint64)
    runs = Runs(tmp_path / "runs")
    for number in range(4):
        part = Events(*(column[number::4] for column in columns))
        runs.write(number, EventFiles.run(part))
    files = EventFiles(tmp_path / "events")
    assert files.build(runs, 4) == 300
    assert files.build(runs, 4) == 300  # as when the worker dies that has the result
    expected = Events.sort(*columns)
    found = pickle.loads(pickle.dumps(files)).events
    for name in ("member", "time_ms", "item"):
        assert getattr(found, name).tolist() == getattr(expected, name).tolist()
    assert len(pickle.dumps(files)) < 1000  # a task is sent the folder's name


def test_no_events_at_all_are_empty_files(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "runs")
    runs.write(0, EventFiles.run(Events(*(np.empty(0, t) for t in (np.uint64, np.int64, np.uint64)))))
    files = EventFiles(tmp_path / "events")
    assert files.build(runs, 1) == 0
    assert len(files.events.member) == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(row, min_size=1, max_size=25, unique_by=lambda r: (r[0], r[1], r[2])))
def test_a_state_comes_back_from_a_run_whole_and_in_slices(rows) -> None:  # type: ignore[no-untyped-def]
    before = state(rows)
    table = before.to_arrow()
    assert plain(type(before).from_arrow(table)) == plain(before)
    parts = [type(before).from_arrow(table.slice(i, 1)) for i in range(len(table))]
    assert plain(type(before).merge(parts)) == plain(before)


def test_a_side_written_in_parts_is_the_side_written_whole(tmp_path: Path) -> None:
    keys = np.array([3, 5, 9], np.uint64)
    lists = {"tags": (np.array([0, 2, 2, 3]), np.array([7, 8, 9], np.uint64))}
    whole = SnapshotSide(keys, np.arange(6, dtype=np.float32).reshape(3, 2), {"item": keys * np.uint64(2)}, lists)
    whole.save(tmp_path / "whole")
    with SideWriter(tmp_path / "parts", 2, ["item"], ["tags"]) as writer:
        for start, stop in ((0, 1), (1, 3)):
            offsets, values = lists["tags"]
            part = offsets[start : stop + 1]
            cut = {"tags": (part - part[0], values[part[0] : part[-1]])}
            ids = {"item": whole.ids["item"][start:stop]}
            writer.append(SnapshotSide(keys[start:stop], whole.dense[start:stop], ids, cut))
    assert writer.count == 3
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "parts" / path.name).read_bytes()
