"""A module `hugectr` that records what a script asks of it, and refuses what HugeCTR would refuse or train wrongly.

Made from api.json: names, types, defaults and overloads of HugeCTR's Python bindings, read in its source, and the
rules of its graph. It computes nothing; twin.py computes what it recorded.
"""

from __future__ import annotations

import difflib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from sparsefeed.models.hugectr.formats import DumpedTable, write_dense, write_dump

API = json.loads((Path(__file__).parent / "api.json").read_text("utf-8"))
RELEASES = ("24.06", "25.03")


class Mistake(TypeError):
    """A call that HugeCTR would refuse, or take and train something else."""


@dataclass(frozen=True)
class Member:
    """A member of an enumeration."""

    enum: str
    name: str


@dataclass
class Recorded:
    """An object that a script made: its class and its arguments, defaults filled in; `given` are the script's own."""

    kind: str
    arguments: dict[str, Any]
    given: frozenset[str] = frozenset()
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]


Shape = tuple[int, ...]


@dataclass
class Layer:
    kind: str
    bottoms: list[str]
    tops: list[str]
    settings: dict[str, Any]


@dataclass
class Graph:
    """What was added to a model."""

    solver: Recorded
    reader: Recorded
    optimizer: Recorded
    input: Recorded | None = None
    labels: list[str] = field(default_factory=list)
    tables: dict[str, Recorded] = field(default_factory=dict)
    lookups: list[dict[str, Any]] = field(default_factory=list)
    shards: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, int] = field(default_factory=dict)  # of a table's columns
    layers: list[Layer] = field(default_factory=list)
    shapes: dict[str, Shape] = field(default_factory=dict)  # of tensors, without the batch
    consumers: dict[str, list[str]] = field(default_factory=dict)
    across: Member | None = None  # how hosts share vectors
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  # of the model, after `add`

    @property
    def num_gpus(self) -> int:
        return sum(len(host) for host in self.solver["vvgpu"])

    def called(self, name: str) -> list[dict[str, Any]]:
        return [arguments for called, arguments in self.calls if called == name]


def bind(what: str, overloads: Sequence[Sequence[dict[str, Any]]], given: tuple, named: dict[str, Any]) -> Recorded:
    """The arguments of a call as the first overload that takes them has them."""
    reasons = []
    for overload in overloads:
        names = [argument["name"] for argument in overload]
        values = dict(zip(names, given, strict=False)) | named
        reason = ""
        if len(given) > len(names):
            reason = f"takes {len(names)} arguments, got {len(given)}"
        for name in named:
            if name not in names:
                near = difflib.get_close_matches(name, names, 1)
                reason = f"has no argument {name}" + (f", but {near[0]}" if near else "")
        for argument in overload if not reason else ():
            if argument.get("required") and argument["name"] not in values:
                reason = f"needs {argument['name']}"
            elif argument["name"] in values and not fits(argument.get("type"), values[argument["name"]]):
                reason = f"{argument['name']} = {values[argument['name']]!r} is no {argument['type']}"
        if not reason:
            defaults = {a["name"]: default_of(a) for a in overload if "default" in a}
            return Recorded(what, defaults | values, frozenset(values))
        reasons.append(reason)
    raise Mistake(f"{what}: {' | '.join(dict.fromkeys(reasons))}")


def default_of(argument: dict[str, Any]) -> Any:
    value = argument["default"]
    if not isinstance(value, dict) or "__cpp__" not in value:
        return value
    named = re.fullmatch(r"(?:.*::)?(\w+)::(\w+)", value["__cpp__"])
    return Member(*named.groups()) if named else None


