"""Evaluation on the held-out days' random sessions: models beside the constant and LightGBM without ids.

Random sessions show what the policy would not have, so that they judge a ranker without the policy's bias.
Where the true probabilities are known (simulated logs) every metric is also given against them, which takes
the noise of drawn labels away.

Notable: the parquet has no session's id, so what is measured within groups (`grouped_auc`, `ndcg`) is within a member's
rows, all sessions of the held-out days together. Members without a row of their own share one and are no group.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.dataset as ds
from numpy.typing import NDArray

from sparsefeed.errors import DataError
from sparsefeed.etl.hugectr_view import read_labelled
from sparsefeed.etl.ids.codes import FIRST_TAIL_ROW, rows_of
from sparsefeed.etl.spec import FeedSpec, Table
from sparsefeed.models import baselines, metrics, slices
from sparsefeed.models.calibration import Calibration
from sparsefeed.models.config import CalibrationKind
from sparsefeed.models.encoding import encode
from sparsefeed.models.torchrec.score import Scorer
from sparsefeed.progress import Progress, silent

__all__ = [
    "Baseline",
    "EvaluationRows",
    "HeldOut",
    "cross_calibrated",
    "evaluate",
    "evaluate_day",
    "fit_calibration",
    "read_rows",
    "score_held_out",
]

Floats = NDArray[np.float32]
Ids = list[NDArray[np.int64]]
_HELD_OUT = ("surface", "new_member", "new_post")
Baseline = Literal["logistic", "mlp", "lightgbm", "lightgbm_ids"]


class NoRandomRowError(DataError):
    """The evaluation days have no random session."""


@dataclass(frozen=True)
class EvaluationRows:
    """Rows of the ETL's parquet as matrices.

    Attributes:
        impression: [n] ids as logged.
        position: int32 [n].
        labels: float32 [n, R].
        weights: float32 [n, R]; 1 where the spec has no IPS.
        dense: float32 [n, D], standardised.
        ids: int64 [n] per `id` feature.
        truth: float64 [n, R] or None.
        held_out: columns of evaluation days alone [n], as far as the files have them (docs/contracts/training.md, 12).
    """

    impression: NDArray[Any]
    position: NDArray[np.int32]
    labels: Floats
    weights: Floats
    dense: Floats
    ids: Ids
    truth: NDArray[np.float64] | None = None
    held_out: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def read_rows(spec: FeedSpec, folder: Path, truth: Path | None = None, random_only: bool = False) -> EvaluationRows:
    """Read `train/` or `eval/` of an ETL folder, in file order.

    Args:
        spec: the declaration.
        folder: with `*.parquet`.
        truth: the simulator's truth folder; joined by impression.
        random_only: keep random sessions alone (all rows when the spec declares no sessions).
    """
    responses = [r.name for r in spec.responses]
    files = sorted(str(path) for path in folder.glob("*.parquet"))
    if not files:
        raise DataError(f"{folder}: no parquet; run the ETL first")
    weighted = spec.weighted
    columns = ["impression_id", "position", *(f"y_{r}" for r in responses), *(f.name for f in spec.dense)]
    columns += [f"w_{r}" for r in responses] if weighted else []
    columns += [f.name for f in spec.of_kind("id")]
    chosen = ds.field("random") == 1 if random_only and spec.sessions else None
    rows = ds.dataset(files)
    held_out = [name for name in _HELD_OUT if name in rows.schema.names]
    table = rows.to_table(columns=[*columns, *held_out], filter=chosen)
    if not len(table):
        raise NoRandomRowError(f"{folder}: no row of a random session; evaluate on a day that has some")

    def matrix(names: Sequence[str]) -> Floats:
        return (
            np.stack([table[n].to_numpy() for n in names], axis=1) if names else np.zeros((len(table), 0), np.float32)
        )

    impression = table["impression_id"].to_numpy()
    return EvaluationRows(
        impression,
        table["position"].to_numpy(),
        matrix([f"y_{r}" for r in responses]),
        matrix([f"w_{r}" for r in responses]) if weighted else np.ones((len(table), len(responses)), np.float32),
        matrix([f.name for f in spec.dense]),
        [_counted(table[f.name].to_numpy(), spec.table_of(f)) for f in spec.of_kind("id")],
        None if truth is None else _truth(truth, responses, impression),
        {name: table[name].to_numpy() for name in held_out},
    )


def _counted(ids: NDArray[np.int64], table: Table) -> NDArray[np.int64]:
    """Ids as numbers to count by: a code of a tail's two rows is the first of them, shared as any row of a tail."""
    return rows_of(ids, table.tail_rows)[0] if table.paired_tail else ids


