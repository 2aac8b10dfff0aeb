from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparsefeed.errors import BadFileError, DataError
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.torchrec.columns import Rows, capacity_rows, open_split, read_part
from sparsefeed.models.torchrec.lookup_keys import lookup_order


@pytest.fixture
def folder(etl, tmp_path: Path) -> Path:
    return Path(shutil.copytree(etl.path, tmp_path / "etl"))


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def replace(name: str, values: pa.Array) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.column_names.index(name), name, values)


def test_a_tables_features_stand_side_by_side_in_the_jagged_tensor(spec: FeedSpec) -> None:
    assert lookup_order(spec) == ("member_id", "post_id", "clicked", "hashtags", "topics")


def test_decoded_rows_are_those_of_the_parquet(spec: FeedSpec, etl) -> None:
    columns = Rows.columns(spec)
    part = open_split(spec, etl.path, "train", columns)[0]
    table = pq.ParquetFile(part.path).read_row_group(part.row_group)
    # A slice begins inside the arrays: offsets and values must move together.
    rows = Rows.from_arrow(spec, read_part(spec, part, columns, capacity_rows(spec, etl.path)).slice(3, 50))
    expected = table.slice(3, 50).to_pydict()
    np.testing.assert_array_equal(rows.labels_NR, np.stack([expected["y_click"], expected["y_like"]], axis=1))
    np.testing.assert_allclose(rows.weights_NR, np.stack([expected["w_click"], expected["w_like"]], axis=1))
    np.testing.assert_allclose(rows.member_dense_NM[:, 0], expected["tenure"])
    np.testing.assert_allclose(rows.candidate_dense_NC[:, 0], expected["age"])
    for feature in spec.lookups:
        values, offsets = rows.lookups[feature.name]
        wanted = expected[feature.name]
        lists = [[v] if isinstance(v, int) else v for v in wanted]
        assert [values[a:b].tolist() for a, b in pairwise(offsets)] == lists


def test_a_row_group_without_a_random_session_gives_no_row(spec: FeedSpec, etl) -> None:
    columns = Rows.columns(spec, weights=False)
    part = open_split(spec, etl.path, "train", columns)[0]
    table = read_part(spec, part, columns, capacity_rows(spec, etl.path))
    rows = Rows.from_arrow(spec, table.filter(pa.array(np.zeros(len(table), bool))))
    assert len(rows) == 0
    assert all(offsets.tolist() == [0] for _, offsets in rows.lookups.values())


def test_a_batch_holds_the_rows_of_its_slice_under_every_key(spec: FeedSpec, etl) -> None:
    columns = Rows.columns(spec)
    part = open_split(spec, etl.path, "train", columns)[0]
    rows = Rows.from_arrow(spec, read_part(spec, part, columns, capacity_rows(spec, etl.path)))
    batch = rows.batch(lookup_order(spec), 10, 17)
    np.testing.assert_array_equal(batch.labels_BR, rows.labels_NR[10:17])
    for name, jagged in batch.lookups.to_dict().items():
        values, offsets = rows.lookups[name]
        assert jagged.values().tolist() == values[offsets[10] : offsets[17]].tolist()
        assert jagged.lengths().tolist() == np.diff(offsets)[10:17].tolist()


def test_positions_cells_and_ids_are_never_read(spec: FeedSpec) -> None:
    assert not {"position", "impression_id", "random", "cell_click", "cell_like"} & set(Rows.columns(spec))


def test_without_weights_every_weight_is_one(spec: FeedSpec, etl) -> None:
    columns = Rows.columns(spec, weights=False)
    part = open_split(spec, etl.path, "train", columns)[0]
    assert (Rows.from_arrow(spec, read_part(spec, part, columns, capacity_rows(spec, etl.path))).weights_NR == 1).all()


def test_a_misnamed_column_is_named_with_its_file_and_its_neighbour(spec: FeedSpec, folder: Path) -> None:
    file = folder / "train" / "part-1.parquet"
    rewrite(file, lambda t: t.rename_columns([n if n != "hashtags" else "hashtag" for n in t.column_names]))
    with pytest.raises(DataError, match=r'part-1\.parquet: no column "hashtags"; did you mean "hashtag"\?'):
        open_split(spec, folder, "train", Rows.columns(spec))


@pytest.mark.parametrize(
    ("name", "type_", "wanted"),
    [
        ("age", pa.float64(), "float32"),
        ("post_id", pa.int32(), "int64"),
        ("y_click", pa.bool_(), "float32"),
        ("clicked", pa.list_(pa.int32()), "list<int64>"),
    ],
)
def test_a_column_of_another_type_is_named(
    spec: FeedSpec, folder: Path, name: str, type_: pa.DataType, wanted: str
) -> None:
    file = folder / "train" / "part-0.parquet"
    rewrite(file, lambda t: replace(name, t[name].cast(type_))(t))
    with pytest.raises(DataError, match=rf'part-0\.parquet: column "{name}" is .*; it must be {wanted}'):
        open_split(spec, folder, "train", Rows.columns(spec))


