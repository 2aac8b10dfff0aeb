"""The suite `etl`: logs to training parquet as a user waits for it, days added to it, ids and floats beside peers'.

The comparison is of the same logs and the same columns written, each side in a process of its own, in one run on two
cores; making a cluster and importing libraries is not timed on any side.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from days import days
from impressions import write_impressions
from peers.environment import peers_python
from process import run_measured
from results import Recorder, Row

from sparsefeed.workflows.console import stage
from sparsefeed.workflows.recipe import Recipe
from sparsefeed.workflows.stages import prepare, simulate_logs
from sparsefeed.workflows.workspace import Workspace

__all__ = ["etl"]

FOLDER = Path(__file__).parent
PLOT = FOLDER.parent / "docs" / "img" / "etl_days.svg"
SIZES = {"2M rows": 2_000_000, "20M rows": 20_000_000}
NAMES = {"nvtabular": "NVTabular", "polars": "polars"}
# In turn, for the machine is not always as fast; NVTabular, which takes minutes, once.
TURNS = ("ours", "polars", "ours", "nvtabular", "polars", "ours", "polars")


def etl(recipe: Recipe, workspace: Workspace, record: Recorder) -> list[Row]:
    """The demo's logs, thirty days added one by one, then the comparison."""
    rows = of_the_demo(recipe, workspace, record)
    with stage("days") as progress:
        rows += days(record, recipe.feed, recipe.simulate, workspace.root.parent / "days", PLOT, progress)
    folder = workspace.root.parent / "etl"
    with stage("peers") as progress:
        progress(0, 1, "making the peers' environment, once")
        polars = peers_python(workspace.root.parent / "peers-ids")
    measured: dict[str, dict[str, dict[str, Any]]] = {}
    for case, num_rows in SIZES.items():
        with stage(case) as progress:
            progress(0, len(TURNS), "writing impressions, once")
            logs = folder / case.split()[0]
            write_impressions(logs, num_rows)
            for path in logs.rglob("*.parquet"):
                path.read_bytes()  # nobody is the one who waits for the disk
            runs: dict[str, list[dict[str, Any]]] = {}
            for step, side in enumerate(TURNS):
                progress(step, len(TURNS), f"{NAMES.get(side, 'sparsefeed')} over {num_rows:,} rows")
                runs.setdefault(side, []).append(_measure(side, polars, logs, folder / "out"))
            measured[case] = {side: _medians(some) for side, some in runs.items()}
        rows += _rows(record, case, num_rows, measured[case])
    shutil.rmtree(folder / "out", ignore_errors=True)
    small, large = (measured[case]["ours"]["peak_bytes"] for case in SIZES)
    return [*rows, record.row("20M rows", "peak memory", large / 1e9, "GB", "2M rows", small / 1e9)]


def of_the_demo(recipe: Recipe, workspace: Workspace, record: Recorder) -> list[Row]:
    """Logs to parquet, cluster start included."""
    with stage("simulate") as progress:
        simulate_logs(recipe, workspace, progress)
    shutil.rmtree(workspace.etl, ignore_errors=True)
    started = time.perf_counter()
    with stage("etl") as progress:
        summary = prepare(recipe, workspace, progress=progress)
    seconds = time.perf_counter() - started
    num_rows = summary["num_train_rows"] + summary["num_eval_rows"]
    size_bytes = sum(path.stat().st_size for path in workspace.etl.rglob("*") if path.is_file())
    return [
        record.row("logs to parquet", "rows per second", num_rows / seconds, "rows/s"),
        record.row("logs to parquet", "seconds", seconds, "s"),
        record.row("logs to parquet", "bytes per row", size_bytes / num_rows, "B"),
        record.row("logs to parquet", "bytes of other files", _stray_bytes(workspace.etl), "B"),
    ]


def _stray_bytes(folder: Path) -> int:
    """Bytes below an ETL's folder, and in folders beside it that it made, that are no part of the contract."""
    kept = {"train", "eval", "spec.json", "ids", "inverse", "transform", "snapshot", "state", "ips.parquet"}
    kept.add("etl.json")
    strays = [path for path in folder.iterdir() if path.name not in kept]
    strays += folder.parent.glob(f".{folder.name}*")
    return sum(path.stat().st_size for stray in strays for path in [stray, *stray.rglob("*")] if path.is_file())


def _measure(side: str, polars: Path, folder: Path, out: Path) -> dict[str, Any]:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    if side == "ours":
        return run_measured([sys.executable, str(FOLDER / "workflow_run.py"), str(folder), str(out)])
    python = polars if side == "polars" else Path(sys.executable)  # NVTabular is the project's own pandas' age
    command = [str(python), str(FOLDER / "peers" / "etl.py"), side, str(folder), str(out)]
    return run_measured(command, {"POLARS_MAX_THREADS": "2"})


def _medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def _rows(record: Recorder, case: str, num_rows: int, measured: dict[str, dict[str, Any]]) -> list[Row]:
    ours = measured["ours"]
    rows = []
    for peer, name in NAMES.items():
        theirs = measured[peer]
        for metric, key in (("fit", "fit_s"), ("transform and write", "write_s")):
            rate, other = num_rows / ours[key], num_rows / theirs[key]
            rows.append(record.row(case, metric, rate, "rows/s", name, other))
        peak = record.row(case, "peak memory", ours["peak_bytes"] / 1e9, "GB", name, theirs["peak_bytes"] / 1e9)
        rows.append(peak)
    return rows
