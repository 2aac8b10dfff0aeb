"""An ensemble of three Python models that pass tensors of our request's shapes on and compute nothing.

What it takes is Triton's: queues, BYTES, shared memory, processes. Its configurations are ours, its answers lie ready.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparsefeed.etl.spec import FeedSpec
from sparsefeed.workflows.serving.config import ServingConfig
from sparsefeed.workflows.serving.template import write_model
from sparsefeed.workflows.serving.triton_models import models_of

__all__ = ["NAME", "write_identity"]

NAME = "identity"
_MODEL = '''"""Reads every tensor and answers with those of a file beside it."""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, arguments):
        config = json.loads(arguments["model_config"])
        ready = np.load(Path(__file__).with_name("answers.npz"))
        text = np.array([b"identity"], object)
        self.answers = [(o["name"], ready[o["name"]] if o["name"] in ready else text) for o in config["output"]]

    def execute(self, requests):
        responses = []
        for request in requests:
            for tensor in request.inputs():
                tensor.as_numpy()
            responses.append(triton.InferenceResponse([triton.Tensor(*answer) for answer in self.answers]))
        return responses
'''


def write_identity(
    spec: FeedSpec, config: ServingConfig, tensors: Mapping[str, np.ndarray[Any, Any]], out: Path
) -> None:
    """Write its models into a repository; `tensors` are all that a request makes on its way through our steps."""
    numbers = {name: value for name, value in tensors.items() if value.dtype != object}
    for name, model in models_of(spec, config.model_copy(update={"warm_up": False}), NAME).items():
        folder = out / model.name
        write_model(model, folder)
        if name != "feed_ranker":
            (folder / "1" / "model.py").write_text(_MODEL, "utf-8")
            np.savez(folder / "1" / "answers.npz", **numbers)
