"""feed_transform: strings to keys, dense inputs and unknown flags (docs/contracts/request.md)."""

from sparsefeed.workflows.serving.backend import python_model
from sparsefeed.workflows.serving.background import Later

TritonPythonModel = python_model(Later("sparsefeed.workflows.serving.steps.transform", "TransformStep"))
