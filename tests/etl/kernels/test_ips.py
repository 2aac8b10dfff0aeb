"""IPS weights against plain arithmetic and the two exact identities."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparsefeed.etl.kernels import ips


def rows(seed: int, n: int = 4000) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    random = np.random.default_rng(seed)
    surface = random.integers(0, 2, n)
    bucket = random.integers(0, 3, n)
    is_random = random.random(n) < 0.3
    y = random.random(n) < np.where(is_random, 0.1, 0.25) / (1 + bucket)
    return surface, bucket, is_random, y


def weights(
    surface: NDArray, bucket: NDArray, is_random: NDArray, y: NDArray, **options: float
) -> tuple[NDArray, ips.IpsTable]:
    table = ips.weigh(ips.count(surface, bucket, is_random, y, 2, 3), **options)
    return table.weight[ips.cells(surface, bucket, is_random, y, table.covered)], table


def test_a_weight_is_the_random_rate_over_the_production_rate() -> None:
    # 10 random impressions, 2 clicks; 40 production impressions, 20 clicks.
    counts = np.array([[[[20, 20], [8, 2]]]])
    table = ips.weigh(counts)
    assert table.weight.tolist() == pytest.approx([1.0, 0.8 / 0.5, 0.2 / 0.5])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_at_every_position_the_weights_sum_to_n_and_restore_the_random_rate(seed: int) -> None:
    surface, bucket, is_random, y = rows(seed)
    w, table = weights(surface, bucket, is_random, y)
    for s in range(2):
        for b in range(3):
            here = (surface == s) & (bucket == b)
            production = here & ~is_random
            if not table.covered[s, b]:
                continue
            assert w[production].sum() == pytest.approx(production.sum(), rel=1e-12)
            expected = y[here & is_random].mean()
            assert (w * y)[production].sum() / w[production].sum() == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_random_rows_weigh_one_and_have_cell_zero() -> None:
    surface, bucket, is_random, y = rows(1)
    table = ips.weigh(ips.count(surface, bucket, is_random, y, 2, 3))
    cells = ips.cells(surface, bucket, is_random, y, table.covered)
    assert (cells[is_random] == 0).all()
    assert (cells[~is_random] > 0).all()
    assert table.weight[0] == 1


def test_counts_of_days_add_up_to_the_counts_of_all_days() -> None:
    surface, bucket, is_random, y = rows(2)
    half = len(y) // 2
    parts = [ips.count(surface[s], bucket[s], is_random[s], y[s], 2, 3) for s in (slice(half), slice(half, None))]
    np.testing.assert_array_equal(parts[0] + parts[1], ips.count(surface, bucket, is_random, y, 2, 3))


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ([[50, 5], [0, 0]], "no random session"),
        ([[0, 0], [50, 5]], "no production session"),
        ([[50, 0], [40, 5]], "no production response"),
        ([[0, 50], [40, 5]], "every production row responded"),
    ],
)
def test_a_cell_no_weight_can_mend_weighs_one_and_says_why(cell: list[list[int]], reason: str) -> None:
    table = ips.weigh(np.array([[cell]]))
    assert table.reason[0, 0] == reason
    assert table.weight.tolist() == [1.0, 1.0, 1.0]
    assert ips.cells(np.array([0]), np.array([0]), np.array([False]), np.array([True]), table.covered).tolist() == [0]


def test_no_random_response_weighs_the_responses_zero() -> None:
    table = ips.weigh(np.array([[[[60, 40], [100, 0]]]]))
    assert table.weight.tolist() == pytest.approx([1.0, 1 / 0.6, 0.0])


def test_clipping_holds_the_weights_and_smoothing_draws_them_to_the_surface() -> None:
    counts = np.array([[[[50, 50], [99, 1]], [[50, 50], [50, 50]]]])
    clipped = ips.weigh(counts, clip=2.0)
    assert clipped.weight.min() == 0.5
    assert clipped.weight.max() <= 2.0
    plain, smooth = ips.weigh(counts), ips.weigh(counts, smoothing=1000.0)
    surface_ratio = (51 / 200) / (100 / 200)
    assert abs(smooth.weight[2] - surface_ratio) < abs(plain.weight[2] - surface_ratio)


def test_positions_fall_into_the_bucket_that_begins_at_or_before_them() -> None:
    edges = np.array([1, 3, 10])
    assert ips.position_buckets(np.array([0, 1, 2, 3, 9, 10, 99]), edges).tolist() == [0, 0, 0, 1, 1, 2, 2]


def test_a_surface_unseen_in_the_fit_is_not_covered() -> None:
    table = ips.weigh(np.array([[[[20, 20], [8, 2]]]]))
    assert ips.cells(
        np.array([-1, 0]), np.zeros(2, int), np.zeros(2, bool), np.ones(2, bool), table.covered
    ).tolist() == [0, 2]
