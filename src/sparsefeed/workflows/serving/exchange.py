"""Exchange: what client and server say to each other, without the wire.

Every method is a generator: it yields a `Call` of tritonclient or a `Pause`, is sent the answer or thrown the error,
and returns the result. FeedClient performs them one after the other, AsyncFeedClient awaits them; deadlines, retries,
the search for the bundle and the health are here, once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from sparsefeed.errors import RequestError, ServeError
from sparsefeed.workflows.serving.ranking import Ranking
from sparsefeed.workflows.serving.request import OUTPUTS, PROBE, ROUTER, STEPS, UNKNOWN_BITS, ranker_name, step_name
from sparsefeed.workflows.serving.retry import RetryBudget, RetryPolicy

__all__ = ["Call", "Exchange", "Pause", "Talk"]

_PREFIX = ranker_name() + "_"
# What a client must mend itself, and what may be gone in a moment; as gRPC and HTTP say it.
_REFUSED = ("StatusCode.INVALID_ARGUMENT", "400")
_UNAVAILABLE = ("StatusCode.UNAVAILABLE", "503")
_HEALTH_KEPT_S = 1.0


@dataclass(frozen=True)
class Call:
    """A method of tritonclient's InferenceServerClient; no answer is waited for longer than `timeout_s`."""

    method: str
    arguments: tuple[Any, ...]
    timeout_s: float
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pause:
    """Wait so many seconds."""

    seconds: float


Result = TypeVar("Result")
Talk = Generator[Call | Pause, Any, Result]


class UnavailableError(ServeError):
    """No answer now; the same request may have one later."""


