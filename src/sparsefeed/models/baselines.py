"""What a ranker with ID embeddings must beat: the constant rate, and boosted trees on the dense features alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sparsefeed.errors import DataError, ToolError

__all__ = ["constant", "trees"]

Floats = npt.NDArray[np.float32]


def constant(labels_NR: Floats, weights_NR: Floats, num_rows: int) -> Floats:
    """Predict the weighted rate of each response for every row: [num_rows, R]."""
    rates_R = np.average(labels_NR.astype(np.float64), axis=0, weights=weights_NR)
    return np.broadcast_to(rates_R.astype(np.float32), (num_rows, labels_NR.shape[1])).copy()


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
