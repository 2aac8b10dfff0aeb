"""The suite `train`: a training as a user waits for it, beside plain PyTorch and two libraries; days, memory, traffic.

Rows are made for it (training_rows), one million members and posts, a history of 50. All sides have two threads and the
same batch; a peer's rows lie in memory, ours are read as they are trained.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

from peers.environment import train_peers_python
from process import run_measured
from results import Recorder, Row
from train_run import BATCH, MODEL
from training_rows import feed, write_rows

from sparsefeed.allocators import KEEP_FREED
from sparsefeed.workflows.console import stage
from sparsefeed.workflows.recipe import Recipe
from sparsefeed.workflows.workspace import Workspace

__all__ = ["train"]

FOLDER = Path(__file__).parent
LARGE = {"member": 1_000_000, "creator": 200_000, "post": 1_000_000, "hashtag": 50_000}
HUGE = dict.fromkeys(("member", "creator", "post", "hashtag"), 5_000_000)
TURNS = ("ours", "torch", "ours", "torch", "ours", "torch")
LIBRARIES = ("merlin-models", "deepctr-torch")  # minutes for what ours takes seconds for: a tenth of the rows, once
ROWS, FEW_ROWS, DAYS = 1_500_000, 150_000, 14
DAY_ROWS, DAY_RUNS = 4_500_000, 3


def train(recipe: Recipe, workspace: Workspace, record: Recorder) -> list[Row]:
    """Speed beside peers, reading, traffic, accumulation, memory, and a day against a retrain."""
    root = workspace.root.parent / "train"
    large, few, huge = root / "rows", root / "few", root / "huge"
    with stage("rows") as progress:
        progress(0, 1, "writing training rows, once")
        write_rows(large, feed(32), LARGE, ROWS)
        write_rows(few, feed(32), LARGE, FEW_ROWS)
        write_rows(huge, feed(32), HUGE, 300_000)
    with stage("peers") as progress:
        progress(0, 1, "making the peers' environment, once")
        python = train_peers_python(root.parent / "peers-train")
    rows = speed(record, python, large, few, root / "out")
    with stage("reading") as progress:
        progress(0, 1, "steps over memory and over parquet")
        command = [sys.executable, str(FOLDER / "train_run.py"), "reading", str(large)]
        found = run_measured(command, KEEP_FREED)  # as a rank is started
    rows.append(record.row(CASE, "reading parquet", found["parquet"], "samples/s", "memory", found["memory"]))
    with stage("ranks") as progress:
        progress(0, 3, "two ranks, slices, large tables")
        two = _ours(few, root / "out", {"processes": 2})
        steps, speeds = two["num_samples"] // BATCH, (two["samples_per_s"], two["planned_samples_per_s"])
        sent = two["sent_bytes"] / steps, two["planned_bytes"] / steps
        rows.append(record.row("2 ranks", "bytes sent a step", sent[0], "B", "plan", sent[1]))
        rows.append(record.row("2 ranks", "samples per second", speeds[0], "samples/s", "plan", speeds[1]))
        rows += accumulation(record, large, root / "out")
        progress(2, 3, "tables of five million rows")
        found = _ours(huge, root / "out", {"processes": 1})
        rows.append(record.row("5M-row tables", "peak memory", found["peak_bytes"] / 1e9, "GB"))
        rows.append(record.row("5M-row tables", "samples per second", found["samples_per_s"], "samples/s"))
    rows += a_day(record, root)
    shutil.rmtree(root / "out", ignore_errors=True)
    return rows


CASE = f"1M-row tables, batch {BATCH}"


def speed(record: Recorder, python: Path, large: Path, few: Path, out: Path) -> list[Row]:
    """Samples a second of whole loops, medians of turns."""
    runs: dict[str, list[dict[str, Any]]] = {}
    with stage("speed") as progress:
        for number, side in enumerate((*TURNS, *LIBRARIES)):
            progress(number, len(TURNS) + len(LIBRARIES), f"{side}")
            if side == "ours":
                found = _ours(large, out, {"processes": 1})
            else:
                where, shape = few if side in LIBRARIES else large, MODEL.model_dump() | {"batch_size": BATCH}
                command = [str(python), str(FOLDER / "peers" / "train.py"), side, str(where), json.dumps(shape)]
                found = run_measured(command)
            runs.setdefault(side, []).append(found)
    median = {side: statistics.median(run["samples_per_s"] for run in some) for side, some in runs.items()}
    names, ours, theirs = {"torch": "PyTorch"}, runs["ours"][0]["peak_bytes"], runs["torch"][0]["peak_bytes"]
    rows = [
        record.row(CASE, "samples per second", median["ours"], "samples/s", names.get(side, side), median[side])
        for side in ("torch", *LIBRARIES)
    ]
    return [*rows, record.row(CASE, "peak memory", ours / 1e9, "GB", "PyTorch", theirs / 1e9)]


def accumulation(record: Recorder, folder: Path, out: Path) -> list[Row]:
    """Eight slices of a large batch: bytes a sample against eight small batches, memory against the batch at once."""
    same = {"processes": 2, "sharding": dict.fromkeys(LARGE, "row_wise")}
    sliced, whole = (_ours(folder, out, {**same, "batch_size": 8 * BATCH, "micro_batches": num}) for num in (8, 1))
    small = _ours(folder, out, same)
    per_sample = [run["sent_bytes"] / run["num_samples"] for run in (sliced, small)]
    case = f"8 slices of {BATCH}"
    return [
        record.row(case, "bytes sent a sample", per_sample[0], "B", f"batches of {BATCH}", per_sample[1]),
        record.row(case, "peak memory", sliced["peak_bytes"] / 1e9, "GB", "at once", whole["peak_bytes"] / 1e9),
    ]


def a_day(record: Recorder, root: Path) -> list[Row]:
    """A day trained from a checkpoint, against its share of a training over all days; starts of ranks included."""
    day, days = root / "day", root / "days"
    with stage("days") as progress:
        progress(0, 3, "writing a day, once")
        write_rows(day, feed(16), LARGE, DAY_ROWS)
        shutil.rmtree(days, ignore_errors=True)
        (days / "train").mkdir(parents=True)
        for path in (day / "train").glob("*.parquet"):
            for number in range(DAYS):
                (days / "train" / f"{number:02d}-{path.name}").hardlink_to(path)
        for name in ("spec.json", "etl.json"):
            shutil.copy(day / name, days / name)
        progress(1, 3, f"{DAYS} days")
        full = _ours(days, root / "full", {"processes": 1})
        progress(2, 3, f"a day more, {DAY_RUNS} times")
        config = {"processes": 1, "start_from": full["checkpoint"]}
        # The share is a mean of 14 days, a day alone is one draw of what else the machine does.
        one = statistics.median(_ours(day, root / "out", dict(config))["seconds"] for _ in range(DAY_RUNS))
    shutil.rmtree(root / "full")
    return [
        record.row("a day added", "seconds", one, "s", f"a day's share of {DAYS}", full["seconds"] / DAYS),
        record.row("a day added", "samples per second", DAY_ROWS / one, "samples/s"),
    ]


def _ours(folder: Path, out: Path, config: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, str(FOLDER / "train_run.py"), "whole", str(folder), str(out), json.dumps(config)]
    return run_measured(command)
