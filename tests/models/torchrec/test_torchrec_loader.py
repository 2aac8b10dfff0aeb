from __future__ import annotations

import os
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefeed.errors import BadFileError
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.torchrec import loader
from sparsefeed.models.torchrec.columns import Batch, Rows, capacity_rows, open_split
from sparsefeed.models.torchrec.loader import Loader

SPEC = FeedSpec.parse(
    {
        "name": "numbered",
        "tables": [{"name": "post", "dim": 4}],
        "features": [{"kind": "id", "name": "post_id", "table": "post", "side": "candidate"}],
        "responses": [{"name": "click", "column": "click"}],
        "logs": {"member": None},
    }
)


def write_numbered(folder: Path, groups_of_files: list[list[int]]) -> int:
    """Files of row groups of these sizes; row i of all has post_id i + 1."""
    (folder / "train").mkdir(parents=True)
    number = 1
    for i, groups in enumerate(groups_of_files):
        schema = pa.schema([("y_click", pa.float32()), ("post_id", pa.int64())])
        with pq.ParquetWriter(folder / "train" / f"{i}.parquet", schema) as writer:
            for rows in groups:
                ids = np.arange(number, number + rows)
                writer.write_table(pa.table({"y_click": (ids % 2).astype(np.float32), "post_id": ids}, schema))
                number += rows
    return number - 1


def loaders(
    folder: Path, ranks: int, batch_size: int, shuffle_rows: int = 8, seed: int = 0, by_time: bool = False
) -> list[Loader]:
    columns = Rows.columns(SPEC)
    parts = open_split(SPEC, folder, "train", columns)
    return [
        Loader(SPEC, parts, {"post": 10**6}, columns, batch_size, rank, ranks, shuffle_rows, seed, by_time=by_time)
        for rank in range(ranks)
    ]


def ids_of(batch: Batch) -> list[int]:
    ids: list[int] = batch.lookups.values().tolist()
    # The label is the id's parity: rows are shuffled whole.
    assert batch.labels_BR[:, 0].tolist() == [i % 2 for i in ids]
    return ids


