"""Judge: whether a canary is worse than the stable bundle by more than the guardrails allow.

Each rail has an estimate and an always-valid interval (release.sequential), so a look costs nothing: `abort` when a
rail's harm is beyond the allowed for certain, `pass` when it is within for certain on every rail, `wait` else.
The error is shared out among the rails. Requests are taken to be independent of one another, which those of one member
are not quite; `design_effect` widens the intervals of rates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sparsefeed.workflows.release.config import Guardrails
from sparsefeed.workflows.release.routing.figures import Figures
from sparsefeed.workflows.release.sequential import Rate, distribution_margin, ks, margin, psi, psi_critical

__all__ = ["Judgement", "Rail", "judge"]

State = Literal["beyond", "within", "open"]
Labels = Mapping[str, Rate]  # by response: positives of impressions


@dataclass(frozen=True)
class Rail:
    """What one guardrail says.

    Attributes:
        name: of the guardrail.
        stable: the stable bundle's figure.
        canary: the canary's.
        harm: how much worse the canary is, in the rail's own measure; at most 0: not worse.
        at_least: lower end of what the harm is for certain.
        at_most: upper end.
        allowed: by the recipe.
    """

    name: str
    stable: float
    canary: float
    harm: float
    at_least: float
    at_most: float
    allowed: float

    @property
    def state(self) -> State:
        """Beyond what is allowed for certain, within for certain, or open."""
        if self.at_least > self.allowed:
            return "beyond"
        return "within" if self.at_most <= self.allowed else "open"


@dataclass(frozen=True)
class Judgement:
    """All rails, and what follows."""

    verdict: Literal["abort", "pass", "wait"]
    why: str
    rails: tuple[Rail, ...]
    stable_requests: int
    canary_requests: int

    def facts(self) -> dict[str, Any]:
        """For the log: what was compared and the figures."""
        rails = [
            {key: _rounded(value) for key, value in asdict(rail).items()} | {"state": rail.state} for rail in self.rails
        ]
        return {
            "verdict": self.verdict,
            "stable_requests": self.stable_requests,
            "canary_requests": self.canary_requests,
            "rails": rails,
        }


def judge(
    stable: Figures,
    canary: Figures,
    guardrails: Guardrails,
    stable_labels: Labels | None = None,
    canary_labels: Labels | None = None,
) -> Judgement:
    """Judge a canary by what was counted since it began.

    Args:
        stable: the stable bundle's figures.
        canary: the canary's.
        guardrails: what is allowed.
        stable_labels: by response, of posted labels.
        canary_labels: likewise.
    """
    labels = stable_labels or {}, canary_labels or {}
    watched = sum(
        getattr(guardrails, name) is not None for name in ("error_rate", "p99_ratio", "psi", "ks", "unknown_rate")
    )
    watched += len(set(labels[0]) & set(labels[1])) if guardrails.response_drop is not None else 0
    alpha = (1 - guardrails.confidence) / max(watched, 1)
    rails = (
        *_request_rails(stable, canary, guardrails, alpha),
        *_score_rails(stable, canary, guardrails, alpha),
        *_label_rails(*labels, guardrails, alpha),
    )
    counted = {"stable_requests": stable.requests, "canary_requests": canary.requests}
    beyond = [rail for rail in rails if rail.state == "beyond"]
    if beyond:
        why = "; ".join(
            f"{rail.name}: {rail.canary:.4g} against {rail.stable:.4g}, worse by {rail.at_least:.4g} at least, "
            f"{rail.allowed:g} allowed"
            for rail in beyond
        )
        return Judgement("abort", why, rails, **counted)
    few = min(stable.requests, canary.requests)
    if few < guardrails.min_requests:
        return Judgement("wait", f"{few} requests, {guardrails.min_requests} wanted of either", rails, **counted)
    still_open = [rail.name for rail in rails if rail.state == "open"]
    if still_open:
        return Judgement("wait", f"still open: {', '.join(still_open)}", rails, **counted)
    return Judgement("pass", "within every guardrail", rails, **counted)


def _request_rails(stable: Figures, canary: Figures, rails: Guardrails, alpha: float) -> Iterator[Rail]:
    if rails.error_rate is not None:
        errors = Rate(stable.errors, stable.requests), Rate(canary.errors, canary.requests)
        yield _worse("error rate", *errors, rails.error_rate, rails, alpha)
    if rails.unknown_rate is not None:
        # Posts of one request are alike: a request counts as one observation of its share.
        before, after = (Rate(f.unknown * f.requests / max(f.posts, 1), f.requests) for f in (stable, canary))
        yield _worse("unknown posts", before, after, rails.unknown_rate, rails, alpha)
    if rails.p99_ratio is not None:
        # As a rate: of the canary's answers, how many are slower than p99 * ratio, beyond the 1 % that may be.
        p99 = stable.latency.quantile(0.99)
        answers = int(canary.latency.counts.sum())
        slow = Rate(0 if math.isnan(p99) else canary.latency.above(p99 * rails.p99_ratio), answers)
        half = margin(slow.variance * rails.design_effect, alpha, 0.01)
        harm = slow.value - 0.01
        known = stable.requests >= rails.min_requests  # else the stable's p99 is no measure
        low, high = (harm - half, harm + half) if known else (-math.inf, math.inf)
        yield Rail("slow answers", p99, canary.latency.quantile(0.99), harm, low, high, 0.0)


def _score_rails(stable: Figures, canary: Figures, rails: Guardrails, alpha: float) -> Iterator[Rail]:
    counts = stable.scores.counts, canary.scores.counts
    requests = stable.requests - stable.errors, canary.requests - canary.errors
    if rails.psi is not None:
        # The index has no always-valid interval; each doubling of the requests gets a share of the error of its own.
        look = max(0, int(math.log2(max(min(requests), 1))))
        chance = psi_critical(*requests, alpha / ((look + 1) * (look + 2)))
        index = psi(*counts)
        high = index if math.isfinite(chance) else math.inf
        yield Rail("score PSI", 0.0, index, index, index - chance, high, rails.psi)
    if rails.ks is not None:
        half = sum(distribution_margin(num, alpha / 2) for num in requests)
        apart = ks(*counts)
        yield Rail("score KS", 0.0, apart, apart, apart - half, apart + half, rails.ks)


def _label_rails(stable: Labels, canary: Labels, rails: Guardrails, alpha: float) -> Iterator[Rail]:
    if rails.response_drop is None:
        return
    for response in sorted(set(stable) & set(canary)):
        before, after = stable[response], canary[response]
        kept = 1 - rails.response_drop
        variance = rails.design_effect * (kept**2 * before.variance + after.variance)
        half = margin(variance, alpha, max(0.1 * before.value, 1e-4))
        harm = kept * before.value - after.value  # above 0: dropped by more than allowed
        yield Rail(f"rate of {response}", before.value, after.value, harm, harm - half, harm + half, 0.0)


def _worse(name: str, stable: Rate, canary: Rate, allowed: float, rails: Guardrails, alpha: float) -> Rail:
    harm = canary.value - stable.value
    half = margin(rails.design_effect * (stable.variance + canary.variance), alpha, max(allowed, 0.01))
    return Rail(name, stable.value, canary.value, harm, harm - half, harm + half, allowed)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