def _truth(folder: Path, responses: Sequence[str], impression: NDArray[Any]) -> NDArray[np.float64]:
    wanted = ds.field("impression_id").isin(impression)
    table = ds.dataset(str(folder), format="parquet").to_table(
        columns=["impression_id", *(f"p_{r}" for r in responses)], filter=wanted
    )
    ids = table["impression_id"].to_numpy()
    order = np.argsort(ids)
    at = np.minimum(np.searchsorted(ids, impression, sorter=order), max(len(ids) - 1, 0))
    if not len(ids) or (ids[order[at]] != impression).any():
        raise DataError(f"{folder}: not every impression has a true probability; give the truth of the same logs")
    truth: NDArray[np.float64] = np.stack([table[f"p_{r}"].to_numpy()[order[at]] for r in responses], axis=1)
    return truth.astype(np.float64)


@dataclass(frozen=True)
class HeldOut:
    """The random sessions' rows of the evaluation days, and what a model gives them: logits float32 [n, R]."""

    rows: EvaluationRows
    logits: Floats


def score_held_out(spec: FeedSpec, scorer: Scorer, data: Path) -> HeldOut | None:
    """Score them once, for whoever needs it; None on days without random sessions."""
    try:
        return HeldOut(*_scored(spec, scorer, data, None))
    except NoRandomRowError:
        return None


def fit_calibration(
    spec: FeedSpec, scorer: Scorer, data: Path, kind: CalibrationKind = "platt", held_out: HeldOut | None = None
) -> Calibration:
    """Calibration from the evaluation days' random sessions, all of them; `evaluate` says what it is worth on others.

    Days without random sessions leave the logits as they are, and so does `none`, which scores nothing. `held_out`
    saves the scoring where it was done before.
    """
    if kind == "none":
        return Calibration.identity(spec)
    held_out = held_out or score_held_out(spec, scorer, data)
    if held_out is None:
        return Calibration.identity(spec)
    return Calibration.fit(spec, held_out.logits, held_out.rows.labels, kind=kind)


def _half(labels: Floats) -> NDArray[np.bool_]:
    # Drawn, not alternating: rows of a session stand in the order of their positions.
    return np.random.default_rng(0).random(len(labels)) < 0.5


def _scored(spec: FeedSpec, scorer: Scorer, data: Path, truth: Path | None) -> tuple[EvaluationRows, Floats]:
    rows = read_rows(spec, data / "eval", truth, random_only=True)
    logits = scorer.score(data / "eval", random_only=bool(spec.sessions))
    return rows, logits


def _column_of(spec: FeedSpec, ids: Ids, feature: str) -> tuple[NDArray[np.int64], int]:
    """Rows [n] of an `id` feature, and the first row of its table that is one admitted id's."""
    names = [f.name for f in spec.of_kind("id")]
    declared = spec.of_kind("id")[names.index(feature)]
    return ids[names.index(feature)], FIRST_TAIL_ROW + spec.table_of(declared).tail_rows


def _members(spec: FeedSpec, ids: Ids, num_rows: int) -> NDArray[np.int64]:
    """Members as groups [n]: the row of the member, 0 where it is not one member's alone or none is declared."""
    if spec.logs.member is None:
        return np.zeros(num_rows, np.int64)
    column, first_own_row = _column_of(spec, ids, spec.logs.member)
    return np.where(column < first_own_row, 0, column)


def _trained_on(spec: FeedSpec, data: Path) -> tuple[Floats, Floats, Floats, Ids]:
    """Dense features, labels, weights and ids of the training rows, whoever they were written for."""
    if (data / "hugectr.json").exists():
        return read_labelled(spec, data)
    rows = read_rows(spec, data / "train")
    return rows.dense, rows.labels, rows.weights, rows.ids


