"""feed_hps: keys to vectors (docs/contracts/lookup.md)."""

from sparsefeed.workflows.serving.backend import python_model
from sparsefeed.workflows.serving.background import Later

TritonPythonModel = python_model(Later("sparsefeed.workflows.serving.steps.lookup", "LookupStep"))
