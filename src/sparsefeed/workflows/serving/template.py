"""The template `triton_repo/`: model folders whose config.pbtxt is generated and whose model.py is a few lines of glue.

It is tracked and never edited by a deployment; `export` copies its model.py files and writes configurations of its own.
"""

from __future__ import annotations

from pathlib import Path

from sparsefeed.etl.spec import FeedSpec
from sparsefeed.workflows.serving.config import ServingConfig
from sparsefeed.workflows.serving.triton_models import TritonModel, models_of, router_of

__all__ = ["TEMPLATE", "write_model", "write_template"]

TEMPLATE = Path(__file__).parents[2] / "triton_repo"


def write_model(model: TritonModel, folder: Path) -> None:
    """Write a model's config.pbtxt, warm-up tensors and version folder, which an ensemble leaves empty."""
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(model.text, "utf-8")
    for name, text in model.version_files.items():
        (folder / "1" / name).write_text(text, "utf-8")
    for name, content in model.warm_up.items():
        (folder / "warmup").mkdir(exist_ok=True)
        (folder / "warmup" / name).write_bytes(content)


def write_template(spec: FeedSpec, config: ServingConfig, out: Path = TEMPLATE) -> None:
    """Write the generated part of the template for a spec; its model.py files are written by hand."""
    for name, model in models_of(spec, config).items():
        write_model(model, out / name)
    router = router_of(spec, config)
    write_model(router, out / router.name)
