"""Evaluation of given scores on a hand-written ETL folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models import metrics
from sparsefeed.models.calibration import Calibration
from sparsefeed.models.evaluate import evaluate, fit_calibration

VALUE: dict[str, Any] = {
    "name": "hand",
    # Rows 2 to 5 of each are the hashed tail.
    "tables": [{"name": "post", "dim": 4, "tail_rows": 4}, {"name": "member", "dim": 4, "tail_rows": 4}],
    "features": [
        {"kind": "id", "name": "post_id", "table": "post", "side": "candidate"},
        {"kind": "id", "name": "member_id", "table": "member", "side": "member"},
        {"kind": "dense", "name": "age", "side": "candidate"},
    ],
    "responses": [{"name": "click", "column": "click"}, {"name": "like", "column": "like"}],
    "sessions": {},
}


class Given:
    """Scores as a Scorer gives them: the logit of what decides the labels, and of the second response its inverse."""

    def score(self, folder: Path, random_only: bool = False) -> np.ndarray:
        assert random_only
        decisive = pq.read_table(folder / "part-0.parquet")["decisive"].to_numpy()
        return np.stack([decisive, -decisive], axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training and evaluation rows of 12 members (rows 2 to 13) and posts, and the truth beside."""
    root = tmp_path_factory.mktemp("hand")
    random = np.random.default_rng(0)
    for split, num in (("train", 400), ("eval", 600)):
        decisive = random.normal(size=num)
        truth = 1 / (1 + np.exp(-np.stack([decisive, decisive], axis=1)))
        y = (random.random(truth.shape) < truth).astype(np.float32)
        columns = {
            "y_click": y[:, 0], "y_like": y[:, 1], "age": random.normal(size=num).astype(np.float32),
            "post_id": random.integers(2, 14 if split == "train" else 16, num),
            "member_id": random.integers(2, 14, num),
            "impression_id": np.arange(num), "position": random.integers(1, 15, num).astype(np.int32),
            "random": np.ones(num, np.int8), "decisive": decisive,
        }  # fmt: skip
        (root / split).mkdir()
        pq.write_table(pa.table(columns), root / split / "part-0.parquet")
        if split == "eval":
            (root / "truth").mkdir()
            drawn_from = {"impression_id": np.arange(num), "p_click": truth[:, 0], "p_like": truth[:, 1]}
            pq.write_table(pa.table(drawn_from), root / "truth" / "part-0.parquet")
    return root


def measured(folder: Path, spec: FeedSpec | None = None, **options: Any) -> dict[str, Any]:
    scorers: Any = {"ips": Given()}
    return evaluate(spec or FeedSpec.parse(VALUE), folder, scorers, **options)


def test_metrics_within_members_leave_out_those_who_share_a_row(folder: Path) -> None:
    rows = pq.read_table(folder / "eval" / "part-0.parquet")
    member, y, score = (rows[name].to_numpy() for name in ("member_id", "y_click", "decisive"))
    own = member >= 2 + 4
    click = measured(folder, against=())["responses"]["click"]["ips"]
    assert click["grouped_auc"] == pytest.approx(metrics.grouped_auc(y[own], score[own], member[own]))
    assert click["ndcg"] == pytest.approx(metrics.ndcg(y[own], score[own], member[own]))


def test_against_the_truth_the_right_order_is_the_best_there_is(folder: Path) -> None:
    result = measured(folder, truth=folder / "truth", against=())
    right, wrong = (result["responses"][name]["ips"]["expected"] for name in ("click", "like"))
    assert right["ndcg"] == pytest.approx(1)
    assert wrong["ndcg"] < result["responses"]["like"]["constant"]["expected"]["ndcg"] < 1
    assert right["grouped_auc"] == pytest.approx(1 - wrong["grouped_auc"])
    assert result["responses"]["click"]["constant"]["expected"]["grouped_auc"] == pytest.approx(0.5)


