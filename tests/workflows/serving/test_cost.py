"""The cost of the dense step: times by a clock of the test's own, requests that the step takes, budgets kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from sparsefeed.errors import RequestError, ServeError
from sparsefeed.etl.plan import ServingPlan
from sparsefeed.etl.serving_plan import serving_plan
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.progress import Progress
from sparsefeed.workflows.serving.config import ServingConfig
from sparsefeed.workflows.serving.cost import Cost, Work, check_budget, dense_request, dense_work, measure_in_turn
from sparsefeed.workflows.serving.steps.dense import DenseStep, open_graph
from tests.workflows.serving.feed import SPEC, STATISTICS, plan


class Clock:
    """Seconds that pass only where work says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.done: list[str] = []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, *taken_s: float) -> Work:
        """Takes these seconds, run by run, and then the last of them for good."""
        left = list(taken_s)

        def run() -> None:
            self.done.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


def saying(*p50_ms: float) -> tuple[list[int], object]:
    """A measure that runs each work once and says these times; and how many works it was given."""
    given: list[int] = []

    def measure(works: Sequence[Work], progress: Progress) -> list[Cost]:
        given.append(len(works))
        for work in works:
            work()
        return [Cost(ms, 2 * ms, 7) for ms in p50_ms]

    return given, measure


def test_every_work_has_its_own_median_and_tail() -> None:
    clock = Clock()
    uncounted, one_slow = [9.0] * 5, [0.001] * 98
    slow, quick = measure_in_turn(
        [clock.work("slow", *uncounted, 0.003), clock.work("quick", *uncounted, 0.101, *one_slow, 0.001)],
        runs=100,
        limit_s=1e9,
        clock=clock,
    )
    assert slow == Cost(pytest.approx(3.0), pytest.approx(3.0), 100)
    assert quick == Cost(pytest.approx(1.0), pytest.approx(2.0), 100)  # a hundredth of the way from 1 to 101 ms


def test_works_take_turns_and_no_order_is_always_the_same() -> None:
    clock = Clock()
    measure_in_turn([clock.work(name, 0.001) for name in "abc"], runs=50, clock=clock)
    turns = ["".join(clock.done[start : start + 3]) for start in range(15, len(clock.done), 3)]
    assert len(turns) == 50
    assert {"".join(sorted(turn)) for turn in turns} == {"abc"}
    assert len(set(turns)) == 6


def test_slow_work_ends_at_the_limit_but_not_before_20_runs() -> None:
    clock = Clock()
    (cost,) = measure_in_turn([clock.work("a", 1.0)], runs=300, limit_s=60.0, clock=clock)
    assert cost.runs == 61
    (cost,) = measure_in_turn([clock.work("a", 100.0)], runs=300, limit_s=60.0, clock=clock)
    assert cost.runs == 20


def test_the_plan_of_a_spec_is_that_of_its_statistics() -> None:
    assert serving_plan(SPEC, STATISTICS) == plan()


SMALLEST = FeedSpec.parse(
    {
        "name": "smallest",
        "tables": [{"name": "post", "dim": 4}],
        "features": [{"kind": "id", "name": "post_id", "table": "post", "side": "candidate"}],
        "responses": [{"name": "like", "column": "like"}],
        "logs": {"member": None},
    }
)


@pytest.mark.parametrize(("made", "floats"), [(plan(), None), (serving_plan(SMALLEST, {}), 4 * 7)])
def test_the_request_is_one_the_step_takes_with_full_lists(made: ServingPlan, floats: int | None) -> None:
    step = DenseStep("b1", made, lambda inputs: np.zeros((len(inputs["emb_post_id"]), len(made.responses)), np.float32))
    request = dense_request(made, 7)
    checked = step.check(request)
    assert len(checked["emb_post_id"]) == 7
    for item in made.lookups:
        if item.kind != "id":
            assert set(request[f"len_{item.name}"].tolist()) == {item.max_length}
    if floats is not None:
        assert request["OUTPUT0"].shape == (floats,)


def test_work_is_the_served_step_and_a_refusal_is_no_measurement(bundle_root: Path) -> None:
    seen: list[int] = []
    graph = open_graph(bundle_root / "versions" / "b1" / "dense.onnx", 1, plan())

    def counted(inputs: dict[str, np.ndarray]) -> np.ndarray:
        seen.append(len(inputs["emb_post_id"]))
        return graph(inputs)

    step = DenseStep("b1", plan(), counted)
    dense_work(step, plan(), 9)()
    assert seen == [9]
    with pytest.raises(RequestError, match="feed_dense"):
        dense_work(step, serving_plan(SMALLEST, {}), 9)()


CONFIG = ServingConfig(dense_budget_ms=2.0, budget_candidates=40)


def test_a_bundle_within_the_budget_is_told_with_its_time(bundle_root: Path) -> None:
    given, measure = saying(2.0)
    said = check_budget(bundle_root / "versions" / "b1", CONFIG, measure=measure)  # type: ignore[arg-type]
    assert said == "dense step: 2 ms for 40 candidates (median of 7), 2 ms allowed"
    assert given == [1]


def test_a_bundle_over_the_budget_is_refused_with_what_to_do(bundle_root: Path) -> None:
    folder = bundle_root / "versions" / "b1"
    with pytest.raises(ServeError) as caught:
        check_budget(folder, CONFIG, measure=saying(2.41)[1])  # type: ignore[arg-type]
    for words in (
        "serving.dense_budget_ms: the dense step of bundle b1 takes 2.41 ms for 40 candidates (median of 7)",
        "2 ms allowed; nothing was published",
        "model.hidden narrower",
        "`sparsefeed tune --width`",
        "`sparsefeed export --over-budget`",
    ):
        assert words in str(caught.value)


def test_a_bundle_over_the_budget_may_be_wanted(bundle_root: Path) -> None:
    folder = bundle_root / "versions" / "b1"
    said = check_budget(folder, CONFIG, over_budget=True, measure=saying(2.41)[1])  # type: ignore[arg-type]
    assert said.endswith("2 ms allowed: over budget")


def test_the_median_counts_and_not_the_tail(bundle_root: Path) -> None:
    def measure(works: Sequence[Work], progress: Progress) -> list[Cost]:
        return [Cost(1.0, 50.0, 7)]

    assert "over" not in check_budget(bundle_root / "versions" / "b1", CONFIG, measure=measure)
