"""Train with HugeCTR 24.06 in NVIDIA's container, on data of `sparsefeed etl --for hugectr`.

    python train.py --spec spec.json --data DIR --plan plan.json --out OUT

Needs Python 3.10, HugeCTR and, on several hosts, mpi4py; nothing else of sparsefeed: copy this file alone. Every host
of a plan runs one process: `mpirun -np HOSTS python train.py ...` (docs/howto/hugectr.md).

Notable:
- The loss is exactly mean(w * cross entropy), though HugeCTR has no weights of samples: a response's labels have a
  column per distinct weight, -1 in all but the sample's own, and MultiCrossEntropyLoss weighs columns (hugectr.json).
- A mean is a sum times 1 / length, a column of the data: HugeCTR's `average` divides an empty list by 0.
- All tables and the dense model have one optimiser, AdaGrad: the only good one that its static tables know.

Proven without a GPU only: tests run this script against a recording of HugeCTR's API, and compute what it recorded.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the declaration, the data's description and the plan; train; save."""
    given = _options().parse_args(arguments)
    spec, plan, etl = (_read(path) for path in (given.spec, given.plan, given.data / "etl.json"))
    data = _read(given.data / "hugectr.json")
    _check(spec, data, plan, given)
    given.out.mkdir(parents=True, exist_ok=True)
    os.chdir(given.out)  # where HugeCTR writes
    hosts = _hosts(plan)
    if len(hosts) > 1:
        from mpi4py import MPI  # noqa: F401  HugeCTR wants it initialised
    import hugectr

    steps = max(1, given.epochs * data["num_rows"]["train"] // plan["batch_size"])
    model = _open(hugectr, data, plan, hosts, steps, given)
    _add_inputs(hugectr, model, data)
    _add_tables(hugectr, model, spec, data, plan, len(hosts))
    _add_losses(hugectr, model, data, _add_dense(hugectr, model, spec, data, plan["model"]))
    model.compile()
    model.summary()
    if given.start_from:
        model.load_dense_weights(
            str(given.start_from / f"model_dense_{_read(given.start_from / 'hugectr.json')['step']}.model")
        )
        model.embedding_load(str(given.start_from / "embeddings"))
    evaluated = max(1, min(given.eval_every, steps))
    model.fit(max_iter=steps, display=200, eval_interval=evaluated, snapshot=steps + 1, snapshot_prefix="model")
    model.save_params_to_files("model", steps)  # the dense model alone
    model.embedding_dump("embeddings")
    parts = {table["name"]: _parts(table) for table in plan["tables"]}
    said = {
        "format": 1,
        "spec_digest": data["spec_digest"],
        "etl": etl["fingerprint"],
        "step": steps,
        "model": {name: plan["model"][name] for name in ("hidden", "gate", "cross_layers", "cross_rank")},
        "tables": [
            {"name": name, "rows": data["capacity_rows"][name], "dim": _dim(spec, name), "parts": parts[name]}
            for name in dict.fromkeys(lookup["table"] for lookup in data["lookups"])  # as HugeCTR numbers them
        ],
        "learning_rate": given.learning_rate,
        "batch_size": plan["batch_size"],
    }
    Path("hugectr.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")  # last: the run is whole


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Train the ranker with HugeCTR.")
    place = _place
    parser.add_argument("--spec", type=place, required=True, help="spec.json of the ETL")
    parser.add_argument("--data", type=place, required=True, help="folder of `sparsefeed etl --for hugectr`")
    parser.add_argument("--plan", type=place, required=True, help="plan.json of `sparsefeed plan --gpus N --out`")
    parser.add_argument("--out", type=place, default=_place("hugectr"), help="folder of the model; made")
    parser.add_argument(
        "--from", dest="start_from", type=place, help="weights to begin with, of `export --for hugectr`"
    )
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=0.01, help="of AdaGrad")
    parser.add_argument("--warmup", type=float, default=0.05, help="share of the steps over which it rises from 0")
    parser.add_argument("--decay", type=float, default=0.0, help="share of the steps, the last, over which it falls")
    parser.add_argument("--eval-every", type=int, default=1000, help="steps")
    parser.add_argument("--eval-batches", type=int, default=100, help="at most, of held-out rows, each time")
    parser.add_argument("--seed", type=int, default=1)
    return parser


