from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefeed.models import metrics, slices

FIRST_OWN_ROW = 4  # rows 2 and 3 are a hashed tail


def names_of(slicing: slices.Slicing) -> list[str]:
    return [slicing.names[number] for number in slicing.slice_N]


def test_ids_are_sliced_by_the_training_rows_that_have_them() -> None:
    times = {4: 0, 5: 1, 6: 5, 7: 6, 8: 50, 9: 51}
    trained = np.repeat(list(times), list(times.values()))
    sliced = slices.by_frequency(np.array(list(times)), trained, FIRST_OWN_ROW)
    assert names_of(sliced) == ["0", "1-5", "1-5", "6-50", "6-50", ">50"]


def test_null_and_tail_are_not_admitted_however_often_their_row_was_trained_on() -> None:
    trained = np.repeat([1, 2, 3], 100)
    assert names_of(slices.by_frequency(np.array([1, 2, 3, 4]), trained, FIRST_OWN_ROW)) == ["not admitted"] * 3 + ["0"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=40), st.lists(st.integers(1, 12), max_size=200))
def test_slices_by_frequency_equal_counting_row_by_row(ids: list[int], trained: list[int]) -> None:
    bounds = {"0": (0, 0), "1-5": (1, 5), "6-50": (6, 50), ">50": (51, 1000)}
    sliced = slices.by_frequency(np.array(ids), np.array(trained, np.int64), FIRST_OWN_ROW)
    for row, name in zip(ids, names_of(sliced), strict=True):
        if name == "not admitted":
            assert row < FIRST_OWN_ROW
        else:
            assert bounds[name][0] <= trained.count(row) <= bounds[name][1]


def test_positions_are_sliced_where_they_were_logged() -> None:
    sliced = slices.by_position(np.array([0, 1, 2, 3, 4, 10, 11, 500], np.int32))
    assert names_of(sliced) == ["not logged", "1", "2-3", "2-3", "4-10", "4-10", ">10", ">10"]


def test_a_slice_is_measured_on_its_rows_alone_and_one_without_rows_is_left_out() -> None:
    random = np.random.default_rng(0)
    truth = random.uniform(0.1, 0.9, (60, 2))
    labels = (random.random((60, 2)) < truth).astype(np.float32)
    model = truth.astype(np.float32)
    sliced = slices.by_position(np.repeat([1, 5], 30))
    found = slices.measure(sliced, ["click", "like"], labels, truth, {"ips": model, "flat": np.full_like(model, 0.5)})
    assert list(found) == ["1", "4-10"]
    assert [part["num_rows"] for part in found.values()] == [30, 30]
    like = found["4-10"]["responses"]["like"]
    assert like["ips"]["auc"] == metrics.auc(labels[30:, 1], model[30:, 1])
    assert like["flat"]["predicted_over_actual"] == pytest.approx(15 / labels[30:, 1].sum())
    assert like["ips"]["expected"]["log_loss"] < like["flat"]["expected"]["log_loss"] == pytest.approx(np.log(2))


def test_without_a_truth_nothing_is_expected_and_what_is_not_defined_is_nan() -> None:
    found = slices.measure(
        slices.by_position(np.array([1])), ["click"], np.zeros((1, 1)), None, {"ips": np.full((1, 1), 0.2, np.float32)}
    )
    measured = found["1"]["responses"]["click"]["ips"]
    assert list(measured) == ["auc", "log_loss", "predicted_over_actual"]
    assert np.isnan(measured["auc"])
    assert measured["log_loss"] == pytest.approx(-np.log(0.8))


def test_surfaces_are_sliced_the_largest_first_and_small_ones_together() -> None:
    surfaces = np.repeat([f"s{i}" for i in range(10)], [3, 9, 4, 4, 4, 4, 4, 4, 4, 1])
    sliced = slices.by_surface(surfaces)
    assert sliced.names == ("s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "others")
    wanted = [name if name not in ("s0", "s9") else "others" for name in surfaces]
    assert names_of(sliced) == wanted
    assert slices.by_surface(np.array(["b", "a"])).names == ("a", "b")


def test_ids_are_new_old_or_none() -> None:
    assert names_of(slices.by_newness(np.array([0, 1, -1, 1], np.int8))) == ["old", "new", "none", "new"]
