"""The golden fixtures that every room shares: `python -m tests.contracts.golden` writes them anew.

They come out of the real code over a few sessions of the logs of tests.logs: a spec, training rows, a snapshot,
a bundle, a delta on it, one lookup, the answers to one request before and after the delta, and a dense model of a spec
with every kind of feature. Nothing in them depends on the clock or the machine, so `git diff` after a run shows what a
change of a contract does.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from sparsefeed.etl import pipeline
from sparsefeed.etl.config import ClusterConfig, EtlConfig
from sparsefeed.etl.ids import IdMap, hash_strings
from sparsefeed.etl.spec import FeedSpec, side_of
from sparsefeed.models.bundle import Manifest, open_version, publish_version, set_current
from sparsefeed.models.calibration import Calibration, Platt
from sparsefeed.models.config import ModelConfig
from sparsefeed.models.delta import IdChange, RowChange, apply_delta, write_delta
from sparsefeed.models.dense import DenseModel
from sparsefeed.models.onnx import export_dense
from sparsefeed.models.store.store import write_tables
from sparsefeed.workflows.serving.steps.dense import DenseStep
from sparsefeed.workflows.serving.steps.lookup import LookupStep
from sparsefeed.workflows.serving.steps.step import Step, Tensors
from sparsefeed.workflows.serving.steps.transform import TransformStep
from tests import logs

__all__ = ["FIXTURES", "NAMES", "REQUEST", "SPEC", "answer", "plain", "training", "write"]

FIXTURES = Path(__file__).parent / "fixtures"
NAMES = (
    "spec.json",
    "training",
    "snapshot",
    "bundle",
    "lookup",
    "delta",
    "answers.json",
    "dense",
    "ids_map",
    "ids_map_rows.json",
)
SPEC = logs.spec(
    name="golden",
    tables=[{"name": name, "dim": 4, "tail_rows": 4} for name in ("member", "creator", "post", "hashtag")],
    key_seed=7,
)
DAYS, SESSIONS = 3, 8  # the last day is evaluated on
IMPRESSIONS = (0, 9, 21, 53, 63)  # the training rows that are kept
REQUEST = {"member_id": "m8", "post_ids": ["p0", "p3", "p25", "p99"]}  # p99 is in no log
NEW_ROW = 64  # the delta's new row: one beyond the parent's capacity, which doubles


def write(out: Path) -> None:
    """Write every fixture of `NAMES` into a folder that has none of them."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "spec.json").write_text(SPEC.dump(), "utf-8")
    _write_id_map(out)
    _write_graph(out / "dense")
    with tempfile.TemporaryDirectory() as scratch:
        etl = Path(scratch) / "etl"
        logs.write(Path(scratch) / "logs", days=DAYS, sessions=SESSIONS)
        pipeline.run(SPEC, Path(scratch) / "logs", etl, EtlConfig(cluster=ClusterConfig(workers=0, gpu=False)))
        (out / "training").mkdir()
        for name, value in training(etl / "train").items():
            _write_json(out / "training" / f"{name}.json", value)
        shutil.copytree(etl / "snapshot", out / "snapshot")
        _write_bundle(etl, out / "bundle")
        _write_delta(out / "bundle", out / "delta")
        before = answer(out / "bundle" / "versions" / "v1")
        (out / "lookup").mkdir()
        for name in ("KEYS", "NUMKEYS", "OUTPUT0"):
            np.save(out / "lookup" / f"{name}.npy", before[name])
        refreshed = Path(scratch) / "refreshed"
        shutil.copytree(out / "bundle", refreshed)
        apply_delta(refreshed, out / "delta")
        after = answer(refreshed / "versions" / "v2")
        _write_json(out / "answers.json", {"request": REQUEST, "v1": plain(before), "v2": plain(after)})


