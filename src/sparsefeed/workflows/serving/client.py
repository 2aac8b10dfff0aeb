"""FeedClient: a member and posts in, a Ranking out.

Example:
    >>> client = FeedClient("127.0.0.1:8001")  # doctest: +SKIP
    >>> client.rank("u17", ["p1", "p2", "p3"]).order  # doctest: +SKIP
    ('p3', 'p1', 'p2')
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sparsefeed.errors import RequestError, ServeError, ToolError
from sparsefeed.workflows.serving.request import OUTPUTS, ROUTER, UNKNOWN_BITS, ranker_name

__all__ = ["FeedClient", "Ranking"]

_PREFIX = ranker_name() + "_"
# What a client must mend itself, as gRPC and HTTP say it.
_REFUSED = ("StatusCode.INVALID_ARGUMENT", "400")


@dataclass(frozen=True)
class Ranking:
    """The answer to one request; all of length n stand in the order of `posts`.

    Attributes:
        posts: As asked.
        probability: Per response, float32 [n]: calibrated, in (0, 1).
        score: float32 [n]: sum of probability * score_weight.
        unknown: Per post, what the bundle did not know: names of `UNKNOWN_BITS`.
        bundle: The version that answered.
    """

    posts: tuple[str, ...]
    probability: Mapping[str, NDArray[np.float32]]
    score: NDArray[np.float32]
    unknown: tuple[frozenset[str], ...]
    bundle: str

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Posts by score, the best first; of equal scores the one asked for first."""
        return tuple(self.posts[i] for i in np.argsort(-self.score, kind="stable"))


class FeedClient:
    """Client of one server. Not for several threads at once; make one each.

    Args:
        url: host:port of the protocol.
        bundle: Which bundle to ask; None asks the router, which knows. Without a router it takes the only bundle that
            is ready, and looks again when it is taken away.
        protocol: gRPC, or HTTP with binary tensors.
        timeout_s: Seconds until a call is given up.
    """

    def __init__(
        self,
        url: str,
        bundle: str | None = None,
        protocol: Literal["grpc", "http"] = "grpc",
        timeout_s: float = 10.0,
    ) -> None:
        self._url, self._bundle, self._timeout_s = url, bundle, timeout_s
        self._triton, self._error = _library(protocol)
        if protocol == "grpc":
            self._client = self._triton.InferenceServerClient(url)
        else:
            self._client = self._triton.InferenceServerClient(
                url, connection_timeout=timeout_s, network_timeout=timeout_s
            )
        self._per_call = {"client_timeout": timeout_s} if protocol == "grpc" else {}
        self._as_json = {"as_json": True} if protocol == "grpc" else {}
        self._found: tuple[str, tuple[str, ...]] | None = None

    def __enter__(self) -> FeedClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def health(self) -> bool:
        """Whether the server is ready; False also when nobody answers."""
        try:
            return bool(self._client.is_server_ready(**self._per_call))
        except (self._error, OSError):
            return False

    def bundles(self) -> tuple[str, ...]:
        """Ids of the bundles that are ready, sorted."""
        return tuple(sorted(name.removeprefix(_PREFIX) for name in self._ready() if name.startswith(_PREFIX)))

    def _ready(self) -> set[str]:
        index = self._call(self._client.get_model_repository_index, **self._as_json)
        models = index.get("models", []) if isinstance(index, dict) else index
        return {model["name"] for model in models if model.get("state") == "READY"}

    def rank(
        self, member: str, posts: Sequence[str], overrides: Mapping[str, Mapping[str, Any]] | None = None
    ) -> Ranking:
        """Score posts for a member.

        Args:
            member: Member id; empty for an anonymous member.
            posts: 1 to `serving.max_candidates` post ids.
            overrides: `{"member": {feature: value}, "posts": {post: {feature: value}}}`, raw values for this request.

        Raises:
            RequestError: The request must be changed; the message names the bundle, the step and the cause.
            ServeError: No answer, or no bundle (or more than one) to ask.
        """
        if not posts:
            raise RequestError("posts: got none; send at least one")
        inputs = [self._text("member_id", [member]), self._text("post_ids", posts)]
        if overrides:
            inputs.append(self._text("overrides", [json.dumps(overrides)]))
        model, responses = self._target()
        try:
            answer = self._infer(model, inputs)
        except ServeError:
            # A release may have replaced the bundle found before; only then is the request sent again.
            if self._bundle is not None or model in self._ready():
                raise
            self._found = None
            model, responses = self._target()
            answer = self._infer(model, inputs)
        probability, score, unknown, name = (answer.as_numpy(output) for output in OUTPUTS)
        return Ranking(
            posts=tuple(posts),
            probability={response: probability[:, i] for i, response in enumerate(responses)},
            score=score,
            unknown=tuple(frozenset(n for n, bit in UNKNOWN_BITS.items() if bits & bit) for bits in unknown.tolist()),
            bundle=name[0].decode(),
        )

    def _target(self) -> tuple[str, tuple[str, ...]]:
        """Find, once, the model to ask and the responses it gives."""
        if self._found is None:
            ready = self.bundles()
            routed = self._bundle is None and ROUTER in self._ready()
            if self._bundle is None and len(ready) != 1 and not routed:
                said = (
                    f"{len(ready)} bundles are ready ({', '.join(ready)}); name one of them"
                    if ready
                    else "no bundle is ready; load one"
                )
                raise ServeError(f"{self._url}: {said}")
            bundle = self._bundle if self._bundle is not None else next(iter(ready), "")
            if not routed and bundle not in ready:
                raise ServeError(
                    f'{self._url}: bundle "{bundle}" is not ready; ready are: {", ".join(ready) or "none"}'
                )
            model = ROUTER if routed else ranker_name(bundle)
            config = self._call(self._client.get_model_config, model, **self._as_json)
            config = config.get("config", config)
            responses = json.loads(config["parameters"]["responses"]["string_value"])
            self._found = model, tuple(responses)
        return self._found

    def _infer(self, model: str, inputs: list[Any]) -> Any:
        outputs = [self._triton.InferRequestedOutput(name) for name in OUTPUTS]
        return self._call(self._client.infer, model, inputs, outputs=outputs)

    def _text(self, name: str, texts: Sequence[str]) -> Any:
        tensor = self._triton.InferInput(name, [len(texts)], "BYTES")
        try:
            tensor.set_data_from_numpy(np.array([text.encode("utf-8") for text in texts], object))
        except (AttributeError, UnicodeEncodeError) as error:
            raise RequestError(f"{name}: not all strings of Unicode text: {error}") from error
        return tensor

    def _call(self, method: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return method(*arguments, **options, **self._per_call)
        except self._error as error:
            refused = str(error.status()) in _REFUSED
            unreachable = str(error.status()) == "StatusCode.UNAVAILABLE" and "connect" in str(error.message())
            mend = "; is the server started, and is this its port?" if unreachable else ""
            raise (RequestError if refused else ServeError)(f"{self._url}: {error.message()}{mend}") from error
        except OSError as error:
            raise ServeError(
                f"{self._url}: no answer ({error}); is the server started, and is this its port?"
            ) from error


def _library(protocol: str) -> tuple[Any, Any]:
    try:
        from tritonclient.utils import InferenceServerException

        if protocol == "grpc":
            import tritonclient.grpc as triton
        elif protocol == "http":
            import tritonclient.http as triton
        else:
            raise ServeError(f'protocol: got "{protocol}"; allowed: grpc, http')
    except ImportError as error:
        raise ToolError(f"tritonclient: not installed ({error}); pip install 'sparsefeed[triton]'") from error
    return triton, InferenceServerException
