"""Target encoding: an id as the rate of those who have it, so that a model of numbers can use it.

A training row is encoded from the other folds alone: its own label is never in its input. Rare ids are drawn to the
mean rate of all rows, as if `prior` rows of it had been seen (Micci-Barreca, 2001).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["encode"]

Floats = npt.NDArray[np.float32]
_Sums = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]  # of a row's id in other folds; by id in all


def encode(
    ids: Sequence[npt.NDArray[np.int64]],
    labels_NR: Floats,
    weights_NR: Floats,
    ids_eval: Sequence[npt.NDArray[np.int64]],
    *,
    folds: int = 5,
    prior: float = 20.0,
    seed: int = 0,
) -> tuple[Floats, Floats]:
    """Encode id columns: per column the rate of each response, and log(1 + rows that have the id).

    Args:
        ids: int64 [N] per column, each at least 0.
        labels_NR: 0 or 1.
        weights_NR: of the rows, by response.
        ids_eval: the same columns of the rows to predict [E]; encoded from all training rows.
        folds: of training rows, drawn by `seed`.
        prior: rows of the mean rate that every id begins with.
        seed: of the folds.

    Returns:
        float32 [N, C * (R + 1)] and [E, C * (R + 1)].
    """
    num, responses = labels_NR.shape
    fold_N = np.random.default_rng(seed).integers(0, folds, num)
    rates_R = np.average(labels_NR.astype(np.float64), axis=0, weights=weights_NR)
    trained: list[npt.NDArray[np.float64]] = []
    evaluated: list[npt.NDArray[np.float64]] = []
    for column, column_eval in zip(ids, ids_eval, strict=True):
        size = int(max(column.max(initial=0), column_eval.max(initial=0))) + 1

        def sums(of_row: npt.NDArray[np.float64], column: Any = column, size: int = size) -> _Sums:
            by_fold = np.bincount(fold_N * size + column, of_row, folds * size).reshape(folds, size)
            return by_fold.sum(axis=0)[column] - by_fold[fold_N, column], by_fold.sum(axis=0)

        for response in range(responses):
            weight = weights_NR[:, response].astype(np.float64)
            others_shown, all_shown = sums(weight)
            others_given, all_given = sums(weight * labels_NR[:, response])
            mean = prior * rates_R[response]
            trained.append((others_given + mean) / (others_shown + prior))
            evaluated.append((all_given[column_eval] + mean) / (all_shown[column_eval] + prior))
        others_count, all_count = sums(np.ones(num))
        trained.append(np.log1p(others_count))
        evaluated.append(np.log1p(all_count[column_eval]))
    return _matrix(trained, num), _matrix(evaluated, len(ids_eval[0]) if ids_eval else 0)


def _matrix(columns: Sequence[npt.NDArray[np.float64]], num: int) -> Floats:
    return np.stack(columns, axis=1).astype(np.float32) if columns else np.zeros((num, 0), np.float32)
