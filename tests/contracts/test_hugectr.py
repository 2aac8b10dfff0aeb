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

from sparsefeed.errors import DataError, SpecError
from sparsefeed.etl import hugectr_view
from sparsefeed.etl.config import ClusterConfig, EtlConfig
from sparsefeed.etl.hugectr_check import check_hugectr, problems_of
from sparsefeed.etl.hugectr_view import LabelColumns, mapped_rows, read_labelled
from sparsefeed.etl.pipeline import run
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.hugectr.exchange import HugectrRun
from tests import logs
from tests.models.hugectr.scripts import plan_of, run_script

SPEC = logs.spec()
CONFIG = EtlConfig(cluster=ClusterConfig(workers=0), row_group_rows=100, view="hugectr")
LISTS = {"clicked_posts": 3, "liked_creators": 2, "hashtags": 3}


@pytest.fixture(scope="module")
def view(logs_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("view") / "etl"
    run(SPEC, logs_folder, out, CONFIG)
    return out


@pytest.fixture(scope="module")
def plain(logs_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The other view, shuffled alike."""
    out = tmp_path_factory.mktemp("plain") / "etl"
    run(SPEC, logs_folder, out, CONFIG.model_copy(update={"view": "torchrec", "shuffle": True}))
    return out


def table(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))])


def said(folder: Path) -> Any:
    return json.loads((folder / "hugectr.json").read_text())


def labels(folder: Path, number: int, split: str = "train") -> np.ndarray:
    widths = [len(label["weights"]) for label in said(folder)["labels"]]
    start = sum(widths[:number])
    return np.asarray(mapped_rows(folder / f"{split}.bin", said(folder))["labels"][:, start : start + widths[number]])


def test_1_rows_of_labels_dense_columns_and_ids(view: Path, plain: Path) -> None:
    told = said(view)
    width = sum(len(label["weights"]) for label in told["labels"])
    ids = sum(lookup["max_length"] for lookup in told["lookups"]) + len(told["padded_tables"])
    assert told["row_bytes"] == 4 * width + 4 * len(told["dense"]) + 8 * ids
    for split, rows in (("train", len(table(plain / "train"))), ("valid", len(table(plain / "eval")))):
        content = (view / f"{split}.bin").read_bytes()
        assert len(content) == rows * told["row_bytes"]
        first = np.frombuffer(content[: told["row_bytes"]], np.uint8)
        assert set(first[: 4 * width].view("<i4").tolist()) <= {-1, 0, 1}
        dense = first[4 * width : 4 * (width + len(told["dense"]))].view("<f4")
        known = table(plain / ("train" if split == "train" else "eval"))
        assert dense[0] == known.column("member_activity")[0].as_py()
        assert first[-8 * ids :].view("<i8")[0] == known.column("member_id")[0].as_py()
    assert table(view / "eval").equals(table(plain / "eval"))
    assert not (view / "train").exists()


def test_2_a_row_is_labelled_in_the_column_of_its_weight(view: Path, plain: Path) -> None:
    known = table(plain / "train")
    for number, response in enumerate(("click", "like")):
        made, weights = labels(view, number), np.array(said(view)["labels"][number]["weights"])
        assert 24 >= len(weights) == len(np.unique(weights)) > 3
        assert ((made >= 0).sum(axis=1) == 1).all()
        np.testing.assert_array_equal(made.max(axis=1), known.column(f"y_{response}").to_numpy())
        weighted = np.where(made >= 0, weights, 0).sum(axis=1).astype(np.float32)
        np.testing.assert_array_equal(weighted, known.column(f"w_{response}").to_numpy())


def test_2_many_weights_are_bits_of_fixed_point(
    logs_folder: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hugectr_view, "MAX_COLUMNS", 4)
    run(SPEC, logs_folder, tmp_path / "etl", CONFIG)
    known = table(plain / "train")
    weights, made = np.array(said(tmp_path / "etl")["labels"][0]["weights"]), labels(tmp_path / "etl", 0)
    assert len(weights) == 24
    w = known.column("w_click").to_numpy()
    np.testing.assert_allclose((weights * (made >= 0)).sum(axis=1), w, atol=float(w.max()) * 2.0**-24)
    some = made.max(axis=1) >= 0
    np.testing.assert_array_equal(made.max(axis=1)[some], known.column("y_click").to_numpy()[some])
    assert not w[~some].any(), "a row without a column weighs nothing"
    assert check_hugectr(tmp_path / "etl") > 0


def test_2_labels_and_weights_come_back_from_the_columns(view: Path, plain: Path) -> None:
    dense, y, w, ids = read_labelled(SPEC, view)
    known = table(plain / "train")
    np.testing.assert_array_equal(y, np.stack([known.column(f"y_{r}").to_numpy() for r in ("click", "like")], axis=1))
    np.testing.assert_array_equal(w, np.stack([known.column(f"w_{r}").to_numpy() for r in ("click", "like")], axis=1))
    np.testing.assert_array_equal(dense, np.stack([known.column(f.name).to_numpy() for f in SPEC.dense], axis=1))
    for got, name in zip(ids, ("member_id", "post_id", "creator_id"), strict=True):
        np.testing.assert_array_equal(got, known.column(name).to_numpy())


def test_2_equal_weights_share_a_column_and_no_weights_have_one(logs_folder: Path, tmp_path: Path) -> None:
    made = LabelColumns.of({0: 1.0, 3: 2.0, 7: 1.0})
    assert made.weights.tolist() == [1.0, 2.0]
    y, cells = np.array([1, 0, 1], np.float32), np.array([0, 3, 7])
    np.testing.assert_array_equal(made.labels(y, cells), [[1, -1], [-1, 0], [1, -1]])
    run(logs.spec(ips="none", sessions=None), logs_folder, tmp_path / "etl", CONFIG)
    assert [label["weights"] for label in said(tmp_path / "etl")["labels"]] == [[1.0], [1.0]]
    assert check_hugectr(tmp_path / "etl") > 0


def test_3_dense_columns_say_how_long_lists_are(view: Path, plain: Path, logs_folder: Path, tmp_path: Path) -> None:
    beside = [f"_{kind}_{name}" for name in LISTS for kind in ("pads", "inverse")]
    assert said(view)["dense"] == ["member_activity", "post_age_hours", "post_length", *beside]
    dense, known = mapped_rows(view / "train.bin", said(view))["dense"], table(plain / "train")
    for name, most in LISTS.items():
        lengths = np.array([len(ids) for ids in known.column(name).to_pylist()])
        assert (lengths == 0).any()
        np.testing.assert_array_equal(dense[:, said(view)["dense"].index(f"_pads_{name}")], most - lengths)
        inverse = dense[:, said(view)["dense"].index(f"_inverse_{name}")]
        np.testing.assert_allclose(inverse, 1 / np.maximum(lengths, 1), rtol=1e-7)
    bare = logs.spec(
        tables=[{"name": "post", "dim": 4}], logs={"member": None}, sessions=None, ips="none",
        features=[{"kind": "id", "name": "post_id", "table": "post", "side": "candidate"}],
        responses=[{"name": "click", "column": "click"}],
    )  # fmt: skip
    run(bare, logs_folder, tmp_path / "etl", CONFIG)
    assert said(tmp_path / "etl")["dense"] == ["_none"]
    assert not mapped_rows(tmp_path / "etl" / "train.bin", said(tmp_path / "etl"))["dense"].any()


def test_3_a_learned_pooling_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    features = [f.model_dump() | ({"pooling": "learned"} if f.kind == "history" else {}) for f in SPEC.features]
    learned = FeedSpec.parse(SPEC.model_dump() | {"features": features})
    with pytest.raises(SpecError, match=r'features\[2\].pooling: "clicked_posts" is learned; HugeCTR has no'):
        run(learned, tmp_path / "no logs", tmp_path / "etl", CONFIG)
    assert not list(tmp_path.iterdir())


def test_3_a_paired_tail_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    tables = [table.model_dump() | {"tail": "quotient_remainder"} for table in SPEC.tables]
    paired = FeedSpec.parse(SPEC.model_dump() | {"tables": tables})
    with pytest.raises(SpecError, match=r'tables\[0\].tail: "member" is quotient_remainder; .* allowed for it: hashed'):
        run(paired, tmp_path / "no logs", tmp_path / "etl", CONFIG)
    assert not list(tmp_path.iterdir())


def test_4_lists_are_filled_up_with_row_0(view: Path, plain: Path) -> None:
    ids, known, at = mapped_rows(view / "train.bin", said(view))["ids"], table(plain / "train"), 0
    for feature in SPEC.lookups:
        most = LISTS.get(feature.name, 1)
        for row, value in zip(ids[:, at : at + most], known.column(feature.name).to_pylist(), strict=True):
            own = value if feature.name in LISTS else [value]
            assert row.tolist() == own + [0] * (most - len(own))
        at += most
    assert ids.shape[1] == at + 3
    assert not ids[:, at:].any()


def test_5_rows_of_a_partition_are_shuffled(view: Path, logs_folder: Path, tmp_path: Path) -> None:
    run(SPEC, logs_folder, tmp_path / "etl", CONFIG.model_copy(update={"view": "torchrec"}))
    logged = table(tmp_path / "etl" / "train").column("post_id").to_pylist()
    start = sum(LISTS.get(f.name, 1) for f in SPEC.lookups[: [f.name for f in SPEC.lookups].index("post_id")])
    written = mapped_rows(view / "train.bin", said(view))["ids"][:, start].tolist()
    assert written != logged
    assert sorted(written) == sorted(logged)


def test_6_the_description(view: Path) -> None:
    told, etl = said(view), json.loads((view / "etl.json").read_text())
    assert (told["format"], told["spec_digest"], told["capacity_rows"]) == (1, SPEC.digest, etl["capacity_rows"])
    assert told["num_rows"] == {"train": etl["num_train_rows"], "valid": etl["num_eval_rows"]}
    assert [label["response"] for label in told["labels"]] == ["click", "like"]
    assert [lookup["name"] for lookup in told["lookups"]] == [feature.name for feature in SPEC.lookups]
    assert told["lookups"][1] == {"name": "clicked_posts", "table": "post", "max_length": 3, "pooling": "mean"}
    assert told["lookups"][0]["pooling"] == "one"
    assert told["padded_tables"] == ["post", "creator", "hashtag"]


def test_7_a_view_takes_the_place_of_the_other_and_has_its_ids(logs_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "etl"
    first = run(SPEC, logs_folder, out, CONFIG)
    other = run(SPEC, logs_folder, out, CONFIG.model_copy(update={"view": "torchrec"}))
    assert (first["view"], other["view"]) == ("hugectr", "torchrec")
    assert first["fingerprint"] == other["fingerprint"]
    assert (out / "train").is_dir()
    assert not (out / "train.bin").exists()
    assert run(SPEC, logs_folder, out, CONFIG.model_copy(update={"view": "torchrec"})) == other


def test_8_a_right_folder_has_no_problem(view: Path) -> None:
    assert check_hugectr(view) == sum(said(view)["num_rows"].values())


def edited(path: Path, change: Callable[[Any], Any]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def put(folder: Path, change: Callable[[Any], Any], row: int = 5) -> None:
    """Change a row of the training file."""
    rows = mapped_rows(folder / "train.bin", said(folder)).copy()
    change(rows[row])
    (folder / "train.bin").write_bytes(rows.tobytes())


def ids(at: int, *values: int) -> Callable[[Any], None]:
    def change(row: Any) -> None:
        row["ids"][at : at + len(values)] = values

    return change


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "hugectr.json").unlink(), "is no result of `sparsefeed etl --for hugectr`"),
        (lambda f: (f / "etl.json").unlink(), "is no result of `sparsefeed etl --for hugectr`"),
        (lambda f: (f / "ips.parquet").write_bytes(b"PAR1"), "is no result of `sparsefeed etl --for hugectr`"),
        (lambda f: edited(f / "hugectr.json", lambda v: v.update(format=9)), "format is 9; by the files beside it 1"),
        (lambda f: edited(f / "hugectr.json", lambda v: v.update(spec_digest="x")), "spec_digest is x; by the files"),
        (lambda f: edited(f / "hugectr.json", lambda v: v["capacity_rows"].update(post=1 << 30)), "capacity_rows is"),
        (lambda f: edited(f / "hugectr.json", lambda v: v["lookups"].reverse()), "lookups is"),
        (lambda f: edited(f / "hugectr.json", lambda v: v["labels"][0]["weights"].reverse()), "labels is"),
        (lambda f: edited(f / "hugectr.json", lambda v: v.update(num_rows={"train": 0})), "num_rows is"),
        (lambda f: edited(f / "hugectr.json", lambda v: v.pop("padded_tables")), "padded_tables is None"),
        (lambda f: edited(f / "etl.json", lambda v: v.update(spec_digest="x")), "etl.json: is of spec x, spec.json is"),
        (lambda f: (f / "valid.bin").unlink(), "valid.bin: has no bytes"),
        (lambda f: (f / "train.bin").write_bytes(b"x"), "train.bin: has 1 bytes; .* rows of .* have"),
        (lambda f: put(f, lambda row: row["labels"].fill(2)), r'train.bin: row 5, "click": labels are \[2'),
        (lambda f: put(f, lambda row: row["labels"].__setitem__(slice(2), [0, 1])), '"click": labels are'),
        (lambda f: put(f, lambda row: row["dense"].fill(np.nan)), 'row 5, "member_activity": is nan; must be a number'),
        (lambda f: put(f, lambda row: row["dense"].__setitem__(3, 9)), '"_pads_clicked_posts": is 9.0; of'),
        (lambda f: put(f, lambda row: row["dense"].__setitem__(4, 9)), '"_inverse_clicked_posts": is 9.0; of'),
        (lambda f: put(f, ids(0, 10**9)), 'row 5, "member_id": ids are .1000000000.; allowed: 1 to'),
        (lambda f: put(f, ids(0, -1)), '"member_id": ids are .-1.; allowed: 1 to'),
        (lambda f: put(f, ids(0, 0)), '"member_id": is 0, padding; every row has an id'),
        (lambda f: put(f, ids(1, 0, 0, 5)), '"clicked_posts": ids are .0, 0, 5.; padding stands at the end alone'),
        (lambda f: put(f, ids(11, 3)), '"padding": the last ids must be 0'),
    ],
)
def test_8_each_thing_that_is_not_so_is_said(
    view: Path, tmp_path: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    shutil.copytree(view, tmp_path / "etl")
    spoil(tmp_path / "etl")
    with pytest.raises(DataError, match=message):
        check_hugectr(tmp_path / "etl")


def test_8_several_things_are_said_at_once(view: Path, tmp_path: Path) -> None:
    shutil.copytree(view, tmp_path / "etl")
    put(tmp_path / "etl", ids(0, 0))
    put(tmp_path / "etl", lambda row: row["dense"].fill(np.inf), row=7)
    assert len(list(problems_of(tmp_path / "etl"))) > 5


def test_9_a_run_says_last_what_it_is(view: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = run_script(monkeypatch, tmp_path, view, plan_of(SPEC, view, 1, member="table_wise"))
    run_said = json.loads((tmp_path / "out" / "hugectr.json").read_text())
    assert [name for name, _ in graph.calls][-2:] == ["save_params_to_files", "embedding_dump"]
    assert graph.called("save_params_to_files") == [{"prefix": "model", "iter": run_said["step"]}]
    assert graph.called("embedding_dump")[0]["path"] == "embeddings"
    read = HugectrRun.read(tmp_path / "out")
    assert (read.spec_digest, read.etl) == (SPEC.digest, json.loads((view / "etl.json").read_text())["fingerprint"])
    assert [table.name for table in read.tables] == ["member", "post", "creator", "hashtag"], "by their first lookup"
    dense = tmp_path / "out" / f"model_dense_{read.step}.model"
    assert dense.stat().st_size == 4 * read.dense_floats
