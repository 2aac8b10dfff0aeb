"""Calibration per response: probability = sigmoid(scale * logit + shift), or of an isotonic curve of the logit.

Notable: a response is shifted, and keeps scale 1 unless its rows speak against that (a likelihood-ratio test), since
a slope through few positives is worse than none. Fitted by Newton's method with a prior as strong as about one row at
the identity, so that it always has one answer: separable rows give finite numbers; and one that holds back shifts that
a few positives ask for, without a pull on large ones (Huber's). Likewise it keeps the line unless the curve is better
on rows that neither was fitted on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Discriminator, Tag

from sparsefeed.errors import BundleError, DataError, SpecError
from sparsefeed.etl.spec import FeedSpec, Frozen, validate
from sparsefeed.models.config import CalibrationKind
from sparsefeed.models.isotonic import MAX_LOGIT, Isotonic, fit_isotonic

__all__ = ["MAX_LOGIT", "Calibration", "Isotonic", "Platt"]

_NEWTON_STEPS = 50
_SPEAKS_AGAINST = 6.63  # 99 % point of chi-squared with 1 degree of freedom (scale)
_SHIFT_PRECISION = 16.0  # of the prior of small shifts: a standard deviation of 0.25, about sixteen positives
_LARGE_SHIFT = 0.25  # beyond it the prior grows linearly
_FOLDS = 5
_STANDARD_ERRORS = 2.33  # 99 % point of the normal distribution

Floats = npt.NDArray[np.float64]


class Platt(Frozen):
    """One response's line: calibrated logit = scale * logit + shift."""

    scale: float = 1.0
    shift: float = 0.0

    def logits(self, z: Floats) -> Floats:
        """Calibrated logits of logits."""
        return self.scale * z + self.shift


def _kind_of(response: Any) -> str:
    curve = isinstance(response, Isotonic) or (
        isinstance(response, dict) and not {"knots", "values"}.isdisjoint(response)
    )
    return "isotonic" if curve else "platt"


Response = Annotated[
    Annotated[Platt, Tag("platt")] | Annotated[Isotonic, Tag("isotonic")],
    Discriminator(_kind_of),
]