def evaluate(
    spec: FeedSpec,
    data: Path,
    scorers: Mapping[str, Scorer],
    truth: Path | None = None,
    progress: Progress = silent,
    against: Sequence[Baseline] = ("lightgbm",),
    num_parameters: int = 2**20,
    calibration: CalibrationKind = "platt",
) -> dict[str, Any]:
    """Quality of every model and baseline per response, as plain data for JSON.

    Args:
        spec: the declaration.
        data: the ETL folder.
        scorers: name of the model -> its scorer; the first is also reported calibrated, each half of the rows by a
            calibration of the other.
        truth: the simulator's truth folder, if there is one.
        progress: told model by model.
        against: baselines beside the constant: a line, a plain net or trees on the dense features, or trees that have
            the ids of `id` features, too, target-encoded out of fold; all fitted with the rows' weights.
        num_parameters: of the net, about (baselines.mlp).
        calibration: how the first model is calibrated (Calibration.fit).

    Returns:
        `responses`: response -> model -> metrics; `calibrated`: the first model's; `compared`: the first model and the
        baseline of the greatest mean AUC; `slices`: "member", "post" and "position", where the spec declares them, and
        "surface", "new_member" and "new_post", where the rows have them -> slice -> metrics of these two
        (slices.measure).
    """
    steps = len(scorers) + 2
    probabilities: dict[str, Floats] = {}
    rows: EvaluationRows | None = None
    calibrated: dict[str, Any] = {}
    for i, (name, scorer) in enumerate(scorers.items()):
        progress(i, steps, f"scoring with {name}")
        rows, logits = _scored(spec, scorer, data, truth)
        probabilities[name] = Calibration.identity(spec).probability(logits)
        if not calibrated:
            calibrated = _calibrated(spec, rows, logits, calibration)
    assert rows is not None, "evaluate needs a model"
    dense, labels, weights, ids = _trained_on(spec, data)
    threads = len(os.sched_getaffinity(0))
    for name in against:
        if not spec.dense and not (name == "lightgbm_ids" and ids):
            continue  # there is nothing to fit
        progress(len(scorers), steps, f"fitting {name}")
        given, asked = dense, rows.dense
        if name == "lightgbm_ids":
            encoded = encode(ids, labels, weights, rows.ids)
            given, asked = (np.concatenate(pair, axis=1) for pair in zip((dense, rows.dense), encoded, strict=True))
        if name == "logistic":
            probabilities[name] = baselines.logistic(given, labels, weights, asked)
        elif name == "mlp":
            probabilities[name] = baselines.mlp(given, labels, weights, asked, num_parameters=num_parameters)
        else:
            probabilities[name] = baselines.trees(given, labels, weights, asked, num_threads=threads)
    probabilities["constant"] = baselines.constant(labels, weights, len(rows.labels))
    progress(len(scorers) + 1, steps, "measuring")
    members = _members(spec, rows.ids, len(rows.labels))
    responses = {
        response.name: {name: _quality(rows, members, p, r) for name, p in probabilities.items()}
        for r, response in enumerate(spec.responses)
    }
    compared = [next(iter(scorers)), _best(responses, [name for name in probabilities if name not in scorers])]
    return {
        "num_rows": len(rows.labels),
        "models": list(probabilities),
        "responses": responses,
        "calibrated": calibrated,
        "compared": compared,
        "slices": {
            name: slices.measure(
                slicing, list(responses), rows.labels, rows.truth, {m: probabilities[m] for m in compared}
            )
            for name, slicing in _slicings(spec, rows, ids)
        },
    }