def fits(kind: str | None, value: Any) -> bool:
    """Whether pybind would take a value for an argument of this type."""
    if kind is None:
        return True
    parts = split_top(kind, "|")
    if len(parts) > 1:
        return any(fits(part, value) for part in parts)
    kind = parts[0]
    if kind.startswith("Optional["):
        return value is None
    generic = re.fullmatch(r"(list|dict|tuple)\[(.*)\]", kind)
    if generic:
        inner = split_top(generic[2], ",")
        if generic[1] == "list":
            return isinstance(value, list | tuple) and all(fits(inner[0], one) for one in value)
        if generic[1] == "dict":
            return isinstance(value, dict) and all(fits(inner[0], k) and fits(inner[1], v) for k, v in value.items())
        return isinstance(value, list | tuple) and len(value) == len(inner) and all(map(fits, inner, value))
    if kind.startswith('"'):
        return bool(value == kind.strip('"'))
    plain = {"int": int, "float": (int, float), "bool": bool, "str": str}
    if kind in plain:
        return isinstance(value, plain[kind]) and (kind == "bool" or not isinstance(value, bool))
    if kind in API["enums"]:
        return isinstance(value, Member) and value.enum == kind
    if kind in API["classes"]:
        return isinstance(value, Recorded) and value.kind == kind
    raise NotImplementedError(f"the stub has no type {kind}")


def split_top(text: str, mark: str) -> list[str]:
    """Split at a mark that stands in no bracket."""
    parts, depth, start = [], 0, 0
    for at, sign in enumerate(text):
        depth += (sign in "[(") - (sign in "])")
        if sign == mark and not depth:
            parts.append(text[start:at].strip())
            start = at + 1
    return [*parts, text[start:].strip()]


class Stub:
    """The module and what was recorded through it."""

    def __init__(self, release: str) -> None:
        self.graphs: list[Graph] = []
        self.module = ModuleType("hugectr")
        missing = set()
        if release == "25.03":
            missing = {line.split()[1].rstrip(":") for line in API["differences_24.06_vs_25.03"]}
        for name, enum in API["enums"].items():
            if "." not in name and name not in missing:
                members = {value: Member(name, value) for value in enum["values"]}
                setattr(self.module, name, type(name, (), members))
        for name, described in API["classes"].items():
            if "." not in name and name not in missing:
                setattr(self.module, name, self._maker(name, described))
        for name, described in API["functions"].items():
            kind = {"CreateSolver": "Solver", "CreateOptimizer": "OptParamsPy"}.get(name)
            if kind:
                setattr(self.module, name, self._function(name, kind, described["args"]))

    @property
    def graph(self) -> Graph:
        (graph,) = self.graphs
        return graph

    def _function(self, name: str, kind: str, arguments: list[dict[str, Any]]) -> Any:
        def call(*given: Any, **named: Any) -> Recorded:
            made = bind(name, [arguments], given, named)
            made.kind = kind
            if kind == "Solver":
                check_solver(made)
            return made

        return call

    def _maker(self, name: str, described: dict[str, Any]) -> Any:
        stub = self

        class Made(Recorded):
            def __init__(self, *given: Any, **named: Any) -> None:
                if not described["init"]:
                    raise Mistake(f"{name}: cannot be made in Python")
                bound = bind(name, described["init"], given, named)
                super().__init__(name, bound.arguments, bound.given)
                if name == "Model":
                    self.graph = Graph(bound["solver"], bound["reader_params"], bound["opt_params"])
                    stub.graphs.append(self.graph)
                if name == "DataReaderParams":
                    check_reader(self)

            def __getattr__(self, method: str) -> Any:
                if method not in described["methods"]:
                    raise AttributeError(f"{name} has no {method}")

                def call(*given: Any, **named: Any) -> Any:
                    bound = bind(f"{name}.{method}", described["methods"][method], given, named)
                    self.calls.append((method, bound.arguments))
                    if name == "Model":
                        return call_model(self.graph, method, bound)
                    return None

                return call

        return Made