@settings(max_examples=40, deadline=None)
@given(
    groups=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3), min_size=1, max_size=4),
    ranks=st.integers(1, 3),
    batch_size=st.integers(1, 7),
    shuffle_rows=st.integers(1, 20),
    by_time=st.booleans(),
)
def test_ranks_share_the_rows_evenly_without_repeats(
    tmp_path_factory: pytest.TempPathFactory,
    groups: list[list[int]],
    ranks: int,
    batch_size: int,
    shuffle_rows: int,
    by_time: bool,
) -> None:
    folder = tmp_path_factory.mktemp("numbered")
    num_rows = write_numbered(folder, groups)
    of_ranks = loaders(folder, ranks, batch_size, shuffle_rows, by_time=by_time)
    epochs = [[ids_of(b) for b in loader.epoch(0)] for loader in of_ranks]
    sizes = [[len(batch) for batch in batches] for batches in epochs]
    assert all(of_rank == sizes[0] for of_rank in sizes), "a rank with another number of batches would wait for ever"
    assert all(size == batch_size for size in sizes[0][:-1])
    seen = Counter(i for batches in epochs for batch in batches for i in batch)
    assert set(seen) <= set(range(1, num_rows + 1))
    assert all(count == 1 for count in seen.values())
    assert len(seen) == num_rows // ranks * ranks
    for own in of_ranks:
        numbers = list(range(1, num_rows + 1))
        at = [own.locate(0, batch, row) for batch, size in enumerate(sizes[0]) for row in range(size)]
        starts = {folder / "train" / f"{i}.parquet": sum(map(sum, groups[:i])) for i in range(len(groups))}
        assert [numbers[starts[path] + row] for path, row in at] == [i for b in epochs[own.rank] for i in b]
    loader = of_ranks[0]
    assert (loader.rows_per_epoch, loader.batches_per_epoch) == (num_rows // ranks, len(sizes[0]))


@pytest.mark.parametrize("by_time", [False, True])
def test_an_epoch_begun_in_the_middle_goes_on_as_if_never_left(tmp_path: Path, by_time: bool) -> None:
    write_numbered(tmp_path, [[10, 7], [20]])
    for own in loaders(tmp_path, 2, 4, by_time=by_time):
        whole = [ids_of(b) for b in own.epoch(0)]
        for start in range(len(whole) + 1):
            assert [ids_of(b) for b in own.epoch(0, start)] == whole[start:]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_by_time_all_ranks_go_along_the_rows_together(tmp_path: Path, ranks: int) -> None:
    write_numbered(tmp_path, [[50, 40], [30], [60, 20]])
    epochs = [[ids_of(b) for b in own.epoch(1)] for own in loaders(tmp_path, ranks, 5, shuffle_rows=10, by_time=True)]
    for number, of_ranks in enumerate(zip(*epochs, strict=True)):
        stretch = number // 2 * 10 * ranks  # of two batches a rank: its buffer
        seen = [i - 1 for ids in of_ranks for i in ids]
        assert stretch <= min(seen) <= max(seen) < stretch + 10 * ranks


def test_equal_seeds_give_equal_orders_and_others_do_not(tmp_path: Path) -> None:
    write_numbered(tmp_path, [[50, 50], [50]])

    def order(seed: int, epoch: int) -> list[list[int]]:
        return [ids_of(b) for b in loaders(tmp_path, 1, 10, shuffle_rows=60, seed=seed)[0].epoch(epoch)]

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(2, 0)
    assert order(1, 0) != order(1, 1)


def test_rows_are_shuffled_across_row_groups_within_a_buffer(tmp_path: Path) -> None:
    write_numbered(tmp_path, [[100, 100]])
    first = ids_of(next(loaders(tmp_path, 1, 40, shuffle_rows=200)[0].epoch(0)))
    assert min(sum(i <= 100 for i in first), sum(i > 100 for i in first)) >= 8


def test_a_row_left_out_of_one_epoch_is_in_another(tmp_path: Path) -> None:
    num_rows = write_numbered(tmp_path, [[3], [4], [4]])
    left_out = []
    for epoch in range(8):
        seen = {i for loader in loaders(tmp_path, 2, 4) for b in loader.epoch(epoch) for i in ids_of(b)}
        left_out.append(set(range(1, num_rows + 1)) - seen)
    assert all(len(rows) == 1 for rows in left_out)
    assert len(set.union(*left_out)) > 1


@pytest.mark.parametrize("batches_ahead", [1, 3, 100])
@pytest.mark.parametrize("read_threads", [1, 4])
def test_batches_made_ahead_are_the_same_ones(etl, batches_ahead: int, read_threads: int) -> None:
    plain = loader_of(etl)
    ahead = replace(plain, batches_ahead=batches_ahead, read_threads=read_threads)
    for start in (0, 2):
        for got, expected in zip(ahead.epoch(1, start), plain.epoch(1, start), strict=True):
            assert torch.equal(got.labels_BR, expected.labels_BR)
            assert torch.equal(got.lookups.values(), expected.lookups.values())


def test_an_error_of_reading_ahead_reaches_the_trainer_and_no_thread_outlives_a_loader(etl, tmp_path: Path) -> None:
    copied = tmp_path / "train"
    shutil.copytree(etl.path / "train", copied)
    loader = replace(loader_of(etl), batches_ahead=2, read_threads=2)
    parts = [replace(part, path=copied / part.path.name) for part in loader.parts]
    loader = replace(loader, parts=parts)
    before = threading.active_count()
    batches = loader.epoch(0)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    parts[-1].path.write_bytes(b"PAR1 broken")
    with pytest.raises(BadFileError, match=parts[-1].path.name):
        list(loader.epoch(0))
    assert threading.active_count() == before


def loader_of(etl) -> Loader:
    """Two files, eight row groups, batches of 100 from buffers of 300."""
    columns, capacities = Rows.columns(etl.spec), capacity_rows(etl.spec, etl.path)
    return Loader(etl.spec, open_split(etl.spec, etl.path, "train", columns), capacities, columns, 100, 0, 1, 300, 5)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a priority of their own on Linux alone")
def test_threads_that_read_give_way_to_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_numbered(tmp_path, [[8, 8]])
    found: dict[str, int] = {}

    def noting(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any) -> Any:
            found[name] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
            return call(*args)

        return called

    monkeypatch.setattr(loader, "read_part", noting("reads", loader.read_part))
    monkeypatch.setattr(Rows, "take", noting("makes batches", Rows.take))
    (own,) = loaders(tmp_path, 1, 4)
    assert len(list(replace(own, batches_ahead=2).epoch(0))) == 4
    assert found == {"reads": 19, "makes batches": 19}
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) < 19
