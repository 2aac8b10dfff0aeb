from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sparsefeed.errors import BundleError, DataError
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.calibration import Calibration, Isotonic, Platt


def test_the_line_that_made_the_labels_is_found_again(spec: FeedSpec) -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (200_000, 2))
    truth = 1 / (1 + np.exp(-(logits * [0.5, 1.7] + [-1.0, 0.4])))
    fitted = Calibration.fit(spec, logits, random.random(truth.shape) < truth)
    scale, shift = fitted.lines()
    np.testing.assert_allclose(scale, [0.5, 1.7], atol=0.03)
    np.testing.assert_allclose(shift, [-1.0, 0.4], atol=0.03)


def test_fitted_predictions_sum_to_the_labels_under_the_weights(spec: FeedSpec) -> None:
    random = np.random.default_rng(1)
    logits, weights = random.normal(3, 1, (5000, 2)), random.uniform(0.2, 4, (5000, 2))
    labels = (random.random((5000, 2)) < 0.1).astype(float)
    p = Calibration.fit(spec, logits, labels, weights).probability(logits)
    # The priors pull on the sum as a few rows of 5000 do.
    np.testing.assert_allclose((weights * p).sum(0), (weights * labels).sum(0), atol=10)


@pytest.mark.parametrize(
    "labels", [np.zeros((50, 2)), np.ones((50, 2)), np.repeat(np.arange(50) >= 25, 2).reshape(50, 2)]
)
def test_rows_of_one_class_or_separable_give_finite_lines(spec: FeedSpec, labels: np.ndarray) -> None:
    logits = np.repeat(np.linspace(-5, 5, 50), 2).reshape(50, 2)
    fitted = Calibration.fit(spec, logits, labels.astype(float))
    assert np.isfinite(fitted.lines()).all()
    p = fitted.probability(logits)
    assert ((p > 0) & (p < 1)).all()


def test_the_identity_leaves_a_logit_as_it_is(spec: FeedSpec) -> None:
    logits = np.array([[-2.0, 0.5]], np.float32)
    np.testing.assert_allclose(Calibration.identity(spec).probability(logits), 1 / (1 + np.exp(-logits)), rtol=1e-6)


def test_a_calibration_is_read_as_it_was_written(spec: FeedSpec, tmp_path: Path) -> None:
    written = Calibration(responses={"click": Platt(scale=0.1 + 0.2, shift=-1e-9), "like": Platt()})
    written.save(tmp_path / "calibration.json")
    assert Calibration.load(tmp_path / "calibration.json") == written


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"responses": {"click": {"scale": "x"}}}',
        '{"responses": {"click": {"scale": NaN}}}',
        '{"responses": {"click": {"knots": [0, 1]}}}',
        '{"responses": {"click": {"scale": 1, "shift": 0, "knots": [0, 1], "values": [0, 1]}}}',
        '{"responses": {"click": {"knots": [1, 0], "values": [0, 1]}}}',
        '{"responses": {"click": {"knots": [0, NaN], "values": [0, 1]}}}',
        '{"responses": {"click": {"knots": [0, 1], "values": [0, Infinity]}}}',
    ],
)
def test_a_file_that_is_no_calibration_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(text)
    with pytest.raises(BundleError, match=r"calibration\.json"):
        Calibration.load(path)


def test_rows_that_cannot_be_calibrated_are_refused(spec: FeedSpec) -> None:
    with pytest.raises(DataError, match=r"\[rows, 2\]"):
        Calibration.fit(spec, np.zeros((3, 1)), np.zeros((3, 1)))
    zeros = np.zeros((3, 2))
    for wrong in (np.inf, np.nan):
        with pytest.raises(DataError, match="logit is not finite"):
            Calibration.fit(spec, zeros + wrong, zeros)
        with pytest.raises(DataError, match="label is not in"):
            Calibration.fit(spec, zeros, zeros + wrong)
        with pytest.raises(DataError, match="weight is not finite"):
            Calibration.fit(spec, zeros, zeros, zeros + wrong)
    with pytest.raises(DataError, match="weight is not finite, or below 0"):
        Calibration.fit(spec, zeros, zeros, zeros - 1)