def check_solver(solver: Recorded) -> None:
    gpus = sum(len(host) for host in solver["vvgpu"])
    for name in ("batchsize", "batchsize_eval"):
        if solver[name] % gpus:
            raise Mistake(f"CreateSolver: {name} {solver[name]} is no multiple of {gpus} GPUs")
    if solver["use_mixed_precision"] and solver["enable_tf32_compute"]:
        raise Mistake("CreateSolver: use_mixed_precision and enable_tf32_compute exclude each other")


def check_reader(reader: Recorded) -> None:
    if reader["data_reader_type"].name in ("Norm", "Raw"):
        raise Mistake(f"DataReaderParams: {reader['data_reader_type'].name} is deprecated and throws")
    if reader["slot_size_array"]:
        raise Mistake("DataReaderParams: slot_size_array adds offsets to keys; it must be empty with a collection")


def call_model(graph: Graph, method: str, bound: Recorded) -> None:
    if method == "add":
        (added,) = (value for value in bound.arguments.values() if isinstance(value, Recorded))
        {"Input": add_input, "EmbeddingCollectionConfig": add_tables, "DenseLayer": add_layer}[added.kind](graph, added)
        return
    if method == "compile":
        check_graph(graph)
    elif method in ("summary", "fit", "embedding_load", "load_dense_weights") and not graph.called("compile"):
        raise Mistake(f"Model.{method}: the model is not compiled")
    if method == "fit" and graph.solver["repeat_dataset"] == bool(bound["num_epochs"]):
        raise Mistake("Model.fit: repeat_dataset takes max_iter, without it num_epochs")
    if method in ("embedding_dump", "embedding_load") and bound["table_names"]:
        raise Mistake(f"Model.{method}: table_names writes wrong ids in 24.06")
    graph.calls.append((method, bound.arguments))
    if method == "save_params_to_files":
        floats = sum(int(np.prod(shape)) for layer in graph.layers for shape in parameter_shapes(graph, layer))
        write_dense(Path(f"{bound['prefix']}_dense_{bound['iter']}.model"), [np.zeros(floats, np.float32)])
    if method == "embedding_dump":
        shutil.rmtree(bound["path"], ignore_errors=True)
        write_dump(Path(bound["path"]), [
            DumpedTable(number, np.arange(rows), np.zeros((rows, width), np.float32))
            for number, (rows, width) in enumerate(dumped(graph))
        ])  # fmt: skip


