"""A tiny feed whose bundles are made of numpy parts, and the truth about them in plain Python."""

from __future__ import annotations

import datetime
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from sparsefeed.etl.ids.id_map import IdMap
from sparsefeed.etl.ids.keys import hash_strings
from sparsefeed.etl.plan import DensePlan, LookupPlan, ServingPlan, TablePlan
from sparsefeed.etl.snapshot import Snapshot, SnapshotSide
from sparsefeed.etl.spec import FeedSpec, side_of
from sparsefeed.models.bundle import Manifest, publish_version, set_current
from sparsefeed.models.store.store import write_tables

SPEC = FeedSpec.parse(
    {
        "name": "tiny",
        "tables": [
            {"name": "member", "dim": 4, "tail_rows": 4},
            {"name": "hashtag", "dim": 4, "tail_rows": 4},
            {"name": "post", "dim": 8, "tail_rows": 8},
            {"name": "creator", "dim": 4, "tail_rows": 4},
        ],
        "features": [
            {"kind": "id", "name": "member_id", "table": "member", "side": "member"},
            {"kind": "dense", "name": "age", "side": "member", "fill": 30.0},
            {
                "kind": "ids",
                "name": "interests",
                "table": "hashtag",
                "side": "member",
                "pooling": "sum",
                "max_length": 2,
            },
            {"kind": "id", "name": "post_id", "table": "post", "side": "candidate"},
            {"kind": "id", "name": "creator_id", "table": "creator", "side": "candidate"},
            {"kind": "ids", "name": "hashtags", "table": "hashtag", "side": "candidate", "max_length": 3},
            {"kind": "dense", "name": "views", "side": "candidate", "log": True},
            {"kind": "dense", "name": "quality", "side": "candidate", "fill": 0.5},
            {"kind": "history", "name": "liked", "of": "post_id", "response": "like", "max_length": 4},
        ],
        "responses": [
            {"name": "like", "column": "like", "score_weight": 1.0},
            {"name": "comment", "column": "comment", "score_weight": 2.5},
        ],
        "key_seed": 7,
    }
)
STATISTICS = {"age": (40.0, 10.0), "views": (2.0, 1.5), "quality": (0.4, 0.2)}  # mean, std
WIDTH = sum(SPEC.table_of(f).dim for f in SPEC.lookups) + len(SPEC.dense)
RESPONSES = [response.name for response in SPEC.responses]


def plan() -> ServingPlan:
    """The serving plan of SPEC with the statistics above."""

    def dense(side: str) -> DensePlan:
        features = [f for f in SPEC.dense if f.side == side]
        return DensePlan(
            names=tuple(f.name for f in features),
            fill=tuple(f.fill for f in features),
            log=tuple(f.log for f in features),
            mean=tuple(STATISTICS[f.name][0] for f in features),
            std=tuple(STATISTICS[f.name][1] for f in features),
        )

    return ServingPlan(
        name=SPEC.name,
        spec_digest=SPEC.digest,
        key_seed=SPEC.key_seed,
        tables=tuple(TablePlan(table.name, table.dim) for table in SPEC.tables),
        lookups=tuple(
            LookupPlan(
                f.name,
                f.kind,
                side_of(f),
                SPEC.table_of(f).name,
                getattr(f, "max_length", 1),
                getattr(f, "pooling", "sum"),
            )
            for f in SPEC.lookups
        ),
        member_dense=dense("member"),
        candidate_dense=dense("candidate"),
        member=SPEC.logs.member,
        post=SPEC.logs.post,
        responses=tuple(RESPONSES),
        score_weights=tuple(r.score_weight for r in SPEC.responses),
    )


