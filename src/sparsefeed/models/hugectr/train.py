"""Train with HugeCTR 24.06 in NVIDIA's container, on data of `sparsefeed etl --for hugectr`.

    python train.py --spec spec.json --data DIR --plan plan.json --out OUT

Needs Python 3.10, HugeCTR and, on several hosts, mpi4py; nothing else of sparsefeed: copy this file alone. Every host
of a plan runs one process: `mpirun -np HOSTS python train.py ...` (docs/howto/hugectr.md).

Notable:
- The loss is exactly mean(w * cross entropy), though HugeCTR has no weights of samples: a response's labels have a
  column per distinct weight, -1 in all but the sample's own, and MultiCrossEntropyLoss weighs columns (hugectr.json).
  There is one loss over the columns of all responses: with an embedding collection HugeCTR computes the first alone.
- Lists come filled up with row 0. A list's sum is that of all its ids less row 0 as often as it stands there, so row 0
  may be anything, and nothing learns from it; a mean is that times 1 / length, a column of the data.
- All tables and the dense model have one optimiser, AdaGrad: the only good one that its static tables know.

Proven without a GPU only: tests run this script against a recording of HugeCTR's API, and compute what it recorded.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["main"]

_NEVER = 1 << 30  # steps


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the declaration, the data's description and the plan; train; save."""
    given = _options().parse_args(arguments)
    spec, plan, etl = (_read(path) for path in (given.spec, given.plan, given.data / "etl.json"))
    data = _read(given.data / "hugectr.json")
    _check(spec, data, plan, given)
    steps = given.epochs * data["num_rows"]["train"] // plan["batch_size"]
    run = _describe(spec, data, plan, etl, steps, given)
    if given.start_from:
        _check_weights(run, _read(given.start_from / "hugectr.json"), given.start_from)
    is_first = True
    if len(hosts := _hosts(plan)) > 1:
        print("HugeCTR 24.06 dumps tables of several hosts at wrong offsets: they can be measured, not served")
        from mpi4py import MPI  # HugeCTR wants it initialised

        is_first = MPI.COMM_WORLD.Get_rank() == 0
    import hugectr

    given.out.mkdir(parents=True, exist_ok=True)
    if is_first:  # what is stale goes, or a run that fails would be taken for whole
        for stale in (given.out / "hugectr.json", *given.out.glob("*.model")):
            stale.unlink(missing_ok=True)
        shutil.rmtree(given.out / "embeddings", ignore_errors=True)
    os.chdir(given.out)  # where HugeCTR writes
    model = _open(hugectr, data, plan, hosts, steps, given)
    _add_inputs(hugectr, model, data)
    vectors = _add_tables(hugectr, model, spec, data, plan, len(hosts))
    _add_loss(hugectr, model, data, _add_dense(hugectr, model, spec, data, plan["model"], vectors))
    model.compile()
    model.summary()
    if given.start_from:
        step = _read(given.start_from / "hugectr.json")["step"]
        model.load_dense_weights(str(given.start_from / f"model_dense_{step}.model"))
        model.embedding_load(str(given.start_from / "embeddings"))
    watched = data["num_rows"]["valid"] >= plan["batch_size"]
    every = max(1, min(given.eval_every, steps)) if watched else 0
    model.fit(max_iter=steps, display=200, eval_interval=every, snapshot=_NEVER, snapshot_prefix="model")
    model.save_params_to_files("model", steps)  # the dense model alone
    model.embedding_dump("embeddings")
    if not is_first:
        return
    if not Path("embeddings").exists() and not any(Path().glob("*.model")):
        print("nothing was written: this was a recording of HugeCTR, not HugeCTR")
        return
    _check_files(run, Path())
    beside = Path("hugectr.json.partial")
    beside.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    beside.replace("hugectr.json")  # last: the run is whole


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Train the ranker with HugeCTR.")
    parser.add_argument("--spec", type=_place, required=True, help="spec.json of the ETL")
    parser.add_argument("--data", type=_place, required=True, help="folder of `sparsefeed etl --for hugectr`")
    parser.add_argument("--plan", type=_place, required=True, help="of `sparsefeed plan --gpus N --out`")
    parser.add_argument("--out", type=_place, default=_place("hugectr"), help="folder of the model; made")
    parser.add_argument("--from", dest="start_from", type=_place, help="weights to begin with: `export --for hugectr`")
    parser.add_argument("--epochs", type=_number(int, 1), default=1)
    parser.add_argument("--learning-rate", type=_number(float, 1e-9), default=0.01, help="of AdaGrad")
    parser.add_argument(
        "--initial-gradient", type=_number(float, 0), default=0.1, help="times the batch, which AdaGrad begins with"
    )
    parser.add_argument("--warmup", type=_number(float, 0, 1), default=0.05, help="share of the steps: it rises from 0")
    parser.add_argument(
        "--decay", type=_number(float, 0, 1), default=0.0, help="share of the steps, the last: it falls"
    )
    parser.add_argument("--eval-every", type=_number(int, 1), default=1000, help="steps")
    parser.add_argument("--eval-batches", type=_number(int, 1), default=100, help="at most, each time")
    parser.add_argument("--read-threads", type=_number(int, 1), default=4, help="of each GPU")
    parser.add_argument("--seed", type=_number(int, 1), default=1)
    return parser


