"""All tables of a bundle behind one lookup."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparsefeed.errors import BundleError, RequestError
from sparsefeed.models.store.rows import ROW_FORMATS, RowFormat, dequantise, quantise
from sparsefeed.models.store.store import ParameterStore, write_tables
from sparsefeed.models.store.table import TableFile

TABLES = {"member": (4, 64), "post": (32, 128), "hashtag": (8, 64)}  # name -> dim, rows


def random_tables() -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(0)
    tables = {name: random.normal(size=(rows, dim)).astype(np.float32) for name, (dim, rows) in TABLES.items()}
    for values in tables.values():
        values[0] = 0
    return tables


@pytest.fixture(scope="module", params=ROW_FORMATS)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ParameterStore:
    folder = tmp_path_factory.mktemp("store") / "tables"
    write_tables(folder, random_tables(), request.param, list(TABLES))
    return ParameterStore.open(folder)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_lookup_is_table_major_and_unpooled(store: ParameterStore, data: st.DataObject) -> None:
    keys = {
        name: data.draw(st.lists(st.integers(0, rows - 1), max_size=20), label=name)
        for name, (_, rows) in TABLES.items()
    }
    row_format = store.tables[0].row_format
    expected = np.concatenate(
        [
            dequantise(quantise(values, row_format), row_format)[np.array(keys[name], np.int64)].ravel()
            for name, values in random_tables().items()
        ]
    )
    flat = np.concatenate([np.array(part, np.int64) for part in keys.values()])
    counts = np.array([len(part) for part in keys.values()], np.int32)
    np.testing.assert_array_equal(store.lookup(flat, counts), expected)
    out = np.full(len(expected), np.nan, np.float32)
    assert store.lookup(flat, counts, out) is out
    np.testing.assert_array_equal(out, expected)


def test_padding_keys_give_zero_vectors(store: ParameterStore) -> None:
    assert not store.lookup(np.zeros(6, np.int64), np.array([1, 2, 3], np.int32)).any()


@pytest.mark.parametrize("num_keys", [[3], [1, 1, 1, 0], [1, 1, 2], [-1, 2, 2], []])
def test_counts_that_do_not_fit_are_refused(store: ParameterStore, num_keys: list[int]) -> None:
    with pytest.raises(RequestError, match="must be one count >= 0 for each of member, post, hashtag"):
        store.lookup(np.zeros(3, np.int64), np.array(num_keys, np.int32))


def test_a_key_outside_its_own_table_is_refused_though_another_has_it(store: ParameterStore) -> None:
    store.lookup(np.array([0, 100, 0]), np.array([1, 1, 1], np.int32))
    with pytest.raises(RequestError, match=r'table "member": key 100 .*outside \[0, 64\)'):
        store.lookup(np.array([100, 0, 0]), np.array([1, 1, 1], np.int32))


def test_an_output_of_another_length_is_refused(store: ParameterStore) -> None:
    with pytest.raises(ValueError, match=r"out: got shape \[7\]; must be \[4\]"):
        store.lookup(np.zeros(1, np.int64), np.array([1, 0, 0], np.int32), np.empty(7, np.float32))


def test_memory_is_told_by_table(store: ParameterStore) -> None:
    per_float, per_row = {"fp32": (4, 0), "fp16": (2, 0), "int8": (1, 8)}[store.tables[0].row_format]
    assert store.bytes_by_table == {name: rows * (per_float * dim + per_row) for name, (dim, rows) in TABLES.items()}


def test_tables_stand_in_the_given_order_and_not_in_the_mappings(tmp_path: Path) -> None:
    write_tables(tmp_path / "tables", random_tables(), "fp16", ["post", "hashtag", "member"])
    assert list(ParameterStore.open(tmp_path / "tables").table_by_name) == ["post", "hashtag", "member"]


def test_a_folder_of_tables_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(folder: Path, name: str, values: NDArray[np.float32], row_format: RowFormat) -> None:
        (folder / f"{name}.npy").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(TableFile, "write", full_disk)
        with pytest.raises(OSError, match="No space left"):
            write_tables(tmp_path / "tables", random_tables(), "int8", list(TABLES))
    assert not list(tmp_path.iterdir())
    write_tables(tmp_path / "tables", random_tables(), "int8", list(TABLES))
    with pytest.raises(BundleError, match="exists"):
        write_tables(tmp_path / "tables", random_tables(), "int8", list(TABLES))


def test_an_order_that_is_not_the_tables_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="give each of them once"):
        write_tables(tmp_path / "tables", random_tables(), "int8", ["member", "post", "post"])


def test_an_index_that_is_missing_or_of_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"tables\.json: not an index of tables"):
        ParameterStore.open(tmp_path)
    (tmp_path / "tables.json").write_text('{"format": 99, "tables": []}')
    with pytest.raises(BundleError, match="format 99; this version reads 1"):
        ParameterStore.open(tmp_path)


@pytest.mark.parametrize("change", [{"dim": 8}, {"row_format": "fp16"}, {"overlay_rows": 3}])
def test_an_index_that_disagrees_with_its_files_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    folder = tmp_path / "tables"
    write_tables(folder, random_tables(), "int8", list(TABLES))
    index = json.loads((folder / "tables.json").read_text())
    index["tables"][0] |= change
    (folder / "tables.json").write_text(json.dumps(index))
    with pytest.raises(BundleError, match="the index says otherwise"):
        ParameterStore.open(folder)
