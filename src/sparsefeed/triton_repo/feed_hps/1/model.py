"""feed_hps: keys to vectors (docs/contracts/lookup.md)."""

from sparsefeed.workflows.serving.backend import python_model
from sparsefeed.workflows.serving.steps.lookup import LookupStep

TritonPythonModel = python_model(LookupStep)
