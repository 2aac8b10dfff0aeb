"""Metrics of one response, in plain numpy, O(n log n) at most.

Notable: labels may be anything in [0, 1]. A row of label p counts as p of a positive and 1 - p of a
negative, so the same function that measures against observed 0/1 labels gives the EXPECTED metric when
it is given the true probabilities of simulated data, without the noise of drawing labels from them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparsefeed.errors import DataError

__all__ = ["CalibrationCurve", "auc", "calibration_curve", "log_loss", "normalised_entropy", "predicted_over_actual"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CalibrationCurve:
    """Bins of about equal weight, by rising prediction."""

    weight: Floats  # [bins] sum of weights
    predicted: Floats  # [bins] weighted mean prediction
    actual: Floats  # [bins] weighted mean label


def auc(labels: npt.ArrayLike, scores: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """Chance that a positive scores above a negative, a tie counting one half; NaN without one of either.

    With fractional labels it is the weighted Mann-Whitney statistic over all pairs of rows.
    """
    y, s, w = _columns(labels, scores, weights)
    _, group = np.unique(s, return_inverse=True)
    positive = np.bincount(group, w * y)
    negative = np.bincount(group, w * (1 - y))
    pairs = positive.sum() * negative.sum()
    if pairs <= 0:
        return float("nan")
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / pairs)


def log_loss(labels: npt.ArrayLike, probabilities: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """Weighted mean of -y ln p - (1-y) ln(1-p), in nats; p is held in [1e-15, 1 - 1e-15]."""
    y, p, w = _columns(labels, probabilities, weights)
    p = np.clip(p, 1e-15, 1 - 1e-15)
    return float(-(w * (y * np.log(p) + (1 - y) * np.log1p(-p))).sum() / w.sum())


def normalised_entropy(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> float:
    """Log loss over the log loss of the constant mean label (He et al., 2014); below 1 is better than the mean.

    NaN when all labels are alike.
    """
    y, p, w = _columns(labels, probabilities, weights)
    rate = (w * y).sum() / w.sum()
    if not 0 < rate < 1:
        return float("nan")
    return log_loss(y, p, w) / log_loss(y, np.full_like(y, rate), w)


def predicted_over_actual(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> float:
    """Sum of predictions over sum of labels; 1 is unbiased, NaN without a positive."""
    y, p, w = _columns(labels, probabilities, weights)
    actual = (w * y).sum()
    return float((w * p).sum() / actual) if actual > 0 else float("nan")


def calibration_curve(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, weights: npt.ArrayLike | None = None, num_bins: int = 10
) -> CalibrationCurve:
    """Mean prediction against mean label over bins of rising prediction and about equal weight.

    Rows of equal prediction share a bin, so there may be fewer than `num_bins`.
    """
    y, p, w = _columns(labels, probabilities, weights)
    values, group = np.unique(p, return_inverse=True)
    weight = np.bincount(group, w)
    # A group of equal predictions goes where the middle of its weight falls.
    middle = (np.cumsum(weight) - weight / 2) / weight.sum()
    bin_of_group = np.minimum((middle * num_bins).astype(np.int64), num_bins - 1)
    total: Floats = np.bincount(bin_of_group, weight, num_bins).astype(np.float64)
    predicted = np.bincount(bin_of_group, weight * values, num_bins)
    actual = np.bincount(bin_of_group, np.bincount(group, w * y), num_bins)
    kept = total > 0
    return CalibrationCurve(total[kept], predicted[kept] / total[kept], actual[kept] / total[kept])


def _columns(labels: npt.ArrayLike, scores: npt.ArrayLike, weights: npt.ArrayLike | None) -> tuple[Floats, ...]:
    y = np.asarray(labels, np.float64)
    s = np.asarray(scores, np.float64)
    w = np.ones_like(y) if weights is None else np.asarray(weights, np.float64)
    if y.ndim != 1 or y.shape != s.shape or y.shape != w.shape or not len(y):
        raise DataError(
            f"metrics: got labels {y.shape}, predictions {s.shape}, weights {w.shape}; "
            "give one-dimensional arrays of one length, at least 1 (one response at a time)"
        )
    if np.isnan(s).any():
        raise DataError(f"metrics: {int(np.isnan(s).sum())} of {len(s)} predictions are NaN; allowed: numbers")
    return y, s, w
