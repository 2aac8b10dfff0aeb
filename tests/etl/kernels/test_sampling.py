"""Sampling: rates by response, the same rows every time, and corrected sums that are those of all rows."""

from __future__ import annotations

import numpy as np
import pytest

from sparsefeed.etl.kernels.sampling import kept, strata, stratum_of

RATES = {"click": 0.5, "like": 0.8}


def test_strata_are_the_rates_once_each_one_first() -> None:
    assert strata(RATES, 0.1).tolist() == [1.0, 0.8, 0.5, 0.1]
    assert strata({"click": 1.0}, 1.0).tolist() == [1.0]


def test_a_row_has_the_greatest_rate_of_its_responses_and_random_rows_are_all_kept() -> None:
    labels = {
        "click": np.array([1, 0, 1, 0, 0, 0], bool),
        "like": np.array([0, 1, 1, 0, 0, 0], bool),
        "share": np.array([0, 0, 0, 1, 0, 0], bool),
    }
    random = np.array([0, 0, 0, 0, 0, 1], bool)
    stratum = stratum_of(labels, random, RATES, 0.1)
    assert strata(RATES, 0.1)[stratum].tolist() == [0.5, 0.8, 0.8, 1.0, 0.1, 1.0]


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.9])
def test_the_share_kept_is_the_rate_and_another_seed_keeps_others(rate: float) -> None:
    keys = np.random.default_rng(0).integers(0, 2**64, 200_000, np.uint64)
    rates = np.full(len(keys), rate)
    one, again, other = kept(keys, rates, 0), kept(keys, rates, 0), kept(keys, rates, 1)
    assert (one == again).all()
    sigma = np.sqrt(rate * (1 - rate) / len(keys))
    assert abs(one.mean() - rate) < 4 * sigma
    assert abs((one & other).mean() - rate**2) < 4 * np.sqrt(rate**2 / len(keys))


def test_rate_one_keeps_every_row_and_a_row_kept_at_a_rate_is_kept_at_a_greater() -> None:
    keys = np.append(np.random.default_rng(1).integers(0, 2**64, 1000, np.uint64), np.uint64(2**64 - 1))
    assert kept(keys, np.ones(len(keys)), 0)[:-1].all()
    few, many = kept(keys, np.full(len(keys), 0.2), 3), kept(keys, np.full(len(keys), 0.6), 3)
    assert (~few | many).all()
