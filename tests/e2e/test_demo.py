"""The demo from its command line, small: every stage, every artefact; a second run has little to do."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from sparsefeed.models.bundle import open_version, verify
from sparsefeed.workflows.recipe import load_recipe
from tests.e2e.conftest import ports

pytestmark = pytest.mark.triton


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe with a world a hundredth of its size."""
    value = load_recipe("tiny").model_dump(mode="json")
    world = {"num_sessions_per_day": 300, "num_members": 200, "num_creators": 50}
    value["simulate"] |= {**world, "num_posts_per_day": 300, "num_hashtags": 40}
    value["train"] |= {"batch_size": 1024}
    value["serving"] |= ports()
    path = tmp_path_factory.mktemp("recipe") / "hundredth.yaml"
    path.write_text(yaml.safe_dump(value, sort_keys=False))
    return path


def demo(recipe: Path, folder: Path) -> tuple[str, float]:
    started = time.perf_counter()
    program = Path(sys.executable).parent / "sparsefeed"
    done = subprocess.run(
        [str(program), "demo", "--recipe", str(recipe)],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout, time.perf_counter() - started


@pytest.mark.timeout(600)
def test_one_command_goes_the_whole_way_and_a_second_time_is_quick(recipe: Path, tmp_path: Path) -> None:
    shown, seconds = demo(recipe, tmp_path)
    artifacts = tmp_path / "artifacts"
    version = open_version(artifacts / "bundles")
    verify(version.path)
    assert f"bundle {version.id}, report artifacts/report.html" in " ".join(shown.split())
    page = (artifacts / "report.html").read_text("utf-8")
    assert version.id in page
    assert "<script" not in page
    bench = json.loads((artifacts / "bench.json").read_text())
    assert [(load["candidates"], load["concurrency"]) for load in bench["loads"]] == [
        (100, 1),
        (100, 4),
        (500, 1),
        (500, 4),
    ]
    assert all(0 < load["p50_ms"] <= load["p95_ms"] for load in bench["loads"])
    ranking = json.loads((artifacts / "ranking.json").read_text())
    assert sorted(post["after"] for post in ranking["posts"]) == list(range(1, 11))
    assert not list(tmp_path.rglob("*.pkl"))

    again, seconds_again = demo(recipe, tmp_path)
    assert open_version(artifacts / "bundles").id == version.id
    assert "nothing to do" in again
    assert seconds_again < seconds
