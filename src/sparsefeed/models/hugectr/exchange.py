"""A run of HugeCTR -> a checkpoint that everything else reads, and a checkpoint -> weights that HugeCTR begins with.

What the optimisers know is lost either way: HugeCTR's AdaGrad counts squares per float and is not dumped with a
collection, ours counts per row, and Adam's moments have no counterpart. The first steps after it are larger.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from safetensors.torch import save_file

from sparsefeed.errors import BadFileError, SpecError, TrainError
from sparsefeed.etl.hugectr_view import check_sayable
from sparsefeed.etl.spec import FeedSpec, Frozen, validate
from sparsefeed.models.config import ModelConfig, TrainConfig
from sparsefeed.models.dense import DenseModel
from sparsefeed.models.hugectr.formats import DumpedTable, put_rows, read_dense, read_dump, write_dense, write_dump
from sparsefeed.models.plan import Plan
from sparsefeed.models.torchrec.checkpoint import HUGECTR, Checkpoint, create, load_model
from sparsefeed.models.torchrec.columns import capacity_rows, etl_fingerprint
from sparsefeed.progress import Progress, silent

__all__ = ["HugectrRun", "RunTable", "dense_arrays", "dense_state", "from_hugectr", "to_hugectr"]

_RUN = "hugectr.json"


class RunTable(Frozen):
    """One table of a run, in HugeCTR's order."""

    name: str
    rows: int = Field(ge=1)
    dim: int = Field(ge=1)
    parts: int = Field(default=1, ge=1)  # of its columns


class Shape(Frozen):
    """The dense model of a run."""

    hidden: tuple[int, ...]
    gate: bool
    interactions: bool
    cross_layers: int
    cross_rank: int


class HugectrRun(Frozen):
    """`hugectr.json` of a folder that models/hugectr/train.py wrote, or that it can begin with."""

    model_config = ConfigDict(frozen=True, extra="allow")  # what it was trained with stands there, too

    format: Literal[1] = 1
    spec_digest: str
    etl: str
    step: int = Field(ge=0)
    model: Shape
    tables: tuple[RunTable, ...]
    dense_floats: int = Field(ge=1)  # of the `.model`

    @classmethod
    def read(cls, folder: Path) -> HugectrRun:
        """Read it; BadFileError where the run is none, or did not come to its end."""
        path = folder / _RUN
        try:
            return validate(cls, json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, SpecError) as error:
            raise BadFileError(
                path, f"not a finished run of HugeCTR: {error}; it is written last, name the folder of --out"
            ) from error


def from_hugectr(
    folder: Path,
    spec: FeedSpec,
    data: Path,
    out: Path,
    model: ModelConfig,
    config: TrainConfig,
    progress: Progress = silent,
) -> Path:
    """Write a run as the one finished checkpoint of a training folder.

    Until it is whole, what was trained there stays what it was. Memory: a block of rows, as all files are mapped.

    Args:
        folder: `--out` of models/hugectr/train.py.
        spec: the declaration.
        data: the ETL result that it was trained on.
        out: the training folder; what was trained there goes.
        model: its shape.
        config: settings that are noted; HugeCTR's own are in the run.
        progress: told of the tables.

    Raises:
        SpecError: The spec has what HugeCTR cannot say.
        TrainError: The run is of another spec or ETL result.
        BadFileError: A file is not what the run says.
    """
    check_sayable(spec)
    run = HugectrRun.read(folder)
    if run.spec_digest != spec.digest:
        raise TrainError(f"{folder}: was trained with another spec ({run.spec_digest}; this one is {spec.digest})")
    if run.etl != etl_fingerprint(data):
        raise TrainError(
            f"{folder}: was trained on ETL run {run.etl}, {data} holds run {etl_fingerprint(data)}, whose ids have "
            "other rows; train on this one, or go back to that one"
        )
    tables, capacities = _in_order(run, spec, folder), capacity_rows(spec, data)
    for table in tables:
        if table.rows != capacities[table.name]:
            raise BadFileError(
                folder / _RUN, f'table "{table.name}": {table.rows} rows; the ETL result has {capacities[table.name]}'
            )
    dense = DenseModel(spec, model)
    path = folder / f"model_dense_{run.step}.model"
    dense.load_state_dict(dense_state(dense, read_dense(path, [a.shape for a in dense_arrays(dense)])))
    checkpoint = Checkpoint(
        step=run.step, feed=spec, etl=run.etl, data=HUGECTR, model=model, config=config.model_dump(mode="json"),
        tables={table.name: (table.rows, table.dim) for table in tables},
    )  # fmt: skip
    final = out / "checkpoints" / f"step-{run.step}"
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for kind in ("tables", "optimizer"):
            (partial / kind).mkdir(parents=True)
        _put_tables(run, folder, partial, config.initial_accumulator, progress)
        save_file(_with_fresh_adam(dense), partial / "dense.safetensors")
        said = json.dumps(checkpoint.model_dump(mode="json"), indent=1) + "\n"
        (partial / "checkpoint.json").write_text(said, "utf-8")
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _replace(out, final, partial)
    return final


