"""Training on one host: `processes` ranks over gloo on CPU, NCCL with a GPU each where CUDA is.

Notable: ranks are plain processes of `python -m sparsefeed.models.torchrec.rank`, told by one JSON file what to do
and reporting over one pipe, so that a caller needs no `__main__` guard, nothing is pickled, and a rank's failure
reaches the caller as one TrainError with that rank's last words.

    out/ job.json  plan.json  curve.jsonl  logs/rank-<r>.log  checkpoints/step-<N>/
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from sparsefeed.allocators import KEEP_FREED
from sparsefeed.errors import DataError, TrainError
from sparsefeed.etl.spec import FeedSpec, Frozen, validate
from sparsefeed.models.config import ModelConfig, TrainConfig
from sparsefeed.models.difference import difference
from sparsefeed.models.plan import Plan, make_plan
from sparsefeed.models.topology import Topology
from sparsefeed.models.torchrec.checkpoint import HUGECTR, Checkpoint, clear_partial, finished, identity, latest
from sparsefeed.models.torchrec.cold_start import check_cold_start, first_rows
from sparsefeed.models.torchrec.columns import (
    Rows,
    capacity_rows,
    check_trained_on,
    etl_fingerprint,
    held_out_parts,
    open_split,
    parts_digest,
    previous_fingerprint,
)
from sparsefeed.progress import Progress, silent

__all__ = ["Job", "TrainResult", "train"]

_LAST_LINES = 20
_STOP_S = 300.0  # for the steps up to the next log, and a checkpoint


class Job(Frozen):
    """What every rank is told."""

    spec: FeedSpec
    model: ModelConfig
    config: TrainConfig
    plan: Plan
    data: Path
    out: Path
    start_from: Path | None
    new_rows: dict[str, int]  # table -> the first; their values lie in out/new-rows/

    @property
    def processes(self) -> int:
        """Ranks; `train` has settled them."""
        assert self.config.processes is not None
        return self.config.processes


@dataclass(frozen=True)
class TrainResult:
    """A finished training."""

    checkpoint: Path
    step: int  # global batches trained
    num_samples: int  # rows trained, epochs counted
    loss: dict[str, float]  # per response, mean over the last logged steps
    samples_per_s: float  # over this call, without start-up and checkpoints; 0 where nothing was left to do
    io: list[dict[str, Any]]  # settings of the loader that were tried: read_threads, batches_ahead, step_s, taken


def train(
    spec: FeedSpec,
    model: ModelConfig,
    config: TrainConfig,
    data: str | Path,
    out: str | Path,
    progress: Progress = silent,
    *,
    resume: bool = False,
    start_from: str | Path | None = None,
    previous: str | Path | None = None,
) -> TrainResult:
    """Train on `data/train` (docs/contracts/training.md) and leave a checkpoint in `out`.

    Args:
        spec: The declaration the data was made with.
        model: Shape of the model.
        config: How to train.
        data: ETL folder.
        out: Training folder; holds one run.
        progress: Told (step, steps, "training, loss 0.3519, 98,000 samples/s"). A KeyboardInterrupt, here or from the
            terminal, has the ranks save the step they are at.
        resume: Continue an interrupted run of the same spec, configuration and data from its last checkpoint, to
            the loss curve it would have had; begin where there is none; return at once where it is finished. On other
            processes it goes on too, but these take other rows together into a batch.
        start_from: Checkpoint of an earlier run of the same spec to begin with instead of random values: of the same
            ETL run, or, with `previous`, of the one that the day in `data` was added to.
        previous: That ETL run's folder; ids that are new since begin as `config.cold_start` says.

    Raises:
        DataError: A file or column breaks the contract; said before any rank starts.
        SpecError: `config` names tables or features that the spec has not.
        TrainError: `out` holds another run, a loss is not finite, or a rank failed.
    """
    data, out = Path(data).resolve(), Path(out).resolve()
    config = _with_processes(config)
    assert config.processes is not None
    check_cold_start(spec, config.cold_start)
    capacities = capacity_rows(spec, data)
    parts = open_split(spec, data, "train", Rows.columns(spec, config.weights == "ips"))
    for some in held_out_parts(parts, config.validation.rows if config.validation else 0):
        num_rows = sum(part.num_rows for part in some)
        if some and num_rows < config.processes:
            what = "training" if some[0] == parts[0] else "held-out"
            raise TrainError(f"{data}: {num_rows} {what} rows for {config.processes} processes; use at most {num_rows}")
    if torch.cuda.is_available() and torch.cuda.device_count() < config.processes:
        raise TrainError(
            f"processes: got {config.processes}; this host has {torch.cuda.device_count()} GPUs, one per process"
        )
    job = Job(
        spec=spec,
        model=model,
        config=config,
        plan=make_plan(
            spec, model, capacities, _here(config.processes), config.batch_size, config.micro_batches, config.sharding
        ),
        data=data,
        out=out,
        start_from=Path(start_from).resolve() if start_from else None,
        new_rows={},
    )
    if start_from:
        if config.reset_tables and config.epochs > 1:
            raise TrainError(
                f"train.epochs: got {config.epochs} with reset_tables, which forgets {start_from} after one; use 1"
            )
        found = Checkpoint.read(Path(start_from))
        found.must_be_of(Path(start_from), spec)
        if found.model != model:
            raise TrainError(
                f"{start_from}: is of another model ({difference(found.model, model)}); train anew with it"
            )
        check_trained_on(Path(start_from), found.etl, Path(previous or data))
        if previous and previous_fingerprint(data) != etl_fingerprint(Path(previous)):
            raise DataError(f"{data}: is no day that was added to {previous}; run `sparsefeed etl --day` again")
    _check_out(job, resume)
    done = out / "result.json"
    before = _finished(out, parts_digest(parts), etl_fingerprint(data))
    if before is not None:
        return before
    out.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)
    clear_partial(out)
    (out / "logs").mkdir(exist_ok=True)
    if previous and latest(out) is None:
        job = job.model_copy(update={"new_rows": _write_new_rows(job, Path(previous))})
    (out / "job.json").write_text(job.model_dump_json(indent=1) + "\n", "utf-8")
    job.plan.save(out / "plan.json")
    result = _launch(job, progress)
    checkpoint = latest(out)
    assert checkpoint is not None
    shutil.rmtree(out / "new-rows", ignore_errors=True)
    beside = done.with_suffix(".partial")
    beside.write_text(json.dumps({"checkpoint": checkpoint.name, **result}, indent=1) + "\n", "utf-8")
    beside.replace(done)
    return TrainResult(checkpoint=checkpoint, **result)


def _write_new_rows(job: Job, previous: Path) -> dict[str, int]:
    """Leave the first values of new ids where the ranks find them; the first row of each table."""
    assert job.start_from is not None
    found = first_rows(job.spec, job.config.cold_start, job.data, previous, job.start_from)
    (job.out / "new-rows").mkdir(exist_ok=True)
    for table, (_, values) in found.items():
        np.save(job.out / "new-rows" / f"{table}.npy", values)
    return {table: first for table, (first, _) in found.items()}


def _finished(out: Path, data: str, etl: str) -> TrainResult | None:
    """The result of a run of the same files that is at its end, so that no rank need be started to find out."""
    checkpoint = finished(out)
    if checkpoint is None:
        return None
    found = Checkpoint.read(checkpoint)
    if (found.data, found.etl) != (data, etl):
        return None
    result = json.loads((out / "result.json").read_text("utf-8"))
    del result["checkpoint"]
    return TrainResult(checkpoint=checkpoint, **{**result, "samples_per_s": 0.0})


def _with_processes(config: TrainConfig) -> TrainConfig:
    """The configuration with as many ranks as this host trains on."""
    if config.processes is not None:
        return config
    processes = torch.cuda.device_count() if torch.cuda.is_available() else config.ON_CPU
    return validate(TrainConfig, config.model_dump() | {"processes": processes}, where="train")


def _here(processes: int) -> Topology:
    """This host's devices."""
    if not torch.cuda.is_available():
        return Topology.processes(processes)
    memory = min(torch.cuda.get_device_properties(i).total_memory for i in range(processes))
    return Topology.gpus(processes, memory_bytes=memory, devices_per_host=processes)


