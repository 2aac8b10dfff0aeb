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

from sparsefeed.etl.hugectr_view import HugectrView
from sparsefeed.etl.pipeline import run
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.config import ModelConfig
from sparsefeed.models.hugectr import train
from sparsefeed.workflows.recipe import load_recipe
from tests import logs
from tests.models.hugectr.conftest import CONFIG, Script
from tests.models.hugectr.scripts import MODEL, plan_of
from tests.models.hugectr.stub import RELEASES, Graph

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


def described(folder: Path, spec: FeedSpec, num_files: int) -> Path:
    """An ETL result in HugeCTR's view as far as the script reads it: any recipe, without its logs."""
    cells = [(response.name, cell, 0.5 + 0.1 * cell) for response in spec.responses for cell in range(1, 41)]
    weights = pa.table(dict(zip(("response", "cell", "weight"), map(list, zip(*cells, strict=True)), strict=True)))
    capacity_rows = {table.name: 1 << 20 for table in spec.tables}
    sizes = dict.fromkeys(("train", "valid"), num_files)
    for split in sizes:
        (folder / split).mkdir(parents=True)
        names = [f"part-{number:05d}.parquet" for number in range(num_files)]
        (folder / split / "_file_list.txt").write_text("\n".join([str(num_files), *names]) + "\n")
    view = HugectrView.of(spec, weights if spec.weighted else None)
    rows = dict.fromkeys(sizes, 10**6)
    view.save(folder, {"capacity_rows": capacity_rows, "num_rows": rows, "num_files": sizes})
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
    data = described(tmp_path / "etl", loaded.feed, gpus)
    asked = {table.name: sharding for table in loaded.feed.tables if sharding and gpus > 1}
    plan = plan_of(loaded.feed, data, gpus, loaded.model, **asked)
    graph = script(data, plan, release=release)
    assert [len(host) for host in graph.solver["vvgpu"]] == [gpus // hosts] * hosts
    assert graph.solver["batchsize"] == plan.batch_size
    assert graph.solver["max_eval_batches"] == 100
    assert len(graph.lookups) == len(loaded.feed.lookups)


def test_fewer_files_than_gpus_end_before_hugectr_is_imported(script: Script, tmp_path: Path) -> None:
    data = described(tmp_path / "etl", logs.spec(), 3)
    with pytest.raises(SystemExit, match=r"3 training files for 4 GPUs.*set etl.min_files to 4"):
        script(data, plan_of(logs.spec(), data, 4))


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
    spec: FeedSpec, model: ModelConfig, fine_logs: Path, script: Script, tmp_path: Path
) -> None:
    run(spec, fine_logs, tmp_path / "etl", CONFIG)
    graph = script(tmp_path / "etl", plan_of(spec, tmp_path / "etl", 2, model))
    losses = [layer for layer in graph.layers if layer.kind == "MultiCrossEntropyLoss"]
    assert len(losses) == len(spec.responses)


def test_steps_rates_and_files_are_what_was_asked(views: dict[str, Path], script: Script, tmp_path: Path) -> None:
    data = views["hugectr"]
    rows = json.loads((data / "etl.json").read_text())["num_train_rows"]
    plan = plan_of(logs.spec(), data, 2)
    options = ("--epochs", "3", "--learning-rate", "0.02", "--warmup", "0.1", "--decay", "0.5", "--seed", "7")
    graph = script(data, plan, *options)
    steps = 3 * rows // plan.batch_size
    (fit,) = graph.called("fit")
    assert fit["max_iter"] == steps
    assert fit["snapshot"] > steps, "HugeCTR would leave files of its own"
    assert (graph.solver["lr"], graph.solver["warmup_steps"], graph.solver["seed"]) == (0.02, int(0.1 * steps), 7)
    assert (graph.solver["decay_start"], graph.solver["decay_steps"]) == (steps - steps // 2, steps // 2)
    listed = (tmp_path / "out" / graph.reader["source"][0]).read_text().split()
    assert int(listed[0]) == len(listed) - 1 == len(list((data / "train").glob("*.parquet")))
    assert all(Path(path).is_absolute() and Path(path).exists() for path in listed[1:])
    assert (Path(listed[1]).parent / "_metadata.json").exists(), "HugeCTR looks for it beside the first file"


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


def test_weights_to_begin_with_are_loaded_before_the_first_step(
    views: dict[str, Path], script: Script, tmp_path: Path
) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "hugectr.json").write_text('{"step": 70}')
    data = views["hugectr"]
    graph = script(data, plan_of(logs.spec(), data, 1), "--from", "weights")
    called = [name for name, _ in graph.calls]
    assert called[:5] == ["compile", "summary", "load_dense_weights", "embedding_load", "fit"]
    assert graph.called("load_dense_weights")[0]["dense_model_file"].endswith("weights/model_dense_70.model")


def test_two_hosts_start_mpi_and_share_vectors_in_two_hops(
    views: dict[str, Path], script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = views["hugectr"]
    plan = plan_of(logs.spec(), data, 4)
    two = plan.model_copy(update={"topology": plan.topology.model_copy(update={"devices_per_host": 2})})
    graph = script(data, two)
    assert graph.solver["vvgpu"] == [[0, 1], [0, 1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan: plan.model_copy(update={"tables": plan.tables[:-1]}), "has tables .*; the spec has"),
        (lambda plan: plan.model_copy(update={"batch_size": 17}), "batch_size is 17; must be a multiple of 2 GPUs"),
        (
            lambda plan: plan.model_copy(update={"topology": plan.topology.model_copy(update={"kind": "cpu"})}),
            "is a plan of processes; make one with",
        ),
        (
            lambda plan: plan.model_copy(
                update={"tables": tuple(t.model_copy(update={"rows": 2}) for t in plan.tables)}
            ),
            "is planned with 2 rows, the data has",
        ),
        (
            lambda plan: plan.model_copy(
                update={"tables": tuple(t.model_copy(update={"dim": 512}) for t in plan.tables)}
            ),
            "has dim 512; HugeCTR allows 256",
        ),
    ],
)
def test_what_does_not_belong_together_ends_before_hugectr_is_imported(
    views: dict[str, Path], script: Script, change: Any, message: str
) -> None:
    data = views["hugectr"]
    with pytest.raises(SystemExit, match=message):
        script(data, change(plan_of(logs.spec(), data, 2)))


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