def test_a_response_whose_rows_do_not_speak_for_a_scale_is_shifted_alone(spec: FeedSpec) -> None:
    random = np.random.default_rng(3)
    logits = random.normal(-3, 1, (4000, len(spec.responses))).astype(np.float32)
    labels = (random.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    for off in (0, 0.05, 1):
        scale, shift = Calibration.fit(spec, logits + off, labels).lines()
        assert (scale == 1).all()
        np.testing.assert_allclose(shift, -off, atol=0.15)


def test_a_few_positives_move_little_and_many_all_the_way(spec: FeedSpec) -> None:
    # Predicted 0.1, seen 0.12: a shift of 0.205.
    for rows, low, high in ((50, 0.01, 0.07), (1000, 0.15, 0.2), (100_000, 0.2, 0.21)):
        logits = np.full((rows, 2), np.log(0.1 / 0.9))
        _, shift = Calibration.fit(spec, logits, np.repeat(np.arange(rows) < 0.12 * rows, 2).reshape(rows, 2)).lines()
        assert ((shift > low) & (shift < high)).all(), (rows, shift)


def drawn(mean: float, truth: Callable[[np.ndarray], np.ndarray], rows: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Logits, labels and true probabilities [rows, 2] of a model whose logit z should have been truth(z)."""
    random = np.random.default_rng(seed)
    logits = random.normal(mean, 1.2, (rows, 2))
    p = 1 / (1 + np.exp(-truth(logits)))
    return logits, (random.random(p.shape) < p).astype(float), p


def divergence(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Mean Kullback-Leibler divergence of predictions from the truth, per response."""
    p = predicted.astype(np.float64)
    return (truth * np.log(truth / p) + (1 - truth) * np.log((1 - truth) / (1 - p))).mean(0)


def overconfident(z: np.ndarray) -> np.ndarray:
    """The model is right below -1, and promises far too much above."""
    return np.where(z > -1, -1 + 0.15 * (z + 1), z)


def test_a_curve_is_taken_where_no_line_can_be_right(spec: FeedSpec) -> None:
    logits, labels, _ = drawn(-2, overconfident, 15_000)
    line, curve = (Calibration.fit(spec, logits, labels, kind=kind) for kind in ("platt", "isotonic"))
    assert all(isinstance(one, Isotonic) for one in curve.responses.values())
    fresh, _, truth = drawn(-2, overconfident, 50_000, seed=1)
    assert (divergence(truth, curve.probability(fresh)) < 0.3 * divergence(truth, line.probability(fresh))).all()
    np.testing.assert_allclose(curve.probability(fresh).sum(0), truth.sum(0), rtol=0.05)


@pytest.mark.parametrize("truth", [lambda z: z, lambda z: 0.7 * z - 0.5])
@pytest.mark.parametrize(("mean", "rows"), [(-5.2, 15_000), (-2, 15_000)])
def test_no_curve_is_taken_where_identity_or_line_is_the_truth(
    spec: FeedSpec, truth: Callable[[np.ndarray], np.ndarray], mean: float, rows: int
) -> None:
    logits, labels, _ = drawn(mean, truth, rows)  # at -5.2 150 to 350 rows are positive
    assert Calibration.fit(spec, logits, labels, kind="isotonic") == Calibration.fit(spec, logits, labels)


@pytest.mark.parametrize("seed", range(5))
def test_few_positives_are_not_harmed_by_a_curve(spec: FeedSpec, seed: int) -> None:
    logits, labels, _ = drawn(-5.3, overconfident, 15_000, seed)
    fresh, _, truth = drawn(-5.3, overconfident, 50_000, seed + 100)
    line, curve = (
        divergence(truth, Calibration.fit(spec, logits, labels, kind=kind).probability(fresh))
        for kind in ("platt", "isotonic")
    )
    assert (curve <= line).all()


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_rows_of_one_class_have_no_curve(spec: FeedSpec, label: float) -> None:
    logits = np.random.default_rng(0).normal(size=(300, 2))
    labels = np.full_like(logits, label)
    assert Calibration.fit(spec, logits, labels, kind="isotonic") == Calibration.fit(spec, logits, labels)


def test_none_leaves_the_logits_as_they_are(spec: FeedSpec) -> None:
    logits, labels, _ = drawn(-2, overconfident, 1000)
    assert Calibration.fit(spec, logits, labels, kind="none") == Calibration.identity(spec)


def test_the_same_rows_give_the_same_curve(spec: FeedSpec) -> None:
    logits, labels, _ = drawn(-2, overconfident, 5000)
    first, second = (Calibration.fit(spec, logits, labels, kind="isotonic") for _ in range(2))
    assert first == second


def test_lines_and_curves_are_read_as_they_were_written(spec: FeedSpec, tmp_path: Path) -> None:
    curve = Isotonic(knots=(-4.0, 0.1 + 0.2, 7.0), values=(-5.0, -1.0, -1.0))
    written = Calibration(responses={"click": curve, "like": Platt(scale=0.9)})
    written.save(tmp_path / "calibration.json")
    assert Calibration.load(tmp_path / "calibration.json") == written
    responses = json.loads((tmp_path / "calibration.json").read_text())["responses"]
    assert responses["click"] == {"knots": [-4.0, 0.1 + 0.2, 7.0], "values": [-5.0, -1.0, -1.0]}
    assert responses["like"] == {"scale": 0.9, "shift": 0.0}


def test_probability_has_each_response_by_its_own_kind() -> None:
    calibration = Calibration(
        responses={"click": Isotonic(knots=(-1, 1), values=(-3, 0)), "like": Platt(scale=2, shift=1)}
    )
    p = calibration.probability(np.array([[-9, -9], [0, 0], [9, 9]], np.float32))
    expected = np.array([[-3, -15], [-1.5, 1], [0, 15]])
    np.testing.assert_allclose(p, 1 / (1 + np.exp(-expected)), rtol=1e-6)
