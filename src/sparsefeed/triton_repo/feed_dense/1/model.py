"""feed_dense: vectors to probabilities and the score (docs/contracts/dense.md)."""

from sparsefeed.workflows.serving.backend import python_model
from sparsefeed.workflows.serving.background import Later

TritonPythonModel = python_model(Later("sparsefeed.workflows.serving.steps.dense", "DenseStep"))