def _write_id_map(out: Path) -> None:
    """A map with two strings of one key, a removed id and two added ones, and the rows it gives."""
    strings = json.loads((FIXTURES / "ids_golden.json").read_text("utf-8"))["map"]["strings"]
    built, late = strings[:42], strings[42:44]
    keys, new = (hash_strings(some, SPEC.key_seed)[0] for some in (built, late))
    id_map = IdMap.build(
        keys, np.arange(42, 0, -1), table="post", key_seed=SPEC.key_seed, tail_rows=8, strings=pa.array(built)
    )
    id_map, _ = id_map.remove(keys[:1]).add(new, late)
    id_map.save(out / "ids_map")
    _write_json(out / "ids_map_rows.json", id_map.encode(strings).tolist())


def _write_graph(out: Path) -> None:
    """dense.onnx of a drawn model, inputs for one member and five candidates, and the probabilities by torch alone."""
    out.mkdir()
    shutil.copyfile(FIXTURES / "dense" / "spec.json", out / "spec.json")
    spec, numbers = FeedSpec.load(out / "spec.json"), np.random.default_rng(7)
    inputs, vectors = dict[str, NDArray[Any]](), dict[str, torch.Tensor]()
    for side, num in (("member", 1), ("candidate", 5)):
        inputs[f"{side}_dense"] = numbers.normal(size=(num, len(spec.of_kind("dense", side=side)))).astype(np.float32)
        for feature in (f for f in spec.lookups if side_of(f) == side):
            most, dim = getattr(feature, "max_length", 1), spec.table_of(feature).dim
            rows = numbers.normal(size=(num, most, dim)).astype(np.float32)
            lengths = numbers.integers(0 if most > 1 else 1, most + 1, num)
            rows[np.arange(most) >= lengths[:, None]] = 0
            pooled = rows.sum(axis=1)
            if getattr(feature, "pooling", "sum") == "mean":
                pooled /= np.maximum(lengths, 1)[:, None]
            vectors[feature.name] = torch.from_numpy(pooled).expand(5, -1)
            inputs[f"emb_{feature.name}"] = rows if most > 1 else rows[:, 0]
            if most > 1:
                inputs[f"len_{feature.name}"] = lengths
    model = _drawn(spec, ModelConfig(hidden=(8, 4), cross_rank=3), seed=2)
    calibration = Calibration(responses={"click": Platt(scale=0.8, shift=-0.3), "like": Platt(scale=1.1, shift=0.2)})
    export_dense(model, spec, calibration, out / "dense.onnx")
    calibration.save(out / "calibration.json")
    for name, values in inputs.items():
        np.save(out / f"{name}.npy", values)
    of_member, of_candidate = (torch.from_numpy(inputs[f"{side}_dense"]) for side in ("member", "candidate"))
    with torch.inference_mode():
        logits = model.eval()(vectors, of_member.expand(5, -1), of_candidate)
    np.save(out / "probability.npy", calibration.probability(logits.numpy()).astype(np.float32))


def training(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """`columns` (name and Arrow type) and a few `rows` of a training folder, as JSON values."""
    table = pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))])
    rows = [row for row in table.to_pylist() if row["impression_id"] in IMPRESSIONS]
    return {
        "columns": [{"name": field.name, "type": _type(field.type)} for field in table.schema],
        "rows": [{name: _short(value) for name, value in row.items()} for row in rows],
    }


def _type(arrow: pa.DataType) -> str:
    # How Arrow calls a list's element differs between its versions.
    return f"list<{arrow.value_type}>" if pa.types.is_list(arrow) else str(arrow)


def answer(folder: Path) -> dict[str, NDArray[Any]]:
    """Every tensor that the three steps of a version make of `REQUEST`, in process."""
    parameters = {"bundle": folder.name, "folder": str(folder), "max_candidates": "10", "threads": "1"}
    tensors: dict[str, NDArray[Any]] = {
        "member_id": np.array([str(REQUEST["member_id"]).encode()], object),
        "post_ids": np.array([post.encode() for post in REQUEST["post_ids"]], object),
    }
    for step in (TransformStep, LookupStep, DenseStep):
        tensors |= _run(step.open(parameters), tensors)
    return tensors


def plain(tensors: Tensors) -> dict[str, list[Any]]:
    """The answer to the client as JSON values."""
    return {name: _short(tensors[name].tolist()) for name in ("unknown", "probability", "score")}


