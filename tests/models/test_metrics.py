from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefeed.errors import DataError
from sparsefeed.models import metrics


def auc_by_pairs(y: np.ndarray, s: np.ndarray, w: np.ndarray) -> float:
    above = (s[:, None] > s[None, :]) + 0.5 * (s[:, None] == s[None, :])
    pairs = np.outer(w * y, w * (1 - y))
    return float((pairs * above).sum() / pairs.sum())


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.25, 1.0]), st.integers(-2, 2), st.sampled_from([0.5, 1.0, 3.0])),
        min_size=2,
        max_size=30,
    )
)
def test_auc_equals_counting_every_pair_with_ties_weights_and_fractions(rows: list[tuple[float, int, float]]) -> None:
    y, s, w = (np.array(column, float) for column in zip(*rows, strict=True))
    if (w * y).sum() == 0 or (w * (1 - y)).sum() == 0:
        assert np.isnan(metrics.auc(y, s, w))
    else:
        assert metrics.auc(y, s, w) == pytest.approx(auc_by_pairs(y, s, w), abs=1e-12)


def test_a_perfect_order_has_auc_one_a_reversed_one_zero_and_ties_a_half() -> None:
    y = np.array([0, 0, 1, 1])
    assert metrics.auc(y, [1, 2, 3, 4]) == 1
    assert metrics.auc(y, [4, 3, 2, 1]) == 0
    assert metrics.auc(y, [7, 7, 7, 7]) == 0.5


def test_expected_metrics_are_the_mean_over_drawn_labels() -> None:
    random = np.random.default_rng(0)
    truth = random.uniform(0.05, 0.6, 2000)
    predicted = np.clip(truth + random.normal(0, 0.1, 2000), 0.01, 0.99)
    drawn = [(random.random(2000) < truth).astype(float) for _ in range(300)]
    for metric, tolerance in ((metrics.auc, 2e-3), (metrics.log_loss, 2e-3), (metrics.predicted_over_actual, 1e-2)):
        mean = np.mean([metric(labels, predicted) for labels in drawn])
        assert metric(truth, predicted) == pytest.approx(mean, abs=tolerance)


def test_expected_log_loss_is_least_at_the_truth() -> None:
    truth = np.random.default_rng(0).uniform(0.1, 0.9, 100)
    best = metrics.log_loss(truth, truth)
    assert best < metrics.log_loss(truth, truth * 0.95)
    assert best == pytest.approx(-(truth * np.log(truth) + (1 - truth) * np.log(1 - truth)).mean())


def test_log_loss_of_a_certain_mistake_is_finite() -> None:
    assert 30 < metrics.log_loss([1.0], [0.0]) < 40


def test_weights_count_rows_as_often_as_they_say() -> None:
    y, p, w = np.array([0, 1, 1]), np.array([0.2, 0.6, 0.3]), np.array([1, 2, 3])
    repeated = np.repeat(np.arange(3), w)
    for metric in (metrics.auc, metrics.log_loss, metrics.normalised_entropy, metrics.predicted_over_actual):
        assert metric(y, p, w) == pytest.approx(metric(y[repeated], p[repeated]))


def test_normalised_entropy_of_the_mean_is_one_and_of_one_class_undefined() -> None:
    y = np.array([0, 0, 0, 1])
    assert metrics.normalised_entropy(y, np.full(4, 0.25)) == pytest.approx(1)
    assert metrics.normalised_entropy(y, [0.1, 0.1, 0.1, 0.9]) < 1
    assert np.isnan(metrics.normalised_entropy(np.zeros(4), np.full(4, 0.1)))


def test_predicted_over_actual_finds_a_model_that_predicts_double() -> None:
    assert metrics.predicted_over_actual([1, 0, 0, 1], [1.0, 1.0, 1.0, 1.0]) == 2
    assert np.isnan(metrics.predicted_over_actual([0, 0], [0.1, 0.2]))


def test_a_calibration_curve_bins_by_prediction_and_keeps_every_row() -> None:
    predicted = np.repeat([0.1, 0.2, 0.3, 0.4], 25)
    actual = np.tile([1.0, 0.0, 0.0, 0.0, 0.0], 20)
    curve = metrics.calibration_curve(actual, predicted, num_bins=4)
    np.testing.assert_allclose(curve.predicted, [0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(curve.actual, 0.2)
    np.testing.assert_allclose(curve.weight, 25)
    few = metrics.calibration_curve(actual, np.full(100, 0.2), num_bins=10)
    assert few.weight.tolist() == [100]


def test_the_curve_of_the_truth_lies_on_the_diagonal() -> None:
    truth = np.random.default_rng(0).uniform(0, 1, 10_000)
    curve = metrics.calibration_curve(truth, truth, num_bins=20)
    assert len(curve.weight) == 20
    np.testing.assert_allclose(curve.predicted, curve.actual)
    np.testing.assert_allclose(curve.weight, 500, atol=1)


@pytest.mark.parametrize(
    ("labels", "scores", "said"),
    [
        ([1, 0], [0.5], "one length"),
        ([], [], "at least 1"),
        ([[1], [0]], [[1], [2]], "one-dimensional"),
        ([1, 0], [np.nan, 0], "NaN"),
    ],
)
def test_columns_that_do_not_fit_are_refused(labels: list[float], scores: list[float], said: str) -> None:
    with pytest.raises(DataError, match=said):
        metrics.auc(labels, scores)
