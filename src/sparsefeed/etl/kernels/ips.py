"""Inverse propensity weights per (surface, position bucket, y): counts, table, gather.

IPS(position, response) = random-session rate / production-session rate, for y = 1 and for y = 0. A model
trained on production rows with these weights sees, at every position, the response rate that random
traffic has (LinkedIn engineering blog, 2023-08-23). Unclipped and unsmoothed, over the production rows
of a covered position: sum w = n and sum w*y / sum w = the random rate, exactly.

Cells of one response: 0 = not weighted (a random session, or not covered), then
1 + (surface * num_buckets + bucket) * 2 + y. Where rows are sampled, a cell is one of these with a stratum, the rate
the row was kept with, and its weight bears the correction 1 / rate (`with_strata`, `strata_cells`).

What has an entry per row (`position_buckets`, `count`, `cells`, `strata_cells`) takes numpy's arrays or CuPy's and
computes where they lie, integers alone, so bit for bit the same. Tables and counts are small and always numpy's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsefeed.etl.kernels.arrays import array_module, to_host

__all__ = ["IpsTable", "cells", "count", "position_buckets", "strata_cells", "weigh", "with_strata"]

_95_PERCENT = 1.959964


@dataclass(frozen=True)
class IpsTable:
    """Weights of one response.

    Attributes:
        weight: float64 [1 + surfaces * buckets * 2]; weight[0] is 1.
        counts: int64 [surfaces, buckets, 2 (production, random), 2 (y)].
        reason: str [surfaces, buckets]: "" where covered, else why every weight there is 1.
        unclipped: float64 [surfaces, buckets, 2 (y)]: the ratio of rates before it was clipped and normalised.
        bounds: float64 [surfaces, buckets, 2 (y), 2 (low, high)]: 95 % of the ratio of rates, by the delta method on
            its logarithm (Katz et al., 1978); NaN where a rate is 0.
    """

    weight: NDArray[np.float64]
    counts: NDArray[np.int64]
    reason: NDArray[np.str_]
    unclipped: NDArray[np.float64]
    bounds: NDArray[np.float64]

    @property
    def covered(self) -> NDArray[np.bool_]:
        """Where random traffic gives a weight: bool [surfaces, buckets]."""
        return np.asarray(self.reason == "")

    @property
    def by_cell(self) -> NDArray[np.float64]:
        """The weights as [surfaces, buckets, 2 (y)]."""
        return self.weight[1:].reshape(self.unclipped.shape)

    def num_clipped(self, clip: float | None) -> int:
        """Production rows whose ratio lies outside [1 / clip, clip]."""
        if clip is None:
            return 0
        outside = (self.unclipped < 1 / clip) | (self.unclipped > clip)
        return int(self.counts[:, :, 0][outside & self.covered[..., None]].sum())

    @property
    def effective_sample_size(self) -> float:
        """(sum w)^2 / sum w^2 over production rows of covered cells: so many equal ones tell as much (Kish)."""
        rows, weights = self.counts[:, :, 0] * self.covered[..., None], self.by_cell
        squares = float((rows * weights**2).sum())
        return float((rows * weights).sum()) ** 2 / squares if squares else 0.0


def position_buckets(position: NDArray[np.int64], edges: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bucket i holds edges[i] <= position < edges[i+1]; below the first edge is bucket 0.

    Args:
        position: int64 [n], numpy's or CuPy's.
        edges: int64, ascending, numpy's.

    Returns:
        int64 [n] where `position` lies.
    """
    xp = array_module(position)
    bucket: NDArray[np.int64] = xp.maximum(xp.searchsorted(xp.asarray(edges), position, side="right") - 1, 0)
    return bucket


def count(
    surface: NDArray[np.int64],
    bucket: NDArray[np.int64],
    random: NDArray[np.bool_],
    y: NDArray[np.bool_],
    num_surfaces: int,
    num_buckets: int,
) -> NDArray[np.int64]:
    """Impressions per cell; counts of days add.

    Args:
        surface: int64 [n] in [0, num_surfaces), numpy's or CuPy's, as the next three.
        bucket: int64 [n] in [0, num_buckets).
        random: bool [n].
        y: bool [n].
        num_surfaces: at least 0.
        num_buckets: at least 1.

    Returns:
        int64 [surfaces, buckets, 2 (production, random), 2 (y)], numpy's.
    """
    xp, shape = array_module(surface), (num_surfaces, num_buckets, 2, 2)
    if not len(surface):  # of which CuPy finds no maximum
        return np.zeros(shape, np.int64)
    index = ((surface * num_buckets + bucket) * 2 + random) * 2 + y
    return to_host(xp.bincount(index, minlength=num_surfaces * num_buckets * 4)).reshape(shape)


