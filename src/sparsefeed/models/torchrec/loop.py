"""The loop of one rank: steps, the curve, checkpoints, and when to stop.

What ranks decide, they decide together, at the steps they log: rank 0's clock says when a checkpoint is due, any rank's
wish to stop is all ranks' (Ctrl-C, or a signal of whoever scheduled them), and validation is a sum over all.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sparsefeed.errors import TrainError
from sparsefeed.models.config import TrainConfig
from sparsefeed.models.torchrec.checkpoint import Checkpoint, discard_after, save
from sparsefeed.models.torchrec.columns import Batch
from sparsefeed.models.torchrec.io_tuning import Tuner
from sparsefeed.models.torchrec.loader import Loader
from sparsefeed.models.torchrec.prefetch import on_device
from sparsefeed.models.torchrec.train import Job
from sparsefeed.models.torchrec.trainer import LossError, Trainer

__all__ = ["Loop", "Report"]

Report = Callable[[dict[str, Any]], None]


class Loop:
    """Trains from the step of a checkpoint, or from the first, to the end.

    Args:
        job: What to do.
        loader: This rank's rows.
        validation: This rank's rows that are held out; None: none are.
        trainer: The model, filled.
        checkpoint: What checkpoints of this run say.
        step: Steps trained.
        report: Told of rank 0's progress and result.
        must_stop: Whether this rank was asked to stop.
        tuner: Tries settings of the loader on the first steps; of none it leaves it as it is.
    """

    def __init__(
        self,
        job: Job,
        loader: Loader,
        validation: Loader | None,
        trainer: Trainer,
        checkpoint: Checkpoint,
        step: int,
        report: Report,
        must_stop: Callable[[], bool],
        tuner: Tuner,
    ) -> None:
        self._job, self._loader, self._validation, self._trainer = job, loader, validation, trainer
        self._checkpoint, self._report, self._must_stop = checkpoint, report, must_stop
        self._first = self._step = self._saved = step
        self._steps = loader.batches_per_epoch * job.config.epochs
        self._losses: list[Tensor] = []  # per step since the last log, [R] each
        self._loss: dict[str, float] = {}
        self._tuner = tuner
        self._best, self._best_step, self._worse = math.inf, step, 0
        self._rows, self._training_s = 0, 0.0
        self._saved_at = time.monotonic()
        self._board: Any = None

    def train(self) -> None:
        """Train to the end, or until it is asked to stop; either way the last step is saved."""
        config = self._job.config
        self._keep_curve()
        if config.tensorboard and dist.get_rank() == 0:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self._job.out / "tensorboard"), purge_step=self._step + 1)
        begun, ended = time.monotonic(), self._step >= self._steps or self._is_good_enough()
        for epoch, number, batch in () if ended else self._batches():
            try:
                self._losses.append(self._trainer.step(batch, *_rates(config, self._step, self._steps)))
            except LossError as error:
                path, row = self._loader.locate(epoch, number, error.row)
                raise TrainError(f"step {self._step + 1}: {path}, row {row}: {error}; {self._advice()}") from error
            self._step += 1
            self._rows += len(batch.labels_BR)
            ended = self._step == self._steps
            if self._step % config.log_every and not ended:
                continue
            self._training_s += time.monotonic() - begun
            due, stop = self._log()
            # Noted before it is saved: a run that goes on from here knows it.
            better = self._validates() and self._validate()
            ended = ended or self._is_good_enough()
            if due or stop or better or ended:
                self._save()
            if stop or ended:
                break
            begun = time.monotonic()
        if ended:
            self._end()
        if self._board:
            self._board.close()

    def _batches(self) -> Iterator[tuple[int, int, Batch]]:
        """Epoch, number in it, and batch."""
        first, start = divmod(self._step, self._loader.batches_per_epoch)
        for epoch in range(first, self._job.config.epochs):
            number = start if epoch == first else 0
            if epoch and not number and self._job.config.reset_tables:
                self._trainer.begin_tables({})
            while number < self._loader.batches_per_epoch:
                setting = self._tuner.setting()
                loader = setting.of(self._loader) if setting else self._loader
                with closing(loader.epoch(epoch, number)) as batches:
                    for batch in islice(on_device(batches, self._trainer.device), self._tuner.stretch):
                        yield epoch, number, batch
                        self._tuner.stepped()
                        number += 1

    def _log(self) -> tuple[bool, bool]:
        """Write the mean loss of all ranks; whether a checkpoint is due, and whether to stop."""
        losses_SR = torch.stack(self._losses)
        due = time.monotonic() - self._saved_at > self._job.config.checkpoint_every_s and dist.get_rank() == 0
        packed = torch.cat([losses_SR.flatten(), losses_SR.new_tensor([due, self._must_stop()])])
        dist.all_reduce(packed)
        mean_SR = (packed[:-2].cpu() / dist.get_world_size()).reshape(losses_SR.shape)
        bad = (~torch.isfinite(mean_SR)).any(dim=1).nonzero()
        if len(bad):
            step = self._step - len(self._losses) + int(bad[0]) + 1
            raise TrainError(f"step {step}: the loss is {mean_SR[bad[0, 0]].tolist()}; {self._advice()}")
        self._loss = self._named(mean_SR.double().mean(dim=0))
        self._losses.clear()
        self._note({"samples": self._samples(), "loss": self._loss, "samples_per_s": self._samples_per_s()})
        self._report({"step": self._step, "steps": self._steps, "loss": sum(self._loss.values()) / len(self._loss)}
                     | {"samples_per_s": self._samples_per_s()})  # fmt: skip
        return bool(packed[-2] > 0), bool(packed[-1] > 0)

    def _advice(self) -> str:
        return f"lower the learning rates, or mend the row; the last checkpoint is of step {self._saved or 'none'}"

    def _validates(self) -> bool:
        """Whether the held-out rows are due: each so many steps, at a step that is logged, and at the end."""
        config = self._job.config
        if self._validation is None or config.validation is None:
            return False
        every = -(-config.validation.every // config.log_every) * config.log_every
        return self._step % every == 0 or self._step == self._steps

    def _is_good_enough(self) -> bool:
        """Whether the held-out rows got no better so many times."""
        watched = self._job.config.validation
        return watched is not None and self._worse >= watched.patience

    def _validate(self) -> bool:
        """Note the loss of the held-out rows; whether it is the best so far."""
        assert self._validation is not None
        losses, num = torch.zeros(len(self._job.spec.responses) + 1, dtype=torch.float64), 0
        for batch in on_device(self._validation.epoch(0), self._trainer.device):
            num = len(batch.labels_BR)
            losses[:-1] += num * self._trainer.loss(batch).double().cpu()
            losses[-1] += num
        losses = losses.to(self._trainer.device)
        dist.all_reduce(losses)
        found = losses[:-1] / losses[-1]
        if not torch.isfinite(found).all():
            raise TrainError(f"step {self._step}: the loss of the held-out rows is {found.tolist()}; {self._advice()}")
        self._note({"validation": self._named(found)})
        return self._judge(self._step, float(found.mean()))

    def _judge(self, step: int, loss: float) -> bool:
        """Whether it is the best so far."""
        better = loss < self._best
        if better:
            self._best, self._best_step = loss, step
        self._worse = 0 if better else self._worse + 1
        return better

    def _end(self) -> None:
        """Of a run with validation the best checkpoint is the last one."""
        if self._validation is not None:
            if dist.get_rank() == 0:
                discard_after(self._job.out, self._best_step)
            dist.barrier()
            self._step = self._best_step
        best = self._tuner.best
        tried = [{**asdict(one), "step_s": s, "taken": one == best} for one, s in self._tuner.seconds.items()]
        result = {"io": tried, "step": self._step, "num_samples": self._samples(), "loss": self._loss}
        self._report({"result": result | {"samples_per_s": self._samples_per_s()}})

    def _save(self) -> None:
        checkpoint = self._checkpoint.model_copy(update={"step": self._step})
        kept = self._best_step if self._validation is not None else None
        save(self._job.out, checkpoint, self._trainer.shards, self._trainer.dense_state(), kept)
        self._saved, self._saved_at = self._step, time.monotonic()

    def _samples(self) -> int:
        """Global rows trained up to this step, since step 0."""
        epoch, batches = divmod(self._step, self._loader.batches_per_epoch)
        a_pass = self._loader.rows_per_epoch
        return (epoch * a_pass + min(batches * self._loader.batch_size, a_pass)) * self._loader.world_size

    def _samples_per_s(self) -> float:
        return round(self._rows * self._loader.world_size / self._training_s, 1) if self._training_s else 0.0

    def _named(self, values_R: Tensor) -> dict[str, float]:
        names = [response.name for response in self._job.spec.responses]
        return dict(zip(names, values_R.tolist(), strict=True))

    def _note(self, what: dict[str, Any]) -> None:
        """Add a line to the curve, and its numbers to TensorBoard's."""
        if dist.get_rank():
            return
        with (self._job.out / "curve.jsonl").open("a") as curve:
            curve.write(json.dumps({"step": self._step, **what}) + "\n")
        for name, value in what.items() if self._board else ():
            for tag, number in value.items() if isinstance(value, dict) else [("", value)]:
                self._board.add_scalar(f"{name}/{tag}".rstrip("/"), number, self._step)

    def _keep_curve(self) -> None:
        """Take up what was noted up to the checkpoint the run goes on from, and drop what it will write again."""
        path = self._job.out / "curve.jsonl"
        lines = path.read_text("utf-8").splitlines(keepends=True) if path.is_file() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= self._first]
        for line in map(json.loads, kept):
            self._loss = line.get("loss", self._loss)
            if "validation" in line:
                self._judge(line["step"], sum(line["validation"].values()) / len(line["validation"]))
        dist.barrier()
        if dist.get_rank() == 0:
            beside = path.with_suffix(".partial")
            beside.write_text("".join(kept), "utf-8")
            beside.replace(path)


def _rates(config: TrainConfig, step: int, steps: int) -> tuple[float, float]:
    """Learning rates of the dense model and of the tables in step `step` of `steps`, counted from 0."""
    rising = min(1.0, (step + 1) / max(1.0, config.warmup * steps))
    falling = min(1.0, (steps - step) / max(1.0, config.dense_decay * steps))
    return config.dense_learning_rate * min(rising, falling), config.table_learning_rate * rising
