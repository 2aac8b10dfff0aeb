"""Slices of the evaluated rows: where a model is good, by how often an id was trained on, by place and by newness.

Notable: an id is counted in the rows that were trained on, so of sampled logs in the sampled ones. A row of a table
that is no admitted id's alone (null, hashed tail) says nothing of how often the id was met: its impressions are a slice
of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sparsefeed.models import metrics

__all__ = ["Slicing", "by_frequency", "by_newness", "by_position", "by_surface", "measure"]

Ids = npt.NDArray[np.int64]

_MOST_SURFACES = 8
_METRICS = (metrics.auc, metrics.log_loss, metrics.predicted_over_actual)


@dataclass(frozen=True)
class Slicing:
    """Rows cut into named slices.

    Attributes:
        names: of the slices, in order.
        slice_N: int64 [n], the number of each row's slice.
    """

    names: tuple[str, ...]
    slice_N: Ids


def by_frequency(ids_N: Ids, trained_ids: Ids, first_own_row: int) -> Slicing:
    """By how many training rows have the row's id: 0, 1-5, 6-50, >50; "not admitted" where the id is not known.

    Args:
        ids_N: rows of the table, of the rows to cut.
        trained_ids: of all training rows.
        first_own_row: of the table; smaller ones are null or shared (docs/contracts/ids.md).
    """
    count_N = np.bincount(trained_ids, minlength=int(ids_N.max(initial=0)) + 1)[ids_N]
    slice_N = 1 + np.searchsorted((1, 6, 51), count_N, side="right")
    return Slicing(("not admitted", "0", "1-5", "6-50", ">50"), np.where(ids_N < first_own_row, 0, slice_N))


def by_position(position_N: npt.NDArray[np.integer]) -> Slicing:
    """By position: 1, 2-3, 4-10, >10; "not logged" where it is smaller."""
    names = ("not logged", "1", "2-3", "4-10", ">10")
    return Slicing(names, np.searchsorted((1, 2, 4, 11), position_N, side="right"))


def by_surface(surface_N: npt.NDArray[Any]) -> Slicing:
    """By surface, the one of the most rows first, of equal ones by name; of more than 8 the rest are "others"."""
    names, slice_N, counts = np.unique(surface_N.astype(str), return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    if len(order) > _MOST_SURFACES:
        others = "others" if "others" not in names else "all others"
        place, names = np.minimum(place, _MOST_SURFACES), np.append(names, others)
        order = np.append(order[:_MOST_SURFACES], len(names) - 1)
    return Slicing(tuple(names[order].tolist()), place[slice_N])


def by_newness(new_N: npt.NDArray[np.integer]) -> Slicing:
    """By whether the id was met before the evaluation days: "old" (0), "new" (1), "none" where there is none (-1)."""
    return Slicing(("old", "new", "none"), new_N.astype(np.int64) % 3)


def measure(
    slicing: Slicing,
    responses: Sequence[str],
    labels_NR: npt.NDArray[Any],
    truth_NR: npt.NDArray[np.float64] | None,
    probabilities: Mapping[str, npt.NDArray[np.float32]],
) -> dict[str, Any]:
    """AUC, log loss and predicted/actual of every slice that has rows, as plain data.

    Args:
        slicing: of the rows.
        responses: names.
        labels_NR: as drawn.
        truth_NR: true probabilities, if they are known; they give `expected`.
        probabilities: of each model [n, R].

    Returns:
        Slice -> `num_rows` and `responses`: response -> model -> metrics; NaN where one is not defined.
    """
    out: dict[str, Any] = {}
    for number, name in enumerate(slicing.names):
        rows = np.flatnonzero(slicing.slice_N == number)
        if not len(rows):
            continue
        measured: dict[str, dict[str, Any]] = {response: {} for response in responses}
        for r, response in enumerate(responses):
            for model, p_NR in probabilities.items():
                p = p_NR[rows, r]
                measured[response][model] = {**_measured(labels_NR[rows, r], p)}
                if truth_NR is not None:
                    measured[response][model]["expected"] = _measured(truth_NR[rows, r], p)
        out[name] = {"num_rows": len(rows), "responses": measured}
    return out


def _measured(labels: npt.NDArray[Any], p: npt.NDArray[np.float32]) -> dict[str, float]:
    return {metric.__name__: metric(labels, p) for metric in _METRICS}