def _run(step: Step[Any], tensors: Tensors) -> Tensors:
    (answered,) = step.run([tensors])
    if isinstance(answered, Exception):
        raise answered
    return answered


def _write_bundle(etl: Path, root: Path) -> None:
    manifest = Manifest(
        id="v1",
        created="2026-11-04T03:00:00Z",
        code_version="0.1.0",
        spec_digest=SPEC.digest,
        step=100,
        trained_days=("2026-11-02", "2026-11-03"),
        row_format="int8",
    )

    def build(folder: Path) -> None:
        manifest.save(folder)
        (folder / "spec.json").write_text(SPEC.dump(), "utf-8")
        for name in ("ids", "transform", "snapshot"):
            shutil.copytree(etl / name, folder / name)
        shutil.copyfile(etl / "ips.parquet", folder / "ips.parquet")
        tables = {}
        for seed, table in enumerate(SPEC.tables):
            tables[table.name] = _values(seed, IdMap.load(folder / "ids" / table.name).capacity_rows, table.dim)
            tables[table.name][0] = 0
        write_tables(folder / "tables", tables, manifest.row_format, list(tables))
        _write_dense(folder, seed=0, click=Platt(scale=0.9, shift=-0.1))
        (folder / "metrics.json").write_text("{}\n", "utf-8")
        (folder / "MODEL_CARD.md").write_text("# golden: drawn, not trained\n", "utf-8")

    publish_version(root, manifest.id, build)
    set_current(root, manifest.id)


def _write_delta(root: Path, out: Path) -> None:
    """Version v2: p0 has other values, p99 a row of its own, p3 none any more, and the dense model is another."""
    parent = open_version(root)
    p0, p3, p99 = hash_strings(["p0", "p3", "p99"], SPEC.key_seed)[0]
    row = int(IdMap.load(parent.ids("post")).lookup(np.array([p0]))[0])
    ids = IdChange(np.array([p99]), np.array([NEW_ROW]), np.array([p3]))
    write_delta(
        parent,
        "v2",
        out,
        step=110,
        created="2026-11-05T03:00:00Z",
        code_version="0.1.0",
        trained_days=("2026-11-02", "2026-11-03", "2026-11-04"),
        rows={"post": RowChange(np.array([row, NEW_ROW]), _values(9, 2, 4))},
        ids={"post": ids},
        build=lambda folder: _write_dense(folder, seed=1, click=Platt(scale=1.1, shift=0.2)),
    )


def _write_dense(folder: Path, seed: int, click: Platt) -> None:
    model = _drawn(SPEC, ModelConfig(hidden=(4,), cross_layers=1, cross_rank=2), seed)
    calibration = Calibration(responses={"click": click, "like": Platt()})
    export_dense(model, SPEC, calibration, folder / "dense.onnx")
    calibration.save(folder / "calibration.json")


def _drawn(spec: FeedSpec, config: ModelConfig, seed: int) -> DenseModel:
    model = DenseModel(spec, config)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            # By numpy, whose streams stay the same from version to version.
            parameter.copy_(torch.from_numpy(_values(100 * seed + number, *parameter.shape) / 3))
    return model


def _values(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _short(value: Any) -> Any:
    """A float32 with the digits it has, rather than those of its float64."""
    if isinstance(value, list):
        return [_short(item) for item in value]
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _write_json(path: Path, value: Mapping[str, Any] | list[Any]) -> None:
    """One row a line where there are rows: a diff shows what changed, and a person can read it."""
    if isinstance(value, list):
        text = "[\n" + ",\n".join(" " + json.dumps(row) for row in value) + "\n]\n"
    else:
        text = "{\n" + ",\n".join(f" {json.dumps(key)}: {json.dumps(item)}" for key, item in value.items()) + "\n}\n"
    path.write_text(text, "utf-8")


def main() -> None:
    """Replace the tracked fixtures."""
    with tempfile.TemporaryDirectory() as scratch:
        write(Path(scratch))
        for name in NAMES:
            old = FIXTURES / name
            if old.is_dir():
                shutil.rmtree(old)
            elif old.exists():
                old.unlink()
            shutil.move(Path(scratch) / name, old)


if __name__ == "__main__":
    main()
