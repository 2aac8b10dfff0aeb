"""NVIDIA's HPS: check anyone's ps.json, and export a bundle for their container.

Notable: an export is checked like anyone's file, with its config.pbtxt and every key of its sparse folders, before it
gets its name. Triton's protobuf is imported only when there is a config.pbtxt to read.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sparsefeed.errors import BundleError, did_you_mean
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.bundle import open_version
from sparsefeed.models.hps.ps_file import ExaminedFile, examine
from sparsefeed.models.hps.ps_json import HpsModel, HpsTable, ps_json
from sparsefeed.models.store.hps import write_sparse
from sparsefeed.models.store.store import ParameterStore
from sparsefeed.progress import Progress, silent
from sparsefeed.workflows.serving.config import ServingConfig
from sparsefeed.workflows.serving.request import RANKER, STEPS, step_name

__all__ = ["Checked", "check_ps_json", "export_hps_serving", "look_at", "problems_of"]

_HPS = "feed_hps"
_TENSORS = {"input": {"KEYS": "TYPE_INT64", "NUMKEYS": "TYPE_INT32"}, "output": {"OUTPUT0": "TYPE_FP32"}}


@dataclass(frozen=True)
class Checked:
    """What a ps.json serves, and what was found about it.

    Attributes:
        problems: what must be mended, a sentence each.
        notes: what is allowed but worth knowing, a sentence each.
        models: names of its models; one without a name is "?".
        num_tables: of all models.
        num_bytes: of the sparse folders that lie here.
    """

    problems: tuple[str, ...]
    notes: tuple[str, ...]
    models: tuple[str, ...]
    num_tables: int
    num_bytes: int


def look_at(path: Path, config: Path | None = None) -> Checked:
    """Find everything that is wrong with a ps.json, its sparse folders and its models' config.pbtxt.

    Args:
        path: the ps.json.
        config: a model's config.pbtxt; by default those of the folders beside ps.json, as a model repository has them.
    """
    found = examine(path)
    problems, notes = list(found.problems), list(found.notes)
    if config is not None:
        problems += _problems_of_config(config, found.models, beside=False)
    else:
        problems += _problems_beside(path.parent, found, notes)
    names = tuple(model.model or "?" for model in found.models)
    return Checked(tuple(problems), tuple(notes), names, found.num_tables, found.num_bytes)


def problems_of(path: Path, *, config: Path | None = None) -> list[str]:
    """Everything that is wrong with a ps.json and its config.pbtxt, a sentence each."""
    return list(look_at(path, config).problems)


def check_ps_json(path: Path, config: Path | None = None) -> Checked:
    """Return what a ps.json serves.

    Raises:
        BundleError: something is wrong with it; one line each.
    """
    checked = look_at(path, config)
    if checked.problems:
        raise BundleError("\n".join(f"{path}: {problem}" for problem in checked.problems))
    return checked


def _problems_beside(here: Path, found: ExaminedFile, notes: list[str]) -> Iterator[str]:
    names, seen = {model.model for model in found.models}, set()
    for path in sorted(here.glob("*/config.pbtxt")):
        folder = path.parent.name
        # Other models of the repository are no business of HPS.
        if folder in names or re.search(r'^\s*backend\s*:\s*["\']hps["\']', _text(path), re.MULTILINE):
            seen.add(folder)
            yield from _problems_of_config(path, found.models, beside=True)
    if seen:
        lacking = [model.model for model in found.models if model.model and model.model not in seen]
        notes += [f'models: "{name}" has no folder {name}/ beside ps.json' for name in lacking]


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _problems_of_config(path: Path, models: Sequence[HpsModel], beside: bool) -> Iterator[str]:
    """Compare a config.pbtxt with the model of ps.json that it names."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as pb

    where = f"{path.parent.name}/{path.name}" if beside else str(path)
    config = pb.ModelConfig()
    try:
        text_format.Parse(path.read_text("utf-8"), config)
    except (OSError, UnicodeDecodeError) as error:
        yield f"{where}: not readable: {error}; name the model's config.pbtxt"
        return
    except text_format.ParseError as error:
        yield f"{where}: no configuration of a Triton model: {error}; mend that line"
        return
    if config.backend != "hps":
        yield f'{where}: backend: got "{config.backend}"; NVIDIA\'s lookup is "hps"'
    if config.max_batch_size:
        yield f"{where}: max_batch_size: got {config.max_batch_size}; KEYS has no batch dimension, so it must be 0"
    yield from _problems_of_tensors(where, config, pb)
    name = config.name or path.parent.name
    if beside and name != path.parent.name:
        yield f'{where}: name: got "{name}", but its folder is {path.parent.name}; Triton refuses that; make them alike'
    if beside and not any(child.is_dir() and child.name.isdigit() for child in path.parent.iterdir()):
        yield f"{where}: its folder has no version, and Triton does not load it; make {path.parent.name}/1/"
    by_name = {model.model: model for model in models if model.model}
    if name in by_name:
        yield from _problems_of_instances(where, config, by_name[name], pb)
    else:
        yield f'{where}: name: "{name}" is no model of ps.json{did_you_mean(name, by_name)}'


