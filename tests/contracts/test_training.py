"""docs/contracts/training.md, sentence by sentence, on a real ETL run."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparsefeed.etl import pipeline
from sparsefeed.etl.config import ClusterConfig, EtlConfig
from sparsefeed.etl.ids.id_map import IdMap
from sparsefeed.etl.ids.inverse import Inverse
from sparsefeed.etl.ids.keys import hash_strings
from sparsefeed.etl.spec import FeedSpec
from tests import logs

SPEC = logs.spec()
COLUMNS = [
    "y_click", "y_like", "member_activity", "post_age_hours", "post_length",
    "member_id", "clicked_posts", "liked_creators", "post_id", "creator_id", "hashtags",
    "w_click", "cell_click", "w_like", "cell_like", "impression_id", "position", "random",
]  # fmt: skip


def table(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))])


@pytest.fixture(scope="module")
def train(etl_folder: Path) -> pd.DataFrame:
    return table(etl_folder / "train").to_pandas().set_index("impression_id", drop=False).sort_index()


@pytest.fixture(scope="module")
def raw(logs_folder: Path) -> pd.DataFrame:
    return logs.read(logs_folder, SPEC).set_index("impression_id", drop=False).sort_index()


@pytest.mark.parametrize("part", ["train", "eval"])
def test_1_to_5_the_columns_their_order_and_types(etl_folder: Path, part: str) -> None:
    schema = table(etl_folder / part).schema
    assert schema.names[: len(COLUMNS)] == COLUMNS
    assert schema.names[len(COLUMNS) :] == ([] if part == "train" else ["surface", "new_member", "new_post"])
    assert not [name for name in COLUMNS if schema.field(name).nullable], "these logs have no null"
    for name in COLUMNS:
        kind = schema.field(name).type
        if name in ("clicked_posts", "liked_creators", "hashtags"):
            assert pa.types.is_list(kind), name
            assert kind.value_type == pa.int64(), name
            assert not kind.value_field.nullable, name
        else:
            expected = {
                **dict.fromkeys(("member_id", "post_id", "creator_id", "impression_id"), pa.int64()),
                **dict.fromkeys(("cell_click", "cell_like", "position"), pa.int32()),
                "random": pa.int8(),
            }.get(name, pa.float32())
            assert kind == expected, name


def test_1_labels_are_the_logs(train: pd.DataFrame, raw: pd.DataFrame) -> None:
    expected = raw.loc[train.index]
    assert train["y_click"].tolist() == expected["y_click"].tolist()
    assert train["y_like"].tolist() == expected["y_like"].tolist()


def test_2_dense_features_are_filled_logged_and_standardised(train: pd.DataFrame, raw: pd.DataFrame) -> None:
    for name, fill, log in (
        ("member_activity", 0.0, True),
        ("post_age_hours", 12.0, True),
        ("post_length", 0.0, False),
    ):
        values = raw.loc[train.index, name].fillna(fill).to_numpy(np.float64)
        values = np.log1p(np.maximum(values, 0)) if log else values
        expected = (values - values.mean()) / values.std(ddof=1)
        np.testing.assert_allclose(train[name], expected, atol=1e-5)


def test_3_every_id_reads_its_own_row_and_decodes_to_its_string(
    etl_folder: Path, train: pd.DataFrame, raw: pd.DataFrame
) -> None:
    capacity = json.loads((etl_folder / "etl.json").read_text())["capacity_rows"]
    for name, name_of_table in (("member_id", "member"), ("post_id", "post"), ("creator_id", "creator")):
        assert train[name].between(1, capacity[name_of_table] - 1).all()
        decoded = Inverse.load(etl_folder / "inverse" / name_of_table).decode(train[name].to_numpy())
        assert decoded.to_pylist() == raw.loc[train.index, name].astype(str).tolist()


def test_3_lists_are_cut_unpadded_and_never_null(etl_folder: Path, train: pd.DataFrame, raw: pd.DataFrame) -> None:
    assert table(etl_folder / "train")["hashtags"].null_count == 0
    inverse = Inverse.load(etl_folder / "inverse" / "hashtag")
    for impression in train.index[:200]:
        got = inverse.decode(np.asarray(train.loc[impression, "hashtags"])).to_pylist()
        assert got == list(raw.loc[impression, "hashtags"])[:3]
    assert train["hashtags"].map(len).min() == 0


def test_3_the_histories_of_the_first_file_may_all_be_empty(tmp_path: Path) -> None:
    # NVTabular would infer the lists' type from the first file, and find none.
    root = logs.write(tmp_path / "logs", days=2, sessions=8)
    pipeline.run(SPEC, root, tmp_path / "etl", EtlConfig(cluster=ClusterConfig(workers=0, gpu=False)))
    histories = table(tmp_path / "etl" / "train")["clicked_posts"]
    assert histories.to_pylist() == [[]] * 32
    assert histories.type.value_type == pa.int64()


def test_3_of_a_paired_tail_an_id_without_a_row_is_a_code_below_zero(tmp_path: Path) -> None:
    root = logs.write(tmp_path / "logs", days=2, sessions=30)
    tables = [one.model_dump() | {"tail": "quotient_remainder", "min_count": 5} for one in SPEC.tables]
    spec = FeedSpec.parse(SPEC.model_dump() | {"tables": tables})
    pipeline.run(spec, root, tmp_path / "etl", EtlConfig(cluster=ClusterConfig(workers=0)))
    written = pa.concat_tables([table(tmp_path / "etl" / part).select(COLUMNS) for part in ("train", "eval")])
    capacity = json.loads((tmp_path / "etl" / "etl.json").read_text())["capacity_rows"]
    for feature in spec.lookups:
        column = written[feature.name].to_pandas()
        ids = np.concatenate([np.atleast_1d(value) for value in column]).astype(np.int64)
        codes = ids[ids < 0]
        assert codes.min(initial=-1) >= -4
        assert (ids != 0).all()
        assert ids.max() < capacity[spec.table_of(feature).name]
        assert len(column.iloc[0] if feature.kind != "id" else [0]) <= getattr(feature, "max_length", 1)
    posts = IdMap.load(tmp_path / "etl" / "ids" / "post")
    read = logs.read(root, spec).set_index("impression_id")["post_id"].astype(str)
    expected = posts.encode(pa.array(read.loc[written["impression_id"].to_pylist()].tolist()))
    assert written["post_id"].to_pylist() == expected.tolist()
    assert 0 < (expected < 0).sum() < len(expected)


def test_4_a_weight_is_its_cell_of_the_table(etl_folder: Path, train: pd.DataFrame) -> None:
    ips = pq.read_table(etl_folder / "ips.parquet").to_pandas()
    for response in ("click", "like"):
        weights = ips[(ips.response == response) & (ips.cell > 0)].set_index("cell")["weight"]
        cells = train[f"cell_{response}"]
        expected = np.where(cells == 0, 1.0, weights.reindex(cells).to_numpy())
        np.testing.assert_allclose(train[f"w_{response}"], expected, rtol=1e-6)
        assert (cells[train["random"] == 1] == 0).all()
        assert (cells[train["random"] == 0] > 0).any()


def test_5_the_context_is_the_logs(train: pd.DataFrame, raw: pd.DataFrame) -> None:
    assert train["position"].tolist() == raw.loc[train.index, "_position"].tolist()
    assert train["random"].tolist() == raw.loc[train.index, "_random"].tolist()


def reference_history(
    raw: pd.DataFrame, row: pd.Series, item: str, response: str, max_length: int, until: int
) -> list[str]:
    """Most recent first; of one moment the item with the greater key first."""
    moment = raw[f"t_{response}"]
    mine = raw.member_id.astype(str) == row.member_id
    events = raw[mine & (moment > 0) & (moment < row._time) & (raw._time < until)]
    items = events[item].astype(str).tolist()
    keys, _ = hash_strings(items, SPEC.key_seed)
    ordered = sorted(zip(events[f"t_{response}"], keys.tolist(), items, strict=True), reverse=True)
    return [name for _, _, name in ordered[:max_length]]


@pytest.mark.parametrize("part", ["train", "eval"])
def test_6_a_history_holds_only_what_came_before_and_only_of_the_fitted_days(
    etl_folder: Path, raw: pd.DataFrame, part: str
) -> None:
    got = table(etl_folder / part).to_pandas().set_index("impression_id")
    until = int(raw["_time"].loc[table(etl_folder / "eval")["impression_id"].to_numpy()].min())
    for name, item, of_table, response, length in (
        ("clicked_posts", "post_id", "post", "click", 3),
        ("liked_creators", "creator_id", "creator", "like", 2),
    ):
        inverse = Inverse.load(etl_folder / "inverse" / of_table)
        nonempty = 0
        for impression in got.index[::3]:
            history = inverse.decode(np.asarray(got.loc[impression, name], np.int64)).to_pylist()
            expected = reference_history(raw, raw.loc[impression], item, response, length, until)
            assert history == expected
            nonempty += bool(expected)
        assert nonempty > 20


def test_7_ids_first_seen_on_an_evaluation_day_read_the_tail(etl_folder: Path, raw: pd.DataFrame) -> None:
    posts = IdMap.load(etl_folder / "ids" / "post")
    rows = posts.encode(pa.array(["p-never-shown", "p1", None]))
    assert 2 <= rows[0] < posts.first_row <= rows[1] < posts.num_rows
    assert rows[2] == 1
    evaluated = table(etl_folder / "eval").to_pandas()
    expected = posts.encode(pa.array(raw.loc[evaluated["impression_id"], "post_id"].astype(str)))
    assert evaluated["post_id"].tolist() == expected.tolist()


def test_8_unclipped_weights_sum_to_n_and_restore_the_random_rate(train: pd.DataFrame, raw: pd.DataFrame) -> None:
    surfaces = raw.loc[train.index, "_surface"].astype(str).to_numpy()
    checked = 0
    for (_, _), group in train.groupby([surfaces, "position"]):
        random, production = group[group.random == 1], group[group.random == 0]
        for response in ("click", "like"):
            if (production[f"cell_{response}"] == 0).any():
                continue
            w, y = production[f"w_{response}"].to_numpy(np.float64), production[f"y_{response}"].to_numpy(np.float64)
            assert w.sum() == pytest.approx(len(production), rel=1e-6)
            assert (w * y).sum() / w.sum() == pytest.approx(random[f"y_{response}"].mean(), rel=1e-6, abs=1e-9)
            checked += 1
    assert checked >= 8


def test_9_the_folder_holds_the_contracts_files_and_nothing_else(etl_folder: Path) -> None:
    assert {p.name for p in etl_folder.iterdir()} == {
        "train", "eval", "spec.json", "ids", "inverse", "transform", "snapshot", "state", "ips.parquet", "etl.json",
    }  # fmt: skip
    listed = (etl_folder / "train" / "_file_list.txt").read_text().split()
    assert int(listed[0]) == len(listed) - 1 == 2
    metadata = json.loads((etl_folder / "train" / "_metadata.json").read_text())
    assert [c["col_name"] for c in metadata["labels"]] == ["y_click", "y_like"]
    assert sum(f["num_rows"] for f in metadata["file_stats"]) == len(table(etl_folder / "train"))
    assert [c["index"] for c in metadata["cats"]] == [COLUMNS.index(c["col_name"]) for c in metadata["cats"]]


def test_10_what_the_next_day_goes_on_from(etl_folder: Path) -> None:
    names = {f"counts-{table.name}" for table in SPEC.tables} | {"events-post_id-click", "events-creator_id-like"}
    assert {path.name for path in (etl_folder / "state").iterdir()} == names


def test_11_days_before_train_from_are_in_histories_and_not_in_rows(
    etl_folder: Path, logs_folder: Path, tmp_path: Path
) -> None:
    config = EtlConfig(cluster=ClusterConfig(workers=0), train_from=date(2026, 11, 3))
    made = pipeline.run(SPEC, logs_folder, tmp_path / "etl", config)
    assert (made["days_before"], made["train_days"]) == (["2026-11-02"], ["2026-11-03"])
    written, whole = table(tmp_path / "etl" / "train"), table(etl_folder / "train")
    assert written.equals(whole.slice(len(whole) - len(written)))
    assert len(written) == made["num_train_rows"] == len(whole) // 2
    assert max(len(history) for history in written["clicked_posts"].slice(0, 20).to_pylist()) > 0


def test_12_evaluation_rows_say_their_surface_and_who_is_new(etl_folder: Path, raw: pd.DataFrame) -> None:
    read = table(etl_folder / "eval")
    assert [read.schema.field(name).type for name in ("surface", "new_member", "new_post")] == [
        pa.string(), pa.int8(), pa.int8(),
    ]  # fmt: skip
    evaluated = read.to_pandas()
    shown = raw.loc[evaluated["impression_id"]]
    assert evaluated["surface"].tolist() == shown["_surface"].astype(str).tolist()
    assert set(evaluated["surface"]) == {"home", "explore"}
    before = raw[raw["_time"] < shown["_time"].min()]
    for column, of in (("new_member", "member_id"), ("new_post", "post_id")):
        new = ~shown[of].isin(before[of]).to_numpy()
        assert evaluated[column].tolist() == new.astype(int).tolist()


def test_12_an_id_that_is_too_rare_for_a_row_is_not_new_and_none_is_neither(tmp_path: Path) -> None:
    root = logs.write(tmp_path / "logs", days=2, sessions=30)
    (day,) = sorted((root / "impressions").glob("*/*.parquet"))[1:]
    rows = pq.read_table(day)
    nobody = pa.array([None] * len(rows), pa.string())
    rows = rows.set_column(rows.schema.get_field_index("member_id"), "member_id", nobody)
    posts = pa.array([f"new-{i % 5}" if i % 3 == 0 else post for i, post in enumerate(rows["post_id"].to_pylist())])
    rows = rows.set_column(rows.schema.get_field_index("post_id"), "post_id", posts)
    pq.write_table(rows, day)
    value = SPEC.model_dump() | {"ips": "none"}
    value["tables"] = [one | {"min_count": 10**6} for one in value["tables"]]
    value["logs"] |= {"surface": None, "max_null_share": 1}
    pipeline.run(FeedSpec.parse(value), root, tmp_path / "etl", EtlConfig(cluster=ClusterConfig(workers=0)))
    evaluated = table(tmp_path / "etl" / "eval")
    assert "surface" not in evaluated.schema.names
    assert set(evaluated["new_member"].to_pylist()) == {-1}
    first = pq.read_table(sorted((root / "impressions").glob("*/*.parquet"))[0])
    met = set(first["post_id"].to_pylist())
    by_id = dict(zip(rows["impression_id"].to_pylist(), rows["post_id"].to_pylist(), strict=True))
    new = [int(by_id[i] not in met) for i in evaluated["impression_id"].to_pylist()]
    assert evaluated["new_post"].to_pylist() == new
    assert sum(new) >= 40
    assert set(evaluated["post_id"].to_pylist()) <= set(range(2, 6)), "all of them share rows of the tail"
