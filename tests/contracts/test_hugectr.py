"""docs/contracts/hugectr.md, sentence by sentence, on a real ETL run in HugeCTR's view."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparsefeed.errors import DataError
from sparsefeed.etl import hugectr_view
from sparsefeed.etl.config import ClusterConfig, EtlConfig
from sparsefeed.etl.hugectr_check import check_hugectr, problems_of
from sparsefeed.etl.hugectr_view import HugectrView, LabelColumns, read_labelled
from sparsefeed.etl.pipeline import run
from sparsefeed.models.hugectr.exchange import HugectrRun
from tests import logs
from tests.models.hugectr.scripts import plan_of, run_script

SPEC = logs.spec()
CONFIG = EtlConfig(cluster=ClusterConfig(workers=0), row_group_rows=100, view="hugectr")
COLUMNS = [
    "label000_click", "label001_like", "member_activity", "post_age_hours", "post_length",
    "_inverse_clicked_posts", "_inverse_liked_creators", "_inverse_hashtags",
    "member_id", "clicked_posts", "liked_creators", "post_id", "creator_id", "hashtags",
]  # fmt: skip


@pytest.fixture(scope="module")
def view(logs_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("view") / "etl"
    run(SPEC, logs_folder, out, CONFIG)
    return out


@pytest.fixture(scope="module")
def plain(logs_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "etl"
    run(SPEC, logs_folder, out, CONFIG.model_copy(update={"view": "torchrec"}))
    return out


def table(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))])


def said(folder: Path) -> Any:
    return json.loads((folder / "hugectr.json").read_text())


def labels(rows: pa.Table, name: str) -> np.ndarray:
    return np.array(rows.column(name).to_pylist(), np.float32)


def test_1_columns_and_splits(view: Path, plain: Path) -> None:
    assert table(view / "train").schema.names == table(view / "valid").schema.names == COLUMNS
    assert len(table(view / "valid")) == len(table(view / "eval"))
    assert table(view / "eval").equals(table(plain / "eval"))
    assert not (plain / "valid").exists()


def test_2_and_3_a_row_is_labelled_in_the_column_of_its_weight(view: Path, plain: Path) -> None:
    rows, known = table(view / "train"), table(plain / "train")
    for number, response in enumerate(("click", "like")):
        made = labels(rows, f"label{number:03d}_{response}")
        y, w = known.column(f"y_{response}").to_numpy(), known.column(f"w_{response}").to_numpy()
        weights = np.array(said(view)["labels"][number]["weights"])
        assert len(weights) == len(np.unique(weights)) > 3
        assert ((made >= 0).sum(axis=1) == 1).all()
        np.testing.assert_array_equal(made.max(axis=1), y)
        np.testing.assert_array_equal(np.where(made >= 0, weights, 0).sum(axis=1).astype(np.float32), w)


def test_2_and_3_labels_and_weights_come_back_from_the_columns(view: Path, plain: Path) -> None:
    dense, y, w = read_labelled(SPEC, view)
    known = table(plain / "train")
    np.testing.assert_array_equal(y, np.stack([known.column(f"y_{r}").to_numpy() for r in ("click", "like")], axis=1))
    np.testing.assert_array_equal(w, np.stack([known.column(f"w_{r}").to_numpy() for r in ("click", "like")], axis=1))
    np.testing.assert_array_equal(dense, np.stack([known.column(f.name).to_numpy() for f in SPEC.dense], axis=1))


def test_3_many_weights_are_bits_of_fixed_point(
    logs_folder: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hugectr_view, "MAX_COLUMNS", 4)
    run(SPEC, logs_folder, tmp_path / "etl", CONFIG)
    rows, known = table(tmp_path / "etl" / "train"), table(plain / "train")
    weights, made = np.array(said(tmp_path / "etl")["labels"][0]["weights"]), labels(rows, "label000_click")
    assert len(weights) == 24
    w = known.column("w_click").to_numpy()
    np.testing.assert_allclose((weights * (made >= 0)).sum(axis=1), w, atol=float(w.max()) * 2.0**-24)
    some = made.max(axis=1) >= 0
    np.testing.assert_array_equal(made.max(axis=1)[some], known.column("y_click").to_numpy()[some])
    assert not w[~some].any(), "a row without a column weighs nothing"
    assert check_hugectr(tmp_path / "etl") > 0


def test_4_rows_to_watch_are_labelled_in_all_columns(view: Path, plain: Path) -> None:
    made = labels(table(view / "valid"), "label000_click")
    y = table(plain / "eval").column("y_click").to_numpy()
    np.testing.assert_array_equal(made, np.repeat(y[:, None], made.shape[1], axis=1))


def test_5_lookups_and_inverse_lengths(view: Path, plain: Path) -> None:
    rows, known = table(view / "train"), table(plain / "train")
    for name in ("member_id", "hashtags", "clicked_posts", "liked_creators"):
        assert rows.column(name).to_pylist() == known.column(name).to_pylist()
    for name in ("hashtags", "clicked_posts"):
        lengths = np.array([len(ids) for ids in known.column(name).to_pylist()])
        assert (lengths == 0).any()
        inverse = rows.column(f"_inverse_{name}")
        assert inverse.type == pa.float32()
        np.testing.assert_allclose(inverse.to_numpy(), 1 / np.maximum(lengths, 1), rtol=1e-7)


def test_6_no_column_may_have_a_null(view: Path) -> None:
    for split in ("train", "valid"):
        for field in table(view / split).schema:
            assert not field.nullable
            assert not pa.types.is_list(field.type) or not field.type.value_field.nullable


def test_7_metadata_and_file_list(view: Path) -> None:
    for split in ("train", "valid"):
        metadata = json.loads((view / split / "_metadata.json").read_text())
        found = [c for kind in ("labels", "conts", "cats") for c in metadata[kind]]
        assert [(c["col_name"], c["index"]) for c in found] == [(name, i) for i, name in enumerate(COLUMNS)]
        files = sorted((view / split).glob("*.parquet"))
        assert metadata["file_stats"] == [
            {"file_name": f.name, "num_rows": pq.read_metadata(f).num_rows} for f in files
        ]
        number, *names = (view / split / "_file_list.txt").read_text().split()
        assert (int(number), names) == (len(files), [f.name for f in files])


def test_8_the_description(view: Path) -> None:
    told, etl = said(view), json.loads((view / "etl.json").read_text())
    assert (told["format"], told["spec_digest"], told["capacity_rows"]) == (1, SPEC.digest, etl["capacity_rows"])
    assert told["num_rows"] == {"train": etl["num_train_rows"], "valid": etl["num_eval_rows"]}
    assert told["num_files"] == {s: len(list((view / s).glob("*.parquet"))) for s in ("train", "valid")}
    assert [label["name"] for label in told["labels"]] == COLUMNS[:2]
    assert told["dense"] == COLUMNS[2:5]
    assert told["inverse_lengths"] == ["clicked_posts", "liked_creators", "hashtags"]
    assert [lookup["name"] for lookup in told["lookups"]] == COLUMNS[8:]
    posts = told["lookups"][1]
    assert posts == {"name": "clicked_posts", "table": "post", "is_list": True, "max_length": 3}
    assert etl["view"] == "hugectr"


def test_9_a_right_folder_has_no_problem(view: Path) -> None:
    told = said(view)
    assert check_hugectr(view, gpus=told["num_files"]["train"]) == sum(told["num_rows"].values())


def put(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the columns of the first training file."""
    path = min((folder / "train").glob("*.parquet"))
    found = pq.read_table(path)
    columns: dict[str, Any] = {name: found.column(name) for name in found.column_names}
    change(columns)
    pq.write_table(pa.table(columns), path)


