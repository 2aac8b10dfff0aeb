"""The same ETL by others: ids counted at least twice to rows, ten floats filled and standardised, labels through.

    python etl.py PEER FOLDER OUT    reads FOLDER/impressions, writes parquet below OUT; prints JSON

Imports nothing of sparsefeed. `fit_s` makes vocabularies and moments, `write_s` reads everything again and writes the
training rows; two cores, and of each library the way its documentation recommends for data larger than memory.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

MIN_COUNT, TAIL_ROWS = 2, 66  # rows below are padding, null and the shared tail
IDS = ("member_id", "creator_id", "post_id")
DENSE = tuple(f"d{i}" for i in range(10))
PASSED = ("click", "impression_id")


def nvtabular(folder: Path, out: Path) -> dict[str, float]:
    """Stock operators on a LocalCluster of two workers."""
    import warnings

    warnings.simplefilter("ignore")
    import logging

    import nvtabular as nvt
    from distributed import Client, LocalCluster
    from merlin.core.utils import set_dask_client
    from nvtabular import ops

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=logging.ERROR) as cluster,
        Client(cluster) as client,
    ):
        set_dask_client(client)
        client.run(_import_nvtabular)
        ids = list(IDS) >> ops.Categorify(freq_threshold=MIN_COUNT, out_path=str(out / "categories"))
        dense = list(DENSE) >> ops.FillMissing() >> ops.Normalize(out_dtype="float32")
        workflow = nvt.Workflow(ids + dense + list(PASSED))
        files = sorted(str(path) for path in folder.glob("impressions/*/*.parquet"))
        started = time.perf_counter()
        dataset = nvt.Dataset(files, engine="parquet", part_size="64MB")
        workflow.fit(dataset)
        fitted = time.perf_counter()
        workflow.transform(dataset).to_parquet(str(out / "train"))
        written = time.perf_counter()
        set_dask_client(None)
    return {"fit_s": fitted - started, "write_s": written - fitted}


def _import_nvtabular() -> None:
    import nvtabular  # noqa: F401


def polars(folder: Path, out: Path) -> dict[str, float]:
    """Lazy frames on two threads: grouped counts, then left joins, streamed to one file."""
    import polars as pl

    logs = pl.scan_parquet(str(folder / "impressions" / "*" / "*.parquet"), hive_partitioning=False)
    started = time.perf_counter()
    counts = [logs.group_by(name).len().filter(pl.col("len") >= MIN_COUNT).select(name) for name in IDS]
    filled = [pl.col(name).fill_null(0.0) for name in DENSE]
    moments = logs.select(
        *(column.mean().name.suffix("_mean") for column in filled),
        *(column.std(ddof=0).name.suffix("_std") for column in filled),
    )
    *vocabularies, statistics = pl.collect_all([*counts, moments], engine="streaming")
    fitted = time.perf_counter()
    rows = logs
    for name, vocabulary in zip(IDS, vocabularies, strict=True):
        own = vocabulary.with_row_index("row", TAIL_ROWS).with_columns(pl.col("row").cast(pl.Int64))
        rows = rows.join(own.lazy(), on=name, how="left", maintain_order="left")
        rows = rows.with_columns(pl.col("row").fill_null(2).alias(name)).drop("row")
    number = statistics.row(0, named=True)
    rows = rows.select(
        pl.col("click").cast(pl.Float32),
        *((pl.col(n).fill_null(0.0) - number[f"{n}_mean"]).truediv(number[f"{n}_std"]).cast(pl.Float32) for n in DENSE),
        *IDS,
        "impression_id",
    )
    (out / "train").mkdir(parents=True)
    rows.sink_parquet(out / "train" / "part-0.parquet", compression="uncompressed", engine="streaming")
    written = time.perf_counter()
    return {"fit_s": fitted - started, "write_s": written - fitted}


PEERS: dict[str, Callable[[Path, Path], dict[str, float]]] = {"nvtabular": nvtabular, "polars": polars}

if __name__ == "__main__":
    peer, folder, out = sys.argv[1:]
    print(json.dumps(PEERS[peer](Path(folder), Path(out))))
