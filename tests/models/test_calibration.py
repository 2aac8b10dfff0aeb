from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sparsefeed.errors import BundleError, DataError
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.calibration import Calibration, Platt


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
    # The prior weighs as one row: its pull on the sum is that of a few rows of 5000.
    np.testing.assert_allclose((weights * p).sum(0), (weights * labels).sum(0), atol=5)


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
    "text", ["", "[]", '{"responses": {"click": {"scale": "x"}}}', '{"responses": {"click": {"scale": NaN}}}']
)
def test_a_file_that_is_no_calibration_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(text)
    with pytest.raises(BundleError, match=r"calibration\.json"):
        Calibration.load(path)


def test_rows_that_cannot_be_calibrated_are_refused(spec: FeedSpec) -> None:
    with pytest.raises(DataError, match=r"\[rows, 2\]"):
        Calibration.fit(spec, np.zeros((3, 1)), np.zeros((3, 1)))
    with pytest.raises(DataError, match="not finite"):
        Calibration.fit(spec, np.full((3, 2), np.inf), np.zeros((3, 2)))


def test_a_response_whose_rows_do_not_speak_against_it_keeps_the_identity(spec: FeedSpec) -> None:
    random = np.random.default_rng(3)
    logits = random.normal(-3, 1, (4000, len(spec.responses))).astype(np.float32)
    labels = (random.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    assert Calibration.fit(spec, logits, labels) == Calibration.identity(spec)
    shifted = Calibration.fit(spec, logits + 1, labels)
    assert all(platt.shift < -0.5 for platt in shifted.responses.values())
    np.testing.assert_allclose(shifted.probability(logits + 1).sum(0), labels.sum(0), rtol=0.01)