def _check_out(job: Job, resume: bool) -> None:
    path = latest(job.out)
    if path is None:
        (job.out / "curve.jsonl").unlink(missing_ok=True)
        return
    if not resume:
        raise TrainError(f"{job.out}: already holds a training run; resume it (resume=True), or name another folder")
    found = Checkpoint.read(path)
    if found.data == HUGECTR:
        raise TrainError(
            f"{path}: is a model of HugeCTR, which is at its end; export it, go on by `train --day`, or remove "
            f"{job.out} to train anew"
        )
    for what, got, wanted in (
        ("spec", job.spec, found.feed),
        ("model", job.model, found.model),
        ("ETL run", etl_fingerprint(job.data), found.etl),
        ("start", identity(job.start_from) if job.start_from else "", found.start),
        ("configuration", _without_place(job.config.model_dump(mode="json")), _without_place(found.config)),
    ):
        if got != wanted:
            raise TrainError(
                f"{job.out}: holds a run of another {what} ({difference(wanted, got)}); "
                "go back to it, remove the folder to train anew, or train into another"
            )


def _without_place(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in TrainConfig.PLACE}


def _launch(job: Job, progress: Progress) -> dict[str, Any]:
    """Run all ranks to their end; rank 0's result."""
    # The store listens on a port the system chose, before any rank looks for it: no race for a free one.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(minutes=5))
    environment = (
        KEEP_FREED
        | os.environ
        | {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "LAUNCHER": str(os.getpid()),
            "WORLD_SIZE": str(job.processes),
            "LOCAL_WORLD_SIZE": str(job.processes),
            # Ranks set their own number of threads; OpenMP's spinning would take the cores from each other.
            "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // job.processes)),
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # what deterministic products on a GPU need
        }
    )
    result: dict[str, Any] = {}
    with _ended_by_sigterm(), _ranks(job, environment) as (processes, reports):
        failures: list[tuple[int, str]] = []
        try:
            for report in _reports(processes, reports):
                if "error" in report:
                    failures.append((report["rank"], report["error"]))
                elif "result" in report:
                    result = report["result"]
                else:
                    words = f"training, loss {report['loss']:.4f}, {report['samples_per_s']:,.0f} samples/s"
                    progress(report["step"], report["steps"], words)
        except KeyboardInterrupt as interrupt:
            _stop(processes)
            for report in _reports(processes, reports):
                if "error" in report:
                    raise TrainError(f"rank {report['rank']}, asked to stop: {report['error']}") from interrupt
            raise
        codes = [process.poll() for process in processes]
    _must_have_ended_well(job, codes, failures)
    if not result:
        raise TrainError(f"{job.out}: the ranks were asked to stop, and have; the same training goes on from there")
    return result


