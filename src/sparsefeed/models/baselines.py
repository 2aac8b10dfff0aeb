"""What a ranker with ID embeddings must beat: the constant rate, a line, boosted trees, all on dense features alone;
with target-encoded ids (models.encoding) among the features, the trees that a careful team would have before it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sparsefeed.errors import DataError, ToolError

__all__ = ["constant", "logistic", "trees"]

Floats = npt.NDArray[np.float32]
_NEWTON_STEPS = 25  # doubles the digits each; ten do


def constant(labels_NR: Floats, weights_NR: Floats, num_rows: int) -> Floats:
    """Predict the weighted rate of each response for every row: [num_rows, R]."""
    rates_R = np.average(labels_NR.astype(np.float64), axis=0, weights=weights_NR)
    return np.broadcast_to(rates_R.astype(np.float32), (num_rows, labels_NR.shape[1])).copy()


def logistic(
    dense_ND: Floats, labels_NR: Floats, weights_NR: Floats, dense_eval_ED: Floats, *, ridge: float = 1.0
) -> Floats:
    """Probabilities [E, R] of one logistic regression per response, by Newton's steps on the weighted loss.

    Args:
        dense_ND: standardised features.
        labels_NR: 0 or 1.
        weights_NR: of the rows, by response.
        dense_eval_ED: of the rows to predict.
        ridge: rows' worth of pull of each slope to 0; keeps a separable response finite.
    """
    design, design_eval = (
        np.concatenate([part.astype(np.float64), np.ones((len(part), 1))], axis=1) for part in (dense_ND, dense_eval_ED)
    )
    pull = np.full(design.shape[1], ridge)
    pull[-1] = 1e-9  # the intercept is free
    probabilities_ER = np.empty((len(dense_eval_ED), labels_NR.shape[1]), np.float32)
    for response in range(labels_NR.shape[1]):
        y, w = labels_NR[:, response].astype(np.float64), weights_NR[:, response].astype(np.float64)
        rate = np.clip(np.average(y, weights=w), 1e-6, 1 - 1e-6)
        slopes = np.zeros(design.shape[1])
        slopes[-1] = np.log(rate / (1 - rate))
        for _ in range(_NEWTON_STEPS):
            p = 1 / (1 + np.exp(-design @ slopes))
            gradient = design.T @ (w * (p - y)) + pull * slopes
            curvature = design.T @ (design * (w * p * (1 - p))[:, None]) + np.diag(pull)
            step = np.linalg.solve(curvature, gradient)
            slopes -= step
            if np.abs(step).max() < 1e-8:
                break
        probabilities_ER[:, response] = 1 / (1 + np.exp(-design_eval @ slopes))
    return probabilities_ER


def trees(
    dense_ND: Floats,
    labels_NR: Floats,
    weights_NR: Floats,
    dense_eval_ED: Floats,
    *,
    num_trees: int = 100,
    num_leaves: int = 31,
    num_threads: int = 1,
    seed: int = 0,
) -> Floats:
    """Raw probabilities [E, R] of one LightGBM model per response, fitted with the rows' weights.

    The same seed gives the same trees. Cost: about 1.4 s per million rows, 10 trees and response on one thread.

    Raises:
        DataError: There are no dense features to fit.
        ToolError: LightGBM is not installed.
    """
    if not dense_ND.shape[1]:
        raise DataError("baselines.trees: the spec declares no dense feature; use the constant baseline")
    try:
        import lightgbm
    except ImportError as error:
        raise ToolError("baselines.trees: lightgbm is not installed; pip install 'sparsefeed[torch]'") from error
    parameters: dict[str, Any] = {
        "objective": "binary", "num_leaves": num_leaves, "num_threads": num_threads,
        "seed": seed, "deterministic": True, "force_row_wise": True, "verbosity": -1,
    }  # fmt: skip
    probabilities_ER = np.empty((len(dense_eval_ED), labels_NR.shape[1]), np.float32)
    for response in range(labels_NR.shape[1]):
        rows = lightgbm.Dataset(dense_ND, labels_NR[:, response].copy(), weight=weights_NR[:, response].copy())
        model = lightgbm.train(parameters, rows, num_boost_round=num_trees)
        probabilities_ER[:, response] = model.predict(dense_eval_ED)
    return probabilities_ER