def edited(path: Path, change: Callable[[Any], Any]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def first(column: Any, value: Any) -> pa.Array:
    return pa.array([value, *column.to_pylist()[1:]], column.type)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "hugectr.json").unlink(), "is no result of `sparsefeed etl --for hugectr`"),
        (lambda f: edited(f / "hugectr.json", lambda v: v.update(format=9)), "format 9; this version reads 1"),
        (lambda f: edited(f / "hugectr.json", lambda v: v.update(spec_digest="x")), "is of spec x, spec.json is"),
        (
            lambda f: edited(f / "train" / "_metadata.json", lambda v: v["cats"].reverse()),
            "_metadata.json: cats are .*; must be",
        ),
        (
            lambda f: edited(f / "train" / "_metadata.json", lambda v: v["file_stats"][0].update(num_rows=1)),
            "_metadata.json: says 1 rows of part-00000.parquet, which has",
        ),
        (
            lambda f: edited(f / "train" / "_metadata.json", lambda v: v["file_stats"].pop()),
            "_metadata.json: has files .*_file_list.txt has",
        ),
        (lambda f: (f / "train" / "_file_list.txt").write_text("9\na.parquet\n"), "begins with 9, and 1 files follow"),
        (lambda f: (f / "train" / "part-00000.parquet").write_bytes(b"PAR1"), "not readable as parquet"),
        (lambda f: put(f, lambda c: c.pop("post_length")), "has columns .*; must be"),
        (
            lambda f: put(f, lambda c: c.update(post_id=c["post_id"].cast(pa.int32()))),
            '"post_id": is int32; must be int64',
        ),
        (
            lambda f: put(f, lambda c: c.update(post_length=first(c["post_length"], float("nan")))),
            '"post_length": is nan; must be a number',
        ),
        (
            lambda f: put(f, lambda c: c.update(post_length=first(c["post_length"], None))),
            '"post_length": has 1 nulls; none may be',
        ),
        (
            lambda f: put(f, lambda c: c.update(post_id=first(c["post_id"], 10**9))),
            '"post_id": has id 1000000000; allowed: 1 to',
        ),
        (lambda f: put(f, lambda c: c.update(hashtags=first(c["hashtags"], [0]))), '"hashtags": has id 0; allowed'),
        (
            lambda f: put(f, lambda c: c.update(hashtags=first(c["hashtags"], [2, 2, 2, 2]))),
            '"hashtags": has a list of 4; at most 3',
        ),
        (
            lambda f: put(f, lambda c: c.update(label000_click=first(c["label000_click"], [1.0]))),
            '"label000_click": has lists of 1; all must have',
        ),
        (
            lambda f: put(
                f, lambda c: c.update(label000_click=first(c["label000_click"], [0.5] * len(c["label000_click"][0])))
            ),
            '"label000_click": has label 0.5; allowed: 0, 1, and -1',
        ),
    ],
)
def test_9_each_thing_that_is_not_so_is_said(
    view: Path, tmp_path: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    shutil.copytree(view, tmp_path / "etl")
    spoil(tmp_path / "etl")
    with pytest.raises(DataError, match=message):
        check_hugectr(tmp_path / "etl")


def test_9_fewer_files_than_gpus_and_several_things_at_once(view: Path, tmp_path: Path) -> None:
    shutil.copytree(view, tmp_path / "etl")
    put(tmp_path / "etl", lambda c: c.update(post_id=first(c["post_id"], 0), member_id=first(c["member_id"], 0)))
    found = list(problems_of(tmp_path / "etl", gpus=64))
    assert len(found) == 3
    assert "files for 64 GPUs, and each reads files of its own: set etl.min_files to 64" in found[0]


def test_3_no_weight_is_one_scalar_label(logs_folder: Path, tmp_path: Path) -> None:
    spec = logs.spec(ips="none", sessions=None)
    run(spec, logs_folder, tmp_path / "etl", CONFIG)
    assert table(tmp_path / "etl" / "train").schema.field("label000_click").type == pa.float32()
    assert said(tmp_path / "etl")["labels"][0]["weights"] == [1.0]
    assert check_hugectr(tmp_path / "etl") > 0
    assert HugectrView.of(spec, None).labels["click"].weights.tolist() == [1.0]


def test_10_a_run_says_last_what_it_is(view: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = run_script(monkeypatch, tmp_path, view, plan_of(SPEC, view, 1, member="table_wise"))
    run_said = json.loads((tmp_path / "out" / "hugectr.json").read_text())
    assert [name for name, _ in graph.calls][-2:] == ["save_params_to_files", "embedding_dump"]
    assert graph.called("save_params_to_files") == [{"prefix": "model", "iter": run_said["step"]}]
    assert graph.called("embedding_dump")[0]["path"] == "embeddings"
    read = HugectrRun.read(tmp_path / "out")
    assert (read.spec_digest, read.etl) == (SPEC.digest, json.loads((view / "etl.json").read_text())["fingerprint"])
    assert [table.name for table in read.tables] == ["member", "post", "creator", "hashtag"], "by their first lookup"


def test_3_equal_weights_share_a_column() -> None:
    made = LabelColumns.of({0: 1.0, 3: 2.0, 7: 1.0})
    assert made.weights.tolist() == [1.0, 2.0]
    np.testing.assert_array_equal(
        made.labels(np.array([1, 0, 1], np.float32), np.array([0, 3, 7])), [[1, -1], [-1, 0], [1, -1]]
    )