def weigh(
    counts: NDArray[np.int64], smoothing: float = 0.0, clip: float | None = None, self_normalise: bool = False
) -> IpsTable:
    """Weights from counts [surfaces, buckets, 2, 2].

    Args:
        counts: of `count`, summed over partitions and days.
        smoothing: pseudo-impressions that pull both rates of a cell to their surface's.
        clip: weights are held in [1 / clip, clip]; None leaves them.
        self_normalise: at each covered position, scale both weights so that they sum to the number of production rows
            again, which smoothing and clipping undo.

    A position without random or without production impressions, or whose production sessions have no
    response where random ones do (no weight can restore the rate), weighs 1 and carries its reason.
    """
    n = counts.sum(axis=3)  # [surfaces, buckets, kind]
    positives = counts[..., 1].astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        surface_rate = positives.sum(axis=1, keepdims=True) / n.sum(axis=1, keepdims=True)
        prior = np.nan_to_num(surface_rate) * smoothing
        rate = (positives + prior) / (n + smoothing)
        ratio = np.stack([(1 - rate[..., 1]) / (1 - rate[..., 0]), rate[..., 1] / rate[..., 0]], axis=-1)
    reason = np.full(n.shape[:2], "", dtype="<U32")
    reason[rate[..., 0] >= 1] = "every production row responded"
    reason[(rate[..., 0] <= 0) & (rate[..., 1] > 0)] = "no production response"
    reason[n[..., 1] == 0] = "no random session"
    reason[n[..., 0] == 0] = "no production session"
    both_zero = (rate[..., 0] == 0) & (rate[..., 1] == 0)
    ratio[..., 1][both_zero] = 1.0  # no row has y = 1 there
    ratio[reason != ""] = 1.0
    weights = ratio if clip is None else np.clip(ratio, 1 / clip, clip)
    if self_normalise:
        total = (counts[:, :, 0] * weights).sum(axis=2)
        with np.errstate(invalid="ignore", divide="ignore"):
            factor = np.where((total > 0) & (reason == ""), n[..., 0] / total, 1.0)
        weights = weights * factor[..., None]
    return IpsTable(np.concatenate([[1.0], weights.ravel()]), counts, reason, ratio, _bounds(ratio, counts))


def _bounds(ratio: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    n = counts.sum(axis=3, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = (1 / counts - 1 / n).sum(axis=2)  # of the logarithm: (1 - rate) / positives, of both kinds
        wide = np.exp(_95_PERCENT * np.sqrt(variance))
        bounds = np.stack([ratio / wide, ratio * wide], axis=-1)
    return np.where(np.isfinite(bounds) & np.isfinite(variance)[..., None], bounds, np.nan)


def with_strata(weight: NDArray[np.float64], rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights by cell and stratum: float64 [cells * strata].

    Args:
        weight: of cells, weight[0] that of rows that are not weighted.
        rates: of strata, with which their rows were kept.
    """
    return np.asarray((weight[:, None] / rates).ravel())


def strata_cells(cell: NDArray[np.int32], stratum: NDArray[np.int8], num_strata: int) -> NDArray[np.int32]:
    """Cell of each row among those of `with_strata`: int32 [n] where `cell` and `stratum` lie, numpy's or CuPy's."""
    return (cell * np.int32(num_strata) + stratum).astype(np.int32)


def cells(
    surface: NDArray[np.int64],
    bucket: NDArray[np.int64],
    random: NDArray[np.bool_],
    y: NDArray[np.bool_],
    covered: NDArray[np.bool_],
) -> NDArray[np.int32]:
    """Cell of each row: 0 for a random session, for a surface out of range or an uncovered position.

    Args:
        surface: int64 [n], numpy's or CuPy's, as the next three; any value.
        bucket: int64 [n], at least 0.
        random: bool [n].
        y: bool [n].
        covered: bool [surfaces, buckets] of the fitted table, numpy's.

    Returns:
        int32 [n] where the rows lie.
    """
    xp, (num_surfaces, num_buckets) = array_module(surface), covered.shape
    inside = (surface >= 0) & (surface < num_surfaces) & (bucket < num_buckets) & ~random
    safe_surface, safe_bucket = xp.where(inside, surface, 0), xp.where(inside, bucket, 0)
    weighted = inside & xp.asarray(covered)[safe_surface, safe_bucket] if covered.size else xp.zeros(len(y), bool)
    cell: NDArray[np.int32] = xp.where(weighted, 1 + (safe_surface * num_buckets + safe_bucket) * 2 + y, 0)
    return cell.astype(np.int32)
