"""ModelControl: which bundles a running server has ready, and loading and unloading them under traffic."""

from __future__ import annotations

import json
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from sparsefeed.errors import ServeError
from sparsefeed.workflows.serving.request import STEPS, ranker_name, step_name

__all__ = ["ModelControl"]


class ModelControl:
    """Control of a server at `http_url` (host:port); loopback only, since this version cannot close it."""

    def __init__(self, http_url: str, timeout_s: float = 120.0) -> None:
        self._url = f"http://{http_url}/v2/repository"
        self._timeout_s = timeout_s

    def ready(self) -> tuple[str, ...]:
        """Ids of the bundles whose ensembles are ready, sorted."""
        models = json.loads(self._post("/index", {"ready": True}))
        prefix = ranker_name() + "_"
        return tuple(sorted(m["name"].removeprefix(prefix) for m in models if m["name"].startswith(prefix)))

    def parameters(self, model: str) -> dict[str, str]:
        """The parameters in a ready model's configuration; ServeError when it is not ready."""
        config = json.loads(self._call(f"{self._url.removesuffix('/repository')}/models/{model}/config", None))
        return {name: value["string_value"] for name, value in config.get("parameters", {}).items()}

    def load(self, bundle: str) -> None:
        """Load a bundle's ensemble, and its steps with it; warm when this returns. ServeError says why it cannot."""
        self._post(f"/models/{ranker_name(bundle)}/load", {})

    def unload(self, bundle: str) -> None:
        """Take a bundle away: the ensemble at once, the steps when their requests in flight have ended."""
        self._post(f"/models/{ranker_name(bundle)}/unload", {})
        for step in STEPS:
            self._post(f"/models/{step_name(step, bundle)}/unload", {})

    def statistics(self, bundle: str) -> dict[str, dict[str, Any]]:
        """Triton's own counters per step of a bundle, since it was loaded."""
        counters = {}
        for step in STEPS:
            (one,) = json.loads(
                self._call(f"{self._url.removesuffix('/repository')}/models/{step_name(step, bundle)}/stats", None)
            )["model_stats"]
            counters[step] = one["inference_stats"]
        return counters

    def _post(self, path: str, body: dict[str, Any]) -> bytes:
        return self._call(self._url + path, json.dumps(body).encode())

    def _call(self, url: str, body: bytes | None) -> bytes:
        try:
            with urlopen(Request(url, body), timeout=self._timeout_s) as answer:
                content: bytes = answer.read()
                return content
        except HTTPError as error:
            raise ServeError(f"{url}: {error.read().decode('utf-8', 'replace')}") from error
        except (URLError, OSError) as error:
            raise ServeError(
                f"{url}: no answer ({error}); is the server started, and is this its HTTP port?"
            ) from error