def _replace(out: Path, final: Path, partial: Path) -> None:
    """Put a checkpoint in the place of all that was trained in a folder."""
    step = int(final.name.removeprefix("step-"))
    result = {"checkpoint": final.name, "step": step, "num_samples": 0, "loss": {}, "samples_per_s": 0.0, "io": []}
    if final.exists():
        final.rename(final.with_name(f".{final.name}.old.partial"))
    partial.rename(final)
    beside = out / ".result.json.partial"
    beside.write_text(json.dumps(result) + "\n", "utf-8")
    beside.replace(out / "result.json")
    for old in (*out.iterdir(), *final.parent.iterdir()):
        if old not in (final, final.parent, out / "result.json") and (
            not old.name.startswith(".") or "step-" in old.name
        ):
            shutil.rmtree(old) if old.is_dir() else old.unlink()


def to_hugectr(checkpoint: Path, spec: FeedSpec, plan: Plan | None, out: Path) -> None:
    """Write a checkpoint as weights that `train.py --from` begins with, cut as the plan cuts columns.

    Raises:
        SpecError: The spec has what HugeCTR cannot say.
        TrainError: The checkpoint is of another spec, or `out` exists.
    """
    if out.exists():
        raise TrainError(f"{out}: exists; name a folder that does not")
    check_sayable(spec)
    dense, tables = load_model(checkpoint, spec)
    said = Checkpoint.read(checkpoint)
    if said.model.experts > 1 or not said.model.cross_residual:
        raise TrainError(
            f"{checkpoint}: HugeCTR knows neither experts nor cross layers without residual; train without"
        )
    parts = _parts(spec, plan)
    order = list(dict.fromkeys(spec.table_of(feature).name for feature in spec.lookups))
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        arrays = dense_arrays(dense)
        write_dense(partial / f"model_dense_{said.step}.model", arrays)
        dumped: list[DumpedTable] = []
        for name in order:
            keys = np.arange(len(tables[name]), dtype=np.int64)
            for columns in np.split(tables[name], parts[name], axis=1):
                dumped.append(DumpedTable(len(dumped), keys, columns))
        write_dump(partial / "embeddings", dumped)
        run = HugectrRun(
            spec_digest=spec.digest, etl=said.etl, step=said.step,
            model=Shape(**said.model.model_dump(include=set(Shape.model_fields))),
            tables=tuple(
                RunTable(name=name, rows=len(tables[name]), dim=tables[name].shape[1], parts=parts[name])
                for name in order
            ),
            dense_floats=sum(array.size for array in arrays),
        )  # fmt: skip
        (partial / _RUN).write_text(run.model_dump_json(indent=1) + "\n", "utf-8")
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _parts(spec: FeedSpec, plan: Plan | None) -> dict[str, int]:
    """In how many parts a plan cuts the columns of each table; TrainError where it is of other tables."""
    declared = [(table.name, table.dim) for table in spec.tables]
    if plan is None:
        return {name: 1 for name, _ in declared}
    if [(table.name, table.dim) for table in plan.tables] != declared:
        raise TrainError(f"plan: has tables {[(t.name, t.dim) for t in plan.tables]}; the spec has {declared}")
    parts = {t.name: len(t.devices) if t.sharding == "column_wise" else 1 for t in plan.tables}
    for name, dim in declared:
        if dim % parts[name]:
            raise TrainError(f'plan: table "{name}" of dim {dim} cannot be cut in {parts[name]} parts; plan again')
    return parts


