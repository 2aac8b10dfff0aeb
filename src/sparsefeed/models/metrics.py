"""Metrics of one response, in plain numpy, O(n log n) at most.

Notable: labels may be anything in [0, 1]. A row of label p counts as p of a positive and 1 - p of a
negative, so the same function that measures against observed 0/1 labels gives the EXPECTED metric when
it is given the true probabilities of simulated data, without the noise of drawing labels from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sparsefeed.errors import DataError

__all__ = [
    "CalibrationCurve",
    "auc",
    "calibration_curve",
    "grouped_auc",
    "log_loss",
    "ndcg",
    "normalised_entropy",
    "predicted_over_actual",
]

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


def grouped_auc(
    labels: npt.ArrayLike, scores: npt.ArrayLike, groups: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> float:
    """AUC within each group, say a member, and of these the mean, weighted by the groups' rows.

    A tie counts one half. A group without a pair of a positive and a negative is left out; NaN where all are. Pairs are
    of two rows: with fractional labels a row is not paired with itself, as it is in `auc`, where that is one pair of
    many. So the AUC of a group is its expected pairs in order over its expected pairs, and with 0/1 labels one group
    gives `auc`. A group of fractional labels always counts with all its rows, one of drawn labels only if both classes
    were drawn.

    Args:
        labels: [n] in [0, 1].
        scores: [n].
        groups: [n] integers or strings.
        weights: [n], of rows; in a pair they are multiplied.

    Raises:
        DataError: The columns are not of one length.
    """
    y, s, w = _columns(labels, scores, weights)
    group = _groups(groups, y)
    order = np.lexsort((s, group))
    y, s, w, group = y[order], s[order], w[order], group[order]
    _, tie = _runs(group, s)  # rows of one group and score
    group_of_tie = np.zeros(tie[-1] + 1, np.int64)
    group_of_tie[tie] = group
    positive, negative = np.bincount(tie, w * y), np.bincount(tie, w * (1 - y))
    of_group = np.cumsum(np.bincount(group, w * (1 - y)))
    below = np.cumsum(negative) - negative - np.concatenate([[0.0], of_group])[group_of_tie]
    alone = np.bincount(group, w * w * y * (1 - y))  # a row with itself: a tie
    ordered = np.bincount(group_of_tie, positive * (below + negative / 2)) - alone / 2
    total = np.bincount(group, w * y) * np.bincount(group, w * (1 - y))
    kept = total - alone > 1e-9 * total  # beyond rounding
    if not kept.any():
        return float("nan")
    return float(np.average(ordered[kept] / (total - alone)[kept], weights=np.bincount(group, w)[kept]))


def ndcg(labels: npt.ArrayLike, scores: npt.ArrayLike, groups: npt.ArrayLike) -> float:
    """Normalised discounted cumulative gain over all rows of each group, say a session, and of these the mean.

    The gain of a row is its label, its discount at rank i (from 1) is log2(i + 1), the ideal order that of the labels
    (Jarvelin and Kekalainen, 2002). Rows of equal score count as the mean over all their orders (McSherry and Najork,
    2008), so a constant gets what chance gives. Groups without a positive label are left out; NaN where all are. With
    true probabilities it judges the order by expected gain; it is not the mean over drawn labels, whose ideal knows the
    draw.

    Args:
        labels: [n], at least 0; may be fractional.
        scores: [n].
        groups: [n] integers or strings.

    Raises:
        DataError: The columns are not of one length.
    """
    y, s, _ = _columns(labels, scores, None)
    group = _groups(groups, y)
    order = np.lexsort((-s, group))
    ideal = np.lexsort((-y, group))
    group = group[order]  # of either order
    start, _ = _runs(group)
    discount = 1 / np.log2(np.arange(len(y)) - start + 2)
    _, tie = _runs(group, s[order])
    mean_discount = (np.bincount(tie, discount) / np.bincount(tie))[tie]
    gained = np.bincount(group, y[order] * mean_discount)
    best = np.bincount(group, y[ideal] * discount)
    kept = best > 0
    return float((gained[kept] / best[kept]).mean()) if kept.any() else float("nan")


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


def _groups(groups: npt.ArrayLike, y: Floats) -> npt.NDArray[np.int64]:
    """Groups numbered from 0."""
    of_row = np.asarray(groups)
    if of_row.shape != y.shape:
        raise DataError(f"metrics: got groups {of_row.shape}, labels {y.shape}; give one group a row")
    group: npt.NDArray[np.int64] = np.unique(of_row, return_inverse=True)[1].astype(np.int64)
    return group


def _runs(*columns: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Of sorted rows, the first row of each one's run of equal ones, and the run's number."""
    begins = np.ones(len(columns[0]), bool)
    begins[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    number = np.cumsum(begins) - 1
    return np.flatnonzero(begins)[number], number
