from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sparsefeed.models.isotonic import MAX_KNOTS, MAX_LOGIT, Isotonic, fit_isotonic


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def fitted(z: np.ndarray, y: np.ndarray, w: np.ndarray | None = None) -> Isotonic | None:
    return fit_isotonic(z, y, np.ones(len(z)) if w is None else w, 1.0, 0.0)


@st.composite
def rows(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits with ties, labels that rise, fall or know nothing of them, weights with zeros."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num, spread = draw(st.sampled_from([1, 30, 1000, 4000])), draw(st.sampled_from([0.001, 1, 30, 1e7]))
    z = random.normal(draw(st.sampled_from([-6, 0, 5])), spread, num)
    z = np.round(z, draw(st.sampled_from([0, 1, 12])))
    slope, shift = draw(st.sampled_from([-2, 0.5, 2, 10])), draw(st.sampled_from([-3, 0, 3]))
    y = random.random(num) < sigmoid(np.clip(slope * (z - z.mean()) / spread + shift, -30, 30))
    w = random.choice([0.0, 0.3, 1.0, 20.0], num) if draw(st.booleans()) else np.ones(num)
    return z, y.astype(float), w


@settings(max_examples=60, deadline=None)
@given(rows(), st.floats(0.01, 3), st.floats(-3, 3))
def test_whatever_the_rows_a_curve_rises_within_its_bounds(
    given_rows: tuple[np.ndarray, np.ndarray, np.ndarray], scale: float, shift: float
) -> None:
    curve = fit_isotonic(*given_rows, scale, shift)
    if curve is None:
        return
    z = given_rows[0]
    assert 2 <= len(curve.knots) <= MAX_KNOTS
    calibrated = curve.logits(np.sort(np.concatenate([z, np.linspace(z.min() - 9, z.max() + 9, 500)])))
    assert (np.diff(calibrated) >= 0).all()
    assert (np.abs(calibrated) <= MAX_LOGIT).all()
    np.testing.assert_allclose(curve.logits(np.array([-1e30, 1e30])), [curve.values[0], curve.values[-1]], rtol=1e-6)


def test_a_curve_is_the_interpolation_of_its_knots() -> None:
    curve = Isotonic(knots=(-2, 0, 1), values=(-3, -3, 4))
    z = np.array([-9, -2, -1, 0, 0.25, 1, 9])
    np.testing.assert_allclose(curve.logits(z), [-3, -3, -3, -3, -1.25, 4, 4])
    low, high, slope = curve.segments()
    assert low.shape == (MAX_KNOTS - 1,)
    by_segment = curve.values[0] + (slope * (np.clip(z[:, None], low, high) - low)).sum(1)
    np.testing.assert_allclose(by_segment, curve.logits(z), atol=1e-6)


def test_rows_on_the_line_give_the_line() -> None:
    random = np.random.default_rng(0)
    z = random.normal(-1, 1.5, 400_000)
    y = (random.random(len(z)) < sigmoid(0.8 * z + 0.3)).astype(float)
    curve = fit_isotonic(z, y, np.ones(len(z)), 0.8, 0.3)
    assert curve is not None
    inner = np.linspace(-4, 2, 100)
    np.testing.assert_allclose(curve.logits(inner), 0.8 * inner + 0.3, atol=0.15)
    assert curve.knots[0] == z.min()
    assert curve.knots[-1] == z.max()


def test_a_curve_follows_a_truth_that_is_no_line() -> None:
    random = np.random.default_rng(1)
    z = random.normal(-2, 1.2, 200_000)
    step = lambda z: -3 + 2.5 * np.tanh(2 * (z + 2))  # noqa: E731
    y = (random.random(len(z)) < sigmoid(step(z))).astype(float)
    curve = fit_isotonic(z, y, np.ones(len(z)), 1.1, 0.5)
    assert curve is not None
    inner = np.linspace(-3.5, 0.5, 100)
    np.testing.assert_allclose(sigmoid(curve.logits(inner)), sigmoid(step(inner)), atol=0.06)
    np.testing.assert_allclose(sigmoid(curve.logits(z)).sum(), y.sum(), rtol=0.01)


def test_ties_are_one_level_and_a_row_of_weight_two_is_two_rows() -> None:
    random = np.random.default_rng(2)
    z = np.round(random.normal(0, 2, 4000), 1)
    y = (random.random(4000) < sigmoid(z)).astype(float)
    once, order = fitted(z, y), random.permutation(4000)
    again = fitted(z[order], y[order])
    assert once is not None
    assert again is not None
    np.testing.assert_allclose(once.values, again.values, rtol=1e-6)
    none = np.zeros(50)
    with_none = fitted(np.append(z, none + 99), np.append(y, none), np.append(np.ones(4000), none))
    assert with_none == once


@pytest.mark.parametrize(
    ("z", "y"),
    [
        (np.zeros(500), np.arange(500) % 2.0),  # one level
        (np.arange(500.0), np.zeros(500)),
        (np.arange(500.0), np.ones(500)),
        (np.arange(500.0), (np.arange(500) > 250).astype(float)),  # separable: nothing says how steep
        (np.arange(20.0), np.arange(20) % 2.0),  # few
        (np.zeros(0), np.zeros(0)),
        (np.repeat([0.0, 0.001], 500), np.repeat([0.0, 1.0, 0.0, 1.0], [400, 100, 100, 400])),  # too near
    ],
)
def test_rows_that_do_not_make_two_blocks_give_no_curve(z: np.ndarray, y: np.ndarray) -> None:
    assert fitted(z, y) is None


def test_a_line_that_does_not_rise_has_no_curve() -> None:
    random = np.random.default_rng(3)
    z = random.normal(size=2000)
    y = (random.random(2000) < sigmoid(z)).astype(float)
    assert fit_isotonic(z, y, np.ones(2000), -1.0, 0.0) is None


@pytest.mark.parametrize(
    ("knots", "values", "message"),
    [
        ((0, 1), (0, 1, 2), "each knot has one"),
        ((0,), (0,), "at least 2"),
        (range(33), range(33), "at most 32"),
        ((1, 0), (0, 1), "must rise"),
        ((1, 1 + 1e-9), (0, 1), "as float32 too"),
        ((0, 1), (1, 0), "must not fall"),
        ((0, float("nan")), (0, 1), "finite"),
        ((0, 1), (0, float("inf")), "finite"),
        ((0, 1e39), (0, 1), "less than or equal"),
    ],
)
def test_knots_that_make_no_curve_are_refused(
    knots: tuple[float, ...], values: tuple[float, ...], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        Isotonic(knots=tuple(knots), values=tuple(values))
