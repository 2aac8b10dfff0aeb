"""The class Triton's Python backend asks for, made of a Router: BLS calls to the bundles' ensembles.

Notable: tensors pass through as they came; only the member id is decoded here, and the answer's score and flags are
looked at for the figures. A copy for the shadow is put into a pipe to another process (release.shadow_pipe).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sparsefeed.workflows.release.routing.router import Answer, Router, fault
from sparsefeed.workflows.release.shadow_pipe import ShadowPipe
from sparsefeed.workflows.serving.request import OUTPUTS, ROUTER, ranker_name
from sparsefeed.workflows.serving.strings import GarbledStrings, read_strings

__all__ = ["router_model"]


def router_model() -> type:
    """Make `TritonPythonModel` of the router."""
    import triton_python_backend_utils as triton

    triton.deserialize_bytes_tensor = read_strings  # the backend looks it up for each tensor of strings

    class TritonPythonModel:
        def initialize(self, arguments: dict[str, str]) -> None:
            config = json.loads(arguments["model_config"])
            parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
            folder = Path(parameters["release"])
            copies = ShadowPipe(parameters["grpc_url"], folder / "figures")
            self._router = Router(folder / "routes.json", folder / "figures", copies)

        def finalize(self) -> None:
            self._router.close()

        def execute(self, requests: list[Any]) -> list[Any]:
            return [self._answer(request) for request in requests]

        def _answer(self, request: Any) -> Any:
            inputs = request.inputs()
            by_name = {tensor.name(): tensor for tensor in inputs}
            for name, tensor in by_name.items():
                strings = tensor.as_numpy()
                if isinstance(strings, GarbledStrings):
                    said = f"{ROUTER}: {name}: {strings.cause}; encode it as Triton's BYTES"
                    error = triton.TritonError(said, triton.TritonError.INVALID_ARG)
                    return triton.InferenceResponse(error=error)

            def ask(bundle: str) -> Answer[Any]:
                call = triton.InferenceRequest(
                    model_name=ranker_name(bundle),
                    requested_output_names=list(OUTPUTS),
                    inputs=inputs,
                    request_id=request.request_id(),
                )
                answer = call.exec()
                if answer.has_error():
                    message = answer.error().message()
                    code = fault(message)
                    error = triton.TritonError(message, getattr(triton.TritonError, code))
                    return Answer(triton.InferenceResponse(error=error), None, None, code == "INVALID_ARG")
                tensors = {tensor.name(): tensor for tensor in answer.output_tensors()}
                response = triton.InferenceResponse([tensors[name] for name in OUTPUTS])
                return Answer(response, tensors["score"].as_numpy(), tensors["unknown"].as_numpy())

            return self._router.route(_member(by_name), ask, by_name)

    return TritonPythonModel


def _member(tensors: dict[str, Any]) -> bytes:
    """The member id; empty where it is missing or of another shape, which the bundle's own step refuses."""
    if "member_id" not in tensors:
        return b""
    values = tensors["member_id"].as_numpy()
    return bytes(values[0]) if values.size == 1 and isinstance(values[0], bytes) else b""
