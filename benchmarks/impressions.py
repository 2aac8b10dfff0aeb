"""Impression logs of any length over one vocabulary: what an ETL of 2M rows and one of 20M must both fit.

Every id of the vocabulary stands at least twice in the first two million rows, popular ones far more often; one row in
twenty has an id that never comes again, so the longer the log, the more ids a mapper must count and leave out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["COLUMNS", "DENSE", "write_impressions"]

COLUMNS = {"member_id": 388_000, "creator_id": 60_000, "post_id": 218_000}  # id columns and ids to keep
DENSE = tuple(f"d{i}" for i in range(10))
ROWS_PER_FILE = 500_000
ONCE = 0.05  # share of rows whose id comes once
START_MS = 1_793_577_600_000  # 2026-11-02


def write_impressions(folder: Path, num_rows: int) -> None:
    """Write folder/impressions/day=2026-11-02/part-*.parquet, as docs/contracts/logs.md says."""
    day = folder / "impressions" / "day=2026-11-02"
    day.mkdir(parents=True, exist_ok=True)
    for start in range(0, num_rows, ROWS_PER_FILE):
        num = min(ROWS_PER_FILE, num_rows - start)
        path = day / f"part-{start // ROWS_PER_FILE:04d}.parquet"
        if not path.exists():
            partial = path.with_suffix(".partial")
            pq.write_table(_rows(start, num), partial)
            partial.rename(path)


def _rows(start: int, num: int) -> pa.Table:
    random = np.random.default_rng(start)
    row = np.arange(start, start + num)
    columns: dict[str, pa.Array] = {"impression_id": pa.array(row), "time": pa.array(START_MS + row // 400)}
    for name, num_ids in COLUMNS.items():
        # Zipf's law over ranks, and each rank in turn twice over.
        rank = (num_ids ** random.random(num)).astype(np.int64) % num_ids
        in_turn = row < 2 * num_ids
        rank[in_turn] = row[in_turn] % num_ids
        once = (random.random(num) < ONCE) & ~in_turn
        number = np.where(once, 10**9 + row, rank * 7919 % num_ids)
        columns[name] = pa.array(np.char.add(f"{name[0]}_", number.astype(str)), pa.string())
    for name in DENSE:
        values = random.lognormal(size=num).astype(np.float32)
        columns[name] = pa.array(values, mask=random.random(num) < 0.02)
    columns["click"] = pa.array(random.random(num) < 0.1)
    return pa.table(columns)