def test_without_a_member_nothing_is_measured_within_members(folder: Path) -> None:
    spec = FeedSpec.parse(VALUE | {"logs": {"member": None, "position": None}})
    result = measured(folder, spec, against=())
    assert np.isnan(result["responses"]["click"]["ips"]["grouped_auc"])
    assert np.isnan(result["responses"]["click"]["ips"]["ndcg"])
    assert list(result["slices"]) == ["post"]


def test_slices_hold_every_row_once_and_the_model_beside_the_best_baseline(folder: Path) -> None:
    result = measured(folder, truth=folder / "truth", against=("logistic",))
    assert result["compared"][0] == "ips"
    assert result["compared"][1] in ("logistic", "constant")
    assert list(result["slices"]) == ["member", "post", "position"]
    for slices in result["slices"].values():
        assert sum(part["num_rows"] for part in slices.values()) == result["num_rows"] == 600
        for part in slices.values():
            assert [list(models) for models in part["responses"].values()] == [result["compared"]] * 2
    # Posts 14 and 15 are in no training row; a member or post of the tail is not known by its count.
    assert list(result["slices"]["post"]) == ["not admitted", "0", "6-50"]
    assert list(result["slices"]["member"]) == ["not admitted", "6-50"]
    assert list(result["slices"]["position"]) == ["1", "2-3", "4-10", ">10"]


def test_rows_that_say_so_are_sliced_by_surface_and_newness(folder: Path, tmp_path: Path) -> None:
    whole = pq.read_table(folder / "eval" / "part-0.parquet")
    num = len(whole)
    more = {
        "surface": pa.array(np.where(np.arange(num) % 3 == 0, "search", "home")),
        "new_member": pa.array((np.arange(num) % 2).astype(np.int8)),
        "new_post": pa.array(np.full(num, -1, np.int8)),
    }
    for name, column in more.items():
        whole = whole.append_column(name, column)
    (tmp_path / "eval").mkdir()
    pq.write_table(whole, tmp_path / "eval" / "part-0.parquet")
    (tmp_path / "train").symlink_to(folder / "train")
    found = measured(tmp_path, against=())["slices"]
    assert list(found) == ["member", "post", "position", "surface", "new_member", "new_post"]
    rows = {by: {name: part["num_rows"] for name, part in found[by].items()} for by in list(found)[3:]}
    assert rows == {
        "surface": {"home": 400, "search": 200}, "new_member": {"old": 300, "new": 300}, "new_post": {"none": 600},
    }  # fmt: skip
    y, score = whole["y_click"].to_numpy(), whole["decisive"].to_numpy()
    searched = np.arange(num) % 3 == 0
    auc = found["surface"]["search"]["responses"]["click"]["ips"]["auc"]
    assert auc == pytest.approx(metrics.auc(y[searched], score[searched]))


def test_the_calibrated_model_is_measured_for_every_response(folder: Path) -> None:
    calibrated = measured(folder, truth=folder / "truth", against=())["calibrated"]
    assert list(calibrated) == ["click", "like"]
    for response in calibrated.values():
        assert response["predicted_over_actual"] == pytest.approx(1, abs=0.1)
        assert {"auc", "log_loss", "normalised_entropy", "grouped_auc", "ndcg"} < set(response)


def test_the_calibration_that_is_asked_for_is_fitted_and_measured(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    fit = Calibration.fit

    def watched(*arguments: Any, kind: Any) -> Calibration:
        asked.append(kind)
        return fit(*arguments, kind=kind)

    monkeypatch.setattr(Calibration, "fit", watched)
    scorer: Any = Given()
    for kind in ("platt", "isotonic", "none"):
        of_click = measured(folder, against=(), calibration=kind)["calibrated"]["click"]
        assert of_click["predicted_over_actual"] == pytest.approx(1, abs=0.2)
        fit_calibration(FeedSpec.parse(VALUE), scorer, folder, kind)
    # Export need not score a row to leave the logits as they are.
    assert asked == ["platt"] * 3 + ["isotonic"] * 3 + ["none"] * 2  # two halves measured, all for the bundle


def test_without_calibration_nothing_is_scored(folder: Path) -> None:
    nobody: Any = None
    spec = FeedSpec.parse(VALUE)
    assert fit_calibration(spec, nobody, folder, "none") == Calibration.identity(spec)