class Calibration(Frozen):
    """A Platt line or an isotonic curve per response, in the spec's order; stored as `calibration.json`."""

    responses: dict[str, Response]

    @classmethod
    def identity(cls, spec: FeedSpec) -> Calibration:
        """Leave every logit as it is."""
        return cls(responses={response.name: Platt() for response in spec.responses})

    @classmethod
    def fit(
        cls,
        spec: FeedSpec,
        logits_NR: npt.ArrayLike,
        labels_NR: npt.ArrayLike,
        weights_NR: npt.ArrayLike | None = None,
        kind: CalibrationKind = "platt",
    ) -> Calibration:
        """Fit on rows the model was not trained on; all arrays [n, R].

        `platt`: a shift, and a scale where 1 % evidence speaks for one. `isotonic`: a response has a curve where, in
        five folds, the curve's log loss on the fold left out is less than that of the identity and of the line, by more
        than 2.33 standard errors of the difference, rows taken as independent; else its line. `none`: the identity.

        Raises:
            DataError: The arrays do not agree, a logit or weight is not finite, a label is none, or a weight negative.
        """
        logits = np.asarray(logits_NR, np.float64)
        labels = np.asarray(labels_NR, np.float64)
        weights = np.ones_like(labels) if weights_NR is None else np.asarray(weights_NR, np.float64)
        expected = (len(logits), len(spec.responses))
        if not logits.shape == labels.shape == weights.shape == expected:
            raise DataError(
                f"calibration: got logits {logits.shape}, labels {labels.shape}, weights {weights.shape}; "
                f"all must be [rows, {len(spec.responses)}]"
            )
        if not np.isfinite(logits).all():
            raise DataError("calibration: a logit is not finite; the model that gave it cannot be calibrated")
        if not ((labels >= 0) & (labels <= 1)).all():
            raise DataError("calibration: a label is not in [0, 1]")
        if not ((weights >= 0) & (weights < np.inf)).all():
            raise DataError("calibration: a weight is not finite, or below 0")
        if kind == "none":
            return cls.identity(spec)
        fit = _line_or_curve if kind == "isotonic" else _platt
        return cls(
            responses={
                response.name: fit(logits[:, r], labels[:, r], weights[:, r])
                for r, response in enumerate(spec.responses)
            }
        )

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read `calibration.json`; BundleError when it is not one."""
        try:
            return validate(cls, json.loads(Path(path).read_text("utf-8")), where=str(path))
        except (OSError, ValueError, SpecError) as error:
            raise BundleError(f"{path}: not a calibration: {error}; export the bundle again") from error

    def save(self, path: str | Path) -> None:
        """Write `calibration.json`."""
        Path(path).write_text(json.dumps(self.model_dump(mode="json"), indent=1) + "\n", "utf-8")

    def lines(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Scales and shifts, float32 [R] each; 1 and 0 where a response has a curve."""
        platts = [one if isinstance(one, Platt) else Platt() for one in self.responses.values()]
        return np.array([p.scale for p in platts], np.float32), np.array([p.shift for p in platts], np.float32)

    def probability(self, logits_NR: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Calibrated probabilities [n, R] in (0, 1), as dense.onnx gives them."""
        scale, shift = self.lines()
        z = logits_NR.astype(np.float32) * scale + shift
        for r, response in enumerate(self.responses.values()):
            if isinstance(response, Isotonic):
                z[:, r] = response.logits(z[:, r])
        z = np.clip(z, -MAX_LOGIT, MAX_LOGIT)
        probability: npt.NDArray[np.float32] = (1 / (1 + np.exp(-z))).astype(np.float32)
        return probability


def _line_or_curve(z: Floats, y: Floats, w: Floats) -> Platt | Isotonic:
    line = _platt(z, y, w)
    curve = fit_isotonic(z, y, w, line.scale, line.shift)
    if curve is None:
        return line
    # Drawn, not alternating: rows of a session stand in the order of their positions.
    fold = np.random.default_rng(0).integers(0, _FOLDS, len(z))
    losses = np.zeros((3, len(z)))
    for number in range(_FOLDS):
        left_out, fitted = fold == number, fold != number
        line_there = _platt(z[fitted], y[fitted], w[fitted])
        curve_there = fit_isotonic(z[fitted], y[fitted], w[fitted], line_there.scale, line_there.shift) or line_there
        for i, candidate in enumerate((Platt(), line_there, curve_there)):
            logit = np.clip(candidate.logits(z[left_out]), -MAX_LOGIT, MAX_LOGIT)
            losses[i, left_out] = w[left_out] * (np.logaddexp(0, logit) - y[left_out] * logit)
    gains = losses[losses[:2].sum(axis=1).argmin()] - losses[2]
    return curve if gains.sum() > _STANDARD_ERRORS * gains.std() * len(gains) ** 0.5 else line


def _platt(z: Floats, y: Floats, w: Floats) -> Platt:
    # Around the middle of the logits a scale is little correlated with a shift.
    middle = float((w * z).sum() / max(w.sum(), 1e-300))
    shifted, loss_shifted = _newton(z, np.ones((len(z), 1)), y, w)
    line, loss = _newton(z, np.stack([z - middle, np.ones_like(z)], axis=1), y, w)
    if 2 * (loss_shifted - loss) < _SPEAKS_AGAINST:
        return Platt(shift=float(shifted[0]))
    return Platt(scale=float(1 + line[0]), shift=float(line[1] - line[0] * middle))


def _newton(z: Floats, design: Floats, y: Floats, w: Floats) -> tuple[Floats, float]:
    """The change of `z` by columns of `design`, the last of ones, that minimises the weighted log loss; and that."""

    def objective(change: Floats) -> float:
        logit, shift = z + design @ change, abs(change[-1])
        small = min(shift, _LARGE_SHIFT)
        huber = _SHIFT_PRECISION * small * (shift - small / 2)
        return float((w * (np.logaddexp(0, logit) - y * logit)).sum() + (change**2).sum() / 2 + huber)

    change = np.zeros(design.shape[1])
    value = objective(change)
    for _ in range(_NEWTON_STEPS):
        p = 1 / (1 + np.exp(-np.clip(z + design @ change, -500, 500)))
        gradient = design.T @ (w * (p - y)) + change
        gradient[-1] += _SHIFT_PRECISION * np.clip(change[-1], -_LARGE_SHIFT, _LARGE_SHIFT)
        hessian = (design.T * (w * p * (1 - p))) @ design + np.eye(len(change))
        hessian[-1, -1] += _SHIFT_PRECISION * (abs(change[-1]) < _LARGE_SHIFT)
        step = np.linalg.solve(hessian, gradient)
        # The objective is convex, but a full Newton step may overshoot far from the minimum: halve until it descends.
        share = 1.0
        while (new_value := objective(change - share * step)) > value and share > 1e-10:
            share /= 2
        change, done = change - share * step, value - new_value <= 1e-12 * abs(value)
        value = new_value
        if done:
            break
    return change, value
