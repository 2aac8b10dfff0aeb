"""A training step on a GPU and its two halves, against what the card itself reaches; appends to benchmarks/results.csv.

    python benchmarks/gpu_train.py [--batch 65536] [--rows 10000000] [--dim 64] [--history 50] [--train-rows 4194304]

The dense model's forward and backward pass in bf16, beside a large matrix product of the same card; lookups of
pooled rows, forward, beside a copy within its memory; and whole steps (gpu_steps) where fbgemm is installed for CUDA:
lookups are PyTorch's without. Needs a CUDA device, torch for it and this source tree; without a device it says so and
exits with 1.

Times are of CUDA events, the best of five after one warm-up; of whole steps on the clock, the best of three passes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "src"))

from results import Recorder, Row, append, machine
from training_rows import feed

from sparsefeed.models.config import ModelConfig
from sparsefeed.models.dense import DenseModel
from sparsefeed.models.dense_size import DenseSize

MODEL = ModelConfig(hidden=(512, 256, 128), cross_layers=2, cross_rank=64)
SQUARE, COPIED = 8192, 1 << 30
TIMES = 5


def seconds(call: Callable[[], Any]) -> float:
    """Of the device."""
    call()
    found = []
    for _ in range(TIMES):
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        call()
        ended.record()
        torch.cuda.synchronize()
        found.append(begun.elapsed_time(ended) / 1000)
    return min(found)


def dense(record: Recorder, batch: int, dim: int) -> list[Row]:
    """Samples a second, and operations a second beside the card's own matrix product."""
    spec = feed(dim)
    model = DenseModel(spec, MODEL).cuda()
    given = {"device": "cuda", "dtype": torch.bfloat16}  # as the trainer hands them over
    pooled = {f.name: torch.randn(batch, dim, requires_grad=True, **given) for f in spec.lookups}
    sides = [torch.randn(batch, len(spec.of_kind("dense", side=side)), **given) for side in ("member", "candidate")]

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(pooled, *sides)
        logits.float().square().mean().backward()

    square = torch.randn(SQUARE, SQUARE, **given)
    taken, product = seconds(step), 2 * SQUARE**3 / seconds(lambda: square @ square)
    operations = 6 * DenseSize.of(spec, MODEL).products * batch / taken
    case = f"dense model, batch {batch}, bf16"
    return [
        record.row(case, "samples per second", batch / taken, "samples/s"),
        record.row(case, "operations per second", operations / 1e12, "TFLOP/s", "matrix product", product / 1e12),
    ]


def lookups(record: Recorder, batch: int, rows: int, dim: int, history: int) -> list[Row]:
    """Samples a second, and bytes of rows a second beside a copy within the card's memory."""
    ids = torch.randint(0, rows, (batch * history,), device="cuda")
    offsets = torch.arange(0, batch * history + 1, history, device="cuda")
    try:
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
            ComputeDevice,
            SplitTableBatchedEmbeddingBagsCodegen,
        )

        place = (rows, dim, EmbeddingLocation.DEVICE, ComputeDevice.CUDA)
        table = SplitTableBatchedEmbeddingBagsCodegen([place], device=torch.device("cuda"))
        name, look_up = "fbgemm", lambda: table(ids, offsets)
    except (ImportError, OSError, RuntimeError):
        weights = torch.randn(rows, dim, device="cuda")
        name, look_up = "PyTorch", lambda: torch.nn.functional.embedding_bag(ids, weights, offsets[:-1], mode="sum")
    source = torch.empty(COPIED, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    with torch.no_grad():
        taken, copying = seconds(look_up), 2 * COPIED / seconds(lambda: target.copy_(source))
    moved = batch * (history * (4 * dim + 8) + 4 * dim) / taken
    case = f"lookups of {history} rows of {dim}, {rows} rows, batch {batch}, {name}"
    return [
        record.row(case, "samples per second", batch / taken, "samples/s"),
        record.row(case, "bytes per second", moved / 1e9, "GB/s", "copy", copying / 1e9),
    ]


def main() -> int:
    """Measure, record, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("batch", 65536),
        ("rows", 10_000_000),
        ("dim", 64),
        ("history", 50),
        ("train-rows", 1 << 22),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing is measured", file=sys.stderr)
        return 1
    card = f"{machine()}, {torch.cuda.get_device_name()}"
    record = Recorder("gpu-train", " ".join(["python benchmarks/gpu_train.py", *sys.argv[1:]]), machine=card)
    found = dense(record, options.batch, options.dim)
    found += lookups(record, options.batch, options.rows, options.dim, options.history)
    try:
        from gpu_steps import steps
    except (ImportError, OSError) as error:
        print(f"no whole step is measured: {error}", file=sys.stderr)
    else:
        with tempfile.TemporaryDirectory() as folder:
            found += steps(record, MODEL, Path(folder), options.batch, options.rows, options.train_rows, options.dim)
    append(found)
    for row in found:
        print(row.case, row.metric, f"{row.value:.4g}", row.unit, f"{row.ratio:.2f} of {row.peer}" if row.ratio else "")
    return 0


if __name__ == "__main__":
    sys.exit(main())
