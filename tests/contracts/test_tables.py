"""docs/contracts/tables.md, sentence by sentence."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from sparsefeed.errors import BundleError
from sparsefeed.etl.ids import IdMap
from sparsefeed.models.delta import apply_delta
from sparsefeed.models.store.hps import export_hps
from sparsefeed.models.store.rows import ROW_FORMATS, RowFormat, dequantise, quantise
from sparsefeed.models.store.store import ParameterStore, write_tables
from sparsefeed.models.store.table import TableFile
from tests import bundles
from tests.bundles import DIMS

# Made once: values.npy by numpy, int8.npy by fbgemm's FloatToFused8BitRowwiseQuantized, fp16.npy by numpy's cast.
GOLDEN = Path(__file__).parent / "fixtures" / "tables"
TABLES = {name: bundles.values(dim) for name, dim in DIMS.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tables(tmp_path / "tables", TABLES, "int8", list(DIMS))
    return tmp_path / "tables"


def test_1_tables_stand_in_the_specs_order(tmp_path: Path) -> None:
    write_tables(tmp_path / "tables", TABLES, "int8", ["post", "member"])
    assert [table.name for table in ParameterStore.open(tmp_path / "tables").tables] == ["post", "member"]


@pytest.mark.parametrize("name", ["", "a.b", "a b", "a/b", "x" * 121, "ä"])
def test_1_a_name_that_hps_cannot_hold_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match="not a name"):
        TableFile.write(tmp_path, name, TABLES["post"], "int8")


def test_2_every_id_is_smaller_than_the_capacity(tmp_path: Path) -> None:
    bundle = bundles.publish(tmp_path)
    for table in ParameterStore.open(bundle.tables).tables:
        id_map = IdMap.load(bundle.ids(table.name))
        assert table.rows == id_map.capacity_rows
        assert id_map.lookup(np.random.default_rng(0).integers(0, 2**63, 1000).astype(np.uint64)).max() < table.rows


@pytest.mark.parametrize(("largest", "capacity"), [(63, 64), (64, 128), (127, 128), (128, 256), (300, 512)])
def test_2_a_capacity_grows_by_doubling(tmp_path: Path, largest: int, capacity: int) -> None:
    parent = bundles.publish(tmp_path / "root")
    change = {"post": bundles.rows_of([largest], bundles.values(DIMS["post"], 2)[1:])}
    bundles.delta(parent, "v2", tmp_path / "delta", change)
    apply_delta(tmp_path / "root", tmp_path / "delta")
    store = ParameterStore.open(tmp_path / "root" / "versions" / "v2" / "tables")
    assert {name: table.rows for name, table in store.table_by_name.items()} == {"member": 64, "post": capacity}


@pytest.mark.parametrize("row_format", ROW_FORMATS)
def test_3_row_0_is_exactly_zero(tmp_path: Path, row_format: RowFormat) -> None:
    TableFile.write(tmp_path, "post", TABLES["post"], row_format)
    assert not TableFile.open(tmp_path, "post").lookup(np.zeros(1, np.int64)).view(np.uint32).any()


def test_3_a_row_0_that_is_not_zero_is_refused(tmp_path: Path) -> None:
    ones = np.ones((4, 4), np.float32)
    with pytest.raises(BundleError, match=r"row 0 \(padding\) is not zero"):
        TableFile.write(tmp_path, "post", ones, "fp32")
    with pytest.raises(BundleError, match=r"row 0 \(padding\) is not zero"):
        export_hps(tmp_path, {"post": ones})


def test_4_a_table_file_is_one_npy_and_an_index_lists_them(folder: Path) -> None:
    assert json.loads((folder / "tables.json").read_text()) == {
        "format": 1,
        "tables": [
            {"name": "member", "dim": 4, "rows": 64, "row_format": "int8", "overlay_rows": 0},
            {"name": "post", "dim": 8, "rows": 64, "row_format": "int8", "overlay_rows": 0},
        ],
    }
    for name, dim in DIMS.items():
        array = np.load(folder / f"{name}.npy", allow_pickle=False)
        assert (array.shape, array.dtype, array.flags.c_contiguous) == ((64, dim + 8), np.uint8, True)
    assert len(list(folder.iterdir())) == 3


def test_4_a_file_that_is_not_what_the_index_says_is_refused(folder: Path) -> None:
    TableFile.write(folder.parent, "post", TABLES["member"], "int8")
    (folder.parent / "post.npy").replace(folder / "post.npy")
    with pytest.raises(BundleError, match="the index says otherwise"):
        ParameterStore.open(folder)


@pytest.mark.parametrize(("row_format", "width", "dtype"), [("fp32", 8, "<f4"), ("fp16", 8, "<f2"), ("int8", 16, "u1")])
def test_5_a_row_format_is_a_width_and_a_type(tmp_path: Path, row_format: RowFormat, width: int, dtype: str) -> None:
    TableFile.write(tmp_path, "post", TABLES["post"], row_format)
    array = np.load(tmp_path / "post.npy")
    assert (array.shape, array.dtype) == ((64, width), np.dtype(dtype))


@pytest.mark.parametrize("row_format", ["int8", "fp16"])
def test_5_rows_are_the_golden_ones_byte_for_byte(row_format: RowFormat) -> None:
    golden = np.load(GOLDEN / f"{row_format}.npy")
    stored = quantise(np.load(GOLDEN / "values.npy"), row_format)
    assert stored.dtype == golden.dtype
    assert stored.tobytes() == golden.tobytes()


def test_5_an_int8_row_is_q_then_scale_then_bias() -> None:
    values, golden = np.load(GOLDEN / "values.npy"), np.load(GOLDEN / "int8.npy")
    for row, value, decoded in zip(golden, values, dequantise(golden, "int8"), strict=True):
        q = row[:-8].astype(np.float32)
        scale, bias = (np.float32(number) for number in struct.unpack("<ff", row[-8:].tobytes()))
        assert scale == (value.max() - value.min()) / np.float32(255)
        assert bias == value.min()
        np.testing.assert_array_equal(decoded, q * scale + bias)


@pytest.mark.parametrize(("row_format", "value"), [("int8", np.nan), ("fp16", 65536), ("fp32", np.inf)])
def test_5_a_value_that_the_format_cannot_hold_is_refused(tmp_path: Path, row_format: RowFormat, value: float) -> None:
    values = TABLES["post"].copy()
    values[5, 5] = value
    with pytest.raises(BundleError, match=r"row 5: value .* cannot be stored"):
        TableFile.write(tmp_path, "post", values, row_format)


def test_6_an_int8_row_of_equal_values_is_exact() -> None:
    values = np.repeat(np.array([[0.0], [1.1], [-3e-12], [7e20]], np.float32), 8, axis=1)
    np.testing.assert_array_equal(dequantise(quantise(values, "int8"), "int8"), values)


def test_7_an_hps_export_is_raw_keys_and_vectors(tmp_path: Path) -> None:
    export_hps(tmp_path, TABLES)
    for name, values in TABLES.items():
        assert (tmp_path / name / "key").read_bytes() == struct.pack("<64q", *range(64))
        assert (tmp_path / name / "emb_vector").read_bytes() == struct.pack(f"<{values.size}f", *values.ravel())
        assert len(list((tmp_path / name).iterdir())) == 2


def test_8_overlaid_rows_lie_beside_in_the_tables_format_and_win(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    change = bundles.values(DIMS["post"], 3, seed=1)[1:]
    table = TableFile.open(folder, "post")
    table.replace_rows(tmp_path / "new", np.array([5, 100]), change, 128)
    np.testing.assert_array_equal(np.load(tmp_path / "new" / "post.overlay_rows.npy"), [5, 100])
    np.testing.assert_array_equal(np.load(tmp_path / "new" / "post.overlay.npy"), quantise(change, "int8"))
    assert (tmp_path / "new" / "post.npy").samefile(folder / "post.npy")
    new = TableFile.open(tmp_path / "new", "post", 128)
    expected = np.concatenate([table.lookup(np.arange(64)), np.zeros((64, DIMS["post"]), np.float32)])
    expected[[5, 100]] = dequantise(quantise(change, "int8"), "int8")
    np.testing.assert_array_equal(new.lookup(np.arange(128)), expected)


@pytest.mark.parametrize(("num_rows", "folded"), [(16, False), (17, True)])
def test_8_more_than_a_quarter_of_overlaid_rows_is_folded(
    folder: Path, tmp_path: Path, num_rows: int, folded: bool
) -> None:
    (tmp_path / "new").mkdir()
    change = bundles.values(DIMS["post"], num_rows + 1)[1:]
    TableFile.open(folder, "post").replace_rows(tmp_path / "new", np.arange(1, num_rows + 1), change, 64)
    assert (tmp_path / "new" / "post.overlay.npy").exists() is not folded
