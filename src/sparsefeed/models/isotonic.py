"""Isotonic calibration of one response: a rising line through at most 32 knots, from logit to calibrated logit.

Notable: it rises between knots, where steps of pool-adjacent-violators are flat. Every block becomes one knot (centred
isotonic regression: Oron and Flournoy, Statistics in Biopharmaceutical Research 9(3), 2017; after Zadrozny and Elkan,
KDD 2002), and a block stands where the response's Platt line gives the block's mean probability, so that rows which are
on that line give that line again. It may still tie candidates: those beyond the outermost logits it was fitted on, and
those between two knots that the refit brought to one value.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from sparsefeed.etl.spec import Frozen

__all__ = ["MAX_KNOTS", "MAX_LOGIT", "Isotonic", "fit_isotonic"]

# sigmoid of 15 is 1 - 3.1e-7: strictly inside (0, 1) in float32, with room for any runtime's rounding.
MAX_LOGIT = 15.0
MAX_KNOTS = 32

_LEAST_INFORMATION = 10.0  # of a block: the standard error of its logit is at most 1 / sqrt(10)
_REFIT_STEPS = 5
_LEAST_GAP = 0.05  # of knots: a steeper line would make more of a logit's rounding

Floats = npt.NDArray[np.float64]
Coordinate = Annotated[float, Field(ge=float(np.finfo(np.float32).min), le=float(np.finfo(np.float32).max))]


class Isotonic(Frozen):
    """Calibrated logit: linear between knots, constant beyond the outermost.

    Attributes:
        knots: logits, rising, also as float32.
        values: calibrated logits at the knots, never falling.
    """

    knots: tuple[Coordinate, ...] = Field(min_length=2, max_length=MAX_KNOTS)
    values: tuple[Coordinate, ...] = Field(min_length=2, max_length=MAX_KNOTS)

    @model_validator(mode="after")
    def _rises(self) -> Isotonic:
        if len(self.knots) != len(self.values):
            raise ValueError(f"values: got {len(self.values)} for {len(self.knots)} knots; each knot has one")
        for left, right in pairwise(self.knots):
            if not np.float32(left) < np.float32(right):
                raise ValueError(f"knots: got {left} before {right}; they must rise, as float32 too")
        for left, right in pairwise(self.values):
            if left > right:
                raise ValueError(f"values: got {left} before {right}; they must not fall")
        return self

    def logits(self, z: npt.NDArray[np.floating]) -> Floats:
        """Calibrated logits of logits, of any shape."""
        return np.interp(z, np.array(self.knots, np.float32), np.array(self.values, np.float32))

    def segments(self) -> npt.NDArray[np.float32]:
        """float32 [3, MAX_KNOTS - 1]: low, high and slope of every segment; those that are not there have slope 0.

        The calibrated logit is values[0] + the sum of slope * (min(max(z, low), high) - low): every term rises with z,
        so the sum does, however it is rounded.
        """
        knots, values = (np.array(one, np.float32).astype(np.float64) for one in (self.knots, self.values))
        out = np.zeros((3, MAX_KNOTS - 1), np.float32)
        out[:, : len(knots) - 1] = knots[:-1], knots[1:], np.diff(values) / np.diff(knots)
        return out


def fit_isotonic(z: Floats, y: Floats, w: Floats, scale: float, shift: float) -> Isotonic | None:
    """Fit logits, labels and weights [n] of a response whose Platt line is scale and shift.

    Pool-adjacent-violators over distinct logits, then neighbouring blocks are joined, from the left, until each has
    at least 10 and a thirtieth of all information (weight * p * (1 - p), which says how well a logit is known), and is
    0.05 from the one before. So no knot rests on positives or negatives alone. Beyond the centres of the outermost
    blocks, where rows are too few to say more, the curve goes on with the line's slope to the outermost logits seen.
    At last the values are moved towards the greatest likelihood, for a line between centres is not where its rows are.

    Returns:
        The curve; None where the rows are not enough for two blocks or the line does not rise.
    """
    from scipy.optimize import isotonic_regression

    weighty = w > 0
    z, y, w = z[weighty], y[weighty], w[weighty]
    if scale <= 0 or not len(z):
        return None
    levels, of_level = np.unique(z, return_inverse=True)
    weight = np.bincount(of_level, w)
    # Per level: weight, squared weights, positives, probability on the line.
    sums = np.stack(
        [weight, np.bincount(of_level, w**2), np.bincount(of_level, w * y), weight * _sigmoid(scale * levels + shift)]
    )
    pooled = isotonic_regression(np.clip(sums[2] / weight, 0, 1), weights=weight)
    gap = max(_LEAST_GAP, 1e-6 * float(np.abs(levels).max()))  # float32 tells no less apart
    centres, values = _joined(np.add.reduceat(sums, pooled.blocks[:-1], axis=1), scale, shift, gap)
    if len(centres) < 2:
        return None
    if centres[0] - levels[0] >= gap:
        values.insert(0, values[0] - scale * (centres[0] - levels[0]))
        centres.insert(0, levels[0])
    if levels[-1] - centres[-1] >= gap:
        values.append(values[-1] + scale * (levels[-1] - centres[-1]))
        centres.append(levels[-1])
    knots = np.array(centres)
    values_there = np.clip(_refitted(knots, np.array(values), levels, sums[0], sums[2]), -MAX_LOGIT, MAX_LOGIT)
    return Isotonic(knots=tuple(knots.tolist()), values=tuple(values_there.tolist()))


def _refitted(knots: Floats, values: Floats, levels: Floats, weight: Floats, positives: Floats) -> Floats:
    """Values moved towards the greatest likelihood with these knots, kept from falling.

    Steps of Newton's method with the row sums of the Hessian in place of the matrix, which are no less than it, so that
    a step does not go too far; _LEAST_INFORMATION more in each holds those that few rows speak of.
    """
    left = np.clip(np.searchsorted(knots, levels, side="right") - 1, 0, len(knots) - 2)
    share = np.clip((levels - knots[left]) / (knots[left + 1] - knots[left]), 0, 1)  # of the knot on the right

    def at_knots(per_level: Floats) -> Floats:
        sums = np.zeros(len(knots))
        sums[:-1] = np.bincount(left, per_level * (1 - share), len(knots) - 1)
        sums[1:] += np.bincount(left, per_level * share, len(knots) - 1)
        return sums

    for _ in range(_REFIT_STEPS):
        p = _sigmoid(np.interp(levels, knots, values))
        step = at_knots(positives - weight * p) / (at_knots(weight * p * (1 - p)) + _LEAST_INFORMATION)
        values = np.maximum.accumulate(values + step)
        p = _sigmoid(np.interp(levels, knots, values))  # the whole curve up or down: predictions sum to the labels
        values = values + (positives - weight * p).sum() / ((weight * p * (1 - p)).sum() + 1)
    return values


def _joined(blocks: Floats, scale: float, shift: float, gap: float) -> tuple[list[float], list[float]]:
    """Centres and calibrated logits of joined blocks; `blocks` [4, n] are sums as in fit_isotonic."""

    def centre_and_value(block: Floats) -> tuple[float, float]:
        weight, _, positives, on_line = block
        return (_logit(on_line / weight) - shift) / scale, _logit(positives / weight)

    weight, squared, positives, _ = blocks
    p = positives / weight
    # Kish's effective number of rows, so that a few heavy rows are not taken for many.
    information = weight**2 / squared * p * (1 - p)
    enough = max(_LEAST_INFORMATION, information.sum() / (MAX_KNOTS - 2))
    joined: list[Floats] = []
    rest, known = np.zeros(4), 0.0
    for block, more in zip(blocks.T, information, strict=True):
        rest, known = rest + block, known + more
        if known < enough:
            continue
        if not joined or centre_and_value(rest)[0] - centre_and_value(joined[-1])[0] >= gap:
            joined.append(rest)
            rest, known = np.zeros(4), 0.0
    if rest[0] and joined:
        joined[-1] = joined[-1] + rest
    pairs = [centre_and_value(block) for block in joined]
    return [centre for centre, _ in pairs], [value for _, value in pairs]


def _sigmoid(z: Floats) -> Floats:
    return 1 / (1 + np.exp(-np.clip(z, -30, 30)))


def _logit(p: float) -> float:
    return float(np.log(p / (1 - p)))
