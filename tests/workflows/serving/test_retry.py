from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsefeed.errors import ServeError
from sparsefeed.workflows.serving.retry import RetryBudget, RetryPolicy


@given(
    st.lists(st.booleans(), max_size=200),
    st.sampled_from([0.0, 0.05, 0.1, 0.5, 1.0]),
    st.integers(0, 5),
)
def test_retries_never_exceed_their_share_of_the_calls_and_the_burst(
    failures: list[bool], share: float, burst: int
) -> None:
    budget = RetryBudget(RetryPolicy(max_share=share, burst=burst))
    retries = 0
    for calls, failed in enumerate(failures, 1):
        budget.earn()
        while failed and budget.spend():
            retries += 1
        assert retries <= share * calls + burst + 1e-6


def test_after_an_outage_the_budget_is_not_saved_up() -> None:
    budget = RetryBudget(RetryPolicy(max_share=0.1, burst=3))
    for _ in range(10_000):
        budget.earn()
    assert [budget.spend() for _ in range(4)] == [True, True, True, False]


def test_without_a_burst_the_tenth_call_earns_a_retry() -> None:
    budget = RetryBudget(RetryPolicy(max_share=0.1, burst=0))
    spent = []
    for _ in range(20):
        budget.earn()
        spent.append(budget.spend())
    assert [i + 1 for i, had in enumerate(spent) if had] == [10, 20]


def test_waits_double_up_to_the_longest_and_are_drawn_below() -> None:
    policy = RetryPolicy(first_s=0.1, longest_s=0.5)
    assert [policy.wait_s(n, lambda: 1.0) for n in range(4)] == [0.1, 0.2, 0.4, 0.5]
    assert policy.wait_s(2, lambda: 0.25) == pytest.approx(0.1)
    assert len({policy.wait_s(0) for _ in range(20)}) > 1


@pytest.mark.parametrize(
    "settings", [{"max_share": 1.5}, {"max_share": -0.1}, {"burst": -1}, {"first_s": 0}, {"first_s": 2, "longest_s": 1}]
)
def test_a_policy_that_cannot_be_meant_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ServeError, match="retry: got"):
        RetryPolicy(**settings)
