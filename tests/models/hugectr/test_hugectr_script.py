"""models/hugectr/train.py: what it asks of HugeCTR, for every kind of spec, model, plan and release."""

from __future__ import annotations

import ast
import json
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sparsefeed.etl.hugectr_view import HugectrView, padded_tables
from sparsefeed.etl.pipeline import run
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.config import ModelConfig
from sparsefeed.models.hugectr import train
from sparsefeed.models.plan import Plan
from sparsefeed.workflows.recipe import load_recipe
from tests import logs
from tests.models.hugectr.conftest import CONFIG, Script
from tests.models.hugectr.scripts import MODEL, plan_of
from tests.models.hugectr.stub import RELEASES, Graph, Member

SHARDINGS = ("table_wise", "row_wise", "column_wise", "data_parallel")


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_each_sharding_of_the_plan_is_asked_for(
    views: dict[str, Path], script: Script, sharding: str, release: str
) -> None:
    spec, data = logs.spec(), views["hugectr"]
    names = [table.name for table in spec.tables]
    plan = plan_of(
        spec, data, 4, **{name: sharding for name in names if sharding != "column_wise" or name in ("member", "post")}
    )
    graph = script(data, plan, release=release)
    matrix, strategy = graph.shards["shard_matrix"], dict(graph.shards["shard_strategy"])
    assert len(matrix) == 4
    for table in plan.tables:
        on = [gpu for gpu, row in enumerate(matrix) if table.name in row]
        assert on == list(table.devices or range(4)), table
        kind = "dp" if table.sharding == "data_parallel" else "mp"
        parts = len(table.devices)
        assert ((table.name, parts) if table.sharding == "column_wise" else table.name) in strategy[kind], table


RECIPES = sorted(path.stem for path in Path(str(files("sparsefeed.workflows") / "recipes")).glob("*.yaml"))