def _must_have_ended_well(job: Job, codes: Sequence[int | None], failures: Sequence[tuple[int, str]]) -> None:
    """TrainError of the rank that failed first."""
    for rank, code in enumerate(codes):
        if code is not None and code < 0:
            raise TrainError(
                f"rank {rank} was killed by signal {-code} (9: often memory); "
                f"the same training goes on from its last checkpoint\n{_tail(job, rank)}"
            )
    if failures:
        # The others fail after it, of its going.
        raise TrainError(f"rank {failures[0][0]}: {failures[0][1]}")
    for rank, code in enumerate(codes):
        if code:
            raise TrainError(f"rank {rank} ended with status {code}; its last lines:\n{_tail(job, rank)}")


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM, which schedulers send, is a KeyboardInterrupt here, where signals can be handled."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    """Have the ranks save what they have and end; an interrupt meanwhile ends them at once."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _STOP_S
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))


@contextmanager
def _ranks(job: Job, environment: dict[str, str]) -> Iterator[tuple[list[subprocess.Popen[bytes]], int]]:
    """Start the ranks; none outlives the block, however it is left."""
    reading, writing = os.pipe()
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(job.processes):
            with (job.out / "logs" / f"rank-{rank}.log").open("wb") as log:
                processes.append(
                    subprocess.Popen(
                        [
                            sys.executable,
                            "-m",
                            "sparsefeed.models.torchrec.rank",
                            str(job.out / "job.json"),
                            str(writing),
                        ],
                        env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        pass_fds=[writing],
                    )
                )
        os.close(writing)
        writing = -1
        yield processes, reading
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
        for descriptor in (reading, writing):
            if descriptor >= 0:
                os.close(descriptor)


def _reports(processes: list[subprocess.Popen[bytes]], reading: int) -> Iterator[dict[str, Any]]:
    """Yield reports in the order they were written, until all ranks ended or one failed."""
    rest = b""
    deadline = None
    while True:
        ended = all(process.poll() is not None for process in processes)
        if select.select([reading], [], [], 0 if ended else 0.1)[0]:
            chunk = os.read(reading, 65536)
            *lines, rest = (rest + chunk).split(b"\n")
            yield from map(json.loads, lines)
            if chunk:
                continue
        if ended:
            return
        # After a failure the others get a second to say what they saw; one may wait for its peer for ever.
        if deadline is None and any(process.poll() for process in processes):
            deadline = time.monotonic() + 1
        if deadline is not None and time.monotonic() > deadline:
            return


def _tail(job: Job, rank: int) -> str:
    lines = (job.out / "logs" / f"rank-{rank}.log").read_text("utf-8", errors="replace").splitlines()
    return "\n".join(lines[-_LAST_LINES:])
