"""Checkpoints any number of processes can read, whatever number wrote them.

    out/checkpoints/step-<N>/  checkpoint.json  tables/<table>.npy  optimizer/<table>.npy  dense.safetensors

Notable: each rank writes its rows into one memory-mapped file per table, so a checkpoint does not know how it
was sharded, needs no process group to be read, and `tables/` is fp32 of docs/contracts/tables.md as it stands.
torch.distributed.checkpoint is not used: its metadata is a pickle. All ranks must see one file system.

Invariant: a folder is written as `.step-<N>.partial` and renamed when `checkpoint.json`, its last file, is there;
one without it, or whose name begins with a dot, is no checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparsefeed.errors import BadFileError, SpecError, TrainError
from sparsefeed.etl.spec import FeedSpec, Frozen, validate
from sparsefeed.models.config import ModelConfig
from sparsefeed.models.dense import DenseModel
from sparsefeed.models.difference import difference

__all__ = [
    "HUGECTR",
    "Checkpoint",
    "Shard",
    "clear_partial",
    "create",
    "discard_after",
    "finished",
    "identity",
    "latest",
    "load_model",
    "load_tables",
    "restore",
    "save",
]

HUGECTR = "HugeCTR"
_KEPT = 2


class Checkpoint(Frozen):
    """`checkpoint.json`: of what run and when."""

    format: Literal[2] = 2
    step: int  # global batches trained
    feed: FeedSpec
    etl: str  # fingerprint of the ETL run: its ids are the tables' rows
    data: str  # digest of the training files' names and rows; HUGECTR: not trained here
    model: ModelConfig
    config: dict[str, Any]  # TrainConfig
    tables: dict[str, tuple[int, int]]  # name -> (capacity_rows, dim)
    start: str = ""  # identity of the checkpoint it began from
    column_parts: dict[str, int] = Field(default_factory=dict)  # of tables whose columns were cut: parts of the state

    def must_be_of(self, path: Path, spec: FeedSpec) -> None:
        """TrainError where it was trained with another spec; says what differs."""
        if self.feed.digest != spec.digest:
            raise TrainError(
                f"{path}: was trained with another spec ({difference(self.feed, spec)}); "
                "go back to that one, or train anew"
            )

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Read a checkpoint folder's description; BadFileError when it is none."""
        file = path / "checkpoint.json"
        try:
            return validate(cls, json.loads(file.read_text("utf-8")))
        except (OSError, ValueError, SpecError) as error:
            raise BadFileError(file, f"not a checkpoint: {error}; train again, or name another checkpoint") from error


@dataclass(frozen=True)
class Shard:
    """The part of one table that this rank holds; both tensors are the live ones, written in place by `restore`."""

    table: str
    row: int  # of the table, where `values` begins
    column: int  # likewise
    parts: int  # in which the table's columns are cut, all of one width
    values: Tensor  # [rows, dim / parts]
    accumulator: Tensor  # [rows], row-wise Adagrad's sum of the mean squares of these columns' gradients


def latest(out: Path) -> Path | None:
    """Find the newest complete checkpoint of a training folder, or None."""
    found = [path for path in (out / "checkpoints").glob("step-*") if (path / "checkpoint.json").is_file()]
    return max(found, key=_step_of, default=None)


