from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from sparsefeed.errors import BundleError
from sparsefeed.workflows.serving.steps.drift import FEWEST, ScoreReference, ScoreWindow

REFERENCE = ScoreReference(np.array([1.0, 2.0, 3.0]), np.array([0.25, 0.25, 0.25, 0.25]), 2.0)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def readings(window: ScoreWindow) -> dict[str, float]:
    return {one.name.removeprefix("sparsefeed_score_"): one.value for one in window.readings()}


def test_scores_like_the_held_out_ones_have_no_drift_and_others_have() -> None:
    window = ScoreWindow(REFERENCE)
    window.add(np.tile(np.array([0.5, 1.5, 2.5, 3.5], np.float32), 500))
    same = readings(window)
    assert same["psi"] == pytest.approx(0, abs=1e-9)
    assert same["mean"] == pytest.approx(2.0)
    assert (same["window_posts"], same["reference_mean"]) == (2000, 2.0)
    window.add(np.full(2000, 9.0, np.float32))
    actual, expected = np.array([500.5, 500.5, 500.5, 2500.5]) / 4002, np.full(4, (1000 + 0.5) / 4002)
    formula = sum((a - e) * math.log(a / e) for a, e in zip(actual, expected, strict=True))
    assert readings(window)["psi"] == pytest.approx(formula)
    assert formula > 0.25


def test_a_score_on_an_edge_is_in_the_bin_above_as_in_the_bundle() -> None:
    on_edges = ScoreWindow(REFERENCE)
    on_edges.add(np.tile(np.array([0.0, 1.0, 2.0, 3.0], np.float32), 500))
    assert readings(on_edges)["psi"] == pytest.approx(0, abs=1e-9)


def test_scores_leave_the_window_slot_by_slot() -> None:
    clock = Clock()
    window = ScoreWindow(REFERENCE, window_s=300, slots=10, clock=clock)
    window.add(np.full(300, 9.0, np.float32))
    clock.now += 150
    window.add(np.full(100, 1.0, np.float32))
    assert (readings(window)["window_posts"], readings(window)["mean"]) == (400, 7.0)
    clock.now += 180
    assert (readings(window)["window_posts"], readings(window)["mean"]) == (100, 1.0)
    clock.now += 1000
    assert readings(window) == {"window_posts": 0, "reference_mean": 2.0}


def test_too_few_scores_have_no_index() -> None:
    window = ScoreWindow(REFERENCE)
    window.add(np.ones(FEWEST - 1, np.float32))
    assert "psi" not in readings(window)
    window.add(np.ones(1, np.float32))
    assert "psi" in readings(window)


def test_without_a_reference_the_mean_alone_is_told() -> None:
    window = ScoreWindow(None)
    window.add(np.ones(1000, np.float32))
    assert readings(window) == {"window_posts": 1000, "mean": 1.0}


def test_a_bundles_metrics_give_the_reference_or_none(tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    assert ScoreReference.load(file) is None
    file.write_text("{}")
    assert ScoreReference.load(file) is None
    file.write_text(json.dumps({"score": {"edges": [1, 2], "shares": [0.5, 0.25, 0.25], "mean": 1.5}}))
    found = ScoreReference.load(file)
    assert found is not None
    assert (found.edges.tolist(), found.shares.tolist(), found.mean) == ([1, 2], [0.5, 0.25, 0.25], 1.5)


@pytest.mark.parametrize(
    "score",
    [
        {"edges": [1], "shares": [1], "mean": 0},
        {"edges": [2, 1], "shares": [0.5, 0.25, 0.25], "mean": 0},
        {"edges": [1], "shares": [0.5, 0.6], "mean": 0},
        {"edges": [1], "shares": [0.5, 0.5]},
        [],
    ],
)
def test_a_reference_that_is_none_is_an_error_of_the_bundle(tmp_path: Path, score: object) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps({"score": score}))
    with pytest.raises(BundleError, match="`score` cannot be read"):
        ScoreReference.load(tmp_path / "metrics.json")
