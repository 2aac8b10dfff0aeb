"""The class Triton's Python backend asks for, made from a step.

Notable: `triton_python_backend_utils` exists inside a Triton stub alone, so it is imported when the class is made,
which only a model.py of `triton_repo` does. And whatever happens to one request, the others of its call are answered:
an exception that left `execute` would be the answer of them all, with a traceback.
"""

from __future__ import annotations

import gc
import json
import os
import time
from typing import Any, Protocol

from sparsefeed.errors import RequestError, SparsefeedError
from sparsefeed.workflows.serving.publisher import Publisher
from sparsefeed.workflows.serving.request import PROBE
from sparsefeed.workflows.serving.steps.readings import Meter
from sparsefeed.workflows.serving.steps.step import Answer, Step, Tensors
from sparsefeed.workflows.serving.strings import GarbledStrings, read_strings

__all__ = ["python_model"]

# Behind the server's own threads: where cores are short these must go on taking requests and refusing them, or all wait
# in front of the queue that has a limit. Not the lowest, which those have that load a bundle beside it.
_STANDS_BACK = 10


class _Openable(Protocol):
    def open(self, parameters: dict[str, str]) -> Step[Any]: ...


def python_model(step: _Openable) -> type:
    """Make `TritonPythonModel` of a step class: tensors in, the step's `run`, tensors or a TritonError out.

    A RequestError becomes INVALID_ARGUMENT, any other error INTERNAL. All requests of a call are passed to the step
    together. What the step counts is on Triton's metrics page; a request whose id is `request.PROBE` is not counted.
    """
    import triton_python_backend_utils as triton

    triton.deserialize_bytes_tensor = read_strings  # the backend looks it up for each tensor of strings

    class TritonPythonModel:
        def initialize(self, arguments: dict[str, str]) -> None:
            config = json.loads(arguments["model_config"])
            parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
            self._step = step.open(parameters)
            os.nice(_STANDS_BACK)
            self._outputs = [output["name"] for output in config["output"]]
            self._meter = Meter()
            self._process = arguments["model_instance_name"]
            self._publisher: Publisher | None = None
            # What is there now stays: left out, a full collection holds a request up by tens of milliseconds.
            gc.collect()
            gc.freeze()

        def execute(self, requests: list[Any]) -> list[Any]:
            started = time.perf_counter()
            if self._publisher is None:  # not before: the server listens to a process that has begun to serve
                labels = {"bundle": self._step.bundle, "step": self._step.name}
                self._publisher = Publisher(triton, self._readings, labels, self._process)
            given = [self._tensors(request) for request in requests]
            answers = self._answers(given)
            responses = [self._response(answer) for answer in answers]
            self._count(requests, answers, time.perf_counter() - started)
            return responses

        def finalize(self) -> None:
            if self._publisher is not None:
                self._publisher.close()

        def _tensors(self, request: Any) -> Tensors | SparsefeedError:
            tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            for name, tensor in tensors.items():
                if isinstance(tensor, GarbledStrings):
                    return self._step.refuse(RequestError(f"{name}: {tensor.cause}; encode it as Triton's BYTES"))
            return tensors

        def _answers(self, given: list[Tensors | SparsefeedError]) -> list[Answer]:
            answers = iter(self._step.run([tensors for tensors in given if not isinstance(tensors, SparsefeedError)]))
            return [tensors if isinstance(tensors, SparsefeedError) else next(answers) for tensors in given]

        def _response(self, answer: Answer) -> Any:
            try:
                if not isinstance(answer, SparsefeedError):
                    return triton.InferenceResponse([triton.Tensor(name, answer[name]) for name in self._outputs])
                error = answer
            except Exception as cause:  # shared memory is full
                error = self._step.refuse(cause)
            refused = isinstance(error, RequestError)
            code = triton.TritonError.INVALID_ARG if refused else triton.TritonError.INTERNAL
            return triton.InferenceResponse(error=triton.TritonError(str(error), code))

        def _count(self, requests: list[Any], answers: list[Answer], seconds: float) -> None:
            counted = [a for r, a in zip(requests, answers, strict=True) if r.request_id() != PROBE]
            if not counted:
                return
            good = [answer for answer in counted if not isinstance(answer, SparsefeedError)]
            refused = sum(isinstance(answer, RequestError) for answer in counted)
            self._meter.add(seconds, ok=len(good), refused=refused, failed=len(counted) - len(good) - refused)
            for answer in good:
                self._step.observe(answer)

        def _readings(self) -> list[Any]:
            return [*self._meter.readings(), *self._step.readings()]

    return TritonPythonModel
