from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from sparsefeed.workflows.release.config import Guardrails
from sparsefeed.workflows.release.judge import Judgement, judge
from sparsefeed.workflows.release.routing.figures import Figures
from sparsefeed.workflows.release.sequential import Rate, distribution_margin, ks, margin, psi, psi_critical

RANDOM = np.random.default_rng(5)


def figures(
    requests: int, error_rate: float = 0.0, latency_ms: float = 5.0, score: float = 0.0, unknown: float = 0.1
) -> Figures:
    """Of so many requests of ten posts: exact rates, log-normal latencies and scores."""
    made = Figures(requests=requests, errors=round(requests * error_rate), posts=10 * requests)
    made.unknown = round(10 * requests * unknown)
    made.latency.add(np.random.default_rng(1).lognormal(math.log(latency_ms), 0.3, requests - made.errors))
    made.scores.add(np.random.default_rng(2).lognormal(score, 0.8, 10 * requests))
    return made


def states(judgement: Judgement) -> dict[str, str]:
    return {rail.name: rail.state for rail in judgement.rails}


def test_an_equal_canary_passes_when_enough_was_seen_and_waits_before() -> None:
    rails = Guardrails()
    assert judge(figures(20_000), figures(200), rails).verdict == "wait"
    passed = judge(figures(100_000), figures(20_000), rails)
    assert passed.verdict == "pass", passed.why
    assert judge(Figures(), Figures(), rails).verdict == "wait"


@pytest.mark.parametrize(
    ("worse", "rail"),
    [
        ({"error_rate": 0.05}, "error rate"),
        ({"latency_ms": 12.0}, "slow answers"),
        ({"score": 1.0}, "score PSI"),
        ({"unknown": 0.4}, "unknown posts"),
    ],
)
def test_a_canary_that_is_worse_is_aborted_by_the_rail_it_breaks(worse: dict[str, Any], rail: str) -> None:
    judgement = judge(figures(50_000), figures(5000, **worse), Guardrails())
    assert judgement.verdict == "abort"
    assert {name for name, state in states(judgement).items() if state == "beyond"} == {rail}
    assert judgement.why.startswith(rail)
    off = {"error rate": "error_rate", "slow answers": "p99_ratio", "score PSI": "psi", "unknown posts": "unknown_rate"}
    unwatched = Guardrails.model_validate({off[rail]: None})
    assert judge(figures(50_000), figures(5000, **worse), unwatched).verdict != "abort"


def test_a_canary_that_is_better_is_not_aborted() -> None:
    judgement = judge(figures(50_000, 0.05, 12.0, 0.0, 0.4), figures(20_000), Guardrails())
    assert judgement.verdict == "pass", judgement.why


def test_ks_is_watched_when_the_recipe_says_so() -> None:
    rails = Guardrails(ks=0.2, psi=None)
    assert states(judge(figures(50_000), figures(20_000), rails))["score KS"] == "within"
    assert judge(figures(50_000), figures(20_000, score=1.0), rails).verdict == "abort"


def test_posted_labels_that_drop_abort_and_those_that_do_not_pass() -> None:
    stable = {"click": Rate(10_000, 100_000), "like": Rate(2000, 100_000)}
    rails = Guardrails()
    good = judge(figures(100_000), figures(30_000), rails, stable, {"click": Rate(2950, 30_000)})
    assert states(good)["rate of click"] == "within"
    assert "rate of like" not in states(good)
    bad = judge(figures(100_000), figures(30_000), rails, stable, {"click": Rate(2100, 30_000)})
    assert (bad.verdict, states(bad)["rate of click"]) == ("abort", "beyond")
    few = judge(figures(100_000), figures(30_000), rails, stable, {"click": Rate(15, 300)})
    assert (few.verdict, states(few)["rate of click"]) == ("wait", "open")


def test_the_interval_holds_over_all_of_time_where_a_usual_one_does_not() -> None:
    """400 pairs of equal arms, looked at after each of 2,000 requests: the error is of the whole, not of a look."""
    p, alpha, runs, length = 0.2, 0.05, 400, 2000
    n = np.arange(1, length + 1)
    always, usual = 0, 0
    for _ in range(runs):
        one, other = ((RANDOM.random(length) < p).cumsum() for _ in range(2))
        apart = np.abs(one - other) / n
        variance = [Rate(a, m).variance + Rate(b, m).variance for a, b, m in zip(one, other, n, strict=True)]
        late = slice(100, None)  # a normal approximation
        half = np.array([margin(v, alpha, 0.05) for v in variance])
        always += bool((apart > half)[late].any())
        usual += bool((apart > 1.96 * np.sqrt(variance))[late].any())
    assert always / runs <= alpha + 3 * (alpha * (1 - alpha) / runs) ** 0.5
    assert usual / runs > 0.2


def test_the_margin_of_a_distribution_holds_over_all_of_time() -> None:
    outside = 0
    for _ in range(200):
        values = RANDOM.random(2000)
        for n in (10, 30, 100, 300, 1000, 2000):
            apart = np.abs(np.sort(values[:n]) - np.arange(1, n + 1) / n).max()
            if apart > distribution_margin(n, 0.05):
                outside += 1
                break
    assert outside <= 0.05 * 200 + 3 * (200 * 0.05 * 0.95) ** 0.5
    assert distribution_margin(0, 0.05) == 1.0


def test_psi_and_ks_are_what_their_formulas_say() -> None:
    stable, canary = np.array([50, 50]), np.array([80, 20])
    p, q = np.array([50.5, 50.5]) / 101, np.array([80.5, 20.5]) / 101
    assert psi(stable, canary, num_bins=2) == pytest.approx(float(((p - q) * np.log(p / q)).sum()))
    assert ks(stable, canary) == pytest.approx(0.3)
    assert psi(stable, stable) == pytest.approx(0, abs=1e-12)
    # 99 % of chi-squared with 9 degrees of freedom is 21.666.
    assert psi_critical(1000, 1000, 0.01) == pytest.approx(21.666 * 2 / 1000, rel=2e-3)


def test_chance_alone_does_not_abort() -> None:
    aborted = 0
    for _ in range(100):
        pair = []
        for requests in (2000, 500):
            made = Figures(requests=requests, posts=requests)
            made.errors = int(RANDOM.binomial(requests, 0.01))
            made.unknown = int(RANDOM.binomial(requests, 0.1))
            made.latency.add(RANDOM.lognormal(1.6, 0.4, requests - made.errors))
            made.scores.add(RANDOM.lognormal(0, 0.8, requests))
            pair.append(made)
        aborted += judge(pair[0], pair[1], Guardrails()).verdict == "abort"
    assert aborted <= 4


def test_the_log_gets_figures_that_are_json() -> None:
    facts = judge(figures(10), figures(10), Guardrails()).facts()
    assert facts["canary_requests"] == 10
    assert {rail["name"] for rail in facts["rails"]} == {"error rate", "unknown posts", "slow answers", "score PSI"}
    assert all(value == value for rail in facts["rails"] for value in rail.values())
