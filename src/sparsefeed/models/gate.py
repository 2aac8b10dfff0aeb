"""The gate: whether a model that was trained on a day may follow the one that serves.

Judged are random sessions that the day's training left out (`train.validation`), its last ones: both models score them,
the one that serves by its own, earlier ids. Losses are compared row by row, so that what makes a row hard is in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import scipy.stats
from numpy.typing import NDArray

from sparsefeed.errors import DataError
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.calibration import Calibration
from sparsefeed.models.evaluate import read_rows
from sparsefeed.models.torchrec.columns import Rows, held_out_parts, open_split
from sparsefeed.models.torchrec.score import Scorer

__all__ = ["Compared", "GateResult", "compare"]


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
        p = calibration.probability(logits).astype(np.float64)
        losses.append(-(labels * np.log(p) + (1 - labels) * np.log1p(-p)))
    quantile = float(scipy.stats.norm.ppf(confidence))
    return GateResult(
        num_rows,
        {
            response.name: _compared(losses[0][:, r], losses[1][:, r], quantile)
            for r, response in enumerate(spec.responses)
        },
    )


def _compared(candidate: NDArray[np.float64], running: NDArray[np.float64], quantile: float) -> Compared:
    increase = candidate - running
    error = float(increase.std()) / len(increase) ** 0.5
    return Compared(float(candidate.mean()), float(running.mean()), float(increase.mean()) - quantile * error)
