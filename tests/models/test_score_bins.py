from __future__ import annotations

import numpy as np
import pytest

from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.calibration import Calibration
from sparsefeed.models.score_bins import score_bins
from tests import logs

SPEC: FeedSpec = logs.spec()  # click weighs 1, like 2


def test_bins_have_alike_many_rows_and_are_of_the_score_that_is_served() -> None:
    logits = np.random.default_rng(0).normal(size=(10_000, 2)).astype(np.float32)
    found = score_bins(SPEC, Calibration.identity(SPEC), logits)
    assert found is not None
    scores = (1 / (1 + np.exp(-logits.astype(np.float64)))) @ [1.0, 2.0]
    assert len(found["shares"]) == len(found["edges"]) + 1 == 20
    assert found["shares"] == pytest.approx([0.05] * 20, abs=2e-3)
    np.testing.assert_allclose(found["edges"], np.quantile(scores, np.arange(1, 20) / 20), atol=1e-4)
    assert found["mean"] == pytest.approx(scores.mean(), abs=1e-5)
    assert found["num_rows"] == 10_000


def test_scores_that_tie_give_fewer_bins_and_no_empty_edge() -> None:
    logits = np.repeat(np.array([[0.0, 0.0], [2.0, 2.0]], np.float32), [30, 70], axis=0)
    found = score_bins(SPEC, Calibration.identity(SPEC), logits)
    assert found is not None
    assert np.all(np.diff(found["edges"]) > 0)
    assert sum(found["shares"]) == pytest.approx(1)
    assert found["shares"][0] == 0  # nothing is below the lowest score, which is an edge
    assert sorted(found["shares"])[-2:] == pytest.approx([0.3, 0.7])


def test_no_rows_have_no_spread() -> None:
    assert score_bins(SPEC, Calibration.identity(SPEC), np.zeros((0, 2), np.float32)) is None
