"""Platt scaling per response: probability = sigmoid(scale * logit + shift).

Notable: a response keeps scale 1 and shift 0 unless its rows speak against them (a likelihood-ratio test), since
a line through few positives is worse than none. Fitted by Newton's method with a prior as strong as about one row
at the identity, so that it always has one answer: separable rows give finite numbers.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sparsefeed.errors import BundleError, DataError, SpecError
from sparsefeed.etl.spec import FeedSpec, Frozen, validate

__all__ = ["MAX_LOGIT", "Calibration", "Platt"]

# sigmoid of 15 is 1 - 3.1e-7: strictly inside (0, 1) in float32, with room for any runtime's rounding.
MAX_LOGIT = 15.0

_NEWTON_STEPS = 50
_SPEAKS_AGAINST = 9.21  # 99 % point of chi-squared with 2 degrees of freedom (scale and shift)


class Platt(Frozen):
    """One response's line: calibrated logit = scale * logit + shift."""

    scale: float = 1.0
    shift: float = 0.0


class Calibration(Frozen):
    """One Platt line per response, in the spec's order; stored as `calibration.json`."""

    responses: dict[str, Platt]

    @classmethod
    def identity(cls, spec: FeedSpec) -> Calibration:
        """Leave every logit as it is."""
        return cls(responses={response.name: Platt() for response in spec.responses})

    @classmethod
    def fit(
        cls, spec: FeedSpec, logits_NR: npt.ArrayLike, labels_NR: npt.ArrayLike, weights_NR: npt.ArrayLike | None = None
    ) -> Calibration:
        """Fit on rows the model was not trained on; all arrays [n, R]. The identity stays where 1 % evidence fails.

        Raises:
            DataError: The arrays do not agree, or a logit is not finite.
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
        return cls(
            responses={
                response.name: _platt(logits[:, r], labels[:, r], weights[:, r])
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
        """Scales and shifts, float32 [R] each."""
        platts = self.responses.values()
        return np.array([p.scale for p in platts], np.float32), np.array([p.shift for p in platts], np.float32)

    def probability(self, logits_NR: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Calibrated probabilities [n, R] in (0, 1), as dense.onnx gives them."""
        scale, shift = self.lines()
        z = np.clip(logits_NR.astype(np.float32) * scale + shift, -MAX_LOGIT, MAX_LOGIT)
        probability: npt.NDArray[np.float32] = (1 / (1 + np.exp(-z))).astype(np.float32)
        return probability


def _platt(z: npt.NDArray[np.float64], y: npt.NDArray[np.float64], w: npt.NDArray[np.float64]) -> Platt:
    design = np.stack([z, np.ones_like(z)], axis=1)
    identity = np.array([1.0, 0.0])

    def objective(line: npt.NDArray[np.float64]) -> float:
        logit = design @ line
        return float((w * (np.logaddexp(0, logit) - y * logit)).sum() + ((line - identity) ** 2).sum() / 2)

    line, value = identity, objective(identity)
    for _ in range(_NEWTON_STEPS):
        p = 1 / (1 + np.exp(-np.clip(design @ line, -500, 500)))
        gradient = design.T @ (w * (p - y)) + (line - identity)
        hessian = (design.T * (w * p * (1 - p))) @ design + np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        # The objective is convex, but a full Newton step may overshoot far from the minimum: halve until it descends.
        share = 1.0
        while (new_value := objective(line - share * step)) > value and share > 1e-10:
            share /= 2
        line, done = line - share * step, value - new_value <= 1e-12 * abs(value)
        value = new_value
        if done:
            break
    if 2 * (objective(identity) - value) < _SPEAKS_AGAINST:
        return Platt()
    return Platt(scale=float(line[0]), shift=float(line[1]))
