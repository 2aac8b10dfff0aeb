"""Whole training steps on a GPU, beside the plan's estimate and plain PyTorch on the same card.

Over batches that lie there, that come from pinned memory, and that are read from parquet meanwhile. Random first values
are drawn on the card: the trainer's own take longer than the steps.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist
from results import Recorder, Row
from training_rows import feed, write_rows

from sparsefeed.models.config import ModelConfig, TrainConfig
from sparsefeed.models.plan import Plan, make_plan
from sparsefeed.models.topology import Topology
from sparsefeed.models.torchrec.columns import Batch, Rows, capacity_rows, open_split
from sparsefeed.models.torchrec.loader import Loader
from sparsefeed.models.torchrec.prefetch import on_device
from sparsefeed.models.torchrec.trainer import Trainer

__all__ = ["steps"]

FOLDER = Path(__file__).parent
GPU = torch.device("cuda", 0)
IN_MEMORY, WARM, PASSES = 16, 4, 3  # batches
THREADS = 8  # that read


def steps(record: Recorder, model: ModelConfig, folder: Path, batch: int, rows: int, num: int, dim: int) -> list[Row]:
    """Samples a second of one card; `num` training rows are written to `folder`, tables have up to `rows` rows."""
    spec = feed(dim)
    write_rows(folder, spec, {"member": rows, "creator": rows // 5, "post": rows, "hashtag": 50_000}, num)
    capacities, columns = capacity_rows(spec, folder), Rows.columns(spec, weights=False)
    loader = Loader(
        spec, open_split(spec, folder, "train", columns), capacities, columns, batch, 0, 1, 2**18, 0, THREADS, 8, True
    )
    plan = make_plan(spec, model, capacities, Topology.gpus(1), batch)
    trainer = _trainer(model, capacities, plan, batch, dim)
    pinned = list(islice(loader.epoch(0), IN_MEMORY))
    there = [one.to(GPU) for one in pinned]
    rates = {
        "on the device": max(_rate(trainer, there) for _ in range(PASSES)),
        "pinned memory": max(_rate(trainer, on_device(iter(pinned), GPU)) for _ in range(PASSES)),
        "parquet": max(_rate(trainer, on_device(replace(loader, seed=i).epoch(i), GPU)) for i in range(PASSES)),
    }
    speed, case = rates["on the device"], f"training step, {rows}-row tables of {dim}, batch {batch}, bf16"
    return [
        record.row(case, "samples per second", speed, "samples/s", "plan", plan.samples_per_s),
        record.row(case, "samples per second", speed, "samples/s", "PyTorch", _plain(model, folder, batch)),
        record.row(case, "from pinned memory", rates["pinned memory"], "samples/s", "on the device", speed),
        record.row(case, "reading parquet", rates["parquet"], "samples/s", "on the device", speed),
    ]


def _trainer(model: ModelConfig, capacities: dict[str, int], plan: Plan, batch: int, dim: int) -> Trainer:
    if not dist.is_initialized():
        torch.cuda.set_device(GPU)
        dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    config = TrainConfig(processes=1, batch_size=batch, dense_precision="bf16")
    trainer = Trainer(feed(dim), model, config, capacities, plan, GPU, restored=capacities)
    for shard in trainer.shards:
        shard.values.uniform_(-model.table_init, model.table_init)
    return trainer


def _rate(trainer: Trainer, batches: Iterable[Batch]) -> float:
    """Samples a second on the clock, the first steps left out."""
    started, num = 0.0, 0
    for number, batch in enumerate(batches):
        if number == WARM:
            torch.cuda.synchronize()
            started, num = time.perf_counter(), 0
        trainer.step(batch, 1e-3, 0.05)
        num += len(batch.labels_BR)
    torch.cuda.synchronize()
    return num / (time.perf_counter() - started)


def _plain(model: ModelConfig, folder: Path, batch: int) -> float:
    shape = json.dumps(model.model_dump() | {"batch_size": batch})
    command = [sys.executable, str(FOLDER / "peers" / "train.py"), "torch", str(folder), shape]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["samples_per_s"])