def _problems_of_tensors(where: str, config: Any, pb: Any) -> Iterator[str]:
    for field, allowed in _TENSORS.items():
        got = {tensor.name: tensor for tensor in getattr(config, field)}
        for name, kind in allowed.items():
            if name not in got:
                yield f"{where}: {field}: {name} is missing; HPS takes exactly {_told(field)}"
                continue
            got_kind = pb.DataType.Name(got[name].data_type)
            if got_kind != kind:
                yield f"{where}: {field} {name}: data_type: got {got_kind}; HPS takes {kind}"
            rank = 2 if field == "input" else 1
            if len(got[name].dims) != rank:
                dims = list(got[name].dims)
                yield f"{where}: {field} {name}: dims: got {dims}; must be {[-1] * rank}"
        for name in got.keys() - allowed.keys():
            yield f'{where}: {field}: "{name}" is none of HPS, which has exactly {_told(field)}'


def _told(field: str) -> str:
    return " and ".join(f"{name} {kind}" for name, kind in _TENSORS[field].items())


def _problems_of_instances(where: str, config: Any, model: HpsModel, pb: Any) -> Iterator[str]:
    kinds = pb.ModelInstanceGroup
    instances: Counter[str] = Counter()
    for i, group in enumerate(config.instance_group):
        path = f"{where}: instance_group[{i}]"
        for gpu in list(group.gpus) or ["CPU"]:
            instances[f"GPU {gpu}" if group.gpus else str(gpu)] += group.count or 1
        if not model.gpucache:
            continue
        devices = model.deployed_device_list or ()
        if group.kind in (kinds.KIND_CPU, kinds.KIND_MODEL):
            yield f"{path}: kind: got {kinds.Kind.Name(group.kind)}; with gpucache it must be KIND_GPU"
        elif not group.gpus:
            yield f"{path}: gpus: none given, so Triton takes all of the host; name those of {list(devices)}"
        for gpu in group.gpus:
            if devices and gpu not in devices:
                yield f"{path}: gpus: {gpu} is not in deployed_device_list, {list(devices)}; add it there, or drop it"
    if model.gpucache and not config.instance_group:
        yield f"{where}: instance_group: missing, so Triton takes all GPUs of the host; give kind, gpus and count"
    pool = model.num_of_worker_buffer_in_pool
    for place, count in instances.items():
        if pool and count > pool:
            yield (
                f"{where}: instance_group: {count} instances on {place}, num_of_worker_buffer_in_pool is {pool}; an "
                f"instance without a buffer is refused; raise that to {count}, or have fewer"
            )