@dataclass(frozen=True)
class Feed:
    """One bundle's content as plain values; `members` and `posts` are the snapshot: feature -> raw value."""

    members: dict[str, dict[str, Any]]
    posts: dict[str, dict[str, Any]]
    id_maps: dict[str, IdMap]
    tables: dict[str, NDArray[np.float32]]
    weights: NDArray[np.float32]
    bias: NDArray[np.float32]

    @classmethod
    def make(cls, seed: int) -> Feed:
        """Draw one; ids m0..m19, p0..p39, c0..c7, h0..h9 are admitted, m20.., p40.., c8.., h10.. are not."""
        draw = random.Random(seed)
        members = {
            f"m{i}": {
                "age": draw.choice([None, draw.uniform(18, 80)]),
                "interests": [f"h{draw.randrange(14)}" for _ in range(draw.randrange(4))],
                "liked": [f"p{draw.randrange(50)}" for _ in range(draw.randrange(5))],
            }
            for i in range(5, 25)
        }
        posts = {
            f"p{i}": {
                "creator_id": draw.choice([None, f"c{draw.randrange(12)}"]),
                "hashtags": [f"h{draw.randrange(14)}" for _ in range(draw.randrange(6))],
                "views": draw.choice([None, float(draw.randrange(1000))]),
                "quality": draw.choice([None, draw.random()]),
            }
            for i in range(5, 45)
        }
        id_maps, tables = {}, {}
        generator = np.random.default_rng(seed)
        for table, (letter, count) in zip(SPEC.tables, (("m", 20), ("h", 10), ("p", 40), ("c", 8)), strict=True):
            keys, _ = hash_strings([f"{letter}{i}" for i in range(count)], SPEC.key_seed)
            id_maps[table.name] = IdMap.build(
                keys,
                np.ones(count, np.int64),
                table=table.name,
                key_seed=SPEC.key_seed,
                tail_rows=table.tail_rows,
                fingerprint_bits=64,
            )
            rows = generator.normal(size=(id_maps[table.name].capacity_rows, table.dim)).astype(np.float32)
            rows[0] = 0
            tables[table.name] = rows
        weights = generator.normal(size=(WIDTH, len(RESPONSES))).astype(np.float32) / 3
        return cls(members, posts, id_maps, tables, weights, generator.normal(size=len(RESPONSES)).astype(np.float32))

    def probability(self, member: str, post: str, overrides: Mapping[str, Any] | None = None) -> list[float]:
        """What serving must answer for one candidate, per response, in plain Python."""
        overrides = overrides or {}
        member_state = {**self.members.get(member, {}), "member_id": member, **overrides.get("member", {})}
        post_state = {**self.posts.get(post, {}), "post_id": post, **overrides.get("posts", {}).get(post, {})}
        features: list[float] = []
        for f in SPEC.features:
            if f.kind == "dense":
                continue
            value = (member_state if side_of(f) == "member" else post_state).get(f.name)
            table = SPEC.table_of(f).name
            if f.kind == "id":
                features += self.tables[table][self.id_maps[table].encode([value])[0]].tolist()
                continue
            ids = (value or [])[: f.max_length]
            rows = self.id_maps[table].encode(ids) if ids else []
            pooled = [math.fsum(float(self.tables[table][row][k]) for row in rows) for k in range(SPEC.table_of(f).dim)]
            divisor = max(len(ids), 1) if f.pooling == "mean" else 1
            features += [x / divisor for x in pooled]
        for f in SPEC.dense:
            raw = (member_state if f.side == "member" else post_state).get(f.name)
            x = f.fill if raw is None else raw
            x = math.log1p(max(x, 0)) if f.log else x
            mean, std = STATISTICS[f.name]
            features.append((x - mean) / std)
        logits = np.array(features, np.float64) @ self.weights.astype(np.float64) + self.bias
        return (1 / (1 + np.exp(-logits))).tolist()

    def unknown(self, member: str, post: str, overrides: Mapping[str, Any] | None = None) -> set[str]:
        """Names of the bits serving must set for one candidate."""

        def admitted(text: str) -> bool:
            return int(text[1:]) < {"m": 20, "p": 40, "c": 8, "h": 10}[text[0]]

        by_post = (overrides or {}).get("posts", {})
        state = {**self.posts.get(post, {}), **by_post.get(post, {})}
        others = [state.get("creator_id"), *(state.get("hashtags") or [])[:3]]
        flags = {
            "member_id": not member or not admitted(member),
            "post_id": not post or not admitted(post),
            "post_feature_id": any(other and not admitted(other) for other in others),
            "member_state": member not in self.members,
            "post_state": post not in self.posts and post not in by_post,
        }
        return {name for name, is_set in flags.items() if is_set}

    def publish(self, root: Path, bundle: str) -> None:
        """Write it as a version and make it the current one."""

        def build(folder: Path) -> None:
            (folder / "spec.json").write_text(SPEC.dump())
            Manifest(
                id=bundle,
                created=datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc).isoformat(),
                code_version="test",
                spec_digest=SPEC.digest,
                step=1,
                trained_days=(),
                row_format="fp32",
            ).save(folder)
            for name, id_map in self.id_maps.items():
                id_map.save(folder / "ids" / name)
            (folder / "transform").mkdir()
            plan().save(folder / "transform" / "plan.json")
            write_tables(folder / "tables", self.tables, "fp32", list(self.tables))
            self.snapshot().save(folder / "snapshot")
            onnx.save(self.graph(), str(folder / "dense.onnx"))
            (folder / "metrics.json").write_text(json.dumps({"score": self.score_bins()}))

        publish_version(root, bundle, build)
        set_current(root, bundle)

    def score_bins(self) -> dict[str, Any]:
        """Spread of the scores of 400 pairs of member and post, in 4 bins, as a bundle's metrics.json has it."""
        draw = random.Random(0)
        pairs = [(f"m{draw.randrange(30)}", f"p{draw.randrange(60)}") for _ in range(400)]
        scores = [float(np.dot(self.probability(*pair), [1.0, 2.5])) for pair in pairs]
        edges = np.quantile(scores, [0.25, 0.5, 0.75])
        shares = np.bincount(np.searchsorted(edges, scores, side="right"), minlength=4) / len(scores)
        return {"edges": edges.tolist(), "shares": shares.tolist(), "mean": float(np.mean(scores)), "num_rows": 400}

    def snapshot(self) -> Snapshot:
        """Members and posts as the snapshot's arrays."""
        return Snapshot(_side("member", self.members), _side("candidate", self.posts), 0, SPEC.key_seed, SPEC.digest)

    def graph(self) -> onnx.ModelProto:
        """dense.onnx: sigmoid(all features @ weights + bias), pooled and repeated inside (docs/contracts/dense.md)."""
        nodes = [
            helper.make_node("Shape", ["candidate_dense"], ["n"], start=0, end=1),
            helper.make_node(
                "ConstantOfShape", ["n"], ["zeros_n"], value=numpy_helper.from_array(np.zeros(1, np.int64))
            ),
        ]
        inputs, columns, dense_columns = [], [], []
        for side in ("member", "candidate"):
            width = len(SPEC.of_kind("dense", side=side))
            inputs.append(helper.make_tensor_value_info(f"{side}_dense", TensorProto.FLOAT, [None, width]))
            dense_columns.append(_per_candidate(nodes, f"{side}_dense", side))
        for f in SPEC.lookups:
            name, dim = f"emb_{f.name}", SPEC.table_of(f).dim
            shape = [None, dim] if f.kind == "id" else [None, f.max_length, dim]
            inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
            if f.kind != "id":
                inputs.append(helper.make_tensor_value_info(f"len_{f.name}", TensorProto.INT64, [None]))
                nodes.append(helper.make_node("ReduceSum", [name, "axis_1"], [f"sum_{f.name}"], keepdims=0))
                name = f"sum_{f.name}"
                # len_ is read even where the pooling is a sum, so that every declared input is a real one.
                nodes.append(helper.make_node("Max", [f"len_{f.name}", "one"], [f"max_{f.name}"]))
                power = f"max_{f.name}"
                if f.pooling == "sum":
                    nodes.append(helper.make_node("Div", [power, power], [f"ones_{f.name}"]))
                    power = f"ones_{f.name}"
                nodes.append(helper.make_node("Cast", [power], [f"float_{f.name}"], to=TensorProto.FLOAT))
                nodes.append(helper.make_node("Unsqueeze", [f"float_{f.name}", "axis_1"], [f"column_{f.name}"]))
                nodes.append(helper.make_node("Div", [name, f"column_{f.name}"], [f"mean_{f.name}"]))
                name = f"mean_{f.name}"
            columns.append(_per_candidate(nodes, name, side_of(f)))
        nodes += [
            helper.make_node("Concat", [*columns, *dense_columns], ["features"], axis=1),
            helper.make_node("Gemm", ["features", "weights", "bias"], ["logits"]),
            helper.make_node("Sigmoid", ["logits"], ["probability"]),
        ]
        constants = {
            "weights": self.weights,
            "bias": self.bias,
            "axis_1": np.array([1], np.int64),
            "one": np.array(1, np.int64),
        }
        output = helper.make_tensor_value_info("probability", TensorProto.FLOAT, [None, len(RESPONSES)])
        initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
        graph = helper.make_graph(nodes, "tiny", inputs, [output], initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        return model


def _per_candidate(nodes: list[onnx.NodeProto], name: str, side: str) -> str:
    if side == "candidate":
        return name
    nodes.append(helper.make_node("Gather", [name, "zeros_n"], [f"{name}_n"]))
    return f"{name}_n"


def _side(side: str, states: Mapping[str, Mapping[str, Any]]) -> SnapshotSide:
    keys, _ = hash_strings(list(states), SPEC.key_seed)
    order = np.argsort(keys)
    rows = [list(states.values())[i] for i in order]

    def ragged(name: str, limit: int | None) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        lists = [row[name][:limit] for row in rows]
        flat, _ = hash_strings([text for texts in lists for text in texts], SPEC.key_seed)
        return np.cumsum([0, *map(len, lists)]), flat

    dense = [f.name for f in SPEC.dense if f.side == side]
    own = (SPEC.logs.member, SPEC.logs.post)
    lookups = [f for f in SPEC.lookups if side_of(f) == side and f.name not in own]
    return SnapshotSide(
        keys=keys[order],
        dense=np.array([[np.nan if row[n] is None else row[n] for n in dense] for row in rows], np.float32),
        ids={f.name: hash_strings([row[f.name] for row in rows], SPEC.key_seed)[0] for f in lookups if f.kind == "id"},
        # `ids` features may be longer than max_length in a snapshot, histories never are.
        lists={
            f.name: ragged(f.name, f.max_length if f.kind == "history" else None) for f in lookups if f.kind != "id"
        },
    )


def requests(feed: Feed, count: int, seed: int) -> list[tuple[str, list[str], dict[str, Any] | None]]:
    """Draw requests over known and unknown members and posts, a third of them with overrides."""
    draw = random.Random(seed)
    drawn = []
    for _ in range(count):
        posts: Sequence[str] = [f"p{draw.randrange(60)}" for _ in range(draw.randrange(1, 12))]
        overrides: dict[str, Any] | None = None
        if draw.random() < 0.34:
            overrides = {
                "member": draw.choice([{}, {"age": 33}, {"liked": ["p1", "p99", "p2", "p3", "p4"]}, {"interests": []}]),
                "posts": {
                    posts[0]: draw.choice(
                        [
                            {"views": 12.5},
                            {"creator_id": "c99", "quality": None},
                            {"hashtags": ["h1", "h2", "h3", "h77"]},
                        ]
                    )
                },
            }
        drawn.append((draw.choice(["", *(f"m{i}" for i in range(30))]), list(posts), overrides))
    return drawn
