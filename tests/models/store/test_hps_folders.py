"""Sparse folders: written from arrays and from stored tables, read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sparsefeed.errors import BundleError
from sparsefeed.models.store import hps
from sparsefeed.models.store.hps import export_hps, read_hps, write_sparse
from sparsefeed.models.store.rows import ROW_FORMATS, RowFormat
from sparsefeed.models.store.table import TableFile
from tests.bundles import values


def test_a_sparse_folder_reads_back_as_it_was_written(tmp_path: Path) -> None:
    tables = {"member": values(4), "post": values(8, num_rows=5)}
    export_hps(tmp_path, tables)
    for name, written in tables.items():
        keys, vectors = read_hps(tmp_path / name, written.shape[1])
        np.testing.assert_array_equal(keys, np.arange(len(written)))
        np.testing.assert_array_equal(vectors, written)


def test_an_empty_sparse_folder_is_an_empty_table(tmp_path: Path) -> None:
    export_hps(tmp_path, {"post": np.empty((0, 8), np.float32)})
    keys, vectors = read_hps(tmp_path / "post", 8)
    assert (keys.shape, vectors.shape) == ((0,), (0, 8))


def test_padding_that_is_not_zero_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match='table "post": row 0'):
        export_hps(tmp_path, {"post": np.ones((3, 4), np.float32)})
    assert not (tmp_path / "post").exists()


def test_a_sparse_folder_of_another_dim_or_cut_off_is_refused(tmp_path: Path) -> None:
    export_hps(tmp_path, {"post": values(8)})
    with pytest.raises(BundleError, match="64 keys of dim 4 need 512 and 1024"):
        read_hps(tmp_path / "post", 4)
    (tmp_path / "post" / "key").write_bytes(b"1234567")
    with pytest.raises(BundleError, match="key has 7 bytes"):
        read_hps(tmp_path / "post", 8)
    (tmp_path / "post" / "key").unlink()
    with pytest.raises(BundleError, match="must hold key and emb_vector"):
        read_hps(tmp_path / "post", 8)


@pytest.mark.parametrize("row_format", ROW_FORMATS)
def test_a_stored_table_gives_the_vectors_that_its_lookup_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row_format: RowFormat
) -> None:
    monkeypatch.setattr(hps, "_CHUNK_ROWS", 7)  # the seams of the chunks are crossed
    TableFile.write(tmp_path, "post", values(8, num_rows=50), row_format)
    table = TableFile.open(tmp_path, "post")
    assert write_sparse(tmp_path / "post.model", table) == 50
    keys, vectors = read_hps(tmp_path / "post.model", 8)
    np.testing.assert_array_equal(keys, np.arange(50))
    np.testing.assert_array_equal(vectors, table.lookup(np.arange(50)))


def test_overlaid_rows_win_and_rows_of_zeros_are_left_out_but_the_padding(tmp_path: Path) -> None:
    stored = values(8, num_rows=16)
    stored[[3, 9]] = 0
    TableFile.write(tmp_path, "post", stored, "int8")
    (tmp_path / "new").mkdir()
    change = values(8, num_rows=3, seed=1)[1:]
    TableFile.open(tmp_path, "post").replace_rows(tmp_path / "new", np.array([5, 40]), change, 64)
    table = TableFile.open(tmp_path / "new", "post", 64)
    assert write_sparse(tmp_path / "post.model", table) == 16 - 2 + 1
    keys, vectors = read_hps(tmp_path / "post.model", 8)
    assert keys.tolist() == [i for i in range(16) if i not in (3, 9)] + [40]
    np.testing.assert_array_equal(vectors, table.lookup(np.ascontiguousarray(keys)))
    assert not vectors[0].any()


def test_an_untrained_table_still_holds_the_padding(tmp_path: Path) -> None:
    TableFile.write(tmp_path, "post", np.zeros((9, 4), np.float32), "fp16")
    assert write_sparse(tmp_path / "post.model", TableFile.open(tmp_path, "post")) == 1
    keys, vectors = read_hps(tmp_path / "post.model", 4)
    assert (keys.tolist(), vectors.tolist()) == ([0], [[0.0] * 4])


def test_a_stored_padding_that_is_not_zero_is_not_exported(tmp_path: Path) -> None:
    np.save(tmp_path / "post.npy", np.ones((3, 4), np.float32))
    with pytest.raises(BundleError, match='table "post": row 0'):
        write_sparse(tmp_path / "post.model", TableFile.open(tmp_path, "post"))
