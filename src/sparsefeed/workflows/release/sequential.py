"""Tests one may look at as often as one likes: always-valid intervals for rates and for distributions.

A usual test looked at after every request finds a difference sooner or later, always. These keep their error over the
whole of time: the chance that the truth is ever outside is at most alpha.

Sources: mixture sequential probability ratio test, Johari, Koomen, Pekelis, Walsh, "Always Valid Inference: Continuous
Monitoring of A/B Tests", Operations Research 70 (2022), after Robbins (1970); normal approximation. Distributions:
Howard, Ramdas, "Sequential estimation of quantiles with applications to A/B testing and best-arm identification",
Bernoulli 28 (2022), the inequality of Dvoretzky, Kiefer and Wolfowitz made uniform over time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

__all__ = ["Rate", "distribution_margin", "ks", "margin", "psi", "psi_critical"]


@dataclass(frozen=True)
class Rate:
    """`count` of `total`; the variance counts half an event more of either kind, so that none seen is not certainty."""

    count: float
    total: float

    @property
    def value(self) -> float:
        """The share; 0 of nothing."""
        return self.count / self.total if self.total else 0.0

    @property
    def variance(self) -> float:
        """Of the share."""
        if not self.total:
            return 1.0
        smoothed = (self.count + 0.5) / (self.total + 1)
        return smoothed * (1 - smoothed) / self.total


def margin(variance: float, alpha: float, scale: float) -> float:
    """Half-width of the always-valid interval around a difference.

    Args:
        variance: of the estimate of the difference, now.
        alpha: chance that the truth is ever outside.
        scale: of the differences that matter; the interval is narrowest when the estimate is about as uncertain.
    """
    mixed = variance + scale**2
    return math.sqrt(2 * variance * mixed / scale**2 * (math.log(1 / alpha) + 0.5 * math.log(mixed / variance)))


def ks(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """Largest difference of the cumulative shares of two histograms of the same bins."""
    shares = [np.cumsum(counts) / max(int(counts.sum()), 1) for counts in (one, other)]
    return float(np.abs(shares[0] - shares[1]).max())


def distribution_margin(num: int, alpha: float) -> float:
    """How far the cumulative shares of `num` values ever are from the truth, anywhere."""
    if not num:
        return 1.0
    return min(1.0, 0.85 * math.sqrt((math.log(math.log(math.e * num)) + 0.8 * math.log(1612 / alpha)) / num))


def psi(stable: NDArray[np.int64], canary: NDArray[np.int64], num_bins: int = 10) -> float:
    """Population stability index: sum of (p - q) ln(p / q) over bins of equal share of the stable's histogram.

    Siddiqi, "Credit Risk Scorecards" (2006): below 0.1 little has changed, above 0.25 much has.
    """
    total = max(int(stable.sum()), 1)
    bins = np.minimum((np.cumsum(stable) - stable / 2) * num_bins / total, num_bins - 1).astype(np.int64)
    shares = []
    for counts in (stable, canary):
        summed = np.bincount(bins, weights=counts, minlength=num_bins)
        filled = summed + 0.5  # an empty bin would be an infinite difference
        shares.append(filled / filled.sum())
    p, q = shares
    return float(((p - q) * np.log(p / q)).sum())


def psi_critical(num_stable: int, num_canary: int, alpha: float, num_bins: int = 10) -> float:
    """What chance alone makes of the index: (1/n + 1/m) times a quantile of chi-squared, by Wilson and Hilferty."""
    if not num_stable or not num_canary:
        return math.inf
    free = num_bins - 1
    normal = NormalDist().inv_cdf(1 - alpha)
    chi_squared = free * (1 - 2 / (9 * free) + normal * math.sqrt(2 / (9 * free))) ** 3
    return (1 / num_stable + 1 / num_canary) * chi_squared
