"""Batches on their device before a step asks for them.

To a GPU a batch is copied from pinned memory by a stream of its own, while the step before it runs; a step's stream
waits for that copy, and the host for nothing. Run on one H100 (tests/gpu/test_prefetch.py).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sparsefeed.models.torchrec.columns import Batch

__all__ = ["on_device"]


def on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches in the same order, on `device`; a GPU's next one is asked for before one is given."""
    if device.type == "cpu":
        yield from batches
        return
    copies = torch.cuda.Stream(device)
    ready: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(copies):
            copied = batch.to(device), copies.record_event()
        if ready is not None:
            yield _received(*ready)
        ready = copied
    if ready is not None:
        yield _received(*ready)


def _received(batch: Batch, copied: torch.cuda.Event) -> Batch:
    steps = torch.cuda.current_stream(batch.labels_BR.device)
    steps.wait_event(copied)
    batch.record_stream(steps)  # or its memory would go to another copy while a step reads it
    return batch
