"""HugeCTR's files: there and back, byte for byte, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sparsefeed.errors import BadFileError
from sparsefeed.models.hugectr import formats
from sparsefeed.models.hugectr.formats import (
    DumpedTable,
    put_rows,
    read_bin,
    read_dense,
    read_dump,
    write_bin,
    write_dense,
    write_dump,
)

FLOATS = st.floats(-1e6, 1e6, width=32)
SHAPES = st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=2).map(tuple), min_size=1, max_size=5)


@settings(max_examples=50, deadline=None)
@given(shapes=SHAPES, data=st.data())
def test_a_dense_model_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[tuple[int, ...]], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("dense") / "model"
    written = [data.draw(arrays(np.float32, shape, elements=FLOATS)) for shape in shapes]
    write_dense(path, written)
    for got, wanted in zip(read_dense(path, shapes), written, strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert path.read_bytes() == b"".join(array.astype("<f4").tobytes() for array in written)


TABLES = st.lists(
    st.tuples(st.lists(st.integers(0, 2**62), max_size=6, unique=True), st.integers(1, 4)), min_size=1, max_size=4
)


@settings(max_examples=50, deadline=None)
@given(tables=TABLES, data=st.data())
def test_a_dump_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, tables: list[tuple[list[int], int]], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("dump")
    written = [
        DumpedTable(i, np.array(keys, np.int64), data.draw(arrays(np.float32, (len(keys), dim), elements=FLOATS)))
        for i, (keys, dim) in enumerate(tables)
    ]
    write_dump(folder, written)
    found = read_dump(folder)
    assert [table.number for table in found] == [table.number for table in written]
    for got, wanted in zip(found, written, strict=True):
        np.testing.assert_array_equal(got.keys, wanted.keys)
        np.testing.assert_array_equal(got.rows, wanted.rows)
    place = folder / "embedding_collection_0"
    assert (place / "meta_data").stat().st_size == 20 + 16 * len(tables)
    assert all((place / f"key{i}").stat().st_size == 128 + 8 * len(keys) for i, (keys, _) in enumerate(tables))


@settings(max_examples=50, deadline=None)
@given(keys=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=6), dim=st.integers(1, 4), data=st.data())
def test_a_bin_table_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, keys: list[int], dim: int, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("bin") / "table.bin"
    rows = data.draw(arrays(np.float32, (len(keys), dim), elements=FLOATS))
    write_bin(path, np.array(keys, np.int64), rows)
    got = read_bin(path)
    np.testing.assert_array_equal(got[0], keys)
    np.testing.assert_array_equal(got[1], rows)
    assert path.read_bytes()[:16] == b"bin\0" + np.array([1, 8, 4 * dim], "<u4").tobytes()


def a_dump(folder: Path) -> Path:
    keys = np.arange(3)
    write_dump(folder, [DumpedTable(i, keys, np.ones((3, 2), np.float32)) for i in range(2)])
    return folder / "embedding_collection_0"


def changed(path: Path, at: int, value: int) -> None:
    content = bytearray(path.read_bytes())
    content[at : at + 4] = value.to_bytes(4, "little")
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda place: (place / "meta_data").unlink(),
            "meta_data: not readable: .*name the folder that embedding_dump",
        ),
        (lambda place: cut(place / "meta_data"), "meta_data: has 51 bytes; 2 tables need 52"),
        (lambda place: (place / "meta_data").write_bytes(b"x"), "has 1 bytes; metadata begin with 20"),
        (lambda place: changed(place / "meta_data", 4, 0), "keys of type 0 .*allowed: int64"),
        (lambda place: changed(place / "meta_data", 8, 1), "values of type 1; allowed: .*float32"),
        (lambda place: changed(place / "meta_data", 24, 0), r"names tables \[0, 0\]; each may occur once"),
        (lambda place: changed(place / "meta_data", 28, 9), "key0: has 152 bytes; its metadata say 200"),
        (lambda place: changed(place / "meta_data", 44, 3), "weight0: has 152 bytes; its metadata say 164"),
        (lambda place: (place / "key1").unlink(), "key1: not readable"),
        (lambda place: cut(place / "weight1"), "weight1: has 151 bytes; its metadata say 152"),
        (lambda place: changed(place / "key1", 4, 0), "key1: begins with .*a file of another table"),
        (lambda place: (place / "weight0").rename(place / "key0"), "weight0: not readable|key0: begins with"),
    ],
)
def test_a_dump_that_is_not_what_it_says_is_refused(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(a_dump(tmp_path))
    with pytest.raises(BadFileError, match=message):
        read_dump(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"bib\0" + bytes(12), "begins with .*a table dump begins with"),
        (b"bin\0", "begins with"),
        (b"bin\0" + np.array([2, 8, 8], "<u4").tobytes(), "version 2"),
        (b"bin\0" + np.array([1, 4, 8], "<u4").tobytes(), "keys of 4 bytes"),
        (b"bin\0" + np.array([1, 8, 6], "<u4").tobytes(), "rows of 6"),
        (b"bin\0" + np.array([1, 8, 8], "<u4").tobytes() + bytes(15), "no whole number of pairs of 16: cut off"),
    ],
)
def test_a_bin_file_that_is_none_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "table.bin").write_bytes(content)
    with pytest.raises(BadFileError, match=message):
        read_bin(tmp_path / "table.bin")
    with pytest.raises(BadFileError, match="not readable"):
        read_bin(tmp_path / "none.bin")


def test_a_dense_model_of_another_shape_or_with_no_number_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model"
    write_dense(path, [np.array([1, np.nan], np.float32)])
    with pytest.raises(BadFileError, match="has 8 bytes; a model of these layers has 12"):
        read_dense(path, [(3,)])
    with pytest.raises(BadFileError, match="float 1 is no number; the training diverged"):
        read_dense(path, [(2,)])
    with pytest.raises(BadFileError, match="not readable"):
        read_dense(tmp_path / "none", [(2,)])


def put(parts: list[DumpedTable], rows: int, dim: int) -> np.ndarray:
    out = np.zeros((rows, dim), np.float32)
    put_rows(Path("run"), parts, out, "post")
    return out


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([0, 3, 1], 'table "post", part 0: key 3; allowed: 0 to 2'),
        ([0, -1, 1], "key -1; allowed"),
        ([2, 0, 2], "key 2 occurs twice; dumped by several processes"),
        ([2, 0], "2 keys; HugeCTR dumps all rows of a table, 3"),
        ([], "0 keys; HugeCTR dumps all rows"),
    ],
)
def test_keys_that_a_table_cannot_have_are_refused(keys: list[int], message: str) -> None:
    with pytest.raises(BadFileError, match=message):
        put([DumpedTable(0, np.array(keys, np.int64), np.ones((len(keys), 2), np.float32))], 3, 2)


def test_a_key_in_two_blocks_and_rows_of_no_numbers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_BLOCK_ROWS", 2)
    with pytest.raises(BadFileError, match="key 1 occurs twice"):
        put([DumpedTable(0, np.array([0, 1, 1]), np.ones((3, 2), np.float32))], 3, 2)
    rows = np.ones((3, 2), np.float32)
    rows[1, 1] = np.nan
    with pytest.raises(BadFileError, match="the row of key 0 holds no numbers; the training diverged"):
        put([DumpedTable(0, np.array([2, 0, 1]), rows)], 3, 2)


def test_parts_of_columns_are_put_side_by_side_in_any_order_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_BLOCK_ROWS", 2)
    left = DumpedTable(0, np.array([2, 0, 1]), np.array([[20, 21], [0, 1], [10, 11]], np.float32))
    right = DumpedTable(1, np.array([0, 1, 2]), np.array([[2, 3], [12, 13], [22, 23]], np.float32))
    np.testing.assert_array_equal(put([left, right], 3, 4), [[0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]])
    with pytest.raises(BadFileError, match="rows of 2 floats; must have 3"):
        put([left, right], 3, 6)
    with pytest.raises(BadFileError, match="5 columns cannot be 2 equal parts"):
        put([left, right], 3, 5)