def evaluate_day(
    spec: FeedSpec,
    models: Mapping[str, tuple[Scorer, Sequence[Path]]],
    truth: Path | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measure models that were trained before a day on that day's random sessions, as they would have served them.

    Args:
        spec: the declaration.
        models: name -> the model, and the ETL results from the one it was trained on to the day's.
        truth: the simulator's truth folder, if there is one.
        progress: told model by model.

    Returns:
        `num_rows`; `models`; `responses`: response -> model -> metrics, uncalibrated, as of `evaluate`.

    Raises:
        DataError: the day has no random session, or the results are no chain.
    """
    (day,) = {chain[-1] for _, chain in models.values()}
    rows = read_rows(spec, day / "train", truth, random_only=True)
    probabilities: dict[str, Floats] = {}
    for i, (name, (scorer, chain)) in enumerate(models.items()):
        progress(i, len(models), f"scoring with {name}")
        logits = scorer.score(day / "train", random_only=bool(spec.sessions), chain=chain)
        probabilities[name] = Calibration.identity(spec).probability(logits)
    members = _members(spec, rows.ids, len(rows.labels))
    responses = {
        response.name: {name: _quality(rows, members, p, r) for name, p in probabilities.items()}
        for r, response in enumerate(spec.responses)
    }
    return {"num_rows": len(rows.labels), "models": list(probabilities), "responses": responses}


def _best(responses: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> str:
    """The model of the greatest mean AUC; a response whose AUC is not defined counts as chance."""

    def mean_auc(name: str) -> float:
        measured = (models[name].get("expected", models[name])["auc"] for models in responses.values())
        return float(np.mean([0.5 if np.isnan(auc) else auc for auc in measured]))

    return max(names, key=mean_auc)


def _slicings(spec: FeedSpec, rows: EvaluationRows, trained_ids: Ids) -> Iterator[tuple[str, slices.Slicing]]:
    for name, feature in (("member", spec.logs.member), ("post", spec.logs.post)):
        if feature is not None:
            column, first_own_row = _column_of(spec, rows.ids, feature)
            yield name, slices.by_frequency(column, _column_of(spec, trained_ids, feature)[0], first_own_row)
    if spec.logs.position is not None:
        yield "position", slices.by_position(rows.position)
    for name, column in rows.held_out.items():
        yield name, slices.by_surface(column) if name == "surface" else slices.by_newness(column)


def _quality(rows: EvaluationRows, members: NDArray[np.int64], probability: Floats, r: int) -> dict[str, Any]:
    labels, p = rows.labels[:, r], probability[:, r].astype(np.float64)
    curve = metrics.calibration_curve(labels, p)
    out: dict[str, Any] = {
        **_metrics(labels, p, members),
        "curve": {
            "weight": curve.weight.tolist(),
            "predicted": curve.predicted.tolist(),
            "actual": curve.actual.tolist(),
        },
    }
    if rows.truth is not None:
        out["expected"] = _metrics(rows.truth[:, r], p, members)
    return out


def _metrics(labels: NDArray[Any], p: NDArray[np.float64], members: NDArray[np.int64]) -> dict[str, float]:
    known = members > 0
    grouped = (labels[known], p[known], members[known])
    return {
        "auc": metrics.auc(labels, p),
        "log_loss": metrics.log_loss(labels, p),
        "normalised_entropy": metrics.normalised_entropy(labels, p),
        "predicted_over_actual": metrics.predicted_over_actual(labels, p),
        "grouped_auc": metrics.grouped_auc(*grouped) if known.any() else float("nan"),
        "ndcg": metrics.ndcg(*grouped) if known.any() else float("nan"),
    }


def cross_calibrated(
    spec: FeedSpec, labels: Floats, logits: Floats, kind: CalibrationKind = "platt"
) -> NDArray[np.float64]:
    """Probabilities [n, R] of logits [n, R], every row by a calibration of the half that it is not in.

    So is measured what a calibration of all rows does on rows it has not seen.
    """
    half = _half(labels)
    p = np.empty(logits.shape, np.float64)
    for part in (half, ~half):
        p[part] = Calibration.fit(spec, logits[~part], labels[~part], kind=kind).probability(logits[part])
    return p


def _calibrated(spec: FeedSpec, rows: EvaluationRows, logits: Floats, kind: CalibrationKind) -> dict[str, Any]:
    p = cross_calibrated(spec, rows.labels, logits, kind)
    labels = rows.labels if rows.truth is None else rows.truth
    members = _members(spec, rows.ids, len(rows.labels))
    return {r.name: _metrics(labels[:, i], p[:, i], members) for i, r in enumerate(spec.responses)}
