"""Our side of the comparison of trainers, in a process of its own; prints JSON.

python train_run.py whole FOLDER OUT CONFIG     a training from parquet to checkpoint; CONFIG is JSON
python train_run.py reading FOLDER              the same steps over batches in memory and over parquet, in turn
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.config import ModelConfig, TrainConfig
from sparsefeed.models.plan import Plan, make_plan
from sparsefeed.models.topology import Topology
from sparsefeed.models.torchrec.columns import Rows, capacity_rows, open_split
from sparsefeed.models.torchrec.loader import Loader
from sparsefeed.models.torchrec.train import train
from sparsefeed.models.torchrec.trainer import Trainer

__all__ = ["MODEL"]

MODEL = ModelConfig()
BATCH = 8192
TURNS = 7


def whole(folder: Path, out: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Samples a second of the loop, seconds of all, and what crossed the loopback beside the plan's figure."""
    shutil.rmtree(out, ignore_errors=True)
    start = {name: given.pop(name) for name in ("start_from", "previous") if name in given}
    config = TrainConfig.model_validate({"batch_size": BATCH, "dense_precision": "bf16", "weights": "none", **given})
    before, started = _loopback_bytes(), time.perf_counter()
    result = train(FeedSpec.load(folder / "spec.json"), MODEL, config, folder, out, **start)
    seconds = time.perf_counter() - started
    plan = Plan.model_validate_json((out / "plan.json").read_text("utf-8"))
    return {
        "samples_per_s": result.samples_per_s,
        "seconds": seconds,
        "sent_bytes": _loopback_bytes() - before,
        "planned_bytes": plan.sent_bytes * result.step,
        "planned_samples_per_s": plan.samples_per_s,
        "num_samples": result.num_samples,
        "checkpoint": str(result.checkpoint),
    }


def reading(folder: Path) -> dict[str, float]:
    """Median samples a second of an epoch over batches in memory, and of one over parquet, shuffled alike."""
    torch.set_num_threads(2)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    spec = FeedSpec.load(folder / "spec.json")
    capacities, columns = capacity_rows(spec, folder), Rows.columns(spec, weights=False)
    config = TrainConfig(processes=1, batch_size=BATCH, dense_precision="bf16")
    plan = make_plan(spec, MODEL, capacities, Topology.processes(1), BATCH)
    trainer = Trainer(spec, MODEL, config, capacities, plan, torch.device("cpu"))
    parts = open_split(spec, folder, "train", columns)
    loader = Loader(
        spec, parts[: max(1, len(parts) // 3)], capacities, columns, BATCH, 0, 1, config.shuffle_rows, 0,
        config.read_threads, config.batches_ahead,
    )  # fmt: skip
    batches = list(loader.epoch(0))
    for batch in batches[:4]:
        trainer.step(batch, 1e-3, 0.05)
    rates: dict[str, list[float]] = {"memory": [], "parquet": []}
    for turn in range(TURNS):
        for name, found in rates.items():
            started, num = time.perf_counter(), 0
            for batch in batches if name == "memory" else replace(loader, seed=turn).epoch(turn):
                trainer.step(batch, 1e-3, 0.05)
                num += len(batch.labels_BR)
            found.append(num / (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in rates.items()}


def _loopback_bytes() -> int:
    for line in Path("/proc/net/dev").read_text("utf-8").splitlines():
        if line.strip().startswith("lo:"):
            return int(line.split()[9])
    return 0


if __name__ == "__main__":
    mode, where, *rest = sys.argv[1:]
    if mode == "whole":
        print(json.dumps(whole(Path(where), Path(rest[0]), json.loads(rest[1]))))
    else:
        print(json.dumps(reading(Path(where))))