def _place(text: str) -> Path:
    return Path(text).resolve()  # of the folder it is started in, which is left


def _number(kind: Callable[[str], Any], least: float, most: float = float("inf")) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        value = kind(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"got {text}; allowed: {least} to {most}")
        return value

    return read


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path}: not readable: {error}") from error


def _check(spec: Any, data: Any, plan: Any, given: argparse.Namespace) -> None:
    """End with a sentence, before GPUs are asked for, where spec, data and plan do not belong together."""
    if data.get("format") != 1:
        raise SystemExit(f"{given.data}: hugectr.json is of format {data.get('format')}; this script reads 1")
    if spec != _read(given.data / "spec.json"):
        raise SystemExit(f"{given.spec}: is another spec than that of {given.data}; name its spec.json")
    if not {"model", "topology", "tables", "batch_size"} <= set(plan) or "interactions" not in plan["model"]:
        raise SystemExit(f"{given.plan}: is of another version; plan again with this version of sparsefeed")
    _check_model(spec, data, plan["model"], given.plan)
    _check_plan(spec, data["capacity_rows"], plan, given.plan)
    batch, rows = plan["batch_size"], data["num_rows"]
    if rows["train"] < batch:
        raise SystemExit(f"{given.data}: has {rows['train']} rows, a batch {batch}; plan a smaller one")
    for name in data["padded_tables"]:
        if sum(one["table"] == name and one["pooling"] != "one" for one in data["lookups"]) > 5:
            raise SystemExit(f'{given.spec}: more than 5 lists read "{name}"; HugeCTR allows 5 readers of a tensor')
    for split in ("train", "valid"):
        path, wanted = given.data / f"{split}.bin", rows[split] * data["row_bytes"]
        if wanted and (not path.is_file() or path.stat().st_size != wanted):
            raise SystemExit(f"{path}: must have {wanted} bytes; run `sparsefeed hugectr check {given.data}`")


def _check_model(spec: Any, data: Any, shape: Any, path: Path) -> None:
    """HugeCTR cannot say all that a recipe can."""
    for key, only in (("experts", 1), ("cross_residual", True)):
        if shape[key] != only:
            raise SystemExit(f"{path}: model.{key} is {shape[key]}; here it must be {only}: set it in the recipe")
    if shape["interactions"] and any(len(names) > 32 for names in _groups(spec, data)):
        raise SystemExit(f"{path}: more than 32 lookups of one width; Interaction takes 32: set model.interactions off")


def _groups(spec: Any, data: Any) -> list[list[str]]:
    """Lookups whose vectors have one width, where there are at least two; in order."""
    groups: dict[int, list[str]] = {}
    for lookup in data["lookups"]:
        groups.setdefault(_dim(spec, lookup["table"]), []).append(lookup["name"])
    return [names for names in groups.values() if len(names) > 1]


