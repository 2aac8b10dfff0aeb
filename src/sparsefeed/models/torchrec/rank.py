"""One rank of a training: `python -m sparsefeed.models.torchrec.rank JOB.json [REPORT_FD]`.

Started by `train`; also by `torchrun` on several hosts that share one file system. Reads RANK, WORLD_SIZE,
LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Reports are JSON lines, short enough that a pipe does not mix them.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from sparsefeed.errors import SparsefeedError, TrainError
from sparsefeed.models.torchrec.checkpoint import Checkpoint, Shard, identity, latest, restore
from sparsefeed.models.torchrec.columns import (
    Rows,
    capacity_rows,
    etl_fingerprint,
    held_out_parts,
    open_split,
    parts_digest,
    read_part,
)
from sparsefeed.models.torchrec.io_tuning import Tuner, settings_to_try
from sparsefeed.models.torchrec.loader import Loader
from sparsefeed.models.torchrec.loop import Loop, Report
from sparsefeed.models.torchrec.train import Job
from sparsefeed.models.torchrec.trainer import Trainer

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1
_RATE_ROWS = 2**20
_REPORT_BYTES = 1500  # with every byte escaped still below PIPE_BUF, so that ranks do not interleave


def main(arguments: list[str]) -> int:
    """Run one rank to its end; 0 when training finished."""
    if sys.platform == "linux":
        # A rank whose launcher was killed would train on unseen.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.environ.get("LAUNCHER", str(os.getppid())) != str(os.getppid()):
            return 1  # it was killed before the call above
    # Ctrl-C reaches the launcher, which asks its ranks to save and stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.append(number))
    descriptor = int(arguments[1]) if len(arguments) > 1 else None
    rank = int(os.environ["RANK"])

    def report(what: dict[str, Any]) -> None:
        if descriptor is not None:
            os.write(descriptor, json.dumps({"rank": rank, **what}, ensure_ascii=False).encode() + b"\n")

    try:
        job = Job.model_validate_json(Path(arguments[0]).read_text("utf-8"))
        _run(job, report, lambda: bool(stopping))
    except Exception as error:
        words = str(error) if isinstance(error, SparsefeedError) else traceback.format_exc()
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            words = f"{error}; earlier checkpoints are whole; make room, and the same training goes on from the last"
        report({"error": words.encode()[-_REPORT_BYTES:].decode(errors="ignore")})
        with suppress(OSError):  # the log may lie on the disk that is full
            traceback.print_exc()
        return 1
    return 0


def _run(job: Job, report: Report, must_stop: Callable[[], bool]) -> None:
    config = job.config
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // int(os.environ["LOCAL_WORLD_SIZE"])))
    torch.use_deterministic_algorithms(config.deterministic)
    dist.init_process_group("nccl" if cuda else "gloo")
    columns = Rows.columns(job.spec, weights=config.weights == "ips")
    parts = open_split(job.spec, job.data, "train", columns)
    capacities = capacity_rows(job.spec, job.data)
    world_size = dist.get_world_size()
    trained, held_out = held_out_parts(parts, config.validation.rows if config.validation else 0)
    loader = Loader(
        spec=job.spec, parts=trained, capacities=capacities, columns=columns,
        batch_size=config.batch_size // world_size, rank=dist.get_rank(), world_size=world_size,
        shuffle_rows=config.shuffle_rows, seed=config.seed, read_threads=config.read_threads,
        batches_ahead=config.batches_ahead, pinned=cuda, by_time=config.order == "time",
    )  # fmt: skip
    validation = replace(loader, parts=held_out) if held_out else None
    source = latest(job.out) or job.start_from
    restored = {name: rows for name, (rows, _) in Checkpoint.read(source).tables.items()} if source else {}
    trainer = Trainer(job.spec, job.model, config, capacities, job.plan, device, restored)
    checkpoint = Checkpoint(
        step=0, feed=job.spec, etl=etl_fingerprint(job.data), data=parts_digest(parts),
        model=job.model, config=config.model_dump(mode="json"),
        start=identity(job.start_from) if job.start_from else "",
        tables={table.name: (capacities[table.name], table.dim) for table in job.spec.tables},
        column_parts={table.name: len(table.devices) for table in job.plan.tables if table.sharding == "column_wise"},
    )  # fmt: skip
    step = _begin(job, trainer, checkpoint, loader)
    told = report if dist.get_rank() == 0 else _nobody
    tuner = Tuner(settings_to_try(torch.get_num_threads()) if config.autotune_io else [], device)
    Loop(job, loader, validation, trainer, checkpoint, step, told, must_stop, tuner).train()
    dist.destroy_process_group()


def _nobody(what: dict[str, Any]) -> None:
    pass


def _begin(job: Job, trainer: Trainer, checkpoint: Checkpoint, loader: Loader) -> int:
    """Fill the model; the step it begins after."""
    last = latest(job.out)
    source = last or job.start_from
    if source is None:
        trainer.start_at(_rates(job, loader))
        return 0
    found = Checkpoint.read(source)
    if last and found.data != checkpoint.data:
        raise TrainError(f"{last}: was trained on other files than {job.data} has now; train into another folder")
    trainer.load_dense_state(restore(source, trainer.shards))
    if last:
        return found.step
    for shard in trainer.shards:
        if shard.table in job.new_rows:
            values = np.load(job.out / "new-rows" / f"{shard.table}.npy", mmap_mode="r")
            _fill(shard, job.new_rows[shard.table], values, job.config.initial_accumulator)
    return 0


def _fill(shard: Shard, first: int, values: NDArray[np.float32], accumulator: float) -> None:
    """Begin the rows of new ids with these values, and Adagrad of them as of all rows at first."""
    rows, width = shard.values.shape
    start, stop = max(first, shard.row), min(first + len(values), shard.row + rows)
    if start < stop:
        cut = torch.from_numpy(values[start - first : stop - first, shard.column : shard.column + width].copy())
        shard.values[start - shard.row : stop - shard.row].copy_(cut)
        shard.accumulator[start - shard.row : stop - shard.row] = accumulator


def _rates(job: Job, loader: Loader) -> list[float]:
    """Rates of the responses over about the first million rows, the same on every rank."""
    labels, weights, num_rows = [], [], 0
    for part in loader.parts:
        if num_rows >= _RATE_ROWS:
            break
        rows = Rows.from_arrow(job.spec, read_part(job.spec, part, loader.columns, loader.capacities))
        labels.append(rows.labels_NR)
        weights.append(rows.weights_NR)
        num_rows += len(rows)
    weighted = np.concatenate(weights).astype(np.float64)
    rates: list[float] = ((weighted * np.concatenate(labels)).sum(0) / weighted.sum(0)).tolist()
    return rates


if __name__ == "__main__":
    status = main(sys.argv[1:])
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    # Peers of a failed rank may be inside a collective, which an orderly end would wait for; a finished one saves
    # the seconds that unloading torch takes.
    os._exit(status)
