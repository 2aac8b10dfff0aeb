"""What a ranker with ID embeddings must beat: the constant rate, a line, trees, a net, all on dense features alone;
with target-encoded ids (models.encoding) among the features, the trees that a careful team would have before it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from sparsefeed.errors import DataError, ToolError

__all__ = ["constant", "logistic", "mlp", "mlp_width", "trees"]

Floats = npt.NDArray[np.float32]
_NEWTON_STEPS = 25  # doubles the digits each; ten do
_MAX_WIDTH = 1024  # of the mlp


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


def mlp_width(num_dense: int, num_responses: int, num_parameters: int) -> int:
    """Width h of two hidden layers with at most so many parameters, h^2 + h (D + 2 + R) + R; 1 to 1,024."""
    linear = num_dense + 2 + num_responses
    width = (math.sqrt(linear**2 + 4 * max(num_parameters - num_responses, 0)) - linear) / 2
    return int(min(max(width, 1), _MAX_WIDTH))


def mlp(
    dense_ND: Floats,
    labels_NR: Floats,
    weights_NR: Floats,
    dense_eval_ED: Floats,
    *,
    num_parameters: int,
    batch_size: int = 1024,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> Floats:
    """Probabilities [E, R] of a net of two hidden layers (ReLU) with a logit per response, on the dense features alone.

    One epoch of Adam on the weighted cross entropy; torch on the CPU. The same seed gives the same net. Cost: at the
    greatest width 4 to 5 min per million rows on two cores that were busy besides.

    Args:
        dense_ND: standardised features.
        labels_NR: 0 or 1.
        weights_NR: of the rows, by response.
        dense_eval_ED: of the rows to predict.
        num_parameters: as many as it should have, say the ranker's with its tables. Both layers are widened until it
            has, but to 1,024 at most, about 1.1 million parameters: what a step costs grows with the square.
        batch_size: rows of a step.
        learning_rate: of Adam.
        seed: of the initial weights and the order of rows.

    Raises:
        DataError: There are no dense features to fit.
        ToolError: torch is not installed.
    """
    num_dense, num_responses = dense_ND.shape[1], labels_NR.shape[1]
    if not num_dense:
        raise DataError("baselines.mlp: the spec declares no dense feature; use the constant baseline")
    try:
        import torch
    except ImportError as error:
        raise ToolError("baselines.mlp: torch is not installed; pip install 'sparsefeed[torch]'") from error
    width = mlp_width(num_dense, num_responses, num_parameters)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = torch.nn.Sequential(
            torch.nn.Linear(num_dense, width), torch.nn.ReLU(),
            torch.nn.Linear(width, width), torch.nn.ReLU(),
            torch.nn.Linear(width, num_responses),
        )  # fmt: skip
    rates_R = np.clip(constant(labels_NR, weights_NR, 1)[0].astype(np.float64), 1e-6, 1 - 1e-6)
    with torch.no_grad():
        net[-1].bias.copy_(torch.from_numpy(np.log(rates_R / (1 - rates_R))))
    optimiser = torch.optim.Adam(net.parameters(), learning_rate)
    order = np.random.default_rng(seed).permutation(len(dense_ND))
    for start in range(0, len(order), batch_size):
        rows = np.sort(order[start : start + batch_size])
        dense, labels, weights = (torch.from_numpy(part[rows]) for part in (dense_ND, labels_NR, weights_NR))
        optimiser.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(net(dense), labels, weights).backward()
        optimiser.step()
    with torch.inference_mode():
        parts = [net(torch.from_numpy(dense_eval_ED[at : at + 8192])) for at in range(0, len(dense_eval_ED), 8192)]
        probabilities: Floats = torch.sigmoid(torch.cat(parts)).numpy()
    return probabilities
