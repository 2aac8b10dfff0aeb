"""Metrics within groups, against loops over groups, pairs and orders."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefeed.errors import DataError
from sparsefeed.models import metrics

Rows = list[tuple[int, float, int, float]]
ROWS = st.lists(
    st.tuples(
        st.integers(-1, 2),  # group
        st.sampled_from([0.0, 0.25, 1.0]),
        st.integers(-2, 2),  # score
        st.sampled_from([0.5, 1.0, 3.0]),
    ),
    min_size=1,
    max_size=24,
)


def grouped_auc_by_pairs(rows: Rows) -> float:
    means, sizes = [], []
    for group in {row[0] for row in rows}:
        _, y, s, w = (np.array(column, float) for column in zip(*(r for r in rows if r[0] == group), strict=True))
        pairs = np.outer(w * y, w * (1 - y))
        np.fill_diagonal(pairs, 0)
        if pairs.sum() > 0:
            above = (s[:, None] > s[None, :]) + 0.5 * (s[:, None] == s[None, :])
            means.append((pairs * above).sum() / pairs.sum())
            sizes.append(w.sum())
    return float(np.average(means, weights=sizes)) if means else math.nan


def ndcg_by_orders(groups: np.ndarray, y: np.ndarray, s: np.ndarray) -> float:
    """Tied rows in all their orders."""
    found = []
    for group in np.unique(groups):
        labels, scores = y[groups == group], s[groups == group]
        discount = 1 / np.log2(np.arange(len(labels)) + 2)
        ideal = float((np.sort(labels)[::-1] * discount).sum())
        if ideal > 0:
            orders = [list(o) for o in permutations(range(len(labels))) if (np.diff(scores[list(o)]) <= 0).all()]
            found.append(np.mean([(labels[order] * discount).sum() for order in orders]) / ideal)
    return float(np.mean(found)) if found else math.nan


@settings(max_examples=200, deadline=None)
@given(ROWS)
def test_grouped_auc_equals_counting_pairs_group_by_group(rows: Rows) -> None:
    groups, y, s, w = (np.array(column) for column in zip(*rows, strict=True))
    assert metrics.grouped_auc(y, s, groups, w) == pytest.approx(grouped_auc_by_pairs(rows), abs=1e-9, nan_ok=True)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0.0, 0.3, 1.0]), st.integers(0, 2)), min_size=1, max_size=7)
)
def test_ndcg_equals_the_mean_over_all_orders_of_tied_rows(rows: list[tuple[int, float, int]]) -> None:
    groups, y, s = (np.array(column) for column in zip(*rows, strict=True))
    assert metrics.ndcg(y, s, groups) == pytest.approx(ndcg_by_orders(groups, y, s), abs=1e-9, nan_ok=True)


@settings(max_examples=50, deadline=None)
@given(ROWS)
def test_the_order_of_rows_and_the_names_of_groups_do_not_matter(rows: Rows) -> None:
    groups, y, s, w = (np.array(column) for column in zip(*rows, strict=True))
    mixed = np.random.default_rng(len(rows)).permutation(len(rows))
    names = np.array([f"member {9 - group}" for group in groups])
    first = metrics.grouped_auc(y, s, groups, w), metrics.ndcg(y, s, groups)
    second = (
        metrics.grouped_auc(y[mixed], s[mixed], names[mixed], w[mixed]),
        metrics.ndcg(y[mixed], s[mixed], names[mixed]),
    )
    assert first == pytest.approx(second, nan_ok=True)


def test_of_drawn_labels_one_group_has_the_auc_of_all_rows() -> None:
    random = np.random.default_rng(0)
    y, s, w = random.integers(0, 2, 500), random.integers(0, 50, 500), random.uniform(0.5, 2, 500)
    assert metrics.grouped_auc(y, s, np.zeros(500, int), w) == pytest.approx(metrics.auc(y, s, w))


def test_a_score_that_knows_members_alone_orders_no_feed() -> None:
    random = np.random.default_rng(0)
    member = np.repeat(np.arange(50), 40)
    rate = np.linspace(0.05, 0.9, 50)[member]
    y = (random.random(2000) < rate).astype(float)
    assert metrics.auc(y, rate) > 0.7
    assert metrics.grouped_auc(y, rate, member) == pytest.approx(0.5)


def test_groups_count_by_their_rows_and_those_of_one_class_not_at_all() -> None:
    groups = np.array([0, 0, 1, 1, 1, 1, 2, 2])
    y = np.array([1, 0, 1, 0, 0, 0, 1, 1])
    s = np.array([2, 1, 0, 1, 1, 1, 5, 6])
    assert metrics.grouped_auc(y, s, groups) == pytest.approx((2 * 1.0 + 4 * 0.0) / 6)
    assert np.isnan(metrics.grouped_auc(y[6:], s[6:], groups[6:]))


def test_the_expected_auc_of_a_group_is_its_mean_over_drawn_labels() -> None:
    random = np.random.default_rng(0)
    truth = random.uniform(0.2, 0.8, (20, 40))
    predicted = np.clip(truth + random.normal(0, 0.2, truth.shape), 0, 1).ravel()
    groups = np.repeat(np.arange(20), 40)
    drawn = [metrics.grouped_auc(random.random(800) < truth.ravel(), predicted, groups) for _ in range(300)]
    assert metrics.grouped_auc(truth.ravel(), predicted, groups) == pytest.approx(np.mean(drawn), abs=3e-3)


def test_a_row_of_an_uncertain_label_alone_is_no_pair() -> None:
    assert np.isnan(metrics.grouped_auc([0.3, 0.7], [1.0, 2.0], [0, 1]))


def test_ndcg_of_known_orders() -> None:
    y = np.array([3, 2, 3, 0, 1, 2])  # gains, in the order shown: DCG 6.861, ideal 7.141 (linear gains)
    assert metrics.ndcg(y, -np.arange(6), np.zeros(6, int)) == pytest.approx(6.861 / 7.141, abs=1e-4)
    assert metrics.ndcg(y, y, np.zeros(6, int)) == pytest.approx(1)
    one = np.array([0, 0, 1])
    assert metrics.ndcg(one, [3, 2, 1], np.zeros(3, int)) == pytest.approx(0.5)  # 1 / log2(4)
    chance = (1 + 1 / math.log2(3) + 0.5) / 3
    assert metrics.ndcg(one, np.zeros(3), np.zeros(3, int)) == pytest.approx(chance)


def test_sessions_count_alike_and_those_without_a_response_not_at_all() -> None:
    groups = np.array([0, 0, 0, 1, 1, 2])
    y = np.array([0, 0, 1, 1, 0, 0])
    s = np.array([3, 2, 1, 2, 1, 9])
    assert metrics.ndcg(y, s, groups) == pytest.approx((0.5 + 1) / 2)
    assert np.isnan(metrics.ndcg(y[5:], s[5:], groups[5:]))


def test_groups_that_do_not_fit_are_refused() -> None:
    for metric in (metrics.grouped_auc, metrics.ndcg):
        with pytest.raises(DataError, match=r"groups \(3,\).*one group a row"):
            metric([1, 0], [0.5, 0.2], [0, 0, 1])


def test_a_million_rows_in_a_hundred_thousand_groups_are_measured_without_a_loop() -> None:
    random = np.random.default_rng(0)
    groups, y, s = random.integers(0, 100_000, 10**6), random.random(10**6), random.random(10**6)
    assert metrics.grouped_auc(y, s, groups) == pytest.approx(0.5, abs=0.01)
    assert 0.5 < metrics.ndcg(y, s, groups) < 1
