"""Score bins: how a bundle's scores are spread over the held-out rows, for serving to tell when they drift.

Written into metrics.json as `score`; workflows.serving.steps.drift reads it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.calibration import Calibration

__all__ = ["score_bins"]


def score_bins(
    spec: FeedSpec, calibration: Calibration, logits: NDArray[np.float32], bins: int = 20
) -> dict[str, Any] | None:
    """Spread of the score: sum of calibrated probability * score_weight, as a request is answered.

    Args:
        spec: Gives the weights.
        calibration: As baked into dense.onnx.
        logits: float32 [n, R] of the held-out rows.
        bins: At most so many, each with about as many rows; scores that tie give fewer.

    Returns:
        `edges` [B - 1] between the bins, ascending; `shares` [B] of the rows, a score on an edge belonging to the bin
        above it; `mean`; `num_rows`. None where there is no row.
    """
    if not len(logits):
        return None
    weights = np.array([response.score_weight for response in spec.responses], np.float32)
    scores = calibration.probability(logits) @ weights
    quantiles = np.quantile(scores, np.linspace(0, 1, bins + 1)[1:-1])
    edges = np.unique([float(f"{edge:.6g}") for edge in quantiles])  # few digits: one export is to be like another
    counts = np.bincount(np.searchsorted(edges, scores, side="right"), minlength=len(edges) + 1)
    return {
        "edges": edges.tolist(),
        "shares": (counts / len(scores)).tolist(),
        "mean": float(f"{scores.mean(dtype=np.float64):.6g}"),
        "num_rows": len(scores),
    }
