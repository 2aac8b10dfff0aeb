"""The suite `quality`: what is written beside each peer is of the same feeds, and is what the targets ask for."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import tomllib

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import quality_suite  # noqa: E402
import results  # noqa: E402
from peers import environment  # noqa: E402

RECORD = results.Recorder("quality", "python benchmarks/run.py quality", "abc", "cpu", "2026-11-26")
RESPONSES = ("click", "like", "comment", "reshare")
MODELS = ("ips", "calibrated", "int8", "drawn", "knowable", *quality_suite.NAMES, *quality_suite.MERLIN_MODELS)
METRICS = ("auc", "log_loss", "predicted_over_actual")


@pytest.fixture
def found() -> dict[tuple[str, str, str], list[float]]:
    """Draws for every model; merlin-models' on fewer feeds, 0.1 below the ranker on each."""
    random = np.random.default_rng(0)
    values = {key: random.random(5).tolist() for key in itertools.product(RESPONSES, MODELS, METRICS)}
    for response, model in itertools.product(RESPONSES, quality_suite.MERLIN_MODELS):
        values[response, model, "auc"] = [value - 0.1 for value in values[response, "ips", "auc"][:3]]
        values[response, model, "log_loss"] = [value + 0.1 for value in values[response, "ips", "log_loss"][:3]]
    return values


def test_a_peer_on_fewer_feeds_is_compared_on_those_alone(found: dict[tuple[str, str, str], list[float]]) -> None:
    rows = results.latest(quality_suite._rows(RECORD, "click", found))
    for peer in quality_suite.MERLIN_MODELS.values():
        row = rows["quality", "click", "auc", peer]
        assert row.value == pytest.approx(np.mean(found["click", "ips", "auc"][:3]))
        assert row.peer_value == pytest.approx(row.value - 0.1)
        for metric in ("auc", "log_loss"):
            assert rows["quality", "click", f"{metric}, ahead by at least", peer].value == pytest.approx(0.1)
    all_feeds = rows["quality", "click", "auc", "constant"]
    assert all_feeds.value == pytest.approx(np.mean(found["click", "ips", "auc"]))


def test_every_target_of_a_response_is_a_row_the_suite_writes(
    found: dict[tuple[str, str, str], list[float]],
) -> None:
    written = results.latest(row for response in RESPONSES for row in quality_suite._rows(RECORD, response, found))
    targets = tomllib.loads(results.TARGETS.read_text("utf-8"))["quality"]
    asked = {("quality", t["case"], t["metric"], t.get("peer", "")) for t in targets if t["case"] in RESPONSES}
    assert asked - set(written) == set()
    for peer in quality_suite.MERLIN_MODELS.values():
        assert {case for _, case, _, of in asked if of == peer} == set(RESPONSES)


@pytest.mark.parametrize(
    "path", sorted(environment.REQUIREMENTS.parent.glob("requirements*.txt")), ids=lambda p: p.name
)
def test_the_peers_are_pinned_and_bring_no_cuda_build(path: Path) -> None:
    names = [line.split("#")[0].strip() for line in path.read_text("utf-8").splitlines()]
    pins = [name for name in names if name]
    assert all("==" in pin for pin in pins)
    assert not [pin for pin in pins if pin.startswith(("nvidia-", "tensorflow==", "torch==", "triton=="))]