def finished(out: Path) -> Path | None:
    """Find the last checkpoint of a training that came to its end, or None."""
    checkpoint = latest(out)
    try:
        result = json.loads((out / "result.json").read_text("utf-8"))
        return checkpoint if checkpoint and result["checkpoint"] == checkpoint.name else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def identity(path: Path) -> str:
    """What tells a checkpoint from any other: a digest of its dense part."""
    try:
        return hashlib.sha256((path / "dense.safetensors").read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise BadFileError(path / "dense.safetensors", f"not readable: {error}; name another checkpoint") from error


def save(
    out: Path, checkpoint: Checkpoint, shards: list[Shard], dense: Mapping[str, Tensor], kept: int | None = None
) -> Path:
    """Write a checkpoint; every rank of the process group calls it with its shards.

    The last two are kept, and that of step `kept`. A process that dies inside leaves those before it whole.

    Args:
        out: The training folder.
        checkpoint: Its description.
        shards: This rank's parts of all tables.
        dense: Dense weights and optimiser state by name; rank 0's are written.
        kept: A step whose checkpoint stays, too.
    """
    final = out / "checkpoints" / f"step-{checkpoint.step}"
    partial = final.with_name(f".{final.name}.partial")
    if dist.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        for folder in ("tables", "optimizer"):
            (partial / folder).mkdir(parents=True)
        for name, (rows, dim) in checkpoint.tables.items():
            create(partial / "tables" / f"{name}.npy", (rows, dim))
            create(partial / "optimizer" / f"{name}.npy", (rows, checkpoint.column_parts.get(name, 1)))
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in dense.items()}, partial / "dense.safetensors"
        )
    dist.barrier()
    for shard in shards:
        rows, width = shard.values.shape
        for folder, tensor, first in (
            ("tables", shard.values, shard.column),
            ("optimizer", shard.accumulator.unsqueeze(1), shard.column // width),
        ):
            file = np.load(partial / folder / f"{shard.table}.npy", mmap_mode="r+")
            file[shard.row : shard.row + rows, first : first + tensor.shape[1]] = tensor.detach().cpu().numpy()
            file.flush()
    dist.barrier()
    if dist.get_rank() == 0:
        (partial / "checkpoint.json").write_text(
            json.dumps(checkpoint.model_dump(mode="json"), indent=1) + "\n", "utf-8"
        )
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for old in sorted((out / "checkpoints").glob("step-*"), key=_step_of)[:-_KEPT]:
            if _step_of(old) != kept:
                _discard(old)
    dist.barrier()
    return final


def discard_after(out: Path, step: int) -> None:
    """Remove the checkpoints of later steps."""
    for path in (out / "checkpoints").glob("step-*"):
        if _step_of(path) > step:
            _discard(path)


def clear_partial(out: Path) -> None:
    """Remove what a run that died in the middle of a checkpoint left."""
    for path in (out / "checkpoints").glob(".step-*.partial"):
        shutil.rmtree(path)


def _discard(path: Path) -> None:
    """Remove a checkpoint, which is none from the first moment on."""
    away = path.with_name(f".{path.name}.partial")
    shutil.rmtree(away, ignore_errors=True)
    path.rename(away)
    shutil.rmtree(away)


def restore(path: Path, shards: list[Shard]) -> dict[str, Tensor]:
    """Fill this rank's shards in place and return the dense weights and optimiser state by name.

    A table that has grown since keeps its values in the rows the checkpoint has not. Where its columns are cut
    otherwise now, the optimiser's state of a part is the mean of those it is made of, which is what it would have been
    for the same gradients, or that of the part it lies in.

    Raises:
        TrainError: A table is not in the checkpoint or has another dim.
        BadFileError: A file cannot be read.
    """
    tables = Checkpoint.read(path).tables
    for shard in shards:
        dim = shard.values.shape[1] * shard.parts
        if tables.get(shard.table, (0, -1))[1] != dim:
            raise TrainError(
                f'{path}: has no table "{shard.table}" of dim {dim}; has {dict(tables)}; train from the start'
            )
    for shard in shards:
        num, width = shard.values.shape
        rows = _open(path / "tables" / f"{shard.table}.npy")[shard.row : shard.row + num]
        shard.values[: len(rows)].copy_(torch.from_numpy(rows[:, shard.column : shard.column + width]))
        if not len(rows):
            continue  # beyond what the checkpoint has
        squares = _open(path / "optimizer" / f"{shard.table}.npy")[shard.row : shard.row + num]
        part, cut = shard.column // width, squares.shape[1]
        first, after = part * cut // shard.parts, (part + 1) * cut // shard.parts
        own = squares[:, first : max(first + 1, after)]
        shard.accumulator[: len(rows)].copy_(torch.from_numpy(own.mean(axis=1)))
    return _dense(path)


def load_tables(path: str | Path) -> dict[str, npt.NDArray[np.float32]]:
    """Tables by name, float32 [capacity_rows, dim], memory-mapped; writing to them never reaches the files."""
    path = Path(path)
    tables = {}
    for name, shape in Checkpoint.read(path).tables.items():
        file = path / "tables" / f"{name}.npy"
        tables[name] = _open(file)
        if tables[name].shape != tuple(shape) or tables[name].dtype != np.float32:
            raise BadFileError(
                file, f"is {tables[name].dtype} {tables[name].shape}; checkpoint.json says float32 {shape}"
            )
    return tables


def load_model(path: str | Path, spec: FeedSpec) -> tuple[DenseModel, dict[str, npt.NDArray[np.float32]]]:
    """Load the dense model, in eval mode, and the tables, on one process without a process group.

    Raises:
        TrainError: The checkpoint was trained with another spec.
        BadFileError: A file is missing or damaged.
    """
    path = Path(path)
    checkpoint = Checkpoint.read(path)
    checkpoint.must_be_of(path, spec)
    model = DenseModel(spec, checkpoint.model)
    state = {name: tensor for name, tensor in _dense(path).items() if not name.startswith("adam.")}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise BadFileError(path / "dense.safetensors", error) from error
    return model.eval(), load_tables(path)


def create(path: Path, shape: tuple[int, ...]) -> None:
    """A file of zeros whose bytes are the disk's to give: a write to a mapping that finds it full kills the process."""
    np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape).flush()  # type: ignore[no-untyped-call]
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _open(path: Path) -> npt.NDArray[np.float32]:
    try:
        # Copy on write: torch warns of read-only arrays, and no page is copied unless written.
        return np.load(path, mmap_mode="c", allow_pickle=False)  # type: ignore[no-any-return]
    except (OSError, ValueError) as error:
        raise BadFileError(path, f"not a table: {error}; train again, or name another checkpoint") from error


def _dense(path: Path) -> dict[str, Tensor]:
    file = path / "dense.safetensors"
    try:
        return load_file(file)  # type: ignore[no-any-return]
    except (OSError, SafetensorError) as error:
        raise BadFileError(file, f"not readable: {error}; train again, or name another checkpoint") from error


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))
