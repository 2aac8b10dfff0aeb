"""Training parquet of any size without an ETL: what trainers are compared on (docs/contracts/training.md).

Ids follow Zipf's law over each table; lists are half full on average.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sparsefeed.etl.spec import FeedSpec, IdFeature
from sparsefeed.etl.training_data import without_nulls

__all__ = ["feed", "write_rows"]

ROWS_PER_FILE, ROWS_PER_GROUP = 131_072, 65_536


def feed(dim: int) -> FeedSpec:
    """A feed like the demo's, with a history of 50 posts."""
    tables = [{"name": name, "dim": dim} for name in ("member", "creator", "post", "hashtag")]
    features = [
        {"kind": "id", "name": "member_id", "table": "member", "side": "member"},
        {"kind": "id", "name": "creator_id", "table": "creator", "side": "candidate"},
        {"kind": "id", "name": "post_id", "table": "post", "side": "candidate"},
        {"kind": "ids", "name": "hashtags", "table": "hashtag", "side": "candidate", "max_length": 5},
        {"kind": "history", "name": "clicked_posts", "of": "post_id", "response": "click", "max_length": 50},
        {"kind": "history", "name": "clicked_creators", "of": "creator_id", "response": "click", "max_length": 20},
        *({"kind": "dense", "name": f"m{i}", "side": "member"} for i in range(3)),
        *({"kind": "dense", "name": f"c{i}", "side": "candidate"} for i in range(5)),
    ]
    responses = [{"name": name, "column": name} for name in ("click", "like")]
    return FeedSpec.parse({"name": "trained", "tables": tables, "features": features, "responses": responses})


def write_rows(folder: Path, spec: FeedSpec, rows: dict[str, int], num_rows: int) -> None:
    """Write an ETL's folder as far as a trainer reads it; `rows` are the tables' capacities."""
    if (folder / "etl.json").exists():
        return
    (folder / "train").mkdir(parents=True, exist_ok=True)
    for start in range(0, num_rows, ROWS_PER_FILE):
        table = _rows(spec, rows, start, min(ROWS_PER_FILE, num_rows - start))
        path = folder / "train" / f"part-{start // ROWS_PER_FILE:05d}.parquet"
        pq.write_table(table, path, compression="none", use_dictionary=False, row_group_size=ROWS_PER_GROUP)
    (folder / "spec.json").write_text(spec.dump())
    (folder / "etl.json").write_text(json.dumps({"capacity_rows": rows, "fingerprint": "rows"}))


def _rows(spec: FeedSpec, rows: dict[str, int], start: int, num: int) -> pa.Table:
    random = np.random.default_rng(start)

    def ids(table: str, count: int) -> np.ndarray:
        rank = (rows[table] - 1) ** random.random(count)  # Zipf's law, spread over the table
        return 1 + (rank.astype(np.int64) * 7919) % (rows[table] - 1)

    columns: dict[str, pa.Array] = {}
    for response in spec.responses:
        columns[f"y_{response.name}"] = pa.array((random.random(num) < 0.1).astype(np.float32))
    for feature in spec.dense:
        columns[feature.name] = pa.array(random.normal(size=num).astype(np.float32))
    for feature in spec.lookups:
        table = spec.table_of(feature).name
        if isinstance(feature, IdFeature):
            columns[feature.name] = pa.array(ids(table, num))
            continue
        lengths = random.integers(0, feature.max_length + 1, num)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        columns[feature.name] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids(table, int(offsets[-1]))))
    return without_nulls(pa.table(columns))  # as an ETL writes them
