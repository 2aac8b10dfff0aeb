"""Export: deployable copies of the model repository, one set of names per bundle.

Notable: a model's folder is written beside and renamed, the ensemble last, so a server that reads the repository
meanwhile sees a whole model or none; and the tracked template is only ever read.
"""

from __future__ import annotations

import filecmp
import shutil
import tempfile
from pathlib import Path

from sparsefeed.errors import ServeError
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.bundle import Bundle, open_version
from sparsefeed.workflows.serving.config import ServingConfig
from sparsefeed.workflows.serving.native import native_files
from sparsefeed.workflows.serving.template import TEMPLATE, write_model
from sparsefeed.workflows.serving.triton_models import TritonModel, models_of, router_of

__all__ = ["export", "export_router"]


def export(bundle_root: Path, bundle: str | None, config: ServingConfig, out: Path) -> list[str]:
    """Write the four models of one bundle into a model repository.

    The models carry the absolute path of the bundle's folder, which must be the same on the server's machine. Doing
    it twice changes nothing; other settings replace the models, which a running server sees when it loads them again.

    Args:
        bundle_root: Folder with `versions/` and `current` (docs/contracts/bundle.md).
        bundle: The version's id; None takes the current one.
        config: Instances, threads, limits and warm-up.
        out: The model repository; made if it is not there.

    Returns:
        Names of the models, the ensemble last.

    Raises:
        BundleError: The bundle is not there or unfinished.
        ServeError: Its rows have another format than `config.row_format`, it has no dense model of
            `config.dense_format`, its files exceed `config.memory_budget_bytes`, or the lookup shall be native and is
            not built here.
    """
    version = open_version(bundle_root, bundle)
    _check(version, config)
    files = native_files(version, config.lookup_backend)
    models = models_of(FeedSpec.load(version.spec), config, version.id, version.path.resolve(), files)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".export-") as scratch:
        for template_name, model in models.items():
            _place(template_name, model, Path(scratch), out)
    return [model.name for model in models.values()]


def export_router(version: Bundle, config: ServingConfig, release: Path, out: Path) -> str:
    """Write the router into a model repository; it answers by the route file in `release`.

    Args:
        version: Any of the bundles that it may name; gives the tensors.
        config: Its gRPC port is the server's.
        release: The folder with routes.json.
        out: The model repository.

    Returns:
        The model's name.
    """
    model = router_of(FeedSpec.load(version.spec), config, f"127.0.0.1:{config.grpc_port}", release.resolve())
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".export-") as scratch:
        _place(model.name, model, Path(scratch), out)
    return model.name


def _place(template_name: str, model: TritonModel, scratch: Path, out: Path) -> None:
    new, old = scratch / model.name, out / model.name
    write_model(model, new)
    glue = TEMPLATE / template_name / "1" / "model.py"
    if glue.is_file() and model.config.backend == "python":
        shutil.copyfile(glue, new / "1" / "model.py")
    if _is_same(new, old):
        return
    if old.exists():
        old.rename(scratch / f"{model.name}.old")
    new.rename(old)


def _is_same(new: Path, old: Path) -> bool:
    files = sorted(path.relative_to(new) for path in new.rglob("*") if path.is_file())
    return all((old / path).is_file() and filecmp.cmp(new / path, old / path, shallow=False) for path in files)


def _check(bundle: Bundle, config: ServingConfig) -> None:
    row_format = bundle.manifest.row_format
    if row_format != config.row_format:
        raise ServeError(
            f'serving.row_format: got "{config.row_format}", but the rows of {bundle.path} are {row_format}; '
            f"set serving.row_format: {row_format}, or write the bundle anew"
        )
    if config.dense_format not in bundle.dense_formats:
        raise ServeError(
            f'serving.dense_format: got "{config.dense_format}", but {bundle.path} holds the dense model as '
            f"{', '.join(bundle.dense_formats)}; set serving.dense_format so, or write the bundle anew"
        )
    folders = (bundle.tables, bundle.path / "ids", bundle.snapshot)
    size_bytes = sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
    if config.memory_budget_bytes is not None and size_bytes > config.memory_budget_bytes:
        raise ServeError(
            f"serving.memory_budget_bytes: {bundle.path} maps {size_bytes:,} bytes of tables, ids and snapshot, "
            f"{config.memory_budget_bytes:,} are allowed; raise it, or write the bundle with row_format int8"
        )