def dumped(graph: Graph) -> list[tuple[int, int]]:
    """Rows and width of what a dump has: tables by their first lookups, a table's parts one after the other."""
    order = dict.fromkeys(lookup["table_config"]["name"] for lookup in graph.lookups)
    found = []
    for name in order:
        table, parts = graph.tables[name], graph.parts[name]
        found += [(table["max_vocabulary_size"], table["ev_size"] // parts)] * parts
    return found


def parameter_shapes(graph: Graph, layer: Layer) -> list[tuple[int, ...]]:
    """In the order a `.model` file has them."""
    width = graph.shapes[layer.bottoms[0]][-1]
    if layer.kind == "InnerProduct":
        return [(width, layer.settings["num_output"]), (layer.settings["num_output"],)]
    if layer.kind == "MultiCross":
        rank = layer.settings["projection_dim"]
        return [(width, rank), (rank, width), (width,)] * layer.settings["num_layers"]
    return []


def new_tensor(graph: Graph, name: str, shape: Shape, by: str) -> None:
    if name in graph.shapes:
        raise Mistake(f"{by}: there is a tensor {name} already")
    graph.shapes[name], graph.consumers[name] = shape, []


def add_input(graph: Graph, added: Recorded) -> None:
    names = graph.labels = added.arguments.get("label_names") or [added["label_name"]]
    widths = added.arguments.get("label_dims") or [added["label_dim"]]
    if names != sorted(names):
        raise Mistake(f"Input: labels {names} are cut in the order of their names, columns come in the files' order")
    if len(names) != len(widths):
        raise Mistake("Input: label_names and label_dims differ in length")
    if min(widths) < 1 or added["dense_dim"] < 1:
        raise Mistake("Input: the reader of raw files wants a label and a dense column at least")
    for name, width in zip(names, widths, strict=True):
        new_tensor(graph, name, (width,), "Input")
    new_tensor(graph, added["dense_name"], (added["dense_dim"],), "Input")
    for sparse in added["data_reader_sparse_param_array"]:
        if sparse["slot_num"] != 1:
            raise Mistake(f"Input: {sparse['top_name']}: slot_num must be 1 with a collection")
        if not sparse["is_fixed_length"]:
            raise Mistake(f"Input: {sparse['top_name']}: the reader of raw files has lists of one length alone")
    graph.input = added


def add_tables(graph: Graph, added: Recorded) -> None:
    if not graph.solver["use_embedding_collection"]:
        raise Mistake("EmbeddingCollectionConfig: needs use_embedding_collection")
    reader = graph.reader["data_reader_type"].name
    if reader != "RawAsync" or not graph.reader["async_param"] or not graph.reader["async_param"]["multi_hot_reader"]:
        raise Mistake(
            f"EmbeddingCollectionConfig: throws at the first step with {reader}; needs the multi-hot RawAsync"
        )
    rules, tables = API["embedding"], graph.tables
    sparse = {one["top_name"]: one for one in graph.input["data_reader_sparse_param_array"]}
    lookups = [call for method, call in added.calls if method == "embedding_lookup"]
    at_once = isinstance(lookups[0]["table_config"], list)
    if at_once and len(lookups) > 1:
        raise Mistake("embedding_lookup: with lists it must be the only call")
    for call in spread(lookups[0]) if at_once else lookups:
        table = call["table_config"]
        if tables.setdefault(table["name"], table) is not table:
            raise Mistake(f"embedding_lookup: two tables are called {table['name']}")
        if call["bottom_name"] not in sparse:
            raise Mistake(f"embedding_lookup: no input {call['bottom_name']}")
        if call["combiner"] not in rules["ebc_combiners"]:
            raise Mistake(f"embedding_lookup: combiner {call['combiner']!r}; allowed: {rules['ebc_combiners']}")
        if call["combiner"] == "average":
            raise Mistake(f"embedding_lookup: {call['bottom_name']}: the average counts padding, too")
        if table["ev_size"] > rules["ev_size_max"]:
            raise Mistake(f"EmbeddingTableConfig: {table['name']}: ev_size {table['ev_size']} > {rules['ev_size_max']}")
        static = table["max_vocabulary_size"] > 0
        allowed = rules["static_table_optimizers" if static else "dynamic_table_optimizers"]
        if graph.optimizer["optimizer_type"].name not in allowed:
            raise Mistake(f"table {table['name']}: {graph.optimizer['optimizer_type'].name} is none of {allowed}")
        if not at_once:
            new_tensor(graph, call["top_name"], (1, table["ev_size"]), "embedding_lookup")
        graph.lookups.append(call)
    if at_once:
        width = sum(call["table_config"]["ev_size"] for call in graph.lookups)
        new_tensor(graph, lookups[0]["top_name"], (width,), "embedding_lookup")
    shards = [call for method, call in added.calls if method == "shard"]
    if len(shards) != 1:
        raise Mistake("EmbeddingCollectionConfig: shard must be called once")
    check_shards(graph, shards[0], tables, at_once)
    graph.shards, graph.across = shards[0], added["comm_strategy"]


def spread(call: dict[str, Any]) -> list[dict[str, Any]]:
    """The lookups of a call with lists."""
    names = ("table_config", "bottom_name", "combiner")
    if len({len(call[name]) for name in names}) > 1:
        raise Mistake("embedding_lookup: table_config, bottom_name and combiner differ in length")
    return [
        {**dict(zip(names, values, strict=True)), "top_name": call["top_name"]}
        for values in zip(*(call[name] for name in names), strict=True)
    ]


def check_shards(graph: Graph, shards: dict[str, Any], tables: dict[str, Recorded], at_once: bool) -> None:
    matrix, seen = shards["shard_matrix"], []
    if len(matrix) != graph.num_gpus:
        raise Mistake(f"shard: a matrix of {len(matrix)} rows for {graph.num_gpus} GPUs")
    for kind, names in shards["shard_strategy"]:
        for entry in names:
            name, parts = (entry, 1) if isinstance(entry, str) else entry
            if name not in tables:
                raise Mistake(f"shard: no table {name}")
            on = sum(name in row for row in matrix)
            if not on or (kind == "dp" and on != len(matrix)):
                raise Mistake(f"shard: {name} ({kind}) is on {on} of {len(matrix)} GPUs")
            if tables[name]["ev_size"] % parts or on % parts or (kind == "dp" and parts > 1):
                raise Mistake(f"shard: {name} cannot be cut in {parts} columns on {on} GPUs")
            if parts > 1 and not at_once:
                raise Mistake(f"shard: {name}: columns are cut wrongly unless all lookups are made at once")
            graph.parts[name] = parts
            seen.append(name)
    if sorted(seen) != sorted(tables):
        raise Mistake(f"shard: has {sorted(seen)}, the collection {sorted(tables)}")
    if unknown := {name for row in matrix for name in row} - set(tables):
        raise Mistake(f"shard: no table {sorted(unknown)}")


def add_layer(graph: Graph, added: Recorded) -> None:
    kind = added["layer_type"].name
    rule = API["layers"][kind]
    bottoms, tops = added["bottom_names"], added["top_names"]
    by = f"{kind} {', '.join(tops[:3])}"
    for names, (low, high), what in ((bottoms, rule["bottoms"], "bottoms"), (tops, rule["tops"], "tops")):
        if len(names) < low or (high is not None and len(names) > high):
            raise Mistake(f"{by}: {len(names)} {what}; takes {low} to {high}")
    settings = {name: added[name] for name in added.given - {"layer_type", "bottom_names", "top_names"}}
    for name in rule["required_kwargs"]:
        if name not in settings:
            raise Mistake(f"{by}: needs {name}")
    for name in settings:
        if name not in (*rule["required_kwargs"], *rule["optional_kwargs"]):
            raise Mistake(f"{by}: {name} does nothing for {kind}")
    if graph.solver["use_mixed_precision"] and not rule["mixed_precision"]:
        raise Mistake(f"{by}: has no form of 16 bits")
    for name in bottoms:
        if name not in graph.shapes:
            raise Mistake(f"{by}: no tensor {name}")
        graph.consumers[name].append(by)
    shapes = [graph.shapes[name] for name in bottoms]
    for name, shape in zip(tops, shapes_of(by, kind, shapes, added, graph, bottoms), strict=True):
        new_tensor(graph, name, shape, by)
    graph.layers.append(Layer(kind, bottoms, tops, settings))


def shapes_of(
    by: str, kind: str, shapes: list[Shape], added: Recorded, graph: Graph, bottoms: list[str]
) -> list[Shape]:
    first = shapes[0]
    if kind == "InnerProduct":
        return [(*first[:-1], added["num_output"])]
    if kind in ("ReLU", "Sigmoid", "MultiCross", "Dropout"):
        return [first]
    if kind == "Reshape" and "time_step" in added.given:
        wanted = (added["time_step"], added["leading_dim"])
        if size(wanted) != size(first):
            raise Mistake(f"{by}: {wanted} of {size(first)} floats changes the batch")
        return [wanted]
    if kind == "Interaction":
        rows, width = shapes[1]
        if first != (width,):
            raise Mistake(f"{by}: joins {shapes}; must be a vector and vectors of one width")
        if rows + 1 > 32:
            raise Mistake(f"{by}: {rows + 1} vectors; its backward pass is right up to 32")
        return [(width + (rows + 1) * rows // 2 + 1,)]
    if kind == "ReduceSum":
        if added["axis"] != 1 or len(first) != 1:
            raise Mistake(f"{by}: axis {added['axis']} of {first}; here it sums columns")
        return [(1,)]
    if kind == "Reshape":
        if added["leading_dim"] != size(first):
            raise Mistake(f"{by}: leading_dim {added['leading_dim']} of {size(first)} floats changes the batch")
        return [(added["leading_dim"],)]
    if kind == "Concat":
        if {len(shape) for shape in shapes} != {1}:
            raise Mistake(f"{by}: joins {shapes}; reshape them to one dimension first")
        return [(sum(shape[0] for shape in shapes),)]
    if kind == "Slice":
        ranges = added["ranges"]
        if len(ranges) != len(added["top_names"]):
            raise Mistake(f"{by}: {len(ranges)} ranges for {len(added['top_names'])} tops")
        for (low, high), (before, after) in zip(ranges, [(0, 0), *ranges], strict=False):
            if not 0 <= low < high <= first[-1] or low < before or high < after:
                raise Mistake(f"{by}: range {low, high} of {first[-1]} columns; they must rise")
        return [(high - low,) for low, high in ranges]
    if kind in ("ElementwiseMultiply", "Add", "Sub"):
        if len(set(shapes)) > 1:
            raise Mistake(f"{by}: shapes {shapes} differ")
        return [first]
    if kind == "Scale":
        if learns(graph, bottoms[0]):
            raise Mistake(f"{by}: the gradient of Scale is of its first copy alone, and {bottoms[0]} learns")
        return [(first[0] * int(added["factor"]),)]
    if kind in ("BinaryCrossEntropyLoss", "MultiCrossEntropyLoss"):
        if any(layer.kind.endswith("Loss") for layer in graph.layers):
            raise Mistake(f"{by}: with a collection the first loss alone is computed")
        if bottoms[1] not in graph.labels:
            raise Mistake(f"{by}: {bottoms[1]} is no label; bottoms are prediction and label")
        if shapes[0] != shapes[1]:
            raise Mistake(f"{by}: prediction {shapes[0]}, label {shapes[1]}")
        if kind == "BinaryCrossEntropyLoss" and first != (1,):
            raise Mistake(f"{by}: takes one column, got {first}")
        if kind == "MultiCrossEntropyLoss" and len(added["target_weight_vec"]) != first[0]:
            raise Mistake(f"{by}: {len(added['target_weight_vec'])} weights for {first[0]} columns")
        return [(1,)]
    raise NotImplementedError(f"the stub has no shapes of {kind}")


def size(shape: Shape) -> int:
    count = 1
    for one in shape:
        count *= one
    return count


def learns(graph: Graph, tensor: str) -> bool:
    """Whether a tensor comes of any parameter."""
    if tensor in {lookup["top_name"] for lookup in graph.lookups}:
        return True
    for layer in graph.layers:
        if tensor in layer.tops:
            return bool(API["layers"][layer.kind]["trainable"]) or any(learns(graph, name) for name in layer.bottoms)
    return False


def check_graph(graph: Graph) -> None:
    losses = {top for layer in graph.layers if layer.kind.endswith("Loss") for top in layer.tops}
    labels = set(graph.labels)
    if not losses:
        raise Mistake("compile: no loss")
    for name, consumers in graph.consumers.items():
        if not consumers and name in labels:
            raise Mistake(f"compile: label {name} has no loss")
        if not consumers and name not in losses and name != graph.input["dense_name"]:
            raise Mistake(f"compile: nothing takes {name}: its values would be taken for its gradient")
        if len(consumers) > API["max_consumers_per_tensor"]:
            raise Mistake(f"compile: {len(consumers)} layers take {name}; at most {API['max_consumers_per_tensor']}")
