"""Batches on a real GPU: what arrives there, and steps that never wait for the host.

Run on one H100 with driver 580.159.04, torch 2.11.0+cu130 and TorchRec 1.6.1.
"""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from sparsefeed.models.torchrec.columns import Batch
from sparsefeed.models.torchrec.prefetch import on_device

pytestmark = pytest.mark.gpu
ROWS, DEVICE = 4096, torch.device("cuda", 0)


def made(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 50, (ROWS,), generator=generator)
    values = torch.randint(1, 1000, (int(lengths.sum()),), generator=generator)
    dense = [torch.rand(ROWS, width, generator=generator) for width in (2, 2, 3, 5)]
    return Batch(*dense, KeyedJaggedTensor(["posts"], values, lengths=lengths))


def tensors(batch: Batch) -> list[Tensor]:
    *dense, lookups = (getattr(batch, field.name) for field in fields(batch))
    return [*dense, lookups.values(), lookups.lengths()]


def test_batches_arrive_whole_while_steps_use_the_memory_of_those_before() -> None:
    square = torch.rand(2048, 2048, device=DEVICE)
    sums = []
    for batch in on_device((made(seed).pinned() for seed in range(50)), DEVICE):
        square @= square.clone().clamp(0, 1e-3)  # a step that is slower than a copy
        sums.append(torch.stack([part.double().sum() for part in tensors(batch)]))
    expected = [torch.stack([part.double().sum() for part in tensors(made(seed))]) for seed in range(50)]
    torch.testing.assert_close(torch.stack(sums).cpu(), torch.stack(expected))


def test_a_copy_keeps_nobody_waiting() -> None:
    batches = [made(seed).pinned() for seed in range(3)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert len(list(on_device(iter(batches), DEVICE))) == 3
    finally:
        torch.cuda.set_sync_debug_mode("default")
