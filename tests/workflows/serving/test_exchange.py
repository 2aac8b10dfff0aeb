"""The clients' core against a wire made of a list: what is asked, retried, given up, and when."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from sparsefeed.errors import RequestError, ServeError
from sparsefeed.workflows.serving.exchange import Call, Exchange, Pause, Talk
from sparsefeed.workflows.serving.request import PROBE
from sparsefeed.workflows.serving.retry import RetryPolicy

UNAVAILABLE = InferenceServerException("Exceeds maximum queue size", "StatusCode.UNAVAILABLE")
REFUSED = InferenceServerException('bundle "b1", feed_transform: no', "StatusCode.INVALID_ARGUMENT")
BROKEN = InferenceServerException("stub process is not healthy", "StatusCode.INTERNAL")


class Answer:
    def as_numpy(self, name: str) -> Any:
        return {
            "probability": np.array([[0.5], [0.25]], np.float32),
            "score": np.array([0.5, 0.25], np.float32),
            "unknown": np.array([0, 2], np.int32),
            "bundle": np.array([b"b1"], object),
        }[name]


@dataclass
class Wire:
    """A server with bundle b1: `failures` are what its next inferences raise; every call takes `call_s`."""

    failures: list[Exception | None] = field(default_factory=list)
    call_s: float = 0.01
    now: float = 100.0
    dead: tuple[str, ...] = ()
    bundles: list[str] = field(default_factory=lambda: ["b1"])
    calls: list[Call] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)

    def exchange(self, bundle: str | None = None, timeout_s: float = 1.0, **policy: Any) -> Exchange:
        retry = RetryPolicy(**{"burst": 10, **policy})
        return Exchange(
            "here:1", bundle, triton, InferenceServerException, timeout_s, retry, True, clock=lambda: self.now
        )

    def perform(self, talk: Talk[Any]) -> Any:
        try:
            step = next(talk)
            while True:
                try:
                    answer = self._do(step)
                except (InferenceServerException, OSError) as error:
                    step = talk.throw(error)
                else:
                    step = talk.send(answer)
        except StopIteration as end:
            return end.value

    def inferences(self) -> list[Call]:
        return [call for call in self.calls if call.method == "infer"]

    def _do(self, step: Call | Pause) -> Any:
        if isinstance(step, Pause):
            self.pauses.append(step.seconds)
            self.now += step.seconds
            return None
        self.now += self.call_s
        self.calls.append(step)
        answers: dict[str, Callable[[], Any]] = {
            "get_inference_statistics": lambda: {"model_stats": [{"name": f"feed_ranker_{b}"} for b in self.bundles]},
            "is_model_ready": lambda: self._is_ready(step.arguments[0]),
            "get_model_config": lambda: {
                "config": {"parameters": {"responses": {"string_value": json.dumps(["like"])}}}
            },
            "infer": self._infer,
        }
        return answers[step.method]()

    def _is_ready(self, name: str) -> bool:
        step, bundle = name.rsplit("_", maxsplit=1)
        return name not in self.dead and (step != "feed_ranker" or bundle in self.bundles)

    def _infer(self) -> Answer:
        failure = self.failures.pop(0) if self.failures else None
        if failure:
            raise failure
        return Answer()


def test_the_bundle_is_looked_for_once() -> None:
    wire = Wire()
    exchange = wire.exchange()
    for _ in range(3):
        ranking = wire.perform(exchange.rank("m", ["p", "q"]))
        assert ranking.order == ("p", "q")
        assert ranking.unknown == (frozenset(), frozenset({"post_id"}))
    assert [call.method for call in wire.calls].count("get_inference_statistics") == 1
    assert len(wire.inferences()) == 3


@pytest.mark.parametrize("failure", [UNAVAILABLE, ConnectionResetError("reset"), OSError("refused")])
def test_what_is_unavailable_is_asked_again_after_a_pause(failure: Exception) -> None:
    wire = Wire([failure, failure])
    assert wire.perform(wire.exchange().rank("m", ["p", "q"])).bundle == "b1"
    assert len(wire.inferences()) == 3
    assert len(wire.pauses) == 2
    assert all(0 <= pause <= 0.05 for pause in wire.pauses)


@pytest.mark.parametrize(("failure", "kind"), [(REFUSED, RequestError), (BROKEN, ServeError)])
def test_what_must_be_mended_or_is_no_ones_load_is_not_asked_again(failure: Exception, kind: type[Exception]) -> None:
    wire = Wire([failure])
    with pytest.raises(kind) as caught:
        wire.perform(wire.exchange().rank("m", ["p", "q"]))
    assert str(caught.value).startswith("here:1: ")
    assert len(wire.inferences()) == 1
    assert not wire.pauses


def test_retries_end_with_the_request_the_budget_and_the_deadline() -> None:
    wire = Wire([UNAVAILABLE] * 99)
    with pytest.raises(ServeError, match="maximum queue size"):
        wire.perform(wire.exchange(max_retries=2).rank("m", ["p"]))
    assert len(wire.inferences()) == 3

    wire = Wire([UNAVAILABLE] * 999)
    exchange = wire.exchange("b1", max_share=0.1, burst=0, max_retries=3)
    for _ in range(100):
        with pytest.raises(ServeError):
            wire.perform(exchange.rank("m", ["p"]))
    assert len(wire.inferences()) == 110  # not the 400 that each request alone would allow

    wire = Wire([UNAVAILABLE] * 99, call_s=0.2)
    begun = wire.now
    with pytest.raises(ServeError):
        wire.perform(wire.exchange(max_retries=99, burst=99, longest_s=0.3, first_s=0.3).rank("m", ["p"]))
    assert wire.now - begun <= 1.0 + 0.2  # no attempt begins after the deadline


def test_each_attempt_has_what_is_left_of_the_deadline_and_the_server_knows_it() -> None:
    wire = Wire([UNAVAILABLE, None], call_s=0.1)
    wire.perform(wire.exchange(timeout_s=2.0).rank("m", ["p"]))
    first, second = wire.inferences()
    assert first.timeout_s == pytest.approx(1.7)  # three calls looked for the bundle
    assert first.options["timeout"] == pytest.approx(1_700_000, abs=2)  # microseconds
    assert second.timeout_s == pytest.approx(1.5 - wire.pauses[0])  # one call asked whether the bundle is still there
    assert second.options["timeout"] < first.options["timeout"]


def test_no_call_is_made_after_the_deadline() -> None:
    wire = Wire(call_s=0.6)
    with pytest.raises(ServeError, match="no answer in 1 s"):
        wire.perform(wire.exchange().rank("m", ["p"]))
    assert not wire.inferences()


def test_a_bundle_that_was_replaced_is_found_anew_without_a_retry() -> None:
    gone = InferenceServerException("unknown model", "StatusCode.NOT_FOUND")
    wire = Wire()
    exchange = wire.exchange(max_retries=0)
    wire.perform(exchange.rank("m", ["p"]))
    wire.bundles, wire.failures = ["b2"], [gone]
    wire.perform(exchange.rank("m", ["p"]))
    assert [call.arguments[0] for call in wire.inferences()] == ["feed_ranker_b1", "feed_ranker_b1", "feed_ranker_b2"]
    assert not wire.pauses
    wire.bundles, wire.failures = ["b2"], [gone]
    with pytest.raises(ServeError, match="unknown model"):  # a bundle that was named is not exchanged
        wire.perform(wire.exchange("b2").rank("m", ["p"]))


@pytest.mark.parametrize("dead", ["feed_transform_b1", "feed_hps_b1", "feed_dense_b1"])
def test_health_is_false_when_a_step_is_not_ready(dead: str) -> None:
    wire = Wire(dead=(dead,))
    assert wire.perform(wire.exchange("b1").health()) is False
    healthy = Wire()
    assert healthy.perform(healthy.exchange("b1").health()) is True


@pytest.mark.parametrize("failure", [UNAVAILABLE, BROKEN, REFUSED, OSError("refused")])
def test_health_is_false_without_an_answer_and_kept_for_a_second(failure: Exception) -> None:
    wire = Wire([failure])
    exchange = wire.exchange()
    assert wire.perform(exchange.health()) is False
    (probe,) = wire.inferences()
    assert probe.options["request_id"] == PROBE
    assert wire.perform(exchange.health()) is False  # not asked again
    assert len(wire.inferences()) == 1
    wire.now += 1.1
    assert wire.perform(exchange.health()) is True
    assert len(wire.inferences()) == 2


def test_health_is_false_without_a_bundle() -> None:
    wire = Wire(bundles=[])
    assert wire.perform(wire.exchange().health()) is False
