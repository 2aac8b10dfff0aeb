"""A small ETL folder with a known truth, as docs/contracts/training.md has it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparsefeed.etl.spec import FeedSpec

SPEC = {
    "name": "tiny",
    # A history shares the post's table, and another table's feature stands between the two in the declaration.
    "tables": [
        {"name": "member", "dim": 4},
        {"name": "post", "dim": 8},
        {"name": "hashtag", "dim": 4},
    ],
    "features": [
        {"kind": "id", "name": "member_id", "table": "member", "side": "member"},
        {"kind": "dense", "name": "tenure", "side": "member"},
        {"kind": "id", "name": "post_id", "table": "post", "side": "candidate"},
        {"kind": "ids", "name": "hashtags", "table": "hashtag", "side": "candidate", "max_length": 3},
        {"kind": "history", "name": "clicked", "of": "post_id", "response": "click", "max_length": 4},
        {"kind": "ids", "name": "topics", "table": "hashtag", "side": "member", "pooling": "sum", "max_length": 2},
        {"kind": "dense", "name": "age", "side": "candidate"},
    ],
    "responses": [{"name": "click", "column": "click"}, {"name": "like", "column": "like"}],
    "sessions": {},
    "ips": {},
}
CAPACITY_ROWS = {"member": 64, "post": 128, "hashtag": 64}


@dataclass(frozen=True)
class Written:
    """What was written, and the truth it was drawn from."""

    path: Path
    spec: FeedSpec
    truth: dict[str, npt.NDArray[np.float64]]  # split -> [n, R] probabilities


@pytest.fixture(scope="session")
def spec() -> FeedSpec:
    return FeedSpec.parse(SPEC)


@pytest.fixture(scope="session")
def learned() -> FeedSpec:
    """The same, the history's pooling learned; its rows are the same."""
    features = [f | {"pooling": "learned"} if f["name"] == "clicked" else f for f in SPEC["features"]]  # type: ignore[attr-defined]
    return FeedSpec.parse(SPEC | {"features": features})


@pytest.fixture(scope="session")
def paired(learned: FeedSpec) -> FeedSpec:
    """The history learned, and rare posts and hashtags two rows of their tails."""
    tables = [
        table.model_dump() | ({"tail": "quotient_remainder", "tail_rows": 8} if table.name != "member" else {})
        for table in learned.tables
    ]
    return FeedSpec.parse(learned.model_dump() | {"tables": tables})


@pytest.fixture(scope="session")
def write_etl(spec: FeedSpec) -> Callable[..., Written]:
    """Write an ETL folder: the post's row, and nothing else, decides both responses."""

    def write(
        path: Path, train_rows: int = 1024, eval_rows: int = 256, num_files: int = 2, group_rows: int = 200
    ) -> Written:
        random = np.random.default_rng(7)
        logit_of_post = random.normal(0, 2, CAPACITY_ROWS["post"])
        truth = {}
        for split, rows in (("train", train_rows), ("eval", eval_rows)):
            posts = random.integers(1, CAPACITY_ROWS["post"], rows)
            truth[split] = 1 / (1 + np.exp(-np.stack([logit_of_post[posts], -logit_of_post[posts] - 1], axis=1)))
            columns: dict[str, pa.Array] = {}
            for r, name in enumerate(("click", "like")):
                columns[f"y_{name}"] = pa.array((random.random(rows) < truth[split][:, r]).astype(np.float32))
            for name in ("tenure", "age"):
                columns[name] = pa.array(random.normal(size=rows).astype(np.float32))
            columns["member_id"] = pa.array(random.integers(1, CAPACITY_ROWS["member"], rows))
            columns["post_id"] = pa.array(posts)
            for name, table, most in (("hashtags", "hashtag", 3), ("clicked", "post", 4), ("topics", "hashtag", 2)):
                lengths = random.integers(0, most + 1, rows)
                offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
                values = random.integers(1, CAPACITY_ROWS[table], lengths.sum())
                columns[name] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))
            for name in ("click", "like"):
                columns[f"w_{name}"] = pa.array(random.uniform(0.5, 2, rows).astype(np.float32))
                columns[f"cell_{name}"] = pa.array(np.zeros(rows, np.int32))
            columns["impression_id"] = pa.array(np.arange(rows))
            columns["position"] = pa.array(np.zeros(rows, np.int32))
            columns["random"] = pa.array(np.zeros(rows, np.int8))
            table_ = pa.table(columns)
            (path / split).mkdir(parents=True)
            bounds = np.linspace(0, rows, num_files + 1).astype(int)
            for i, (low, high) in enumerate(pairwise(bounds)):
                pq.write_table(
                    table_.slice(low, high - low), path / split / f"part-{i}.parquet", row_group_size=group_rows
                )
        (path / "spec.json").write_text(spec.dump())
        (path / "etl.json").write_text(json.dumps({"capacity_rows": CAPACITY_ROWS, "num_rows": CAPACITY_ROWS}))
        return Written(path, spec, truth)

    return write


@pytest.fixture(scope="session")
def etl(write_etl: Callable[..., Written], tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write_etl(tmp_path_factory.mktemp("etl") / "etl")
