"""Target encoding against the formula, and without a look at a row's own label."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefeed.models import metrics
from sparsefeed.models.encoding import encode


def test_rows_to_predict_have_the_smoothed_rate_of_all_rows() -> None:
    ids = np.array([3, 3, 3, 5])
    labels, weights = np.array([[1], [0], [0], [1]], np.float32), np.array([[2], [1], [1], [1]], np.float32)
    _, encoded = encode([ids], labels, weights, [np.array([3, 5, 9])], prior=10)
    rate = 3 / 5
    wanted = [(2 + 10 * rate) / (4 + 10), (1 + 10 * rate) / (1 + 10), rate]
    np.testing.assert_allclose(encoded[:, 0], wanted, rtol=1e-6)
    np.testing.assert_allclose(encoded[:, 1], np.log1p([3, 1, 0]), rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(5, 60))
def test_a_rows_own_label_never_changes_its_code(seed: int, rows: int) -> None:
    random = np.random.default_rng(seed)
    ids, labels = random.integers(0, 5, rows), (random.random((rows, 1)) < 0.5).astype(np.float32)
    weights = np.ones_like(labels)
    row = int(random.integers(rows))
    flipped = labels.copy()
    flipped[row] = 1 - flipped[row]
    # The mean of all rows moves by 1 / rows; without a prior nothing else may.
    before, _ = encode([ids], labels, weights, [ids], prior=1e-12)
    after, _ = encode([ids], flipped, weights, [ids], prior=1e-12)
    if before[row, 1] > 0:  # some other row has its id
        np.testing.assert_allclose(after[row], before[row], atol=1e-6)


def test_noise_is_not_learnt_from_ids_that_say_nothing() -> None:
    random = np.random.default_rng(0)
    ids, labels = random.integers(0, 2000, 10_000), (random.random((10_000, 1)) < 0.3).astype(np.float32)
    trained, _ = encode([ids], labels, np.ones_like(labels), [ids])
    assert abs(metrics.auc(labels[:, 0], trained[:, 0]) - 0.5) < 0.02
    own = np.bincount(ids, labels[:, 0])[ids] / np.bincount(ids)[ids]
    assert metrics.auc(labels[:, 0], own) > 0.7, "what leaks when a row is encoded from itself"


def test_no_column_encodes_to_none() -> None:
    labels = np.ones((3, 2), np.float32)
    trained, encoded = encode([], labels, labels, [])
    assert trained.shape == (3, 0)
    assert encoded.shape == (0, 0)
