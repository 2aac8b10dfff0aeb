"""Inverse propensity weights per (surface, position bucket, y): counts, table, gather.

IPS(position, response) = random-session rate / production-session rate, for y = 1 and for y = 0. A model
trained on production rows with these weights sees, at every position, the response rate that random
traffic has (LinkedIn engineering blog, 2023-08-23). Unclipped and unsmoothed, over the production rows
of a covered position: sum w = n and sum w*y / sum w = the random rate, exactly.

Cells of one response: 0 = not weighted (a random session, or not covered), then
1 + (surface * num_buckets + bucket) * 2 + y.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["IpsTable", "cells", "count", "position_buckets", "weigh"]


@dataclass(frozen=True)
class IpsTable:
    """Weights of one response.

    Attributes:
        weight: float64 [1 + surfaces * buckets * 2]; weight[0] is 1.
        counts: int64 [surfaces, buckets, 2 (production, random), 2 (y)].
        reason: str [surfaces, buckets]: "" where covered, else why every weight there is 1.
    """

    weight: NDArray[np.float64]
    counts: NDArray[np.int64]
    reason: NDArray[np.str_]

    @property
    def covered(self) -> NDArray[np.bool_]:
        """Where random traffic gives a weight: bool [surfaces, buckets]."""
        return np.asarray(self.reason == "")


def position_buckets(position: NDArray[np.int64], edges: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bucket i holds edges[i] <= position < edges[i+1]; below the first edge is bucket 0."""
    return np.maximum(np.searchsorted(edges, position, side="right") - 1, 0)


def count(
    surface: NDArray[np.int64],
    bucket: NDArray[np.int64],
    random: NDArray[np.bool_],
    y: NDArray[np.bool_],
    num_surfaces: int,
    num_buckets: int,
) -> NDArray[np.int64]:
    """Impressions per cell: int64 [surfaces, buckets, 2 (production, random), 2 (y)]; counts of days add."""
    shape = (num_surfaces, num_buckets, 2, 2)
    index = np.ravel_multi_index((surface, bucket, random.astype(np.int64), y.astype(np.int64)), shape)
    return np.bincount(index, minlength=int(np.prod(shape))).reshape(shape)


def weigh(counts: NDArray[np.int64], smoothing: float = 0.0, clip: float | None = None) -> IpsTable:
    """Weights from counts [surfaces, buckets, 2, 2].

    Args:
        counts: of `count`, summed over partitions and days.
        smoothing: pseudo-impressions that pull both rates of a cell to their surface's.
        clip: weights are held in [1 / clip, clip]; None leaves them.

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
    if clip is not None:
        ratio = np.clip(ratio, 1 / clip, clip)
    ratio[reason != ""] = 1.0
    return IpsTable(np.concatenate([[1.0], ratio.ravel()]), counts, reason)


def cells(
    surface: NDArray[np.int64],
    bucket: NDArray[np.int64],
    random: NDArray[np.bool_],
    y: NDArray[np.bool_],
    covered: NDArray[np.bool_],
) -> NDArray[np.int32]:
    """Cell of each row: 0 for a random session, for a surface out of range or an uncovered position."""
    num_surfaces, num_buckets = covered.shape
    inside = (surface >= 0) & (surface < num_surfaces) & (bucket < num_buckets) & ~random
    safe_surface, safe_bucket = np.where(inside, surface, 0), np.where(inside, bucket, 0)
    weighted = inside & covered[safe_surface, safe_bucket] if covered.size else np.zeros(len(y), bool)
    cell = 1 + (safe_surface * num_buckets + safe_bucket) * 2 + y
    return np.where(weighted, cell, 0).astype(np.int32)
