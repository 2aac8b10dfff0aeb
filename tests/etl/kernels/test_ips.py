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


# KuaiRand-27K, by surface (`tab`): exposures and clicks of random and of policy sessions (Gao et al., CIKM 2022).
KUAIRAND = {
    0: (0, 0, 63_923_841, 7_413_981),
    1: (1_178_025, 208_847, 215_925_023, 95_793_407),
    2: (764, 87, 9_949_649, 4_220_780),
    9: (0, 0, 60_678, 60_213),
    11: (6_755, 0, 217_754, 129),
    14: (515, 0, 14_991, 4),
}


def kuairand() -> NDArray:
    return np.array(
        [
            [[[policy - policy_clicks, policy_clicks], [random - random_clicks, random_clicks]]]
            for random, random_clicks, policy, policy_clicks in KUAIRAND.values()
        ]
    )


def test_real_surfaces_without_random_traffic_weigh_one_and_rare_random_clicks_have_wide_bounds() -> None:
    table = ips.weigh(kuairand())
    assert table.reason[:, 0].tolist() == ["no random session", "", "", "no random session", "", ""]
    np.testing.assert_allclose(table.by_cell[1, 0], [1.4787498, 0.3996144], rtol=1e-6)
    np.testing.assert_allclose(table.by_cell[2, 0], [1.5389843, 0.2684361], rtol=1e-6)
    assert (table.by_cell[[0, 3]] == 1).all()
    assert table.by_cell[4:, 0, 1].tolist() == [0.0, 0.0]  # no random click: the policy's clicks would weigh nothing
    assert np.isnan(table.bounds[[0, 3, 4, 5], 0, 1]).all()
    widths = table.bounds[:, 0, 1, 1] / table.bounds[:, 0, 1, 0]
    assert widths[1] < 1.02 < 1.4 < widths[2]
    # Smoothing borrows from the surface's other positions; where those have no random click either, nothing is known.
    assert ips.weigh(kuairand(), smoothing=100.0).by_cell[4, 0, 1] == 0
    neighbour = np.concatenate([kuairand()[4:5], kuairand()[1:2]], axis=1)
    assert ips.weigh(neighbour, smoothing=100.0).by_cell[0, 0, 1] > 0


def test_bounds_hold_the_true_ratio_19_times_of_20() -> None:
    random = np.random.default_rng(0)
    n, p = np.array([4000, 900]), np.array([0.3, 0.12])
    inside = 0
    for _ in range(1000):
        positives = random.binomial(n, p)
        table = ips.weigh(np.stack([n - positives, positives], axis=-1)[None, None])
        low, high = table.bounds[0, 0, 1]
        inside += low <= p[1] / p[0] <= high
    assert 930 <= inside <= 970


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([None, 1.1, 3.0]), st.sampled_from([0.0, 50.0]))
def test_normalised_weights_sum_to_the_rows_of_each_position_whatever_was_smoothed_and_clipped(
    seed: int, clip: float | None, smoothing: float
) -> None:
    surface, bucket, is_random, y = rows(seed)
    w, table = weights(surface, bucket, is_random, y, clip=clip, smoothing=smoothing, self_normalise=True)  # type: ignore[arg-type]
    for s, b in np.argwhere(table.covered):
        production = (surface == s) & (bucket == b) & ~is_random
        assert w[production].sum() == pytest.approx(production.sum(), rel=1e-12)


def test_what_clipping_changed_and_what_the_weights_cost_is_told_in_rows() -> None:
    counts = np.array([[[[60, 40], [90, 10]], [[50, 50], [50, 50]]]])
    table = ips.weigh(counts, clip=2.0)
    assert table.unclipped[0, 0].tolist() == pytest.approx([1.5, 0.25])
    assert table.by_cell[0, 0].tolist() == [1.5, 0.5]
    assert table.num_clipped(2.0) == 40
    assert table.num_clipped(None) == 0
    w = np.r_[np.full(60, 1.5), np.full(40, 0.5), np.ones(100)]
    assert table.effective_sample_size == pytest.approx(w.sum() ** 2 / (w**2).sum())


def test_a_weight_of_a_sampled_row_bears_one_over_its_rate_in_a_cell_of_its_own() -> None:
    weight, rates = np.array([1.0, 0.8, 0.4]), np.array([1.0, 0.5, 0.1])
    table = ips.with_strata(weight, rates)
    cells = ips.strata_cells(np.array([0, 0, 1, 2, 2], np.int32), np.array([0, 2, 0, 1, 2], np.int8), 3)
    assert table[cells].tolist() == pytest.approx([1.0, 10.0, 0.8, 0.8, 4.0])
    assert len(set(cells.tolist())) == 5
    assert ips.with_strata(weight, np.ones(1)).tolist() == weight.tolist()
