"""Dense features: the arithmetic of FillMissing, Clip(0), LogOp and Normalize on one numpy column."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["standardise"]


def standardise(values: NDArray[np.float32], fill: float, log: bool, mean: float, std: float) -> NDArray[np.float32]:
    """Fill NaN, take log(1 + max(x, 0)) if `log`, then (x - mean) / std in float32; std 0 only centres.

    Args:
        values: raw values [n]; NaN is null.
        fill: replaces null, before the logarithm.
        log: whether the feature is log-scaled.
        mean: of the fitted days, after fill and log.
        std: likewise.
    """
    out = np.where(np.isnan(values), np.float32(fill), values).astype(np.float32)
    if log:
        out = np.log(np.maximum(out, np.float32(0)) + np.float32(1))
    out = out - np.float32(mean)
    return (out / np.float32(std)).astype(np.float32) if std > 0 else out