def test_a_truncated_file_is_named(spec: FeedSpec, folder: Path) -> None:
    file = folder / "train" / "part-1.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BadFileError) as caught:
        open_split(spec, folder, "train", Rows.columns(spec))
    assert caught.value.path == str(file)


def test_a_folder_without_rows_is_refused(spec: FeedSpec, folder: Path) -> None:
    for file in (folder / "train").iterdir():
        rewrite(file, lambda t: t.slice(0, 0))
    with pytest.raises(DataError, match="no parquet file with a row"):
        open_split(spec, folder, "train", Rows.columns(spec))


@pytest.mark.parametrize(
    ("bad", "said"), [(0, "got id 0; allowed: 1 to 127"), (128, "got id 128"), (None, "1 of 200 values are null")]
)
def test_an_id_no_table_row_has_is_named_with_file_and_column(
    spec: FeedSpec, folder: Path, bad: int | None, said: str
) -> None:
    file = folder / "train" / "part-0.parquet"
    rewrite(file, lambda t: replace("post_id", pa.array([5, bad, *[5] * (len(t) - 2)], pa.int64()))(t.slice(0)))
    table = pq.read_table(file)
    pq.write_table(table, file, row_group_size=200)
    part = open_split(spec, folder, "train", Rows.columns(spec))[0]
    with pytest.raises(DataError, match=rf'part-0\.parquet: column "post_id": {said}'):
        read_part(spec, part, Rows.columns(spec), capacity_rows(spec, folder))


def test_an_unfinished_or_foreign_folder_is_refused(spec: FeedSpec, folder: Path) -> None:
    (folder / "etl.json").write_text(json.dumps({"capacity_rows": {"member": 64}}))
    with pytest.raises(DataError, match='no table "post"'):
        capacity_rows(spec, folder)
    (folder / "etl.json").write_text("{")
    with pytest.raises(BadFileError, match=r"etl\.json"):
        capacity_rows(spec, folder)
    (folder / "etl.json").unlink()
    with pytest.raises(DataError, match="unfinished"):
        capacity_rows(spec, folder)


def test_rows_in_any_order_are_the_rows_one_by_one(spec: FeedSpec, etl) -> None:
    """Over several chunks, as a shuffle buffer has them."""
    columns, capacities = Rows.columns(spec), capacity_rows(spec, etl.path)
    parts = open_split(spec, etl.path, "train", columns)[:3]
    rows = Rows.from_arrow(spec, pa.concat_tables([read_part(spec, part, columns, capacities) for part in parts]))
    order, chosen = lookup_order(spec), np.array([450, 3, 3, 199, 200, 0])
    taken = rows.take(order, chosen)
    for number, row in enumerate(chosen):
        one = rows.batch(order, row, row + 1)
        np.testing.assert_array_equal(taken.labels_BR[number], one.labels_BR[0])
        np.testing.assert_array_equal(taken.weights_BR[number], one.weights_BR[0])
        np.testing.assert_array_equal(taken.member_dense_BM[number], one.member_dense_BM[0])
        np.testing.assert_array_equal(taken.candidate_dense_BC[number], one.candidate_dense_BC[0])
        for name, jagged in taken.lookups.to_dict().items():
            offsets = jagged.offsets()
            got = jagged.values()[offsets[number] : offsets[number + 1]]
            np.testing.assert_array_equal(got, one.lookups.to_dict()[name].values())


@pytest.mark.parametrize(("bad", "said"), [(0, "got id 0"), (-5, "got id -5"), (128, "got id 128"), (-4, None)])
def test_a_code_of_a_paired_tail_is_an_id_and_none_beyond_is(
    spec: FeedSpec, folder: Path, bad: int, said: str | None
) -> None:
    tables = [t.model_dump() | {"tail": "quotient_remainder", "tail_rows": 4} for t in spec.tables]
    paired, columns = FeedSpec.parse(spec.model_dump() | {"tables": tables}), Rows.columns(spec)
    values = np.full(512, 7)
    values[150] = bad
    rewrite(folder / "train" / "part-0.parquet", replace("post_id", pa.array(values)))
    part = open_split(paired, folder, "train", columns)[0]
    if said is None:
        assert len(read_part(paired, part, columns, capacity_rows(paired, folder))) == len(values)
        return
    with pytest.raises(DataError, match=rf'"post_id": {said}; allowed: 1 to 127, its table.s rows, or -4 to -1'):
        read_part(paired, part, columns, capacity_rows(paired, folder))
