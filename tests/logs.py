"""Small hand-made logs with a known truth, for every test that needs some."""

from __future__ import annotations

import tempfile
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from sparsefeed.etl import frame
from sparsefeed.etl.impressions import ReadImpressions
from sparsefeed.etl.logs import LogFolder
from sparsefeed.etl.spec import FeedSpec

START = datetime(2026, 11, 2, tzinfo=timezone.utc)


def spec(**changes: Any) -> FeedSpec:
    """A spec with every kind of feature; `changes` replace top-level fields."""
    value: dict[str, Any] = {
        "name": "feed",
        "tables": [
            {"name": "member", "dim": 8, "tail_rows": 4},
            {"name": "creator", "dim": 4, "tail_rows": 4},
            {"name": "post", "dim": 8, "tail_rows": 4},
            {"name": "hashtag", "dim": 4, "tail_rows": 4},
        ],
        "features": [
            {"kind": "id", "name": "member_id", "table": "member", "side": "member"},
            {"kind": "dense", "name": "member_activity", "side": "member", "log": True},
            {"kind": "history", "name": "clicked_posts", "of": "post_id", "response": "click", "max_length": 3},
            {"kind": "history", "name": "liked_creators", "of": "creator_id", "response": "like", "max_length": 2},
            {"kind": "id", "name": "post_id", "table": "post", "side": "candidate"},
            {"kind": "id", "name": "creator_id", "table": "creator", "side": "candidate"},
            {"kind": "ids", "name": "hashtags", "table": "hashtag", "side": "candidate", "max_length": 3},
            {"kind": "dense", "name": "post_age_hours", "side": "candidate", "log": True, "fill": 12.0},
            {"kind": "dense", "name": "post_length", "side": "candidate"},
        ],
        "responses": [{"name": "click", "column": "click", "score_weight": 1.0}, {"name": "like", "score_weight": 2.0}],
        "logs": {"surface": "surface", "actions": {}},
        "sessions": {},
        "ips": {"position_edges": [1, 2, 3, 4]},
    }
    return FeedSpec.parse(value | changes)


def write(root: Path, *, days: int = 3, sessions: int = 120, seed: int = 0) -> Path:
    """Write `days` of logs: sessions of 4 positions, 40 % of them random, popular posts first in the others."""
    random = np.random.default_rng(seed)
    impression = 0
    for day in range(days):
        rows: dict[str, list[Any]] = {}
        actions: dict[str, list[Any]] = {"impression_id": [], "action": [], "time": []}

        def put(target: dict[str, list[Any]], **values: Any) -> None:
            for name, value in values.items():
                target.setdefault(name, []).append(value)

        for session in range(sessions):
            moment = START + timedelta(days=day, seconds=int(86_000 * session / sessions))
            is_random = random.random() < 0.4
            member = f"m{random.integers(20)}"
            posts = random.choice(30, 4, replace=False)
            if not is_random:
                posts = np.sort(posts)
            for position, post in enumerate(posts, 1):
                click = random.random() < (0.5 - 0.01 * post) / position + 0.05
                put(
                    rows,
                    impression_id=impression,
                    time=moment,
                    session="random" if is_random else "production",
                    surface="home" if session % 4 else "explore",
                    position=position,
                    member_id=member,
                    post_id=f"p{post}",
                    creator_id=f"c{post % 7}",
                    hashtags=[f"h{post % 5}", f"h{post % 3}", "h0", "h1"][: int(post) % 5],
                    member_activity=float(int(member[1:])),
                    post_age_hours=None if post == 3 else float(post + day),
                    post_length=float(post * 10),
                    click=bool(click),
                )
                if click and random.random() < 0.5:
                    later = moment + timedelta(minutes=int(random.integers(1, 90)))
                    for _ in range(2 if random.random() < 0.2 else 1):  # real logs repeat
                        put(actions, impression_id=impression, action="like", time=later)
                impression += 1
        name = f"day={(START + timedelta(days=day)).date()}"
        write_table(root / "impressions" / name / "part-000.parquet", rows)
        write_table(root / "actions" / name / "part-000.parquet", actions)
    return root


TYPES = {
    "impression_id": pa.int64(),
    "time": pa.timestamp("ms", tz="UTC"),
    "position": pa.int32(),
    "hashtags": pa.list_(pa.string()),
    "member_activity": pa.float32(),
    "post_age_hours": pa.float32(),
    "post_length": pa.float32(),
    "click": pa.bool_(),
}


def write_table(path: Path, columns: dict[str, list[Any]]) -> None:
    """Write columns with the logs' types (string where not said)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([(name, TYPES.get(name, pa.string())) for name in columns])
    pq.write_table(pa.table(columns, schema=schema), path)


def read(root: Path | str, spec: FeedSpec, days: int | None = None, rows: int = 1 << 20) -> pd.DataFrame:
    """The impressions as the ETL reads them, labels joined: of the first `days` days, or all; strings as objects."""
    opened = LogFolder.open(root, spec)
    kept = set(opened.days[:days])
    with tempfile.TemporaryDirectory() as scratch:
        reader = ReadImpressions.prepare(spec, opened, rows, Path(scratch))
        parts = [reader(partition) for partition in opened.partitions(rows) if partition.day in kept]
    for part in parts:
        for name in part:
            column = frame.arrow(part[name])
            is_number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
            part[name] = frame.numpy(part[name]) if is_number else pd.Series(column.to_pylist(), dtype=object)
    return pd.concat(parts, ignore_index=True)


def training_rows(folder: Path) -> pd.DataFrame:
    """All rows of a folder of training parquet, file by file."""
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))]).to_pandas()


def change(path: Path, **columns: Any) -> None:
    """Rewrite a parquet file with some columns replaced (None: dropped)."""
    table = pq.read_table(path)
    for name, values in columns.items():
        at = table.schema.get_field_index(name)
        table = table.remove_column(at) if values is None else table.set_column(at, name, values)
    pq.write_table(table, path)