def _place(text: str) -> Path:
    return Path(text).resolve()  # of the folder it is started in, which is left


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path}: not readable: {error}") from error


def _check(spec: Any, data: Any, plan: Any, given: argparse.Namespace) -> None:
    """End with a sentence, before GPUs are asked for, where the three do not belong together."""
    tables, planned = [table["name"] for table in spec["tables"]], [table["name"] for table in plan["tables"]]
    if planned != tables:
        raise SystemExit(f"{given.plan}: has tables {planned}; the spec has {tables}; plan again")
    if list(data["capacity_rows"]) != tables:
        raise SystemExit(
            f"{given.data}: has tables {list(data['capacity_rows'])}; the spec has {tables}; another ETL's"
        )
    gpus = plan["topology"]["devices"]
    if plan["topology"]["kind"] != "gpu":
        raise SystemExit(f"{given.plan}: is a plan of processes; make one with `sparsefeed plan --gpus N`")
    for table in plan["tables"]:
        if table["dim"] > 256:
            raise SystemExit(f'{given.plan}: table "{table["name"]}" has dim {table["dim"]}; HugeCTR allows 256')
        if table["rows"] < data["capacity_rows"][table["name"]]:
            raise SystemExit(
                f'{given.plan}: table "{table["name"]}" is planned with {table["rows"]} rows, the data has '
                f"{data['capacity_rows'][table['name']]}; plan again"
            )
    if plan["batch_size"] % gpus:
        raise SystemExit(f"{given.plan}: batch_size is {plan['batch_size']}; must be a multiple of {gpus} GPUs")
    if data["num_files"]["train"] < gpus:
        raise SystemExit(
            f"{given.data}: has {data['num_files']['train']} training files for {gpus} GPUs, and each GPU reads files "
            f"of its own; set etl.min_files to {gpus} and run the ETL again"
        )


def _hosts(plan: Any) -> list[list[int]]:
    """GPUs of each host, numbered on their host."""
    devices, per_host = plan["topology"]["devices"], plan["topology"]["devices_per_host"]
    return [list(range(min(per_host, devices - first))) for first in range(0, devices, per_host)]