def described(folder: Path, spec: FeedSpec, num_rows: int = 10_000) -> Path:
    """An ETL result in HugeCTR's view as far as the script reads it: any recipe, without its logs."""
    cells = [(response.name, cell, 0.5 + 0.1 * cell) for response in spec.responses for cell in range(1, 41)]
    weights = pa.table(dict(zip(("response", "cell", "weight"), map(list, zip(*cells, strict=True)), strict=True)))
    capacity_rows = {table.name: 1 << 10 for table in spec.tables}
    view = HugectrView.of(spec, weights if spec.weighted else None)
    folder.mkdir()
    for split in ("train", "valid"):
        with (folder / f"{split}.bin").open("wb") as file:
            file.truncate(num_rows * view.dtype.itemsize)
    view.save(folder, {"capacity_rows": capacity_rows, "num_rows": {"train": num_rows, "valid": num_rows}})
    (folder / "spec.json").write_text(spec.dump())
    (folder / "etl.json").write_text(json.dumps({"fingerprint": "f", "capacity_rows": capacity_rows}))
    return folder


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(("gpus", "hosts"), [(1, 1), (4, 1), (16, 2)])
@pytest.mark.parametrize("sharding", [None, *SHARDINGS])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_and_plan_runs_on_any_number_of_hosts(
    script: Script, tmp_path: Path, recipe: str, sharding: str | None, gpus: int, hosts: int, release: str
) -> None:
    loaded = load_recipe(recipe, None)
    data = described(tmp_path / "etl", loaded.feed)
    tables = [table for table in loaded.feed.tables if sharding != "column_wise" or table.dim % 8 == 0]  # cut in halves
    asked = {table.name: sharding for table in tables if sharding and gpus > 1}
    plan = plan_of(loaded.feed, data, gpus, loaded.model, **asked)
    graph = script(data, plan, release=release)
    assert [len(host) for host in graph.solver["vvgpu"]] == [gpus // hosts] * hosts
    assert graph.solver["batchsize"] == plan.batch_size
    assert graph.solver["max_eval_batches"] == min(100, 10_000 // plan.batch_size)
    rows = {name: table["max_vocabulary_size"] for name, table in graph.tables.items()}
    assert rows == {table.name: 1 << 10 for table in loaded.feed.tables}
    assert sorted({lookup["bottom_name"] for lookup in graph.lookups} - {f.name for f in loaded.feed.lookups}) == [
        f"_padding_{name}" for name in sorted(padded_tables(loaded.feed))
    ]


FEATURES = [{"kind": "id", "name": "post_id", "table": "post", "side": "candidate"}]
FULL = logs.spec().model_dump(mode="json")["features"]
ONE = [{"name": "click", "column": "click"}]


def bare(**changes: Any) -> FeedSpec:
    """A spec with next to nothing in it."""
    fields = {
        "tables": [{"name": "post", "dim": 4, "tail_rows": 4}],
        "features": FEATURES,
        "responses": ONE,
        "logs": {"member": None},
        "sessions": None,
        "ips": "none",
    }
    return logs.spec(**(fields | changes))


DENSE = {"kind": "dense", "name": "post_length", "side": "candidate"}


@pytest.mark.parametrize(
    ("spec", "model"),
    [
        (bare(), ModelConfig(hidden=(4,), gate=False, cross_layers=0)),
        (bare(), MODEL),
        (bare(features=[*FEATURES, DENSE]), MODEL),
        (logs.spec(ips="none", sessions=None), MODEL),
        (logs.spec(features=[f for f in FULL if f["name"] != "liked_creators"], responses=ONE), MODEL),
        (logs.spec(sampling={"others": 0.5}), ModelConfig(hidden=(4, 4, 4), cross_layers=1)),
    ],
    ids=["one-lookup", "one-lookup-gated", "one-dense", "unweighted", "one-response", "sampled"],
)
def test_a_spec_with_little_in_it_makes_a_graph_without_loose_ends(
    spec: FeedSpec, model: ModelConfig, logs_folder: Path, script: Script, tmp_path: Path
) -> None:
    run(spec, logs_folder, tmp_path / "etl", CONFIG)
    graph = script(tmp_path / "etl", plan_of(spec, tmp_path / "etl", 2, model))
    (loss,) = [layer for layer in graph.layers if layer.kind == "MultiCrossEntropyLoss"]
    assert graph.shapes["logits"] == (len(spec.responses),)
    if not spec.weighted:
        assert loss.settings["target_weight_vec"] == [1.0] * len(spec.responses), "R columns of weight R / R"


def test_all_that_hugectr_is_told_of_solver_reader_and_rows(views: dict[str, Path], script: Script) -> None:
    data = views["hugectr"]
    rows = json.loads((data / "hugectr.json").read_text())["num_rows"]
    plan = plan_of(logs.spec(), data, 2)
    options = ("--epochs", "3", "--learning-rate", "0.02", "--warmup", "0.1", "--decay", "0.5", "--seed", "7")
    options += ("--initial-gradient", "0.5")
    graph = script(data, plan, *options)
    steps = 3 * rows["train"] // plan.batch_size
    assert {name: graph.solver[name] for name in graph.solver.given} == {
        "model_name": "feed", "seed": 7, "vvgpu": [[0, 1]], "batchsize": plan.batch_size,
        "batchsize_eval": plan.batch_size, "max_eval_batches": rows["valid"] // plan.batch_size, "lr": 0.02,
        "warmup_steps": steps // 10, "decay_start": steps - steps // 2, "decay_steps": steps // 2, "decay_power": 1.0,
        "end_lr": 0.0, "repeat_dataset": True, "i64_input_key": True, "use_embedding_collection": True,
        "use_mixed_precision": False, "enable_tf32_compute": True, "grouped_all_reduce": True, "use_cuda_graph": True,
        "drop_incomplete_batch": True, "metrics_spec": {Member("MetricsType", "AverageLoss"): 0.0},
    }  # fmt: skip
    reader = {name: graph.reader[name] for name in graph.reader.given}
    asynchronous = reader.pop("async_param")
    assert {name: asynchronous[name] for name in asynchronous.given} == {
        "num_threads": 4, "num_batches_per_thread": 4, "shuffle": True,
        "multi_hot_reader": True, "is_dense_float": True,
    }  # fmt: skip
    assert reader == {
        "data_reader_type": Member("DataReaderType_t", "RawAsync"), "source": [str(data / "train.bin")],
        "eval_source": str(data / "valid.bin"), "check_type": Member("Check_t", "Non"),
        "num_samples": rows["train"], "eval_num_samples": rows["valid"],
    }  # fmt: skip
    assert {name: graph.optimizer[name] for name in graph.optimizer.given} == {
        "optimizer_type": Member("Optimizer_t", "AdaGrad"), "update_type": Member("Update_t", "Global"),
        "initial_accu_value": (0.5 / plan.batch_size) ** 2, "epsilon": 1e-8,
    }  # fmt: skip
    assert graph.input is not None
    sparse = [
        (one["top_name"], one["nnz_per_slot"], one["is_fixed_length"], one["slot_num"])
        for one in graph.input["data_reader_sparse_param_array"]
    ]
    assert sparse == [
        ("member_id", 1, True, 1), ("clicked_posts", 3, True, 1), ("liked_creators", 2, True, 1),
        ("post_id", 1, True, 1), ("creator_id", 1, True, 1), ("hashtags", 3, True, 1),
        ("_padding_post", 1, True, 1), ("_padding_creator", 1, True, 1), ("_padding_hashtag", 1, True, 1),
    ]  # fmt: skip
    (fit,) = graph.called("fit")
    assert (fit["max_iter"], fit["eval_interval"]) == (steps, steps)
    assert fit["snapshot"] > steps, "HugeCTR would leave files of its own"


def test_without_rows_to_watch_nothing_is_evaluated(script: Script, tmp_path: Path) -> None:
    data = described(tmp_path / "etl", logs.spec())
    said = json.loads((data / "hugectr.json").read_text())
    (data / "hugectr.json").write_text(json.dumps({**said, "num_rows": {"train": 10_000, "valid": 0}}))
    graph = script(data, plan_of(logs.spec(), data, 1))
    assert graph.called("fit")[0]["eval_interval"] == 0
    assert graph.reader["eval_source"].endswith("train.bin"), "HugeCTR opens it all the same"


def test_it_saves_dense_and_tables_and_says_last_what_it_was(
    views: dict[str, Path], script: Script, tmp_path: Path
) -> None:
    data = views["hugectr"]
    graph = script(data, plan_of(logs.spec(), data, 2, member="column_wise"))
    called = [name for name, _ in graph.calls]
    assert called == ["compile", "summary", "fit", "save_params_to_files", "embedding_dump"]
    said = json.loads((tmp_path / "out" / "hugectr.json").read_text())
    assert said["etl"] == json.loads((data / "etl.json").read_text())["fingerprint"]
    # HugeCTR numbers tables by their first lookup, not as they are declared.
    assert [(table["name"], table["parts"]) for table in said["tables"]] == [
        ("member", 2), ("post", 1), ("creator", 1), ("hashtag", 1),
    ]  # fmt: skip


def test_a_run_that_ends_early_is_not_taken_for_the_one_before(
    views: dict[str, Path], script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = views["hugectr"]
    script(data, plan_of(logs.spec(), data, 2))
    assert (tmp_path / "out" / "hugectr.json").exists()

    def full(*args: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("tests.models.hugectr.stub.write_dump", full)
    with pytest.raises(OSError, match="No space left"):
        script(data, plan_of(logs.spec(), data, 2))
    assert not (tmp_path / "out" / "hugectr.json").exists()
    monkeypatch.setattr("tests.models.hugectr.stub.write_dump", lambda *args: None)  # HugeCTR may say nothing
    with pytest.raises(SystemExit, match=r"key0: has no bytes; must have .*: the disk is full"):
        script(data, plan_of(logs.spec(), data, 2))
    assert not (tmp_path / "out" / "hugectr.json").exists()


def test_weights_to_begin_with_are_loaded_before_the_first_step(
    views: dict[str, Path], script: Script, tmp_path: Path
) -> None:
    data = views["hugectr"]
    plan = plan_of(logs.spec(), data, 1)
    first = script(data, plan)
    (tmp_path / "out").rename(tmp_path / "weights")
    graph = script(data, plan, "--from", "weights", "--epochs", "2")
    called = [name for name, _ in graph.calls]
    assert called[:5] == ["compile", "summary", "load_dense_weights", "embedding_load", "fit"]
    step = first.called("fit")[0]["max_iter"]
    place = tmp_path / "weights"
    assert graph.called("load_dense_weights") == [{"dense_model_file": str(place / f"model_dense_{step}.model")}]
    assert graph.called("embedding_load") == [{"path": str(place / "embeddings"), "table_names": []}]


def shaped(plan: Plan, **shape: Any) -> Plan:
    return plan.model_copy(update={"model": plan.model.model_copy(update=shape)})


def test_a_model_without_dot_products_and_one_with_dropout_are_said(views: dict[str, Path], script: Script) -> None:
    plan = plan_of(logs.spec(), views["hugectr"], 1)
    kinds = [layer.kind for layer in script(views["hugectr"], shaped(plan, interactions=False)).layers]
    assert "Interaction" not in kinds
    assert "Add" not in kinds
    graph = script(views["hugectr"], shaped(plan, dropout=0.25))
    dropped = [layer.settings for layer in graph.layers if layer.kind == "Dropout"]
    assert dropped == [{"dropout_rate": 0.25}] * len(plan.model.hidden)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spec_digest": "x"}, "spec_digest is x, this run has"),
        ({"etl": "x"}, "etl is x, this run has"),
        ({"tables": []}, r"tables is \[\], this run has"),
        ({"model": {}}, "model is {}, this run has"),
        ({"step": 5}, "model_dense_5.model: has no bytes"),
    ],
)
def test_weights_of_anything_else_end_before_hugectr_reads_them(
    views: dict[str, Path], script: Script, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    data = views["hugectr"]
    plan = plan_of(logs.spec(), data, 1)
    script(data, plan)
    (tmp_path / "out").rename(tmp_path / "weights")
    said = json.loads((tmp_path / "weights" / "hugectr.json").read_text())
    (tmp_path / "weights" / "hugectr.json").write_text(json.dumps(said | change))
    with pytest.raises(SystemExit, match=message):
        script(data, plan, "--from", "weights")
    assert not (tmp_path / "out").exists()


def test_two_hosts_start_mpi_and_share_vectors_in_two_hops(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = described(tmp_path / "etl", logs.spec())
    plan = plan_of(logs.spec(), data, 4)
    two = plan.model_copy(update={"topology": plan.topology.model_copy(update={"devices_per_host": 2})})
    graph = script(data, two)
    assert graph.solver["vvgpu"] == [[0, 1], [0, 1]]
    assert graph.across == Member("CommunicationStrategy", "Hierarchical")
    assert "dumps tables of several hosts at wrong offsets" in capsys.readouterr().out
    said = (tmp_path / "out" / "hugectr.json").stat().st_mtime_ns
    script(data, two, rank=1)
    assert (tmp_path / "out" / "hugectr.json").stat().st_mtime_ns == said, "the first process alone describes the run"
    assert script(data, plan).across == Member("CommunicationStrategy", "Uniform")
    source = Path(train.__file__).read_text("utf-8")
    assert source.index("from mpi4py import MPI") < source.index("import hugectr\n")


@pytest.mark.parametrize(
    ("option", "value"),
    [("--epochs", "0"), ("--decay", "1.5"), ("--warmup", "-1"), ("--learning-rate", "-1"), ("--eval-every", "0")],
)
def test_options_out_of_range_are_refused(
    views: dict[str, Path], script: Script, option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        script(views["hugectr"], plan_of(logs.spec(), views["hugectr"], 1), option, value)
    assert f"argument {option}: got {value}; allowed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan: plan.model_copy(update={"tables": plan.tables[:-1]}), "has tables .*; the spec has"),
        (lambda plan: plan.model_copy(update={"batch_size": 17}), "batch_size is 17; must be a multiple of 2 GPUs"),
        (lambda plan: plan.model_copy(update={"batch_size": 1 << 20}), "rows, a batch 1048576; plan a smaller one"),
        (
            lambda plan: plan.model_copy(
                update={"topology": plan.topology.model_copy(update={"devices": 12, "devices_per_host": 8})}
            ),
            "12 GPUs, 8 on a host; all hosts must have as many",
        ),
        (
            lambda plan: plan.model_copy(update={"topology": plan.topology.model_copy(update={"kind": "cpu"})}),
            "is a plan of processes; make one with",
        ),
        (
            lambda plan: plan.model_copy(
                update={"tables": tuple(t.model_copy(update={"rows": 2}) for t in plan.tables)}
            ),
            "has 2 rows, the data",
        ),
        (
            lambda plan: plan.model_copy(
                update={"tables": tuple(t.model_copy(update={"dim": 512}) for t in plan.tables)}
            ),
            "has tables .*512.*; the spec has",
        ),
        (lambda plan: shaped(plan, experts=2), "model.experts is 2; here it must be 1: set it in the recipe"),
        (lambda plan: shaped(plan, cross_residual=False), "model.cross_residual is False; here it must be True"),
    ],
)
def test_what_does_not_belong_together_ends_before_hugectr_is_imported(
    views: dict[str, Path], script: Script, change: Any, message: str
) -> None:
    data = views["hugectr"]
    with pytest.raises(SystemExit, match=message):
        script(data, change(plan_of(logs.spec(), data, 2)))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("hugectr.json", lambda said: said.update(format=9), "is of format 9; this script reads 1"),
        ("spec.json", lambda said: said.update(name="other"), "is another spec than that of"),
        ("train.bin", None, "train.bin: must have .* bytes; run `sparsefeed hugectr check"),
    ],
)
def test_data_that_is_not_what_it_says_ends_before_hugectr_is_imported(
    script: Script, tmp_path: Path, file: str, change: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = described(tmp_path / "etl", logs.spec())
    plan = plan_of(logs.spec(), data, 1)
    if change is None:
        (data / file).write_bytes(b"x")
    else:
        said = json.loads((data / file).read_text())
        change(said)
        (data / file).write_text(json.dumps(said))
    (tmp_path / "spec.json").write_text(logs.spec().dump())
    with pytest.raises(SystemExit, match=message):
        script(data, plan, spec=tmp_path / "spec.json")


def test_the_script_needs_nothing_but_python_and_hugectr() -> None:
    tree = ast.parse(Path(train.__file__).read_text("utf-8"))
    roots = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add((node.module or "").split(".")[0])
    assert roots <= set(sys.stdlib_module_names) | {"hugectr", "mpi4py"}
    ast.parse(Path(train.__file__).read_text("utf-8"), feature_version=(3, 10))


def consumers(graph: Graph) -> int:
    return max(len(names) for names in graph.consumers.values())


def test_no_tensor_is_near_the_limit_of_consumers(views: dict[str, Path], script: Script) -> None:
    data = views["hugectr"]
    assert consumers(script(data, plan_of(logs.spec(), data, 1))) <= 3


def test_six_lists_of_one_table_end_with_a_sentence(script: Script, tmp_path: Path) -> None:
    lists = [
        {"kind": "ids", "name": f"tags{i}", "table": "post", "side": "candidate", "max_length": 2} for i in range(6)
    ]
    spec = bare(features=[*FEATURES, *lists])
    data = described(tmp_path / "etl", spec)
    with pytest.raises(SystemExit, match='more than 5 lists read "post"'):
        script(data, plan_of(spec, data, 1))
