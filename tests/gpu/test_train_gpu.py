"""A training on one GPU against the same on the CPU: steps, shardings, whole runs, going on, and what waits.

Run on one H100 with driver 580.159.04, torch 2.11.0+cu130, TorchRec 1.6.1, fbgemm-gpu 1.6.0 and NCCL 2.28.9.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from sparsefeed.models.config import ModelConfig, TrainConfig, Validation
from sparsefeed.models.plan import make_plan
from sparsefeed.models.topology import Topology
from sparsefeed.models.torchrec.checkpoint import load_tables
from sparsefeed.models.torchrec.columns import Batch, Rows, capacity_rows, open_split, read_part
from sparsefeed.models.torchrec.lookup_keys import lookup_order
from sparsefeed.models.torchrec.score import Scorer
from sparsefeed.models.torchrec.train import TrainResult, train
from tests.models.conftest import Written, etl, spec, write_etl

__all__ = ["etl", "spec", "write_etl"]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore::FutureWarning:torch.*", "ignore::UserWarning:torch.*"),
]
MODEL = ModelConfig(hidden=(8,), cross_layers=1, cross_rank=4)
WHOLE = TrainConfig(
    processes=1, batch_size=128, epochs=3, log_every=2, table_learning_rate=0.2, checkpoint_every_s=1e-9
)
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(scope="module", autouse=True)
def process_group(gpu: None) -> Iterator[None]:
    torch.cuda.set_device(GPU)
    dist.init_process_group("cpu:gloo,cuda:nccl", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def batches(etl: Written) -> list[Batch]:
    columns = Rows.columns(etl.spec)
    part = open_split(etl.spec, etl.path, "train", columns)[0]
    rows = Rows.from_arrow(etl.spec, read_part(etl.spec, part, columns, capacity_rows(etl.spec, etl.path)))
    # Enough of one size that the dense part becomes a graph, and a smaller one, which goes another way.
    return [rows.batch(lookup_order(etl.spec), i, min(i + 32, 200)) for i in range(0, 200, 32)]


def trainer_of(etl: Written, device: torch.device, sharding: str = "table_wise", **config: Any) -> Any:
    from sparsefeed.models.torchrec.trainer import Trainer

    settings, capacities = TrainConfig(processes=1, **config), capacity_rows(etl.spec, etl.path)
    here = Topology.processes(1) if device.type == "cpu" else Topology.gpus(1)
    plan = make_plan(etl.spec, MODEL, capacities, here, 40)
    tables = tuple(table.model_copy(update={"sharding": sharding}) for table in plan.tables)
    plan = plan.model_copy(update={"tables": tables})  # on one device no plan would choose row-wise
    return Trainer(etl.spec, MODEL, settings, capacities, plan, device)


@pytest.mark.parametrize("sharding", ["table_wise", "row_wise", "data_parallel"])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_steps_are_those_of_the_cpu(etl: Written, batches: list[Batch], sharding: str, micro_batches: int) -> None:
    here, there = (trainer_of(etl, device, sharding, micro_batches=micro_batches) for device in (CPU, GPU))
    for batch in batches:
        loss = there.step(batch.pinned(), 1e-3, 0.05)
        torch.testing.assert_close(loss.cpu(), here.step(batch, 1e-3, 0.05), rtol=0, atol=1e-6)
    torch.testing.assert_close(there.loss(batches[0]).cpu(), here.loss(batches[0]), rtol=0, atol=1e-5)
    for ours, theirs in zip(there.shards, here.shards, strict=True):
        assert ours.values.device == GPU
        torch.testing.assert_close(ours.values.cpu(), theirs.values, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours.accumulator.cpu(), theirs.accumulator, rtol=1e-4, atol=1e-12)
    for name, weight in there.dense_state().items():
        torch.testing.assert_close(weight.cpu(), here.dense_state()[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_waits_for_the_card_in_torchrec_alone(etl: Written, batches: list[Batch], precision: str) -> None:
    trainer = trainer_of(etl, GPU, dense_precision=precision)
    pinned = [batch.pinned() for batch in batches]
    for batch in pinned[:4]:
        trainer.step(batch, 1e-3, 0.05)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            for batch in pinned:
                trainer.step(batch, 1e-3, 0.05)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found = [Path(wait.filename).name for wait in waits if "synchronizing" in str(wait.message)]
    assert found == ["dist_data.py"] * len(pinned)  # a tensor of indices, made anew for each batch


def test_two_deterministic_trainings_are_equal_bit_for_bit(etl: Written, batches: list[Batch]) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        trainers = [trainer_of(etl, GPU) for _ in range(2)]
        for trainer in trainers:
            for batch in batches:
                trainer.step(batch, 1e-3, 0.05)
    finally:
        torch.use_deterministic_algorithms(False)
    states = [[shard.values for shard in trainer.shards] + [*trainer.dense_state().values()] for trainer in trainers]
    assert all(map(torch.equal, *states))


def curve(out: Path) -> list[list[float]]:
    return [list(json.loads(line)["loss"].values()) for line in (out / "curve.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def trained(etl: Written, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainResult]:
    out = tmp_path_factory.mktemp("there") / "run"
    return out, train(etl.spec, MODEL, WHOLE, etl.path, out)


def test_a_training_is_that_of_the_cpu(
    etl: Written, trained: tuple[Path, TrainResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # of the rank, and here
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    here = train(etl.spec, MODEL, WHOLE, etl.path, tmp_path)
    assert (here.step, here.num_samples) == (trained[1].step, trained[1].num_samples) == (24, 3 * 1024)
    np.testing.assert_allclose(curve(trained[0]), curve(tmp_path), rtol=0, atol=1e-5)
    logits = [Scorer(etl.spec, result.checkpoint).score(etl.path / "eval") for result in (trained[1], here)]
    np.testing.assert_allclose(*logits, rtol=0, atol=1e-3)


def test_reading_is_tuned_and_held_out_rows_are_watched(etl: Written, tmp_path: Path) -> None:
    settings = {"epochs": 30, "autotune_io": True, "validation": Validation(rows=200, every=8, patience=30)}
    result = train(etl.spec, MODEL, WHOLE.model_copy(update=settings), etl.path, tmp_path)
    assert [one["read_threads"] for one in result.io][:3] == [1, 1, 2]
    assert sum(one["taken"] for one in result.io) == 1
    lines = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text("utf-8").splitlines()]
    watched = {line["step"]: sum(line["validation"].values()) for line in lines if "validation" in line}
    assert min(watched, key=watched.__getitem__) == result.step


def test_a_training_broken_off_goes_on_from_its_checkpoint(
    etl: Written, trained: tuple[Path, TrainResult], tmp_path: Path
) -> None:
    def interrupt(done: int, total: int, what: str) -> None:
        if done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(etl.spec, MODEL, WHOLE, etl.path, tmp_path, interrupt)
    result = train(etl.spec, MODEL, WHOLE, etl.path, tmp_path, resume=True)
    np.testing.assert_allclose(curve(tmp_path), curve(trained[0]), rtol=0, atol=1e-5)
    expected = load_tables(trained[1].checkpoint)
    for name, values in load_tables(result.checkpoint).items():
        np.testing.assert_allclose(values, expected[name], rtol=0, atol=1e-4)
