from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsefeed.errors import DataError
from sparsefeed.models import baselines, metrics


def test_the_constant_is_the_weighted_rate() -> None:
    labels = np.array([[1, 0], [0, 0], [0, 1]], np.float32)
    weights = np.array([[2, 1], [1, 1], [1, 2]], np.float32)
    predicted = baselines.constant(labels, weights, 4)
    assert predicted.shape == (4, 2)
    np.testing.assert_allclose(predicted, [[0.5, 0.5]] * 4)


def planted(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    dense = random.normal(size=(rows, 3)).astype(np.float32)
    truth = 1 / (1 + np.exp(-np.stack([2 * dense[:, 0], -2 * dense[:, 1]], axis=1)))
    return dense, (random.random((rows, 2)) < truth).astype(np.float32), truth


def test_trees_find_the_dense_feature_that_decides_each_response() -> None:
    dense, labels, _ = planted(4000, 0)
    dense_eval, _, truth = planted(1000, 1)
    predicted = baselines.trees(dense, labels, np.ones_like(labels), dense_eval, num_trees=30, num_leaves=7)
    for response in range(2):
        ceiling = metrics.auc(truth[:, response], truth[:, response])
        assert metrics.auc(truth[:, response], predicted[:, response]) > ceiling - 0.02


def test_trees_follow_the_weights() -> None:
    dense, labels, _ = planted(4000, 0)
    weights = np.where(labels == 1, 3.0, 1.0).astype(np.float32)
    plain = baselines.trees(dense, labels, np.ones_like(labels), dense, num_trees=20, num_leaves=7)
    heavy = baselines.trees(dense, labels, weights, dense, num_trees=20, num_leaves=7)
    # Positives that count threefold make a rate of a half one of three quarters.
    np.testing.assert_allclose(plain.mean(0), 0.5, atol=0.02)
    np.testing.assert_allclose(np.average(heavy, axis=0, weights=weights), 0.75, atol=0.02)


def test_the_same_seed_gives_the_same_trees() -> None:
    dense, labels, _ = planted(500, 0)
    first, second = (baselines.trees(dense, labels, np.ones_like(labels), dense, num_trees=5, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_trees_without_a_dense_feature_are_refused() -> None:
    with pytest.raises(DataError, match="no dense feature"):
        baselines.trees(np.zeros((4, 0), np.float32), np.zeros((4, 1)), np.ones((4, 1)), np.zeros((1, 0), np.float32))


def test_the_line_finds_slopes_and_rate_and_follows_weights() -> None:
    dense, labels, truth = planted(20_000, 0)
    predicted = baselines.logistic(dense, labels, np.ones_like(labels), dense)
    assert np.abs(predicted - truth).mean() < 0.01
    weights = np.where(labels == 1, 3.0, 1.0).astype(np.float32)
    heavy = baselines.logistic(dense, labels, weights, dense)
    np.testing.assert_allclose(np.average(heavy, axis=0, weights=weights), 0.75, atol=0.01)


def test_the_line_of_a_separable_response_is_finite_and_of_no_features_the_rate() -> None:
    x = np.array([[-1], [-1], [1], [1]], np.float32)
    labels = (x > 0).astype(np.float32)
    predicted = baselines.logistic(x, labels, np.ones_like(labels), x)
    assert ((predicted > 0.5) == (labels > 0.5)).all()
    assert (predicted > 0).all()
    none = baselines.logistic(np.zeros((4, 0), np.float32), labels, np.ones_like(labels), np.zeros((2, 0), np.float32))
    np.testing.assert_allclose(none, 0.5)


def test_the_net_finds_the_dense_feature_that_decides_each_response_and_follows_weights() -> None:
    dense, labels, _ = planted(8000, 0)
    dense_eval, _, truth = planted(1000, 1)
    options = {"num_parameters": 2000, "batch_size": 200, "learning_rate": 1e-2}
    predicted = baselines.mlp(dense, labels, np.ones_like(labels), dense_eval, **options)
    for response in range(2):
        ceiling = metrics.auc(truth[:, response], truth[:, response])
        assert metrics.auc(truth[:, response], predicted[:, response]) > ceiling - 0.01
    weights = np.where(labels == 1, 3.0, 1.0).astype(np.float32)
    heavy = baselines.mlp(dense, labels, weights, dense, **options)
    np.testing.assert_allclose(np.average(heavy, axis=0, weights=weights), 0.75, atol=0.05)


def test_the_net_is_the_same_for_the_same_seed_and_leaves_torchs_own_alone() -> None:
    dense, labels, _ = planted(500, 0)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, other = (
        baselines.mlp(dense, labels, np.ones_like(labels), dense, num_parameters=500, seed=seed) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()
    assert torch.rand(1) == expected


@pytest.mark.parametrize(("asked", "width"), [(0, 1), (1000, 28), (100_000, 312), (10**9, 1024)])
def test_the_net_is_widened_to_the_parameters_asked_for_and_no_further_than_1024(asked: int, width: int) -> None:
    found = baselines.mlp_width(num_dense=3, num_responses=2, num_parameters=asked)
    assert found == width
    parameters = [h * h + h * (3 + 2 + 2) + 2 for h in (found, found + 1)]
    if 1 < found < 1024:
        assert parameters[0] <= asked < parameters[1]


def test_the_net_without_a_dense_feature_is_refused() -> None:
    none, one = np.zeros((4, 0), np.float32), np.zeros((4, 1), np.float32)
    with pytest.raises(DataError, match="no dense feature"):
        baselines.mlp(none, one, one, none, num_parameters=10)
