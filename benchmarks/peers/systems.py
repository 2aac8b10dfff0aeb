"""A bundle's fitted workflow and dense.onnx as an ensemble of merlin-systems, in its own tritonserver; prints JSON.

    python systems.py BUNDLE LOGS OUT PERF_ANALYZER [CANDIDATES ...]

BUNDLE is a version's folder, LOGS what it was made from (for the ids' strings), OUT is emptied for the repository. The
ensemble is as merlin-systems' examples have it: the features of the member and of the candidates go through a
TransformWorkflow each, and an operator predicts. What a user would have to bring:

- The workflows are MapIds and Standardise of sparsefeed as fitted, so that rows and numbers are equal, then AsNumpy.
- merlin-systems serves PyTorch and TensorFlow by Triton's backends for them, which no wheel for a CPU has. So the model
  is an operator, as its documentation has a user write one; it runs in the ensemble's process, which spares a hop.
- Features come with the request. An example takes them from Feast: one more service, and slower.

Text is declared as numpy's objects: a column of Merlin's own type for text fails between two models of the ensemble.
`difference` is the greatest one from the probabilities of our own steps over the same requests.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import nvtabular as nvt
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
from merlin.dag import BaseOperator, ColumnSelector, DataFormats
from merlin.schema import ColumnSchema, Schema
from merlin.systems.dag import Ensemble
from merlin.systems.dag.ops.workflow import TransformWorkflow
from merlin.table import TensorTable
from tritonclient import grpc

from sparsefeed.etl import frame
from sparsefeed.etl.ids.id_map import IdMap
from sparsefeed.etl.ids.keys import hash_strings
from sparsefeed.etl.ops.map_ids import MapIds
from sparsefeed.etl.ops.standardise import Standardise
from sparsefeed.etl.plan import ServingPlan
from sparsefeed.etl.snapshot import Snapshot
from sparsefeed.etl.spec import FeedSpec, IdListFeature
from sparsefeed.models.store.rows import dequantise
from sparsefeed.workflows.measure import real_requests
from sparsefeed.workflows.serving.config import ServingConfig
from sparsefeed.workflows.serving.perf import parse_csv
from sparsefeed.workflows.serving.runtime import TritonRuntime
from sparsefeed.workflows.serving.server import TritonServer
from sparsefeed.workflows.serving.steps.dense import open_graph
from sparsefeed.workflows.serving.steps.state import SideState
from sparsefeed.workflows.serving.steps.transform import TransformStep

SIDES = ("member", "candidate")
NUM_REQUESTS, WINDOW = 50, 200
ENSEMBLE = "executor_model"
START_S = 180


class AsNumpy(BaseOperator):
    """Arrow's columns, which sparsefeed's operators give, as numpy's: TensorTable.from_df takes no others."""

    def transform(self, col_selector: ColumnSelector, transformable: pd.DataFrame) -> pd.DataFrame:
        """A list is an array in a column of objects, as pandas 1.5 has them."""
        return pd.DataFrame(
            {name: frame.arrow(column).to_numpy(zero_copy_only=False) for name, column in transformable.items()}
        )

    @property
    def supported_formats(self) -> DataFormats:
        """Frames alone."""
        return DataFormats.PANDAS_DATAFRAME


class PredictOnnx(BaseOperator):
    """Rows of ids and standardised numbers -> probabilities: the tables in memory, dense.onnx by onnxruntime."""

    def __init__(self, folder: Path, plan: ServingPlan, responses: list[str], input_schema: Schema) -> None:
        super().__init__()
        self.folder, self.plan, self.responses, self.inputs = str(folder), plan, responses, input_schema
        self.tables: dict[str, Any] = {}
        self.graph: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"tables": {}, "graph": None}

    def load_artifacts(self, artifact_path: str = "") -> None:
        """Read the tables and the graph, once."""
        index = json.loads((Path(self.folder) / "tables" / "tables.json").read_text("utf-8"))
        for table in index["tables"]:
            rows = np.load(Path(self.folder) / "tables" / f"{table['name']}.npy")
            self.tables[table["name"]] = dequantise(rows, table["row_format"])
        self.graph = open_graph(Path(self.folder) / "dense.onnx", 1, self.plan)

    def compute_input_schema(
        self, root_schema: Schema, parents_schema: Schema, deps_schema: Schema, selector: Any
    ) -> Schema:
        return self.inputs

    def compute_output_schema(self, input_schema: Schema, col_selector: Any, prev_output_schema: Any = None) -> Schema:
        return Schema([ColumnSchema(name, dtype=np.float32) for name in self.responses])

    def transform(self, col_selector: ColumnSelector, transformable: TensorTable) -> TensorTable:
        """Columns of one member [1] and of the candidates [n] -> a column a response [n]."""
        inputs: dict[str, Any] = {}
        for side, dense in (("member", self.plan.member_dense), ("candidate", self.plan.candidate_dense)):
            if dense.names:
                columns = [transformable[name].values.reshape(-1) for name in dense.names]
                inputs[f"{side}_dense"] = np.stack(columns, axis=1).astype(np.float32)
        for item in self.plan.lookups:
            column, table = transformable[item.name], self.tables[item.table]
            if item.kind == "id":
                inputs[f"emb_{item.name}"] = table[column.values.reshape(-1)]
                continue
            lengths = np.diff(column.offsets).astype(np.int64)
            rows = np.zeros((len(lengths), item.max_length), np.int64)
            rows[np.arange(item.max_length) < lengths[:, None]] = column.values.reshape(-1)
            inputs[f"emb_{item.name}"], inputs[f"len_{item.name}"] = table[rows], lengths
        probability = self.graph(inputs)
        return TensorTable({name: np.ascontiguousarray(probability[:, r]) for r, name in enumerate(self.responses)})


