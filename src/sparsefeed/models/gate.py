"""The gate: whether a model that was trained on a day may follow the one that serves.

Judged are random sessions that the day's training left out (`train.validation`), its last ones: both models score them,
the one that serves by its own, earlier ids. Losses are compared row by row, so that what makes a row hard is in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import scipy.stats
from numpy.typing import NDArray

from sparsefeed.errors import DataError
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.calibration import Calibration
from sparsefeed.models.config import CalibrationKind
from sparsefeed.models.evaluate import cross_calibrated, read_rows
from sparsefeed.models.torchrec.columns import Rows, held_out_parts, open_split
from sparsefeed.models.torchrec.score import Scorer

__all__ = ["Compared", "GateResult", "compare", "compare_anew"]


@dataclass(frozen=True)
class Compared:
    """Log losses of one response.

    Attributes:
        candidate: of the new model.
        running: of the one that serves.
        increase_at_least: lower bound of candidate - running, at the confidence asked for; above 0 it is worse.
    """

    candidate: float
    running: float
    increase_at_least: float


@dataclass(frozen=True)
class GateResult:
    """What the held-out rows say, by response."""

    num_rows: int
    responses: dict[str, Compared]

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> GateResult:
        """One that `asdict` made plain."""
        return cls(value["num_rows"], {name: Compared(**one) for name, one in value["responses"].items()})

    def worse(self, tolerance: float) -> dict[str, Compared]:
        """Responses whose loss grew, beyond doubt, by more than this share of what it was."""
        return {name: one for name, one in self.responses.items() if one.increase_at_least > tolerance * one.running}


def compare(
    spec: FeedSpec,
    candidate: Scorer,
    running: Scorer,
    chain: Sequence[Path],
    calibration: Calibration,
    held_out: int,
    confidence: float = 0.99,
) -> GateResult:
    """Compare two models on the rows of a day that its training left out.

    Args:
        spec: the declaration.
        candidate: trained on the last result of `chain`.
        running: trained on the first.
        chain: ETL results from the running model's to the day's.
        calibration: that both are served with.
        held_out: rows that the day's training left out (`validation.rows`).
        confidence: of each response's bound, rows taken as independent.

    Raises:
        DataError: no random session is among them, or the results are no chain.
    """
    day = chain[-1]
    _, parts = held_out_parts(open_split(spec, day, "train", Rows.columns(spec, weights=False)), held_out)
    num_rows = sum(part.num_rows for part in parts)
    if spec.sessions:
        flags = [pq.ParquetFile(part.path).read_row_group(part.row_group, columns=["random"]) for part in parts]
        num_rows = sum(int(flag["random"].to_numpy().sum()) for flag in flags)
    if not num_rows:
        raise DataError(f"{day}: no random session among the last {held_out} rows; raise release.gate.held_out_rows")
    labels = read_rows(spec, day / "train", random_only=True).labels[-num_rows:]
    losses = []
    for scorer, results in ((candidate, chain[-1:]), (running, chain)):
        logits = scorer.score(day / "train", random_only=bool(spec.sessions), chain=results, held_out=held_out)
        losses.append(_losses(labels, calibration.probability(logits)))
    return _result(spec, losses[0], losses[1], confidence)


def compare_anew(
    spec: FeedSpec,
    candidate: Scorer,
    chain: Sequence[Path],
    running: Scorer,
    running_chain: Sequence[Path],
    calibration: Calibration,
    kind: CalibrationKind = "platt",
    confidence: float = 0.99,
) -> GateResult:
    """Compare a model that was trained anew, on ids of its own, with one that serves, on a day that neither has seen.

    The candidate's rows are calibrated as its bundle will be, each by a calibration of the half that it is not in.

    Args:
        spec: the declaration.
        candidate: trained on the first result of `chain`.
        chain: ETL results from the candidate's to the day's.
        running: trained on the first result of `running_chain`.
        running_chain: from the running model's to the same day's, of which both have the impressions by their logged
            ids.
        calibration: that the running model is served with.
        kind: of the candidate's calibration.
        confidence: as of `compare`.

    Raises:
        DataError: the two have no impression of a random session in common, or the results are no chain.
    """
    new, old = chain[-1] / "train", running_chain[-1] / "train"
    rows = read_rows(spec, new, random_only=True)
    impressions = read_rows(spec, old, random_only=True).impression
    _, at, at_old = np.intersect1d(rows.impression, impressions, return_indices=True)
    if not len(at):
        raise DataError(f"{new}: no impression of a random session that is in {old}, too; were logs replaced since?")
    labels, random_only = rows.labels[at], bool(spec.sessions)
    logits = candidate.score(new, random_only=random_only, chain=chain)[at]
    before = running.score(old, random_only=random_only, chain=running_chain)[at_old]
    return _result(
        spec,
        _losses(labels, cross_calibrated(spec, labels, logits, kind)),
        _losses(labels, calibration.probability(before)),
        confidence,
    )


def _losses(labels: NDArray[np.floating], probability: NDArray[np.floating]) -> NDArray[np.float64]:
    p = probability.astype(np.float64)
    losses: NDArray[np.float64] = -(labels * np.log(p) + (1 - labels) * np.log1p(-p))
    return losses


def _result(
    spec: FeedSpec, candidate: NDArray[np.float64], running: NDArray[np.float64], confidence: float
) -> GateResult:
    quantile = float(scipy.stats.norm.ppf(confidence))
    compared = {
        response.name: _compared(candidate[:, r], running[:, r], quantile) for r, response in enumerate(spec.responses)
    }
    return GateResult(len(candidate), compared)


def _compared(candidate: NDArray[np.float64], running: NDArray[np.float64], quantile: float) -> Compared:
    increase = candidate - running
    error = float(increase.std()) / len(increase) ** 0.5
    return Compared(float(candidate.mean()), float(running.mean()), float(increase.mean()) - quantile * error)