def export_hps_serving(
    bundles_root: Path,
    version: str | None,
    settings: ServingConfig,
    out: Path,
    gpus: int = 1,
    path_in_container: str = "/models",
    progress: Progress = silent,
) -> Checked:
    """Write a bundle as a model repository for NVIDIA's container: ps.json, sparse folders, Triton models.

    `feed_hps_<bundle>` alone differs from what `export` writes: backend hps, on GPUs. The others run in Triton's
    Python backend, with sparsefeed installed there, and open the bundle by its absolute path, which must be the same
    in the container. Written beside, checked, then renamed: a failure leaves `out` as it was.

    Args:
        bundles_root: folder with `versions/` and `current`.
        version: the bundle's id; None takes the current one.
        settings: candidates per request, and instances: those of hps are per GPU.
        out: the model repository; an earlier export there is replaced.
        gpus: of the host.
        path_in_container: where `out` will be mounted.
        progress: told of the tables.

    Returns:
        What was written.

    Raises:
        BundleError: the bundle is not there, `out` holds something else, or what was written is not right.
    """
    from sparsefeed.workflows.serving.template import TEMPLATE, write_model
    from sparsefeed.workflows.serving.triton_models import models_of

    bundle = open_version(bundles_root, version)
    if gpus < 1:
        raise BundleError(f"gpus: got {gpus}; must be at least 1")
    if not PurePosixPath(path_in_container).is_absolute():
        raise BundleError(f'path_in_container: got "{path_in_container}"; must begin with /')
    _check_replaceable(out)
    spec = FeedSpec.load(bundle.spec)
    models = models_of(spec, settings, bundle.id, bundle.path.resolve())
    name = models[_HPS].name
    stored = ParameterStore.open(bundle.tables).table_by_name
    tables = [
        HpsTable(
            name=table.name,
            dim=table.dim,
            sparse_file=str(PurePosixPath(path_in_container, name, "1", f"{table.name}.model")),
            max_keys_per_sample=table.keys_per_id
            * sum(getattr(f, "max_length", 1) for f in spec.lookups_of(table.name)),
        )
        for table in spec.tables
    ]
    buffers = max(4, settings.instances.hps)
    text = ps_json(name, tables, settings.max_candidates, gpus=gpus, worker_buffers=buffers)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        for i, table in enumerate(tables):
            progress(i, len(tables), f"table {table.name}")
            write_sparse(new / name / "1" / f"{table.name}.model", stored[table.name])
        progress(len(tables), len(tables), "tables")
        for template_name, model in models.items():
            if template_name == _HPS:
                _move_to_gpus(model.config, gpus)
            write_model(model, new / model.name)
            glue = TEMPLATE / template_name / "1" / "model.py"
            if glue.is_file() and template_name != _HPS:
                shutil.copyfile(glue, new / model.name / "1" / "model.py")
        (new / "ps.json").write_text(text, "utf-8")
        checked = check_ps_json(new / "ps.json")
        _replace(new, out, Path(scratch) / "old")
    return checked


def _move_to_gpus(config: Any, gpus: int) -> None:
    config.backend = "hps"
    for group in config.instance_group:
        group.kind = type(group).KIND_GPU
        group.gpus.extend(range(gpus))
    del config.parameters["folder"]  # it reads ps.json alone


def _check_replaceable(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise BundleError(f"{out}: is a file; name a folder")
    names = {path.name for path in out.iterdir()}
    ours = tuple(f"{step_name(step)}_" for step in (*STEPS, RANKER))
    others = sorted(name for name in names if name != "ps.json" and not name.startswith(ours))
    if names and (others or "ps.json" not in names):
        what = others[0] if others else "no ps.json"
        raise BundleError(f"{out}: is no earlier export for HPS: it holds {what}; name another folder, or empty it")


def _replace(new: Path, out: Path, old: Path) -> None:
    if out.exists():
        out.rename(old)
    try:
        new.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
