"""Settings of reading: tried on the first steps, of no account for what is trained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from sparsefeed.models.config import ModelConfig, TrainConfig
from sparsefeed.models.torchrec import io_tuning
from sparsefeed.models.torchrec import loader as loaders
from sparsefeed.models.torchrec.io_tuning import IoSetting, Tuner, settings_to_try
from sparsefeed.models.torchrec.train import train
from tests.models.conftest import Written
from tests.models.torchrec.test_torchrec_loader import loader_of


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_settings_go_from_none_ahead_to_the_cores_there_are() -> None:
    assert settings_to_try(1) == [IoSetting(1, 0), IoSetting(1, 4)]
    assert settings_to_try(6)[-1] == IoSetting(4, 4)
    assert settings_to_try(64)[-1] == IoSetting(8, 4)


@pytest.mark.parametrize(
    ("milliseconds", "taken"),
    [([50, 40, 30], 2), ([50, 30.5, 30], 1), ([30, 50, 29.5], 0)],
)
def test_the_fewest_threads_that_are_as_good_as_the_best_are_taken(
    monkeypatch: pytest.MonkeyPatch, milliseconds: list[float], taken: int
) -> None:
    clock = [0.0]
    monkeypatch.setattr(io_tuning.time, "perf_counter", lambda: clock[0])
    settings = [IoSetting(1, 0), IoSetting(1, 4), IoSetting(2, 4)]
    tuner = Tuner(settings, torch.device("cpu"))
    for setting, taking in zip(settings, milliseconds, strict=True):
        assert tuner.setting() == setting
        for _ in range(tuner.stretch or 0):
            clock[0] += taking / 1000
            tuner.stepped()
    assert tuner.setting() == tuner.best == settings[taken]
    assert tuner.stretch is None
    assert list(tuner.seconds.values()) == pytest.approx([one / 1000 for one in milliseconds])


def test_a_training_that_tries_settings_is_the_same_training(etl: Written, tmp_path: Path) -> None:
    model = ModelConfig(hidden=(4,), cross_layers=1, cross_rank=2)
    config = TrainConfig(processes=2, batch_size=64, epochs=6, log_every=4, shuffle_rows=128)
    plain = train(etl.spec, model, config, etl.path, tmp_path / "plain")
    tried = train(etl.spec, model, config.model_copy(update={"autotune_io": True}), etl.path, tmp_path / "tried")
    assert plain.io == []
    assert [(one["read_threads"], one["batches_ahead"]) for one in tried.io] == [(1, 0), (1, 4)]
    assert sum(one["taken"] for one in tried.io) == 1
    curves = [
        [json.loads(line)["loss"] for line in (out / "curve.jsonl").read_text().splitlines()]
        for out in (tmp_path / "plain", tmp_path / "tried")
    ]
    assert curves[0] == curves[1]


def test_going_on_reads_the_row_groups_that_are_left(etl: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real = loaders.read_part
    monkeypatch.setattr(
        loaders, "read_part", lambda spec, part, *rest: read.append(part.num_rows) or real(spec, part, *rest)
    )
    loader = loader_of(etl)
    whole = list(loader.epoch(0))
    assert sum(read) == 1024
    read.clear()
    rest = list(loader.epoch(0, 9))
    assert sum(read) <= 1024 - 900 + 200  # from the buffer of the ninth batch on, in row groups of up to 200
    for got, expected in zip(rest, whole[9:], strict=True):
        assert torch.equal(got.labels_BR, expected.labels_BR)
        assert torch.equal(got.lookups.values(), expected.lookups.values())
