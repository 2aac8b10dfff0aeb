"""feed_dense: vectors to probabilities and the score (docs/contracts/dense.md)."""

from sparsefeed.workflows.serving.backend import python_model
from sparsefeed.workflows.serving.steps.dense import DenseStep

TritonPythonModel = python_model(DenseStep)
