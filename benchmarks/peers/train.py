"""The same training by others: one epoch over rows that lie in memory; prints JSON.

    python train.py PEER FOLDER MODEL    reads FOLDER/train/*.parquet and FOLDER/spec.json; MODEL is JSON

Imports nothing of sparsefeed. Reading and making batches is not timed for a peer, though ours reads parquet as it
trains. Two threads, matrix products in bf16 where the library lets its caller say so. Plain PyTorch takes a GPU where
there is one; its batches lie there then.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.nn import functional as F

THREADS = 2
Columns = dict[str, Any]


def read(folder: Path) -> tuple[dict[str, Any], pa.Table]:
    """The declaration and all rows."""
    spec = json.loads((folder / "spec.json").read_text())
    table = pa.concat_tables([pq.read_table(path) for path in sorted((folder / "train").glob("*.parquet"))])
    return spec, table.combine_chunks()


def lookups(spec: dict[str, Any]) -> dict[str, str]:
    """Table of each lookup feature."""
    tables = {f["name"]: f["table"] for f in spec["features"] if f["kind"] in ("id", "ids")}
    return {
        f["name"]: tables[f["of"]] if f["kind"] == "history" else f["table"]
        for f in spec["features"]
        if f["kind"] in ("id", "ids", "history")
    }


def capacities(folder: Path) -> dict[str, int]:
    """Rows of each table."""
    return dict(json.loads((folder / "etl.json").read_text())["capacity_rows"])


class Net(nn.Module):
    """The same gated DCN-v2 on `nn.functional.embedding_bag` with sparse gradients."""

    def __init__(self, spec: dict[str, Any], model: dict[str, Any], rows: dict[str, int]) -> None:
        super().__init__()
        self.of = lookups(spec)
        dims = {t["name"]: t["dim"] for t in spec["tables"]}
        self.tables = nn.ParameterDict({name: torch.rand(rows[name], dim) * 0.1 - 0.05 for name, dim in dims.items()})
        width = sum(f["kind"] == "dense" for f in spec["features"]) + sum(dims[t] for t in self.of.values())
        rank, layers = model["cross_rank"], range(model["cross_layers"])
        self.project = nn.ModuleList(nn.Linear(width, rank, bias=False) for _ in layers)
        self.expand = nn.ModuleList(nn.Linear(rank, width) for _ in layers)
        widths = [width, *model["hidden"]]
        self.gated = nn.ModuleList(nn.Linear(a, 2 * b) for a, b in pairwise(widths))
        self.head = nn.Linear(width + widths[-1], len(spec["responses"]))

    def forward(self, dense: Tensor, bags: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
        pooled = [
            F.embedding_bag(ids, self.tables[self.of[name]], offsets, mode="mean", sparse=True)
            for name, (ids, offsets) in bags.items()
        ]
        with torch.autocast(dense.device.type, torch.bfloat16):
            x0 = x = h = torch.cat([dense, *pooled], dim=1)
            for project, expand in zip(self.project, self.expand, strict=True):
                x = x0 * expand(project(x)) + x
            for layer in self.gated:
                value, gate = layer(h).chunk(2, dim=1)
                h = torch.relu(value) * torch.sigmoid(gate)
            return self.head(torch.cat([x, h], dim=1)).float()


def plain_torch(folder: Path, model: dict[str, Any], batch_size: int) -> dict[str, float]:
    """nn.functional.embedding_bag with sparse gradients, Adagrad for the tables, Adam for the rest."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    spec, table = read(folder)
    net = Net(spec, model, capacities(folder)).to(device)
    dense_names = [f["name"] for f in spec["features"] if f["kind"] == "dense"]
    batches = []
    for start in range(0, table.num_rows, batch_size):
        part = table.slice(start, batch_size)
        bags = {}
        for name in net.of:
            column = part[name].combine_chunks()
            if pa.types.is_list(column.type):
                lengths = np.diff(column.offsets.to_numpy())
                offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
                bags[name] = torch.tensor(column.flatten().to_numpy()), torch.from_numpy(offsets)
            else:
                bags[name] = torch.tensor(column.to_numpy()), torch.arange(len(part))
        dense = torch.tensor(np.stack([part[name].to_numpy() for name in dense_names], axis=1))
        labels = torch.tensor(np.stack([part[f"y_{r['name']}"].to_numpy() for r in spec["responses"]], axis=1))
        bags = {name: (ids.to(device), offsets.to(device)) for name, (ids, offsets) in bags.items()}
        batches.append((dense.to(device), bags, labels.to(device)))
    dense_parameters = [p for name, p in net.named_parameters() if not name.startswith("tables.")]
    adam = torch.optim.Adam(dense_parameters, lr=2e-3)
    adagrad = torch.optim.Adagrad(net.tables.values(), lr=0.05)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    started = 0.0
    for step, (dense, bags, labels) in enumerate([batches[0], *batches]):
        if step == 1:  # the first is a rehearsal
            wait()
            started = time.perf_counter()
        loss = F.binary_cross_entropy_with_logits(net(dense, bags), labels)
        adam.zero_grad()
        adagrad.zero_grad()
        loss.backward()
        adam.step()
        adagrad.step()
    wait()
    return {"samples_per_s": table.num_rows / (time.perf_counter() - started), "loss": float(loss.detach())}


