"""The class Triton's Python backend asks for, made from a step.

Notable: `triton_python_backend_utils` exists inside a Triton stub alone, so it is imported when the class is made,
which only a model.py of `triton_repo` does.
"""

from __future__ import annotations

import gc
import json
from typing import Any, Protocol

from sparsefeed.errors import RequestError
from sparsefeed.workflows.serving.steps.step import Step

__all__ = ["python_model"]


class _Openable(Protocol):
    def open(self, parameters: dict[str, str]) -> Step[Any]: ...


def python_model(step: _Openable) -> type:
    """Make `TritonPythonModel` of a step class: tensors in, the step's `run`, tensors or a TritonError out.

    A RequestError becomes INVALID_ARGUMENT, any other error of ours INTERNAL. All requests of a call are passed
    to the step together.
    """
    import triton_python_backend_utils as triton

    class TritonPythonModel:
        def initialize(self, arguments: dict[str, str]) -> None:
            config = json.loads(arguments["model_config"])
            parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
            self._step = step.open(parameters)
            self._outputs = [output["name"] for output in config["output"]]
            # What is there now stays: left out, a full collection holds a request up by tens of milliseconds.
            gc.collect()
            gc.freeze()

        def execute(self, requests: list[Any]) -> list[Any]:
            tensors = [{tensor.name(): tensor.as_numpy() for tensor in request.inputs()} for request in requests]
            return [self._response(answer) for answer in self._step.run(tensors)]

        def _response(self, answer: Any) -> Any:
            if isinstance(answer, Exception):
                code = (
                    triton.TritonError.INVALID_ARG if isinstance(answer, RequestError) else triton.TritonError.INTERNAL
                )
                return triton.InferenceResponse(error=triton.TritonError(str(answer), code))
            return triton.InferenceResponse([triton.Tensor(name, answer[name]) for name in self._outputs])

    return TritonPythonModel