def _check_plan(spec: Any, capacity_rows: Any, plan: Any, path: Path) -> None:
    tables, planned = [(t["name"], t["dim"]) for t in spec["tables"]], [(t["name"], t["dim"]) for t in plan["tables"]]
    if planned != tables:
        raise SystemExit(f"{path}: has tables {planned}; the spec has {tables}; plan again")
    gpus, per_host = plan["topology"]["devices"], plan["topology"]["devices_per_host"]
    if plan["topology"]["kind"] != "gpu":
        raise SystemExit(f"{path}: is a plan of processes; make one with `sparsefeed plan --gpus N`")
    if gpus > per_host and gpus % per_host:
        raise SystemExit(f"{path}: {gpus} GPUs, {per_host} on a host; all hosts must have as many")
    if plan["batch_size"] % gpus:
        raise SystemExit(f"{path}: batch_size is {plan['batch_size']}; must be a multiple of {gpus} GPUs")
    for table in plan["tables"]:
        has = capacity_rows[table["name"]]
        if table["rows"] < has:
            raise SystemExit(f'{path}: table "{table["name"]}" has {table["rows"]} rows, the data {has}; plan again')


def _describe(spec: Any, data: Any, plan: Any, etl: Any, steps: int, given: argparse.Namespace) -> dict[str, Any]:
    """What a run is; tables as HugeCTR numbers them, by their first lookup."""
    parts = {table["name"]: _parts(table) for table in plan["tables"]}
    order = dict.fromkeys(lookup["table"] for lookup in data["lookups"])
    return {
        "format": 1,
        "spec_digest": data["spec_digest"],
        "etl": etl["fingerprint"],
        "step": steps,
        "model": {key: plan["model"][key] for key in ("hidden", "gate", "interactions", "cross_layers", "cross_rank")},
        "tables": [
            {"name": name, "rows": data["capacity_rows"][name], "dim": _dim(spec, name), "parts": parts[name]}
            for name in order
        ],
        "dense_floats": _dense_floats(spec, data, plan["model"]),
        "learning_rate": given.learning_rate,
        "batch_size": plan["batch_size"],
    }