class Exchange:
    """One client's side: what it knows of the server, and what it may still retry.

    Args:
        url: Named in errors.
        bundle: Which bundle to ask; None asks the router, or where there is none takes the only one that is ready.
        triton: tritonclient.grpc or .http, which make tensors.
        failure: tritonclient's exception.
        timeout_s: Seconds until a request is given up, retries and waits between them included.
        retry: When a request is sent again.
        as_json: Whether the client must be told to give configurations and statistics as JSON (gRPC).
        clock: Seconds, from anywhere.
    """

    def __init__(
        self,
        url: str,
        bundle: str | None,
        triton: Any,
        failure: type[Exception],
        timeout_s: float,
        retry: RetryPolicy,
        as_json: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url, self._bundle, self._triton, self._failure = url, bundle, triton, failure
        self._timeout_s, self._retry, self._clock = timeout_s, retry, clock
        self._json = {"as_json": True} if as_json else {}
        self._budget = RetryBudget(retry)
        self._found: tuple[str, tuple[str, ...]] | None = None
        self._health: tuple[float, bool] | None = None

    def health(self) -> Talk[bool]:
        """Whether this client would get an answer; looked at once a second at most.

        The ensemble and each of its steps must be ready, and a request of one post must be answered: a step whose
        process is gone may be called ready by the server. Where the router is asked, it must answer.
        """
        now = self._clock()
        if self._health is None or now - self._health[0] > _HEALTH_KEPT_S:
            try:
                healthy = yield from self._examine(now + self._timeout_s)
            except ServeError:
                healthy = False
            self._health = now, healthy
        return self._health[1]

    def bundles(self) -> Talk[tuple[str, ...]]:
        """Ids of the bundles that are ready, sorted."""
        ready = yield from self._ready(self._clock() + self._timeout_s)
        return _bundles(ready)

    def rank(
        self, member: str, posts: Sequence[str], overrides: Mapping[str, Mapping[str, Any]] | None = None
    ) -> Talk[Ranking]:
        """Score posts for a member; FeedClient.rank says how."""
        if not posts:
            raise RequestError("posts: got none; send at least one")
        deadline = self._clock() + self._timeout_s
        inputs = [self._text("member_id", [member]), self._text("post_ids", posts)]
        if overrides:
            inputs.append(self._text("overrides", [json.dumps(overrides)]))
        self._budget.earn()
        retries = 0
        while True:
            try:
                model, responses = yield from self._target(deadline)
                answer = yield from self._infer(model, inputs, deadline)
                return _ranking(posts, responses, answer)
            except RequestError:
                raise
            except ServeError as error:
                # A release may have replaced the bundle found before; then the request goes to the new one.
                if (yield from self._is_gone(deadline)):
                    continue
                wait_s = self._retry.wait_s(retries)
                again = isinstance(error, UnavailableError) and retries < self._retry.max_retries
                if not again or self._clock() + wait_s >= deadline or not self._budget.spend():
                    raise
                retries += 1
            yield Pause(wait_s)

    def _is_gone(self, deadline: float) -> Talk[bool]:
        """Whether the bundle that was found is no longer ready; it is then forgotten. False when nobody answers."""
        if self._bundle is not None or self._found is None:
            return False
        try:
            gone = not (yield from self._call(deadline, "is_model_ready", self._found[0]))
        except ServeError:
            return False
        if gone:
            self._found = None
        return gone

    def _examine(self, deadline: float) -> Talk[bool]:
        ready = set() if self._bundle else (yield from self._ready(deadline))
        probe = [self._text("member_id", [""]), self._text("post_ids", [""])]
        if ROUTER in ready:
            yield from self._infer(ROUTER, probe, deadline, request_id=PROBE)
            return True
        bundles = (self._bundle,) if self._bundle else _bundles(ready)
        for bundle in bundles:
            for step in STEPS:
                if not (yield from self._call(deadline, "is_model_ready", step_name(step, bundle))):
                    return False
            yield from self._infer(ranker_name(bundle), probe, deadline, request_id=PROBE)
        return bool(bundles)

    def _ready(self, deadline: float) -> Talk[set[str]]:
        """Names of the models that are ready.

        Not from the index of the repository, which stands behind the key of those who control the server: the server
        gives statistics of every model it has, too.
        """
        statistics = yield from self._call(deadline, "get_inference_statistics", **self._json)
        ready = set()
        for name in {model["name"] for model in statistics.get("model_stats", [])}:
            # Of what is loaded; asking for the steps would only cost calls.
            if not name.startswith(STEPS) and (yield from self._call(deadline, "is_model_ready", name)):
                ready.add(name)
        return ready

    def _target(self, deadline: float) -> Talk[tuple[str, tuple[str, ...]]]:
        """Find, once, the model to ask and the responses it gives."""
        if self._found is None:
            models = yield from self._ready(deadline)
            ready, routed = _bundles(models), self._bundle is None and ROUTER in models
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
            config = yield from self._call(deadline, "get_model_config", model, **self._json)
            config = config.get("config", config)
            self._found = model, tuple(json.loads(config["parameters"]["responses"]["string_value"]))
        return self._found

    def _infer(self, model: str, inputs: list[Any], deadline: float, **options: Any) -> Talk[Any]:
        outputs = [self._triton.InferRequestedOutput(name) for name in OUTPUTS]
        left_us = max(1, round((deadline - self._clock()) * 1e6))  # what waited longer is dropped unserved
        return (yield from self._call(deadline, "infer", model, inputs, outputs=outputs, timeout=left_us, **options))

    def _text(self, name: str, texts: Sequence[str]) -> Any:
        tensor = self._triton.InferInput(name, [len(texts)], "BYTES")
        try:
            tensor.set_data_from_numpy(np.array([text.encode("utf-8") for text in texts], object))
        except (AttributeError, UnicodeEncodeError) as error:
            raise RequestError(f"{name}: not all strings of Unicode text: {error}") from error
        return tensor

    def _call(self, deadline: float, method: str, *arguments: Any, **options: Any) -> Talk[Any]:
        left_s = deadline - self._clock()
        if left_s <= 0:
            raise ServeError(
                f"{self._url}: no answer in {self._timeout_s:g} s; raise timeout_s, or ask a faster server"
            )
        try:
            return (yield Call(method, arguments, left_s, options))
        except self._failure as error:
            raise self._named(error) from error
        except OSError as error:
            raise UnavailableError(
                f"{self._url}: no answer ({error}); is the server started, and is this its port?"
            ) from error

    def _named(self, error: Any) -> ServeError:
        status, said = str(error.status()), str(error.message())
        unreachable = status in _UNAVAILABLE and "connect" in said
        mend = "; is the server started, and is this its port?" if unreachable else ""
        kinds = {**dict.fromkeys(_REFUSED, RequestError), **dict.fromkeys(_UNAVAILABLE, UnavailableError)}
        return kinds.get(status, ServeError)(f"{self._url}: {said}{mend}")


def _bundles(models: set[str]) -> tuple[str, ...]:
    return tuple(sorted(name.removeprefix(_PREFIX) for name in models if name.startswith(_PREFIX)))


def _ranking(posts: Sequence[str], responses: Sequence[str], answer: Any) -> Ranking:
    probability, score, unknown, name = (answer.as_numpy(output) for output in OUTPUTS)
    return Ranking(
        posts=tuple(posts),
        probability={response: probability[:, i] for i, response in enumerate(responses)},
        score=score,
        unknown=tuple(frozenset(n for n, bit in UNKNOWN_BITS.items() if bits & bit) for bits in unknown.tolist()),
        bundle=name[0].decode(),
    )