def _open(hugectr: Any, data: Any, plan: Any, hosts: list[list[int]], steps: int, given: argparse.Namespace) -> Any:
    """The model with its solver, reader and optimiser."""
    gpus, batch_size = sum(len(host) for host in hosts), plan["batch_size"]
    decayed, watched = int(given.decay * steps), "valid" if data["num_files"]["valid"] else "train"
    solver = hugectr.CreateSolver(
        model_name="feed",
        seed=given.seed,
        vvgpu=hosts,
        batchsize=batch_size,
        batchsize_eval=batch_size,
        max_eval_batches=max(1, min(given.eval_batches, data["num_rows"][watched] // batch_size)),
        lr=given.learning_rate,
        warmup_steps=max(1, int(given.warmup * steps)),
        decay_start=steps - decayed if decayed else 0,
        decay_steps=max(1, decayed),
        decay_power=1.0,
        end_lr=0.0,
        repeat_dataset=True,
        i64_input_key=True,
        use_embedding_collection=True,
        use_mixed_precision=False,  # MultiCrossEntropyLoss has no 16-bit form
        enable_tf32_compute=True,
        grouped_all_reduce=True,
        use_cuda_graph=True,
        metrics_spec={hugectr.MetricsType.AUC: 1.0},  # 1.0: never stop for it
    )
    lists = {split: _file_list(given.data / split, f"{split}_files.txt") for split in ("train", watched)}
    reader = hugectr.DataReaderParams(
        data_reader_type=hugectr.DataReaderType_t.Parquet,
        source=[lists["train"]],
        eval_source=lists[watched],
        check_type=hugectr.Check_t.Non,
        num_workers=gpus,
    )
    optimizer = hugectr.CreateOptimizer(
        optimizer_type=hugectr.Optimizer_t.AdaGrad,
        update_type=hugectr.Update_t.Global,
        initial_accu_value=0.0,
        epsilon=1e-8,
    )
    return hugectr.Model(solver, reader, optimizer)


def _file_list(folder: Path, path: str) -> str:
    """List a split's files by full path, as the process may run anywhere; the metadata lie beside them."""
    listed = (folder / "_file_list.txt").read_text(encoding="utf-8").split("\n")[1:]
    names = [str(folder.resolve() / name) for name in listed if name]
    Path(path).write_text("\n".join([str(len(names)), *names]) + "\n", encoding="utf-8")
    return path


def _add_inputs(hugectr: Any, model: Any, data: Any) -> None:
    """Declare the columns: labels in the order of their names, which HugeCTR cuts them by, then dense, then ids."""
    sparse = [
        hugectr.DataReaderSparseParam(lookup["name"], lookup["max_length"], not lookup["is_list"], 1)
        for lookup in data["lookups"]
    ]
    model.add(
        hugectr.Input(
            label_dims=[len(label["weights"]) for label in data["labels"]],
            label_names=[label["name"] for label in data["labels"]],
            dense_dim=len(data["dense"]) + len(data["inverse_lengths"]),
            dense_name="dense",
            data_reader_sparse_param_array=sparse,
        )
    )


def _add_tables(hugectr: Any, model: Any, spec: Any, data: Any, plan: Any, num_hosts: int) -> None:
    tables = {
        name: hugectr.EmbeddingTableConfig(name=name, max_vocabulary_size=rows, ev_size=_dim(spec, name))
        for name, rows in data["capacity_rows"].items()
    }
    across = hugectr.CommunicationStrategy.Hierarchical if num_hosts > 1 else hugectr.CommunicationStrategy.Uniform
    collection = hugectr.EmbeddingCollectionConfig(use_exclusive_keys=True, comm_strategy=across)
    for lookup in data["lookups"]:
        collection.embedding_lookup(
            table_config=tables[lookup["table"]],
            bottom_name=lookup["name"],
            top_name=f"{lookup['name']}_rows",
            combiner="sum",
        )
    matrix: list[list[str]] = [[] for _ in range(plan["topology"]["devices"])]
    sharded: list[Any] = []
    for table in plan["tables"]:
        for device in table["devices"] or range(len(matrix)):
            matrix[device].append(table["name"])
        if table["sharding"] != "data_parallel":
            parts = _parts(table)
            sharded.append((table["name"], parts) if parts > 1 else table["name"])
    replicated = [table["name"] for table in plan["tables"] if table["sharding"] == "data_parallel"]
    strategy = [(kind, names) for kind, names in (("mp", sharded), ("dp", replicated)) if names]
    collection.shard(shard_matrix=matrix, shard_strategy=strategy)
    model.add(collection)


def _parts(table: Any) -> int:
    return len(table["devices"]) if table["sharding"] == "column_wise" else 1


def _dim(spec: Any, name: str) -> int:
    return int(next(table["dim"] for table in spec["tables"] if table["name"] == name))


def _add_dense(hugectr: Any, model: Any, spec: Any, data: Any, shape: Any) -> str:
    """Pooling, cross network and gated layers; the name of the logits, a column per response."""
    kind, layers = hugectr.Layer_t, _Layers(hugectr, model)
    means, num_dense = data["inverse_lengths"], len(data["dense"])
    features, inverses = [], {}
    if means:
        tops, ranges = (
            [f"{name}_inverse" for name in means],
            [(num_dense + i, num_dense + i + 1) for i in range(len(means))],
        )
        if num_dense:
            tops, ranges, features = ["features", *tops], [(0, num_dense), *ranges], ["features"]
        layers.add(kind.Slice, ["dense"], tops, ranges=ranges)
        inverses = dict(zip(means, tops[-len(means) :], strict=False))
    elif num_dense:
        features = ["dense"]
    for lookup in data["lookups"]:
        name, dim = lookup["name"], _dim(spec, lookup["table"])
        pooled = layers.add(kind.Reshape, [f"{name}_rows"], [f"{name}_sum"], leading_dim=dim)
        if name in inverses:
            # Scale's own gradient is of its first copy alone, but nothing is learnt from a length.
            spread = layers.add(kind.Scale, [inverses[name]], [f"{name}_spread"], axis=0, factor=float(dim))
            pooled = layers.add(kind.ElementwiseMultiply, [pooled, spread], [f"{name}_mean"])
        features.append(pooled)
    x0 = layers.joined(features, "x0")
    crossed = x0
    if shape["cross_layers"]:
        crossed = layers.add(
            kind.MultiCross, [x0], ["cross"], num_layers=shape["cross_layers"], projection_dim=shape["cross_rank"]
        )
    deep = x0
    for number, width in enumerate(shape["hidden"]):
        value = layers.add(kind.InnerProduct, [deep], [f"value{number}"], num_output=width)
        if shape["gate"]:  # relu(v) * sigmoid(g) == relu(v * sigmoid(g)): the product must not meet relu's zeros
            gate = layers.add(kind.InnerProduct, [deep], [f"gate{number}"], num_output=width)
            gate = layers.add(kind.Sigmoid, [gate], [f"gate{number}_open"])
            value = layers.add(kind.ElementwiseMultiply, [value, gate], [f"gated{number}"])
        deep = layers.add(kind.ReLU, [value], [f"deep{number}"])
    both = layers.joined([crossed, deep], "both")
    return layers.add(kind.InnerProduct, [both], ["logits"], num_output=len(data["labels"]))


def _add_losses(hugectr: Any, model: Any, data: Any, logits: str) -> None:
    """Mean over responses of mean over rows of w * cross entropy: a column per weight, each a copy of the logit.

    MultiCrossEntropyLoss divides by rows and columns, and leaves out labels below 0.
    """
    layers, labels = _Layers(hugectr, model), data["labels"]
    copies = [
        [f"logit{number}_{column}" for column in range(len(label["weights"]))] for number, label in enumerate(labels)
    ]
    ranges = [(number, number + 1) for number, names in enumerate(copies) for _ in names]
    if len(ranges) > 1:
        layers.add(hugectr.Layer_t.Slice, [logits], [name for names in copies for name in names], ranges=ranges)
    else:
        copies = [[logits]]
    for number, label in enumerate(labels):
        columns = layers.joined(copies[number], f"logit{number}")
        weights = [len(label["weights"]) * weight / len(labels) for weight in label["weights"]]
        layers.add(
            hugectr.Layer_t.MultiCrossEntropyLoss,
            [columns, label["name"]],
            [f"loss{number}"],
            target_weight_vec=weights,
        )


class _Layers:
    """Adds layers to a model; a layer's first top is what the next one reads."""

    def __init__(self, hugectr: Any, model: Any) -> None:
        self._hugectr, self._model = hugectr, model

    def add(self, kind: Any, bottoms: list[str], tops: list[str], **settings: Any) -> str:
        self._model.add(self._hugectr.DenseLayer(layer_type=kind, bottom_names=bottoms, top_names=tops, **settings))
        return tops[0]

    def joined(self, names: list[str], top: str) -> str:
        return names[0] if len(names) == 1 else self.add(self._hugectr.Layer_t.Concat, names, [top])


if __name__ == "__main__":
    main()