def side_workflow(spec: FeedSpec, folder: Path, plan: ServingPlan, side: str) -> nvt.Workflow:
    """The fitted operators over one side's raw columns; a history comes as the list of its ids."""
    tables = {item.name: item for item in plan.lookups}
    map_ids = MapIds(spec, folder)
    map_ids.features = tuple(
        IdListFeature(kind="ids", name=f.name, side="member", table=tables[f.name].table, max_length=f.max_length)
        if f.kind == "history"
        else f
        for f in spec.lookups
        if tables[f.name].side == side
    )
    map_ids.maps = {table.name: IdMap.load(folder / "ids" / table.name) for table in spec.tables}
    dense = plan.member_dense if side == "member" else plan.candidate_dense
    standardise = Standardise(spec, dict(zip(dense.names, zip(dense.mean, dense.std, strict=True), strict=True)))
    standardise.features = tuple(f for f in spec.dense if f.name in dense.names)
    graph = map_ids.columns >> map_ids
    if standardise.features:
        graph = graph + (standardise.columns >> standardise)
    workflow = nvt.Workflow(graph >> AsNumpy())
    columns = [
        ColumnSchema(f.name, dtype=np.dtype("O"), is_list=f.kind != "id", is_ragged=f.kind != "id")
        for f in map_ids.features
    ]
    columns += [ColumnSchema(name, dtype=np.float32) for name in dense.names]
    workflow.graph.construct_schema(Schema(columns))
    return workflow


def export(spec: FeedSpec, plan: ServingPlan, folder: Path, out: Path) -> None:
    """Write the repository."""
    workflows = {side: side_workflow(spec, folder, plan, side) for side in SIDES}
    transformed = [workflow.input_schema.column_names >> TransformWorkflow(workflow) for workflow in workflows.values()]
    predicted = Schema([column for workflow in workflows.values() for column in workflow.output_schema])
    responses = [r.name for r in spec.responses]
    graph = (transformed[0] + transformed[1]) >> PredictOnnx(folder, plan, responses, predicted)
    schema = Schema([column for workflow in workflows.values() for column in workflow.input_schema])
    Ensemble(graph, schema).export(str(out))


class Requests:
    """Members and posts as the tensors that the ensemble takes: raw features as the bundle's snapshot has them."""

    def __init__(self, spec: FeedSpec, plan: ServingPlan, folder: Path, logs: Path) -> None:
        self.spec, self.plan, self.logs = spec, plan, logs
        self.snapshot = Snapshot.load(folder / "snapshot")
        self.strings = self._strings()

    def _strings(self) -> dict[int, str]:
        """Of every key that the logs have; the snapshot has keys alone."""
        found: dict[int, str] = {}
        names = [f.name for f in self.spec.of_kind("id", "ids")]
        table = ds.dataset(str(self.logs / "impressions"), format="parquet").to_table(columns=names)
        for name in names:
            column = table[name].combine_chunks()
            strings = (column.flatten() if pa.types.is_list(column.type) else column).unique().drop_null()
            keys, _ = hash_strings(strings, self.plan.key_seed)
            found |= zip(keys.tolist(), strings.to_pylist(), strict=True)
        return found

    def tensors(self, member: str, posts: list[str]) -> dict[str, np.ndarray]:
        """Name -> array, lists as values and offsets."""
        out: dict[str, np.ndarray] = {}
        for side, ids, own, dense, snapshot in (
            ("member", [member], self.plan.member, self.plan.member_dense, self.snapshot.member),
            ("candidate", posts, self.plan.post, self.plan.candidate_dense, self.snapshot.post),
        ):
            lookups = tuple(item for item in self.plan.lookups if item.side == side)
            keys, _ = hash_strings(ids, self.plan.key_seed)
            wanted = {item.name: np.zeros((len(ids), item.max_length), np.uint64) for item in lookups}
            state = SideState.read(snapshot, own, keys, lookups, wanted)
            out |= {name: np.ascontiguousarray(state.dense[:, i]) for i, name in enumerate(dense.names)}
            for item in lookups:
                inside = np.arange(item.max_length) < state.lengths[item.name][:, None]
                values = [self.strings.get(key, "") for key in state.keys[item.name][inside].tolist()]
                if item.kind == "id":
                    out[item.name] = np.array(values, object)
                else:
                    out[f"{item.name}__values"] = np.array(values, object)
                    out[f"{item.name}__offsets"] = np.r_[0, np.cumsum(state.lengths[item.name])].astype(np.int32)
        return out


