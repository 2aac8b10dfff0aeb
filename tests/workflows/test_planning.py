"""`sparsefeed plan`: rows and sizes as people write them, and a plan without a workspace."""

from __future__ import annotations

import pytest

from sparsefeed.errors import SpecError
from sparsefeed.models.plan import Plan
from sparsefeed.workflows.planning import plan_training, read_rows, read_size
from sparsefeed.workflows.recipe import load_recipe
from sparsefeed.workflows.workspace import Workspace
from tests.workflows.test_cli import sparsefeed

ROWS = {"--members": "1e9", "--creators": "1e8", "--post": "2_000_000_000", "--hashtags": "1e6"}


@pytest.mark.parametrize(
    ("text", "num"),
    [
        ("80GiB", 80 * 2**30),
        ("50GB", 50 * 10**9),
        ("1e9", 10**9),
        ("1.5 TB", 1_500_000_000_000),
        ("7", 7),
        ("2K", 2000),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, num: int) -> None:
    assert read_size(text) == num


@pytest.mark.parametrize("text", ["", "GiB", "8 0GB", "-1GB", "nan", "80gb"])
def test_what_is_no_size_is_said(text: str) -> None:
    with pytest.raises(SpecError, match="allowed: a size as 80GiB"):
        read_size(text)


def test_rows_are_given_by_table() -> None:
    feed = load_recipe("tiny").feed
    assert read_rows(feed, ROWS) == {"member": 10**9, "creator": 10**8, "post": 2 * 10**9, "hashtag": 10**6}
    for text in ("0", "-5", "many", "inf", "nan", "1e30"):
        with pytest.raises(SpecError, match=f"--members is '{text}'; allowed: a number of rows"):
            read_rows(feed, {"--members": text})


def test_a_plan_for_machines_that_are_not_at_hand_is_printed_and_written(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("plan")
    words = [word for option in ROWS.items() for word in option]
    done = sparsefeed("plan", "--gpus", "64", "--memory", "80GiB", *words, "--out", "plan.json", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    for said in ("member", "row-wise", "the fullest device holds", "samples a second", "HPS sparse folders", "int8"):
        assert said in done.stdout
    plan = Plan.model_validate_json((folder / "plan.json").read_text())
    assert plan.topology.devices == 64
    assert plan.device_bytes < 80 * 2**30
    recipe = load_recipe("tiny")
    again = plan_training(recipe, Workspace(folder), ROWS, 64, 8, {"memory_bytes": 80 * 2**30}, None)
    assert again == plan