def _dense_floats(spec: Any, data: Any, shape: Any) -> int:
    features = [name for name in data["dense"] if not name.startswith("_")]
    width = len(features) + sum(_dim(spec, lookup["table"]) for lookup in data["lookups"])
    pairs = sum(len(names) * (len(names) - 1) // 2 for names in _groups(spec, data)) if shape["interactions"] else 0
    floats, before = shape["cross_layers"] * (2 * width * shape["cross_rank"] + width), width + pairs
    for after in shape["hidden"]:
        floats, before = floats + (2 if shape["gate"] else 1) * (before + 1) * after, after
    return int(floats + (width + before + pairs + 1) * len(data["labels"]))


def _check_weights(run: dict[str, Any], weights: Any, folder: Path) -> None:
    """HugeCTR itself takes weights of any shape, and beyond the end of what it has."""
    for key in ("format", "spec_digest", "etl", "model", "tables", "dense_floats"):
        if weights.get(key) != run[key]:
            raise SystemExit(
                f"{folder}: {key} is {weights.get(key)}, this run has {run[key]}; export them for this run"
            )
    _check_files({**run, "step": weights["step"]}, folder)


def _check_files(run: dict[str, Any], folder: Path) -> None:
    """End where a file has another size than its run says: HugeCTR tells of a full disk by return values."""
    sizes = {folder / f"model_dense_{run['step']}.model": 4 * run["dense_floats"]}
    place, number = folder / "embeddings" / "embedding_collection_0", 0
    for table in run["tables"]:
        for _ in range(table["parts"]):
            sizes[place / f"key{number}"] = 128 + 8 * table["rows"]
            sizes[place / f"weight{number}"] = 128 + 4 * table["rows"] * table["dim"] // table["parts"]
            number += 1
    sizes[place / "meta_data"] = struct.calcsize("=5i") + 16 * number
    for path, size in sizes.items():
        if not path.is_file() or path.stat().st_size != size:
            found = path.stat().st_size if path.is_file() else "no"
            raise SystemExit(
                f"{path.resolve()}: has {found} bytes; must have {size}: the disk is full, or it is another's"
            )


def _hosts(plan: Any) -> list[list[int]]:
    """GPUs of each host, numbered on their host."""
    devices = plan["topology"]["devices"]
    per_host = min(devices, plan["topology"]["devices_per_host"])
    return [list(range(per_host)) for _ in range(devices // per_host)]


def _open(hugectr: Any, data: Any, plan: Any, hosts: list[list[int]], steps: int, given: argparse.Namespace) -> Any:
    """The model with its solver, reader and optimiser."""
    batch_size, decayed = plan["batch_size"], int(given.decay * steps)
    solver = hugectr.CreateSolver(
        model_name="feed",
        seed=given.seed,
        vvgpu=hosts,
        batchsize=batch_size,
        batchsize_eval=batch_size,
        max_eval_batches=max(1, min(given.eval_batches, data["num_rows"]["valid"] // batch_size)),
        lr=given.learning_rate,
        warmup_steps=max(1, int(given.warmup * steps)),
        decay_start=max(1, steps - decayed) if decayed else 0,  # 0: never
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
        drop_incomplete_batch=True,
        metrics_spec={hugectr.MetricsType.AverageLoss: 0.0},  # its AUC takes a sample with -1 for a label
    )
    watched = "valid" if data["num_rows"]["valid"] else "train"
    reader = hugectr.DataReaderParams(
        data_reader_type=hugectr.DataReaderType_t.RawAsync,  # an embedding collection takes no other
        source=[str(given.data / "train.bin")],
        eval_source=str(given.data / f"{watched}.bin"),
        check_type=hugectr.Check_t.Non,
        num_samples=data["num_rows"]["train"],
        eval_num_samples=data["num_rows"][watched],
        async_param=hugectr.AsyncParam(
            num_threads=given.read_threads,
            num_batches_per_thread=4,
            shuffle=True,
            multi_hot_reader=True,
            is_dense_float=True,
        ),
    )
    optimizer = hugectr.CreateOptimizer(
        optimizer_type=hugectr.Optimizer_t.AdaGrad,
        update_type=hugectr.Update_t.Global,
        initial_accu_value=(given.initial_gradient / batch_size) ** 2,
        epsilon=1e-8,
    )
    return hugectr.Model(solver, reader, optimizer)


def _add_inputs(hugectr: Any, model: Any, data: Any) -> None:
    """Declare a row: all label columns as one label, dense columns, lookups, row 0 of each table that lists read."""
    sparse = [hugectr.DataReaderSparseParam(one["name"], one["max_length"], True, 1) for one in data["lookups"]]
    sparse += [hugectr.DataReaderSparseParam(f"_padding_{name}", 1, True, 1) for name in data["padded_tables"]]
    model.add(
        hugectr.Input(
            label_dim=sum(len(label["weights"]) for label in data["labels"]),
            label_name="label",
            dense_dim=len(data["dense"]),
            dense_name="dense",
            data_reader_sparse_param_array=sparse,
        )
    )


def _add_tables(hugectr: Any, model: Any, spec: Any, data: Any, plan: Any, num_hosts: int) -> dict[str, int]:
    """One tensor `vectors` with the sums of all lookups side by side; the name and width of each, in its order."""
    tables = {
        name: hugectr.EmbeddingTableConfig(name=name, max_vocabulary_size=rows, ev_size=_dim(spec, name))
        for name, rows in data["capacity_rows"].items()
    }
    across = hugectr.CommunicationStrategy.Hierarchical if num_hosts > 1 else hugectr.CommunicationStrategy.Uniform
    collection = hugectr.EmbeddingCollectionConfig(use_exclusive_keys=True, comm_strategy=across)
    read = [(lookup["name"], lookup["table"]) for lookup in data["lookups"]]
    read += [(f"_padding_{name}", name) for name in data["padded_tables"]]
    collection.embedding_lookup(  # all at once: only then may tables be cut in columns
        table_config=[tables[table] for _, table in read],
        bottom_name=[name for name, _ in read],
        top_name="vectors",
        combiner=["sum"] * len(read),
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
    return {name: _dim(spec, table) for name, table in read}


def _parts(table: Any) -> int:
    return len(table["devices"]) if table["sharding"] == "column_wise" else 1


def _dim(spec: Any, name: str) -> int:
    return int(next(table["dim"] for table in spec["tables"] if table["name"] == name))


def _add_dense(hugectr: Any, model: Any, spec: Any, data: Any, shape: Any, vectors: dict[str, int]) -> str:
    """Pooling, cross network, dot products and gated layers; the name of the logits, a column per response."""
    kind, layers = hugectr.Layer_t, _Layers(hugectr, model)
    layers.cut("vectors", [(f"{name}_sum", width) for name, width in vectors.items()])
    features = [name for name in data["dense"] if not name.startswith("_")]
    columns = [("features", len(features))] if features else []
    columns += [(name, 1) for name in data["dense"] if name.startswith(("_pads_", "_inverse_"))]
    if columns:  # else `_none` alone, which nothing reads
        layers.cut("dense", columns)
    pooled_of: dict[str, str] = {}
    for lookup in data["lookups"]:
        name, width = lookup["name"], vectors[lookup["name"]]
        pooled = layers.name(f"{name}_sum")
        if lookup["pooling"] != "one":
            # Scale's own gradient is of its first copy alone, but nothing is learnt from a length.
            pads = layers.add(kind.Scale, [layers.name(f"_pads_{name}")], [f"{name}_pads"], axis=0, factor=float(width))
            padding = f"_padding_{lookup['table']}_sum"
            filled = layers.add(kind.ElementwiseMultiply, [padding, pads], [f"{name}_padding"])
            pooled = layers.add(kind.Sub, [pooled, filled], [f"{name}_own"])
        if lookup["pooling"] == "mean":
            share = layers.add(kind.Scale, [f"_inverse_{name}"], [f"{name}_share"], axis=0, factor=float(width))
            pooled = layers.add(kind.ElementwiseMultiply, [pooled, share], [f"{name}_mean"])
        pooled_of[name] = pooled
    x0 = layers.joined([*([layers.name("features")] if features else []), *pooled_of.values()], "x0")
    dots = _add_dots(kind, layers, spec, data, pooled_of) if shape["interactions"] else []
    crossed = x0
    if shape["cross_layers"]:
        settings = {"num_layers": shape["cross_layers"], "projection_dim": shape["cross_rank"]}
        crossed = layers.add(kind.MultiCross, [x0], ["cross"], **settings)
    deep = layers.joined([x0, *dots], "seen")
    for number, width in enumerate(shape["hidden"]):
        value = layers.add(kind.InnerProduct, [deep], [f"value{number}"], num_output=width)
        if shape["gate"]:  # relu(v) * sigmoid(g) == relu(v * sigmoid(g)): the product must not meet relu's zeros
            gate = layers.add(kind.InnerProduct, [deep], [f"gate{number}"], num_output=width)
            gate = layers.add(kind.Sigmoid, [gate], [f"gate{number}_open"])
            value = layers.add(kind.ElementwiseMultiply, [value, gate], [f"gated{number}"])
        deep = layers.add(kind.ReLU, [value], [f"deep{number}"])
        if shape["dropout"]:
            deep = layers.add(kind.Dropout, [deep], [f"kept{number}"], dropout_rate=shape["dropout"])
    both, num = layers.joined([crossed, deep, *dots], "both"), len(data["labels"])
    matches = _add_matches(kind, layers, spec, data, pooled_of) if dots else []
    if not matches:
        return layers.add(kind.InnerProduct, [both], ["logits"], num_output=num)
    sums = layers.add(kind.ReduceSum, [layers.joined(matches, "matches")], ["match"], axis=1)
    if num > 1:
        copies = [f"match{number}" for number in range(num)]
        layers.add(kind.Slice, [sums], copies, ranges=[(0, 1)] * num)
        sums = layers.joined(copies, "match_sums")
    return layers.add(kind.Add, [layers.add(kind.InnerProduct, [both], ["head"], num_output=num), sums], ["logits"])


def _add_dots(kind: Any, layers: _Layers, spec: Any, data: Any, pooled_of: dict[str, str]) -> list[str]:
    """Dot products of all pairs of vectors of one width; Interaction puts its first bottom before, and a 0 behind."""
    dots = []
    for number, names in enumerate(_groups(spec, data)):
        first, *others = [pooled_of[name] for name in names]
        width = next(_dim(spec, lookup["table"]) for lookup in data["lookups"] if lookup["name"] == names[0])
        flat = layers.joined(others, f"others{number}")
        rows = layers.add(kind.Reshape, [flat], [f"vectors{number}"], leading_dim=width, time_step=len(others))
        products = layers.add(kind.Interaction, [first, rows], [f"products{number}"])
        pairs = len(names) * (len(names) - 1) // 2
        dots.append(layers.add(kind.Slice, [products], [f"dots{number}"], ranges=[(width, width + pairs)]))
    return dots


def _add_matches(kind: Any, layers: _Layers, spec: Any, data: Any, pooled_of: dict[str, str]) -> list[str]:
    """Vectors whose sums are the dot products of the member's own ids with the candidate's: a product of two sums."""
    features, matches = {feature["name"]: feature for feature in spec["features"]}, []
    for number, names in enumerate(_groups(spec, data)):
        sides = []
        for side in ("member", "candidate"):
            own = [n for n in names if features[n]["kind"] != "history" and features[n]["side"] == side]
            sides.append([pooled_of[name] for name in own])
        if not all(sides):
            continue
        sums = [
            vectors[0] if len(vectors) == 1 else layers.add(kind.Add, vectors, [f"{side}_ids{number}"])
            for side, vectors in zip(("member", "candidate"), sides, strict=True)
        ]
        matches.append(layers.add(kind.ElementwiseMultiply, sums, [f"matches{number}"]))
    return matches


def _add_loss(hugectr: Any, model: Any, data: Any, logits: str) -> None:
    """Mean over responses of mean over rows of w * cross entropy: a column per weight, each a copy of the logit.

    MultiCrossEntropyLoss divides by rows and columns, and leaves out labels below 0.
    """
    layers, labels = _Layers(hugectr, model), data["labels"]
    owners = [number for number, label in enumerate(labels) for _ in label["weights"]]
    weights = [weight for label in labels for weight in label["weights"]]
    columns = logits
    if len(owners) > 1:
        tops = [f"logit{column}" for column in range(len(owners))]
        layers.add(hugectr.Layer_t.Slice, [logits], tops, ranges=[(number, number + 1) for number in owners])
        columns = layers.joined(tops, "logit_columns")
    scaled = [len(owners) * weight / len(labels) for weight in weights]
    layers.add(hugectr.Layer_t.MultiCrossEntropyLoss, [columns, "label"], ["loss"], target_weight_vec=scaled)


class _Layers:
    """Adds layers to a model; a layer's first top is what the next one reads."""

    def __init__(self, hugectr: Any, model: Any) -> None:
        self._hugectr, self._model = hugectr, model
        self._names: dict[str, str] = {}

    def add(self, kind: Any, bottoms: list[str], tops: list[str], **settings: Any) -> str:
        bottoms = [self.name(bottom) for bottom in bottoms]
        self._model.add(self._hugectr.DenseLayer(layer_type=kind, bottom_names=bottoms, top_names=tops, **settings))
        return tops[0]

    def joined(self, names: list[str], top: str) -> str:
        return names[0] if len(names) == 1 else self.add(self._hugectr.Layer_t.Concat, names, [top])

    def cut(self, bottom: str, columns: list[tuple[str, int]]) -> None:
        """Cut a tensor in columns of these names and widths; one that is all of it keeps the tensor's name."""
        if len(columns) == 1:
            self._names[columns[0][0]] = bottom
            return
        ends = [sum(width for _, width in columns[: number + 1]) for number in range(len(columns))]
        ranges = list(zip([0, *ends[:-1]], ends, strict=True))
        self.add(self._hugectr.Layer_t.Slice, [bottom], [name for name, _ in columns], ranges=ranges)

    def name(self, name: str) -> str:
        """Of the tensor that holds what was cut under this name."""
        return self._names.get(name, name)


if __name__ == "__main__":
    main()
