"""Dense features: fill, log, moments and standardisation of one column, numpy's or CuPy's.

On a device without `log` every value has the bits of the CPU. With it they may differ in the last ones, for CUDA's
logarithm is another than numpy's; and moments are summed in another order there, in float64, of which the mean and
the standard deviation keep float32's digits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sparsefeed.etl.kernels.arrays import array_module

__all__ = ["Moments", "standardise", "standardise_rows"]


@dataclass(frozen=True)
class Moments:
    """Number, mean and sum of squared distances from the mean; those of two parts add up (Chan et al., 1983).

    Attributes:
        num: values.
        exact_mean: in float64.
        squares: sum of (value - exact_mean)^2, in float64.
    """

    num: int
    exact_mean: float
    squares: float

    @classmethod
    def of(cls, values: NDArray[np.float32], fill: float, log: bool) -> Moments:
        """Moments of a raw column [n], NaN for null, after fill and log."""
        if array_module(values) is np:
            return cls(*_moments(np.ascontiguousarray(values, np.float32), np.float32(fill), log))
        return cls(*_moments_at_once(values, np.float32(fill), log))

    @classmethod
    def merge(cls, parts: Sequence[Moments]) -> Moments:
        """Moments of all parts together."""
        num = sum(part.num for part in parts)
        mean = sum(part.num * part.exact_mean for part in parts) / max(num, 1)
        squares = sum(part.squares + part.num * (part.exact_mean - mean) ** 2 for part in parts)
        return cls(num, mean, squares)

    @property
    def mean(self) -> float:
        """The mean that rows are standardised with: that of float32, so that the order of sums does not show."""
        return float(np.float32(self.exact_mean))

    @property
    def std(self) -> float:
        """The standard deviation of a sample, likewise; 0 for fewer than two values."""
        return float(np.float32(np.sqrt(self.squares / (self.num - 1)))) if self.num > 1 else 0.0


def standardise(values: NDArray[np.float32], fill: float, log: bool, mean: float, std: float) -> NDArray[np.float32]:
    """Fill NaN, take log(1 + max(x, 0)) if `log`, then (x - mean) / std in float32; std 0 only centres.

    Args:
        values: raw values [n], numpy's or CuPy's; NaN is null.
        fill: replaces null, before the logarithm.
        log: whether the feature is log-scaled.
        mean: of the fitted days, after fill and log.
        std: likewise.

    Returns:
        float32 [n], a new array where `values` lie.
    """
    out = _filled(values, fill, log)
    out -= np.float32(mean)
    if std > 0:
        out /= np.float32(std)
    return out


@njit(nogil=True, cache=True)
def standardise_rows(
    raw: NDArray[np.float32],
    fill: NDArray[np.float32],
    log: NDArray[np.bool_],
    mean: NDArray[np.float32],
    std: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """`standardise` of all columns of a request's few rows, in one pass; a logarithm may differ in its last bit.

    Args:
        raw: float32 [n, D].
        fill: float32 [D].
        log: bool [D].
        mean: float32 [D].
        std: float32 [D]; 1 only centres.
        out: float32 [n, D], written.
    """
    for i in range(raw.shape[0]):
        for j in range(raw.shape[1]):
            value = fill[j] if np.isnan(raw[i, j]) else raw[i, j]
            if log[j]:
                value = np.log(max(value, np.float32(0)) + np.float32(1))
            out[i, j] = (value - mean[j]) / std[j]


def _filled(values: NDArray[np.float32], fill: float, log: bool) -> NDArray[np.float32]:
    """Fill and log, as a new array."""
    xp = array_module(values)
    out: NDArray[np.float32] = xp.where(xp.isnan(values), np.float32(fill), values).astype(np.float32, copy=False)
    if log:
        xp.maximum(out, np.float32(0), out=out)
        out += np.float32(1)
        xp.log(out, out=out)
    return out


@njit(nogil=True, cache=True)
def _moments(values: NDArray[np.float32], fill: np.float32, log: bool) -> tuple[int, float, float]:
    # Sums about the first value: far from zero, sums of squares would drown the distances. The logarithm is taken one
    # by one in float64: numpy's is another for the last values of an array, so partitions would show.
    if not len(values):
        return 0, 0.0, 0.0
    total, squares, pivot = 0.0, 0.0, 0.0
    for i in range(len(values)):
        value = float(fill if np.isnan(values[i]) else values[i])
        if log:
            value = math.log(1.0 + max(value, 0.0))
        if i == 0:
            pivot = value
        distance = value - pivot
        total += distance
        squares += distance * distance
    num = len(values)
    return num, pivot + total / num, max(squares - total * total / num, 0.0)


def _moments_at_once(values: NDArray[Any], fill: np.float32, log: bool) -> tuple[int, float, float]:
    """`_moments` in array expressions, for a device: one thread that goes from value to value is no way there."""
    xp, num = array_module(values), len(values)
    if not num:
        return 0, 0.0, 0.0
    wide = xp.where(xp.isnan(values), fill, values).astype(np.float64)
    if log:
        wide = xp.log(1.0 + xp.maximum(wide, 0.0))
    distances = wide - wide[0]
    total, squares = float(distances.sum()), float((distances * distances).sum())
    return num, float(wide[0]) + total / num, max(squares - total * total / num, 0.0)
