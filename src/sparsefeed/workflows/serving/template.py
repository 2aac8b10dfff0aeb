"""The template `triton_repo/`: model folders whose config.pbtxt is generated and whose model.py is a few lines of glue.

It is tracked and never edited by a deployment; `export` copies its model.py files and writes configurations of its own.
"""

from __future__ import annotations

from pathlib import Path

from sparsefeed.workflows.serving.config import TritonModel

__all__ = ["TEMPLATE", "write_model"]

TEMPLATE = Path(__file__).parents[2] / "triton_repo"


def write_model(model: TritonModel, folder: Path) -> None:
    """Write a model's config.pbtxt and warm-up tensors, and make its version folder, which an ensemble leaves empty."""
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(model.text, "utf-8")
    for name, content in model.warm_up.items():
        (folder / "warmup").mkdir(exist_ok=True)
        (folder / "warmup" / name).write_bytes(content)
