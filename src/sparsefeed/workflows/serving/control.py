"""ModelControl: which bundles a running server has ready, and loading and unloading them under traffic."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from sparsefeed.errors import ServeError, ToolError
from sparsefeed.workflows.serving.key import HEADER, VARIABLE
from sparsefeed.workflows.serving.request import STEPS, ranker_name, step_name

__all__ = ["ModelControl"]


class ModelControl:
    """Control of a server over gRPC.

    Args:
        grpc_url: host:port of the server's gRPC.
        key: The server's (serving.key); all but `statistics` is refused without it.
        timeout_s: Seconds until a call is given up; loading is one call.
    """

    def __init__(self, grpc_url: str, key: str = "", timeout_s: float = 120.0) -> None:
        try:
            import tritonclient.grpc as triton
            from tritonclient.utils import InferenceServerException
        except ImportError as error:
            raise ToolError(f"tritonclient: not installed ({error}); pip install 'sparsefeed[triton]'") from error
        self._url, self._failure = grpc_url, InferenceServerException
        self._client = triton.InferenceServerClient(grpc_url)
        self._options: dict[str, Any] = {"client_timeout": timeout_s, "headers": {HEADER: key} if key else {}}

    def __enter__(self) -> ModelControl:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def ready(self) -> tuple[str, ...]:
        """Ids of the bundles whose ensembles are ready, sorted."""
        prefix = ranker_name() + "_"
        models = self._call("get_model_repository_index").models
        return tuple(
            sorted(m.name.removeprefix(prefix) for m in models if m.name.startswith(prefix) and m.state == "READY")
        )

    def parameters(self, model: str) -> dict[str, str]:
        """The parameters in a ready model's configuration, for which no key is needed; ServeError when not ready."""
        found = self._call("get_model_config", model).config.parameters
        return {name: value.string_value for name, value in found.items()}

    def load(self, bundle: str) -> None:
        """Load a bundle's ensemble, and its steps with it; warm when this returns. ServeError says why it cannot."""
        self._call("load_model", ranker_name(bundle))

    def unload(self, bundle: str) -> None:
        """Take a bundle away: the ensemble at once, the steps when their requests in flight have ended."""
        self._call("unload_model", ranker_name(bundle))
        for step in STEPS:
            self._call("unload_model", step_name(step, bundle))

    def statistics(self, bundle: str) -> dict[str, dict[str, Any]]:
        """Triton's own counters per step of a bundle, since it was loaded: part -> `count` and `ns`."""
        counters = {}
        for step in STEPS:
            (one,) = self._call("get_inference_statistics", step_name(step, bundle)).model_stats
            parts = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
            found = {part: getattr(one.inference_stats, part) for part in parts}
            counters[step] = {part: {"count": both.count, "ns": both.ns} for part, both in found.items()}
        return counters

    def _call(self, method: str, *arguments: str) -> Any:
        try:
            return getattr(self._client, method)(*arguments, **self._options)
        except self._failure as error:
            said = str(error.message())
            mend = ""
            if "protocol is restricted" in said:
                mend = f"; give the server's key ({VARIABLE}, or the file in its workspace)"
            elif "connect" in said:
                mend = "; is the server started, and is this its gRPC port?"
            raise ServeError(f"{self._url}: {said}{mend}") from error