def merlin_models(folder: Path, model: dict[str, Any], batch_size: int) -> dict[str, float]:
    """DLRM of merlin.models.torch, fed by merlin.dataloader from a dataset in memory; one response."""
    import merlin.models.torch as mm
    from merlin.dataloader.torch import Loader
    from merlin.io import Dataset
    from merlin.schema import ColumnSchema, Schema, Tags

    spec, table = read(folder)
    of, rows = lookups(spec), capacities(folder)
    dense = [f["name"] for f in spec["features"] if f["kind"] == "dense"]
    lists = {name for name in of if pa.types.is_list(table[name].type)}
    columns = [ColumnSchema(name, tags=[Tags.CONTINUOUS], dtype=np.float32) for name in dense]
    for name, of_table in of.items():
        # A domain of its own for each feature: a table that several features read is one off in 23.12.
        domain = {"domain": {"min": 0, "max": rows[of_table] - 1, "name": name}}
        columns.append(
            ColumnSchema(
                name, tags=[Tags.CATEGORICAL], dtype=np.int64, is_list=name in lists, is_ragged=name in lists,
                properties=domain,
            )
        )  # fmt: skip
    target = ColumnSchema(
        f"y_{spec['responses'][0]['name']}", tags=[Tags.BINARY_CLASSIFICATION, Tags.TARGET], dtype=np.float32
    )
    schema, dim = Schema([*columns, target]), spec["tables"][0]["dim"]
    frame = table.select([column.name for column in schema]).to_pandas()
    loader = Loader(Dataset(frame, schema=schema), batch_size=batch_size, shuffle=False)
    net = mm.DLRMModel(
        Schema(columns),
        dim=dim,
        bottom_block=mm.MLPBlock([*model["hidden"], dim]),
        top_block=mm.MLPBlock(model["hidden"]),
        output_block=mm.BinaryOutput(target),
    )
    net.initialize(loader)
    optimiser = torch.optim.Adagrad(net.parameters(), lr=0.05)
    started, num = 0.0, 0
    for step, (inputs, targets) in enumerate(loader):
        if step == 1:
            started = time.perf_counter()
        loss = mm.models.base.compute_loss(net(inputs), targets, net.model_outputs())["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        num += batch_size if step else 0
    return {"samples_per_s": num / (time.perf_counter() - started), "loss": float(loss.detach())}


def deepctr_torch(folder: Path, model: dict[str, Any], batch_size: int) -> dict[str, float]:
    """DCN-v2's mixture form (one expert, low rank) of deepctr-torch, lists padded as it asks; one response."""
    from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat
    from deepctr_torch.models import DCNMix

    spec, table = read(folder)
    of, rows, dim = lookups(spec), capacities(folder), spec["tables"][0]["dim"]
    most = {f["name"]: f["max_length"] for f in spec["features"] if f["kind"] in ("ids", "history")}
    inputs: Columns = {}
    features: list[Any] = []
    for name, of_table in of.items():
        sparse = SparseFeat(name, rows[of_table], embedding_dim=dim, embedding_name=of_table)
        column = table[name].combine_chunks()
        if name not in most:
            features.append(sparse)
            inputs[name] = column.to_numpy()
            continue
        offsets = column.offsets.to_numpy()
        padded = np.zeros((table.num_rows, most[name]), np.int64)
        lengths = np.diff(offsets)
        place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        padded[np.repeat(np.arange(table.num_rows), lengths), place] = column.flatten().to_numpy()
        features.append(VarLenSparseFeat(sparse, maxlen=most[name], combiner="mean"))
        inputs[name] = padded
    for name in (f["name"] for f in spec["features"] if f["kind"] == "dense"):
        features.append(DenseFeat(name, 1))
        inputs[name] = table[name].to_numpy()
    net = DCNMix(
        features, features, cross_num=model["cross_layers"], dnn_hidden_units=model["hidden"],
        low_rank=model["cross_rank"], num_experts=1, device="cpu",
    )  # fmt: skip
    net.compile("adagrad", "binary_crossentropy")
    labels = table[f"y_{spec['responses'][0]['name']}"].to_numpy()
    head = {name: values[:batch_size] for name, values in inputs.items()}
    net.fit(head, labels[:batch_size], batch_size=batch_size, epochs=1, verbose=0, shuffle=False)
    started = time.perf_counter()
    history = net.fit(inputs, labels, batch_size=batch_size, epochs=1, verbose=0, shuffle=False)
    return {"samples_per_s": len(labels) / (time.perf_counter() - started), "loss": float(history.history["loss"][-1])}


PEERS: dict[str, Callable[[Path, dict[str, Any], int], dict[str, float]]] = {
    "torch": plain_torch,
    "merlin-models": merlin_models,
    "deepctr-torch": deepctr_torch,
}

if __name__ == "__main__":
    name, where, shape = sys.argv[1:]
    torch.set_num_threads(THREADS)
    settings = json.loads(shape)
    result = PEERS[name](Path(where), settings, settings["batch_size"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({**result, "peak_bytes": peak}))