class Server(TritonServer):
    """A tritonserver of whatever models lie in a repository."""

    def __init__(self, repository: Path) -> None:
        http, grpc_port, metrics = free_ports(3)
        super().__init__(
            repository, [], ServingConfig(http_port=http, grpc_port=grpc_port, metrics_port=metrics), timeout_s=START_S
        )
        self._models = sorted(path.name for path in repository.iterdir())


def free_ports(num: int) -> list[int]:
    """Ports that nothing listens on now."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(num)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def ask(client: grpc.InferenceServerClient, tensors: dict[str, np.ndarray], responses: list[str]) -> np.ndarray:
    """Probabilities [n, R] of one request."""
    types = {"O": "BYTES", "f": "FP32", "i": "INT32"}
    inputs = []
    for name, values in tensors.items():
        given = grpc.InferInput(name, list(values.shape), types[values.dtype.kind])
        given.set_data_from_numpy(values)
        inputs.append(given)
    answer = client.infer(ENSEMBLE, inputs)
    return np.stack([answer.as_numpy(name).reshape(-1) for name in responses], axis=1)


def ours(step: TransformStep, predict: PredictOnnx, plan: ServingPlan, member: str, posts: list[str]) -> np.ndarray:
    """The same by our own steps, in this process."""
    ids = {"member_id": [member.encode()], "post_ids": [post.encode() for post in posts]}
    (given,) = step.compute([step.check({name: np.array(some, object) for name, some in ids.items()})])
    rows = {"member": 1, "candidate": len(posts)}
    cuts = np.split(given["KEYS"][0], np.cumsum(given["NUMKEYS"][0])[:-1])
    inputs = {n: a for n, a in given.items() if n.endswith("_dense") or n.startswith("len_")}
    for table, keys in zip(plan.tables, cuts, strict=True):
        start = 0
        for item in (item for item in plan.lookups if item.table == table.name):
            size = rows[item.side] * item.max_length
            shape = (rows[item.side], *(() if item.kind == "id" else (item.max_length,)), table.dim)
            inputs[f"emb_{item.name}"] = predict.tables[table.name][keys[start : start + size]].reshape(shape)
            start += size
    return np.asarray(predict.graph(inputs))


def analyse(program: str, grpc_url: str, scratch: Path, requests: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    """perf_analyzer's latencies over gRPC, one request in flight, measured as our own server is."""
    runtime, libraries = TritonRuntime.find(), scratch / "libraries"
    if not libraries.exists():
        runtime.link_libraries(libraries)
    data = [{n: {"content": v.tolist(), "shape": list(v.shape)} for n, v in request.items()} for request in requests]
    (scratch / "requests.json").write_text(json.dumps({"data": data}), "utf-8")
    command = [program, "-m", ENSEMBLE, "-u", grpc_url, "-i", "grpc", "--verbose-csv"]
    command += ["--input-data", str(scratch / "requests.json"), "--concurrency-range", "1"]
    command += ["--measurement-mode", "count_windows", "--measurement-request-count", str(WINDOW), "--max-trials", "3"]
    command += ["-s", "999", "--percentile", "95", "-f", str(scratch / "loads.csv")]
    done = subprocess.run(command, env=runtime.environment(libraries), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"perf_analyzer: ended with {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}")
    (load,) = parse_csv((scratch / "loads.csv").read_text("utf-8"))
    return {"p50_ms": load.p50_ms, "p95_ms": load.p95_ms, "p99_ms": load.p99_ms, "requests_per_s": load.requests_per_s}


def main() -> None:
    """Export, serve, compare, measure."""
    folder, logs, out, program = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    candidates = [int(word) for word in sys.argv[5:]] or [100, 500]
    spec, plan = FeedSpec.load(folder / "spec.json"), ServingPlan.load(folder / "transform" / "plan.json")
    responses = [r.name for r in spec.responses]
    shutil.rmtree(out, ignore_errors=True)
    export(spec, plan, folder, out)
    requests = Requests(spec, plan, folder, logs)
    step = TransformStep.open({"bundle": "peer", "folder": str(folder), "max_candidates": str(max(candidates))})
    predict = PredictOnnx(folder, plan, responses, Schema())
    predict.load_artifacts()
    found: dict[str, Any] = {"loads": []}
    with tempfile.TemporaryDirectory(prefix="sparsefeed-systems-") as scratch, Server(out) as server:
        for num in candidates:
            chosen = real_requests(spec, logs, num, NUM_REQUESTS)
            tensors = [requests.tensors(member, posts) for member, posts in chosen]
            with grpc.InferenceServerClient(server.grpc_url) as client:
                answers = [ask(client, some, responses) for some in tensors]
            apart = [
                np.abs(answer - ours(step, predict, plan, *request)).max()
                for answer, request in zip(answers, chosen, strict=True)
            ]
            load = analyse(program, server.grpc_url, Path(scratch), tensors)
            found["loads"].append({"candidates": num, "difference": float(max(apart)), **load})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