def dense_arrays(model: DenseModel) -> list[NDArray[np.float32]]:
    """Parameters in HugeCTR's order and layout: per layer, weights [in, out] before the bias [out]."""
    arrays = []
    for cross in model.cross:
        arrays += [cross.project.weight.T, cross.expand.weight.T, cross.expand.bias]
    for layer in model.deep:
        parts = 2 if layer.gate else 1  # value, then gate
        for weight, bias in zip(layer.linear.weight.chunk(parts), layer.linear.bias.chunk(parts), strict=True):
            arrays += [weight.T, bias]
    arrays += [model.head.weight.T, model.head.bias]
    return [array.detach().numpy() for array in arrays]


def dense_state(model: DenseModel, arrays: list[NDArray[np.float32]]) -> dict[str, torch.Tensor]:
    """The other way: `dense_arrays` as a state dict of such a model."""
    left = iter([torch.from_numpy(np.ascontiguousarray(array)) for array in arrays])
    state: dict[str, torch.Tensor] = {}
    for number in range(len(model.cross)):
        state[f"cross.{number}.project.weight"] = next(left).T
        state[f"cross.{number}.expand.weight"] = next(left).T
        state[f"cross.{number}.expand.bias"] = next(left)
    for number, layer in enumerate(model.deep):
        pairs = [(next(left).T, next(left)) for _ in range(2 if layer.gate else 1)]
        state[f"deep.{number}.linear.weight"] = torch.cat([weight for weight, _ in pairs])
        state[f"deep.{number}.linear.bias"] = torch.cat([bias for _, bias in pairs])
    state["head.weight"], state["head.bias"] = next(left).T, next(left)
    return {name: tensor.contiguous() for name, tensor in state.items()}


def _with_fresh_adam(model: DenseModel) -> Mapping[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = dict(model.state_dict())
    for name, parameter in model.named_parameters():
        state[f"adam.step.{name}"] = torch.zeros(())
        for moment in ("exp_avg", "exp_avg_sq"):
            state[f"adam.{moment}.{name}"] = torch.zeros_like(parameter.data)
    return state


def _in_order(run: HugectrRun, spec: FeedSpec, folder: Path) -> list[RunTable]:
    """The run's tables in the spec's order; BadFileError where they are others."""
    by_name = {table.name: table for table in run.tables}
    declared = [(table.name, table.dim) for table in spec.tables]
    found = [(name, by_name[name].dim) for name, _ in declared if name in by_name]
    if found != declared or len(by_name) != len(run.tables) or len(by_name) != len(declared):
        raise BadFileError(
            folder / _RUN, f"has tables {[(t.name, t.dim) for t in run.tables]}; the spec has {declared}"
        )
    return [by_name[name] for name, _ in declared]


def _put_tables(run: HugectrRun, folder: Path, partial: Path, accumulator: float, progress: Progress) -> None:
    """The run's tables as files of a checkpoint, and optimiser states as of rows that nothing was learnt of."""
    place = folder / "embeddings"
    dumped = {table.number: table for table in read_dump(place)}
    numbers = list(range(sum(table.parts for table in run.tables)))
    if sorted(dumped) != numbers:
        raise BadFileError(place, f"has tables {sorted(dumped)}; the run says {numbers}")
    first = 0
    for table in run.tables:
        own = [dumped[number] for number in range(first, first + table.parts)]
        path = partial / "tables" / f"{table.name}.npy"
        create(path, (table.rows, table.dim))
        create(partial / "optimizer" / f"{table.name}.npy", (table.rows, 1))
        np.load(partial / "optimizer" / f"{table.name}.npy", mmap_mode="r+")[:] = accumulator
        rows = np.load(path, mmap_mode="r+")
        put_rows(place, own, rows, table.name, progress)
        rows[0] = 0  # padding: HugeCTR has it at some value that cancels out
        rows.flush()
        first += table.parts
