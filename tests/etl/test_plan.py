"""The serving plan: JSON and back, and its arithmetic against the formula."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sparsefeed.errors import BundleError
from sparsefeed.etl.kernels.dense import standardise
from sparsefeed.etl.plan import DensePlan, ServingPlan


def test_a_plan_is_read_as_it_was_written(etl_folder: Path, tmp_path: Path) -> None:
    plan = ServingPlan.load(etl_folder / "transform" / "plan.json")
    plan.save(tmp_path / "plan.json")
    assert ServingPlan.load(tmp_path / "plan.json") == plan
    assert [lookup.name for lookup in plan.lookups][:2] == ["member_id", "clicked_posts"]
    assert plan.member_dense.names == ("member_activity",)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": 99}', '{"format": 1, "name": "feed"}'])
def test_what_is_no_plan_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(BundleError, match=r"plan\.json: not a serving plan"):
        ServingPlan.load(tmp_path / "plan.json")


def test_a_plan_of_another_format_is_refused(etl_folder: Path, tmp_path: Path) -> None:
    value = json.loads((etl_folder / "transform" / "plan.json").read_text()) | {"format": 2}
    (tmp_path / "plan.json").write_text(json.dumps(value))
    with pytest.raises(BundleError, match="another format"):
        ServingPlan.load(tmp_path / "plan.json")


def test_standardising_is_fill_log_centre_and_scale() -> None:
    values = np.array([np.nan, -3.0, 0.0, 10.0], np.float32)
    before = values.copy()
    got = standardise(values, fill=5.0, log=True, mean=1.0, std=2.0)
    np.testing.assert_allclose(got, (np.log1p([5.0, 0.0, 0.0, 10.0]) - 1.0) / 2.0, rtol=1e-6)
    np.testing.assert_array_equal(values, before)
    assert standardise(values[2:], fill=0.0, log=False, mean=4.0, std=0.0).tolist() == [-4.0, 6.0]


def test_a_side_without_dense_features_gives_an_empty_matrix() -> None:
    assert DensePlan((), (), (), (), ()).apply(np.zeros((3, 0), np.float32)).shape == (3, 0)


def test_a_side_is_standardised_as_each_of_its_columns_is() -> None:
    raw = np.random.default_rng(0).normal(scale=30, size=(101, 5)).astype(np.float32)
    raw[::7, 2] = np.nan
    before = raw.copy()
    plan = DensePlan(
        tuple("abcde"), (1, 2, 3, 4, 5), (True, False, True, True, False), (0, 1, 2, 3, 4), (1, 2, 0, 3, 0)
    )
    got = plan.apply(raw)
    assert got.dtype == np.float32
    for i in range(5):
        column = standardise(raw[:, i], plan.fill[i], plan.log[i], plan.mean[i], plan.std[i])
        np.testing.assert_allclose(got[:, i], column, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(raw, before)
