"""Which file of a bundle the dense model of a format is; free of pydantic and torch, for serving steps read it."""

from __future__ import annotations

from typing import Literal

__all__ = ["DENSE_FILES", "DenseFormat"]

DenseFormat = Literal["fp32", "int8"]
DENSE_FILES: dict[str, str] = {"fp32": "dense.onnx", "int8": "dense.int8.onnx"}
