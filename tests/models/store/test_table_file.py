"""One table's file: written, mapped, looked up, overlaid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparsefeed.errors import BundleError, RequestError
from sparsefeed.models.store import table as table_module
from sparsefeed.models.store.gather import rank_words
from sparsefeed.models.store.rows import ROW_FORMATS, RowFormat, dequantise, quantise
from sparsefeed.models.store.table import TableFile

DIM = 8


def random_rows(num_rows: int, seed: int = 0) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).normal(size=(num_rows, DIM)).astype(np.float32)
    values[0] = 0
    return values


def write(folder: Path, values: NDArray[np.float32], row_format: RowFormat = "int8") -> TableFile:
    folder.mkdir(exist_ok=True)
    TableFile.write(folder, "post", values, row_format)
    return TableFile.open(folder, "post")


def stored(values: NDArray[np.float32], row_format: RowFormat) -> NDArray[np.float32]:
    return dequantise(quantise(values, row_format), row_format)


@pytest.mark.parametrize("row_format", ROW_FORMATS)
def test_a_table_answers_what_was_written(tmp_path: Path, row_format: RowFormat) -> None:
    values = random_rows(100)
    table = write(tmp_path, values, row_format)
    assert (table.dim, table.rows, table.row_format) == (DIM, 100, row_format)
    np.testing.assert_array_equal(table.lookup(np.arange(100)), stored(values, row_format))
    assert table.bytes == (tmp_path / "post.npy").stat().st_size - 128  # npy's header


def test_a_table_is_written_in_chunks_that_leave_no_seam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "_CHUNK_ROWS", 7)
    values = random_rows(50)
    table = write(tmp_path, values)
    np.testing.assert_array_equal(table.base, quantise(values, "int8"))


def test_a_table_is_mapped_and_cannot_be_written_through(tmp_path: Path) -> None:
    table = write(tmp_path, random_rows(10))
    with pytest.raises(ValueError, match="read-only"):
        table.base[0] = 0


@pytest.mark.parametrize("key", [-1, 100, 2**62])
def test_a_key_outside_names_table_key_and_capacity(tmp_path: Path, key: int) -> None:
    table = write(tmp_path, random_rows(100))
    with pytest.raises(RequestError, match=rf'table "post": key {key} \(number 1\) is outside \[0, 100\)'):
        table.lookup(np.array([5, key, -7]))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("po.st", random_rows(10), "not a name"),
        ("x" * 121, random_rows(10), "not a name"),
        ("post", np.ones((10, DIM), np.float32), r"row 0 \(padding\) is not zero"),
        ("post", np.zeros((10, 6), np.float32), "dim a multiple of 4"),
        ("post", np.zeros((0, DIM), np.float32), "rows >= 1"),
        ("post", np.zeros(8, np.float32), r"must be \[rows, dim\]"),
    ],
)
def test_a_table_that_cannot_be_one_is_not_written(
    tmp_path: Path, name: str, values: NDArray[np.float32], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        TableFile.write(tmp_path, name, values, "int8")
    assert not list(tmp_path.iterdir())


def test_an_unknown_row_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match='got row_format "int4"; allowed: fp32, fp16, int8'):
        TableFile.write(tmp_path, "post", random_rows(10), "int4")  # type: ignore[arg-type]


def test_a_value_that_cannot_be_stored_names_its_table(tmp_path: Path) -> None:
    values = random_rows(10)
    values[4, 2] = np.nan
    with pytest.raises(BundleError, match=r'table "post", rows from 0 on: row 4: value nan'):
        TableFile.write(tmp_path, "post", values, "fp16")


def test_a_missing_a_cut_and_a_foreign_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"post\.npy: not a readable array"):
        TableFile.open(tmp_path, "post")
    write(tmp_path, random_rows(100))
    path = tmp_path / "post.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"post\.npy: not a readable array"):
        TableFile.open(tmp_path, "post")
    np.save(path, np.zeros((4, 4), np.float64))
    with pytest.raises(BundleError, match="got float64"):
        TableFile.open(tmp_path, "post")


def test_an_array_of_objects_is_refused_and_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "post.npy", np.array([[{}]], object), allow_pickle=True)
    with pytest.raises(BundleError, match="not a readable array"):
        TableFile.open(tmp_path, "post")


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 299)), st.integers(300, 400))
def test_the_rank_index_finds_exactly_the_rows_it_was_made_of(rows: set[int], capacity: int) -> None:
    ascending = np.array(sorted(rows), np.int64)
    words = rank_words(ascending, capacity)
    found = {}
    for row in range(capacity):
        bits, before = int(words[row >> 6, 0]), int(words[row >> 6, 1])
        if bits >> (row & 63) & 1:
            found[row] = before + (bits & ((1 << (row & 63)) - 1)).bit_count()
    assert found == {row: i for i, row in enumerate(ascending.tolist())}


CHANGES = st.lists(
    st.tuples(st.sets(st.integers(1, 299), min_size=1, max_size=40), st.sampled_from([1, 2, 4])), min_size=1, max_size=4
)


@pytest.mark.parametrize("row_format", ROW_FORMATS)
@settings(max_examples=25, deadline=None)
@given(CHANGES)
def test_overlays_answer_what_a_table_written_whole_would(
    tmp_path_factory: pytest.TempPathFactory, row_format: RowFormat, changes: list[tuple[set[int], int]]
) -> None:
    folder = tmp_path_factory.mktemp("table")
    truth = random_rows(100)
    table = write(folder / "0", truth, row_format)
    for i, (touched, growth) in enumerate(changes, start=1):
        rows = np.array(sorted(touched), np.int64)
        capacity = len(truth) * growth
        while capacity <= rows[-1]:
            capacity *= 2
        truth = np.concatenate([truth, np.zeros((capacity - len(truth), DIM), np.float32)])
        truth[rows] = random_rows(len(rows) + 1, seed=i)[1:]
        (folder / str(i)).mkdir()
        table.replace_rows(folder / str(i), rows, truth[rows], capacity)
        table = TableFile.open(folder / str(i), "post", capacity)
        np.testing.assert_array_equal(table.lookup(np.arange(capacity)), stored(truth, row_format))


def test_a_small_change_links_the_base_and_a_large_one_folds(tmp_path: Path) -> None:
    table = write(tmp_path / "old", random_rows(100))
    for name, num_rows in (("small", 25), ("large", 26)):
        (tmp_path / name).mkdir()
        table.replace_rows(tmp_path / name, np.arange(1, num_rows + 1), random_rows(num_rows + 1)[1:], 200)
    assert (tmp_path / "small" / "post.npy").samefile(table.path)
    assert len(TableFile.open(tmp_path / "small", "post", 200).overlay_rows) == 25
    assert [path.name for path in (tmp_path / "large").iterdir()] == ["post.npy"]
    assert TableFile.open(tmp_path / "large", "post").rows == 200


def test_a_key_beyond_the_grown_capacity_is_refused(tmp_path: Path) -> None:
    table = write(tmp_path / "old", random_rows(100))
    (tmp_path / "new").mkdir()
    table.replace_rows(tmp_path / "new", np.array([150]), random_rows(2)[1:], 200)
    grown = TableFile.open(tmp_path / "new", "post", 200)
    assert not grown.lookup(np.array([199])).any()
    with pytest.raises(RequestError, match=r"key 200 .* outside \[0, 200\)"):
        grown.lookup(np.array([150, 200]))


@pytest.mark.parametrize(
    ("rows", "overlay", "capacity"),
    [
        (np.array([3, 3]), np.zeros((2, 16), np.uint8), 100),  # not unique
        (np.array([0, 3]), np.zeros((2, 16), np.uint8), 100),  # padding
        (np.array([3, 100]), np.zeros((2, 16), np.uint8), 100),  # beyond the capacity
        (np.array([3]), np.zeros((2, 16), np.uint8), 100),  # another number
        (np.array([3]), np.zeros((1, 8), np.float32), 100),  # another format
        (np.array([3]), np.zeros((1, 16), np.uint8), 99),  # capacity below the base
    ],
)
def test_an_overlay_of_another_table_is_refused(
    tmp_path: Path, rows: NDArray[np.int64], overlay: NDArray[np.uint8], capacity: int
) -> None:
    write(tmp_path, random_rows(100))
    np.save(tmp_path / "post.overlay_rows.npy", rows)
    np.save(tmp_path / "post.overlay.npy", overlay)
    with pytest.raises(BundleError, match=r"post\.npy: "):
        TableFile.open(tmp_path, "post", capacity)
