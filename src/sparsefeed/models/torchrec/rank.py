"""One rank of a training: `python -m sparsefeed.models.torchrec.rank JOB.json [REPORT_FD]`.

Started by `train`; also by `torchrun` on several hosts that share one file system. Reads RANK, WORLD_SIZE,
LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Reports are JSON lines, short enough that a pipe does not mix them.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from sparsefeed.errors import SparsefeedError, TrainError
from sparsefeed.models.config import TrainConfig
from sparsefeed.models.torchrec.checkpoint import Checkpoint, Shard, identity, latest, restore, save
from sparsefeed.models.torchrec.columns import (
    Batch,
    Rows,
    capacity_rows,
    etl_fingerprint,
    open_split,
    parts_digest,
    read_part,
)
from sparsefeed.models.torchrec.loader import Loader
from sparsefeed.models.torchrec.train import Job
from sparsefeed.models.torchrec.trainer import Trainer

__all__ = ["main"]

Report = Callable[[dict[str, Any]], None]

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
    # Ctrl-C reaches the launcher, which ends its ranks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    descriptor = int(arguments[1]) if len(arguments) > 1 else None
    rank = int(os.environ["RANK"])

    def report(what: dict[str, Any]) -> None:
        if descriptor is not None:
            os.write(descriptor, json.dumps({"rank": rank, **what}, ensure_ascii=False).encode() + b"\n")

    try:
        _run(Job.model_validate_json(Path(arguments[0]).read_text("utf-8")), report)
    except Exception as error:
        traceback.print_exc()
        words = str(error) if isinstance(error, SparsefeedError) else traceback.format_exc()
        report({"error": words.encode()[-_REPORT_BYTES:].decode(errors="ignore")})
        return 1
    return 0


def _run(job: Job, report: Report) -> None:
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
    loader = Loader(
        spec=job.spec, parts=parts, capacities=capacities, columns=columns, batch_size=config.batch_size // world_size,
        rank=dist.get_rank(), world_size=world_size, shuffle_rows=config.shuffle_rows, seed=config.seed,
        read_threads=config.read_threads, batches_ahead=_ahead(config, cuda),
    )  # fmt: skip
    trainer = Trainer(job.spec, job.model, config, capacities, job.plan, device)
    checkpoint = Checkpoint(
        step=0, spec=job.spec.digest, etl=etl_fingerprint(job.data), data=parts_digest(parts),
        model=job.model, config=config.model_dump(mode="json"),
        start=identity(job.start_from) if job.start_from else "",
        tables={table.name: (capacities[table.name], table.dim) for table in job.spec.tables},
        column_parts={table.name: len(table.devices) for table in job.plan.tables if table.sharding == "column_wise"},
    )  # fmt: skip
    step = _begin(job, trainer, checkpoint, loader)
    run = _Run(job, loader, trainer, checkpoint, step, report)
    run.train()
    dist.destroy_process_group()


def _ahead(config: TrainConfig, cuda: bool) -> int:
    if config.batches_ahead is not None:
        return config.batches_ahead
    return 4 if cuda or torch.get_num_threads() > 2 else 0


def _begin(job: Job, trainer: Trainer, checkpoint: Checkpoint, loader: Loader) -> int:
    """Fill the model; the step it begins after."""
    last = latest(job.out)
    source = last or job.start_from
    if source is None:
        trainer.start_at(_rates(job, loader))
        return 0
    found = Checkpoint.read(source)
    if found.spec != job.spec.digest:
        raise TrainError(f"{source}: trained with spec {found.spec}; this run's is {job.spec.digest}")
    if found.model != job.model:
        raise TrainError(f"{source}: its model is {found.model!r}; this run's is {job.model!r}")
    if last and found.data != checkpoint.data:
        raise TrainError(f"{last}: was trained on other files than {job.data} has now; train into another folder")
    trainer.load_dense_state(restore(source, trainer.shards))
    if last:
        return found.step
    for shard in trainer.shards:
        if shard.table in job.new_rows:
            _fill(shard, job.new_rows[shard.table], np.load(job.out / "new-rows" / f"{shard.table}.npy", mmap_mode="r"))
    return 0


def _fill(shard: Shard, first: int, values: NDArray[np.float32]) -> None:
    """Begin the rows of new ids with these values; what training has counted of them is nothing."""
    rows, width = shard.values.shape
    start, stop = max(first, shard.row), min(first + len(values), shard.row + rows)
    if start < stop:
        cut = torch.from_numpy(values[start - first : stop - first, shard.column : shard.column + width].copy())
        shard.values[start - shard.row : stop - shard.row].copy_(cut)
        shard.accumulator[start - shard.row : stop - shard.row] = 0


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


class _Run:
    """The loop: steps, the curve, checkpoints."""

    def __init__(
        self, job: Job, loader: Loader, trainer: Trainer, checkpoint: Checkpoint, step: int, report: Report
    ) -> None:
        self.job, self.loader, self.trainer, self.checkpoint, self.report = job, loader, trainer, checkpoint, report
        self.first = self.step = self.saved = step
        self.steps = loader.batches_per_epoch * job.config.epochs
        self.losses: list[Tensor] = []  # per step since the last log, [R] each
        self.loss: dict[str, float] = {}
        self.rows = 0
        self.training_s = 0.0
        self.saved_at = time.monotonic()

    def train(self) -> None:
        config = self.job.config
        if dist.get_rank() == 0:
            self._keep_curve()
        begun = time.monotonic()
        for batch in self._batches():
            share = min(1.0, (self.step + 1) / max(1.0, config.warmup * self.steps))
            losses_R = self.trainer.step(batch, config.dense_learning_rate * share, config.table_learning_rate * share)
            self.losses.append(losses_R)
            self.step += 1
            self.rows += len(batch.labels_BR)
            if self.step % config.log_every == 0 or self.step == self.steps:
                self.training_s += time.monotonic() - begun
                if self._log() or self.step == self.steps:
                    self._save()
                begun = time.monotonic()
        if dist.get_rank() == 0:
            num_samples = self.loader.rows_per_epoch * self.loader.world_size * config.epochs
            self.report(
                {
                    "result": {
                        "step": self.step,
                        "num_samples": num_samples,
                        "loss": self.loss,
                        "samples_per_s": self._samples_per_s(),
                    }
                }
            )

    def _batches(self) -> Iterator[Batch]:
        epoch, start = divmod(self.step, self.loader.batches_per_epoch)
        for number in range(epoch, self.job.config.epochs):
            yield from self.loader.epoch(number, start if number == epoch else 0)

    def _log(self) -> bool:
        """Write the mean loss of all ranks; whether rank 0's clock asks for a checkpoint."""
        losses_SR = torch.stack(self.losses)
        due = time.monotonic() - self.saved_at > self.job.config.checkpoint_every_s
        # One collective for both: a rank that judged the time by itself could differ from its peers.
        packed = torch.cat([losses_SR.flatten(), losses_SR.new_tensor([due and dist.get_rank() == 0])])
        dist.all_reduce(packed)
        mean_SR = (packed[:-1].cpu() / dist.get_world_size()).reshape(losses_SR.shape)
        bad = (~torch.isfinite(mean_SR)).any(dim=1).nonzero()
        if len(bad):
            step = self.step - len(self.losses) + int(bad[0]) + 1
            raise TrainError(
                f"step {step}: the loss is {mean_SR[bad[0, 0]].tolist()}; lower the learning rates, or look for "
                f"values that are not numbers in {self.job.data}; the last checkpoint is of step {self.saved or 'none'}"
            )
        names = [response.name for response in self.job.spec.responses]
        self.loss = dict(zip(names, mean_SR.double().mean(dim=0).tolist(), strict=True))
        self.losses.clear()
        if dist.get_rank() == 0:
            line = {
                "step": self.step,
                "samples": self._samples(),
                "loss": self.loss,
                "samples_per_s": self._samples_per_s(),
            }
            with (self.job.out / "curve.jsonl").open("a") as curve:
                curve.write(json.dumps(line) + "\n")
            self.report({"step": self.step, "steps": self.steps})
        return bool(packed[-1] > 0)

    def _save(self) -> None:
        checkpoint = self.checkpoint.model_copy(update={"step": self.step})
        save(self.job.out, checkpoint, self.trainer.shards, self.trainer.dense_state())
        self.saved, self.saved_at = self.step, time.monotonic()

    def _samples(self) -> int:
        """Global rows trained up to this step, since step 0."""
        epoch, batches = divmod(self.step, self.loader.batches_per_epoch)
        rows = epoch * self.loader.rows_per_epoch + min(batches * self.loader.batch_size, self.loader.rows_per_epoch)
        return rows * self.loader.world_size

    def _samples_per_s(self) -> float:
        return round(self.rows * self.loader.world_size / self.training_s, 1) if self.training_s else 0.0

    def _keep_curve(self) -> None:
        """Drop the lines after the checkpoint the run goes on from, which it will write again."""
        path = self.job.out / "curve.jsonl"
        lines = path.read_text("utf-8").splitlines(keepends=True) if path.is_file() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= self.first]
        if kept:
            self.loss = json.loads(kept[-1])["loss"]
        path.write_text("".join(kept), "utf-8")


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Peers of a failed rank may be inside a collective, which an orderly end would wait for; a finished one saves
    # the seconds that unloading torch takes.
    os._exit(status)
