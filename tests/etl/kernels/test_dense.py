"""Dense features against plain arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sparsefeed.etl.kernels.dense import Moments, standardise

COLUMN = np.array([1.0, np.nan, -2.0, 7.5, 0.0], np.float32)


@pytest.mark.parametrize("log", [False, True])
def test_a_value_is_filled_then_logged_then_standardised(log: bool) -> None:
    filled = [3.0 if math.isnan(x) else float(x) for x in COLUMN]
    expected = [math.log(1 + max(x, 0)) if log else x for x in filled]
    found = standardise(COLUMN, 3.0, log, 0.5, 2.0)
    assert found.dtype == np.float32
    assert found.tolist() == pytest.approx([(x - 0.5) / 2 for x in expected], rel=1e-6)


def test_a_column_is_left_as_it_is_and_a_constant_one_only_centred() -> None:
    column = np.full(3, 4, np.float32)
    assert standardise(column, 0.0, False, 4.0, 0.0).tolist() == [0.0, 0.0, 0.0]
    assert column.tolist() == [4.0, 4.0, 4.0]


def test_moments_of_parts_add_up_to_those_of_the_whole() -> None:
    values = np.random.default_rng(1).normal(5, 2, 1000).astype(np.float32)
    whole = Moments.of(values, 0.0, False)
    parts = Moments.merge([Moments.of(part, 0.0, False) for part in np.split(values, [1, 400])])
    assert (parts.num, parts.mean, parts.std) == (whole.num, whole.mean, whole.std)
    assert whole.mean == pytest.approx(values.mean(dtype=np.float64))
    assert whole.std == pytest.approx(values.std(dtype=np.float64, ddof=1))
