"""`sparsefeed tune --width`: which widths are measured, which is chosen, and what is shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from sparsefeed.etl.plan import ServingPlan
from sparsefeed.models.config import ModelConfig
from sparsefeed.models.dense import DenseModel
from sparsefeed.progress import Progress
from sparsefeed.workflows import tune
from sparsefeed.workflows.cli import app
from sparsefeed.workflows.recipe import Recipe
from sparsefeed.workflows.serving.config import ServingConfig
from sparsefeed.workflows.serving.cost import Cost, Measure, Work
from sparsefeed.workflows.show import show_width
from sparsefeed.workflows.tune import Rung, WidthTuning, candidates_of, ladder, tune_width
from sparsefeed.workflows.workspace import Workspace
from tests import logs

RECIPE = Recipe(
    feed=logs.spec(),
    model=ModelConfig(hidden=(16, 8), cross_rank=2),
    serving=ServingConfig(dense_budget_ms=2.0, budget_candidates=200),
)


def saying(*p50_ms: float) -> Measure:
    """A measure that runs each work once; each width's works take as long, whatever the candidates."""

    def measure(works: Sequence[Work], progress: Progress) -> list[Cost]:
        for work in works:
            work()
        each = len(works) // len(p50_ms)
        return [Cost(ms, 3 * ms, 7) for ms in p50_ms for _ in range(each)]

    return measure


def tuning(budget_ms: float | None, *p50_ms: float) -> WidthTuning:
    """Widths 8, 16, ... that take so long for 500 candidates, and next to nothing for 100."""
    rungs = tuple(
        Rung((8 * i,), 1000 * i, 2000 * i, {100: Cost(0.01, 0.02, 7), 500: Cost(ms, 9 * ms, 7)})
        for i, ms in enumerate(p50_ms, 1)
    )
    return WidthTuning(rungs, (16,), budget_ms, 500, "a machine, 2 cores")


def test_the_ladder_is_a_quarter_to_four_times_the_widths() -> None:
    assert ladder((128, 64)) == [(32, 16), (64, 32), (128, 64), (256, 128), (512, 256)]


def test_the_recipes_own_width_is_on_the_ladder_as_it_is_and_no_width_twice() -> None:
    assert ladder((100,)) == [(24,), (48,), (100,), (200,), (400,)]
    assert ladder((8,)) == [(8,), (16,), (32,)]


@given(st.lists(st.integers(1, 4096), min_size=1, max_size=4))
def test_every_other_rung_is_of_multiples_of_8_and_wider_than_the_one_before(hidden: list[int]) -> None:
    rungs = ladder(hidden)
    assert tuple(hidden) in rungs
    assert all(width % 8 == 0 for rung in rungs if rung != tuple(hidden) for width in rung)
    assert [sum(rung) for rung in rungs] == sorted(sum(rung) for rung in rungs)
    assert len(rungs) == len(set(rungs)) >= 2


@pytest.mark.parametrize(
    ("settings", "counts"),
    [
        ({}, [100, 500]),
        ({"budget_candidates": 200}, [100, 200, 500]),
        ({"max_candidates": 300}, [100]),
        ({"max_candidates": 50}, [50]),
        ({"max_candidates": 50, "budget_candidates": 20}, [20]),
    ],
)
def test_as_many_candidates_are_measured_as_a_request_may_have(settings: dict[str, int], counts: list[int]) -> None:
    assert candidates_of(ServingConfig(**settings)) == counts


def test_the_widest_is_the_last_whose_median_for_the_budgets_candidates_fits() -> None:
    widest = tuning(2.0, 1.0, 2.0, 2.1).widest
    assert widest is not None
    assert widest.hidden == (16,)


def test_none_is_the_widest_where_none_fits_or_there_is_no_budget() -> None:
    assert tuning(0.5, 1.0, 2.0).widest is None
    assert tuning(None, 1.0, 2.0).widest is None


def test_a_recipe_is_tuned_without_logs_and_the_result_kept(tmp_path: Path) -> None:
    found = tune_width(RECIPE, Workspace(tmp_path), measure=saying(0.5, 1.9, 3.0, 4.0))
    assert [rung.hidden for rung in found.rungs] == [(8, 8), (16, 8), (32, 16), (64, 32)]
    assert [list(rung.costs) for rung in found.rungs] == [[100, 200, 500]] * 4
    for rung in found.rungs:
        model = DenseModel(RECIPE.feed, ModelConfig(hidden=rung.hidden, cross_rank=2))
        assert rung.parameters == sum(one.numel() for one in model.parameters())
    assert found.widest is not None
    assert found.widest.hidden == (16, 8)
    kept = json.loads((tmp_path / "width.json").read_text())
    assert (kept["widest"], kept["rungs"][1]["costs"]["200"]["p50_ms"]) == ([16, 8], 1.9)


def test_graphs_are_opened_as_they_are_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads, opened = [], tune.open_graph

    def spy(path: Path, num_threads: int, plan: ServingPlan) -> object:
        threads.append(num_threads)
        return opened(path, num_threads, plan)

    monkeypatch.setattr(tune, "open_graph", spy)
    served = RECIPE.serving.model_copy(update={"dense_threads": 2})
    tune_width(RECIPE.model_copy(update={"serving": served}), Workspace(tmp_path), measure=saying(1, 2, 3, 4))
    assert threads == [2] * 4


def shown(capsys: pytest.CaptureFixture[str], found: WidthTuning) -> list[str]:
    show_width(found)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:-1])) <= 80
    return [" ".join(line.split()) for line in lines]


def test_the_table_says_what_each_width_costs_and_whether_it_fits(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, tuning(2.0, 0.5, 1.0, 2.0, 4.0))
    assert lines[0] == "milliseconds by posts; a machine, 2 cores, 7 runs"
    assert lines[2] == "hidden parameters a post p50 p99 p50 p99 2 ms"
    assert lines[4:7] == [
        "16 (recipe) 2,000 4,000 0.01 0.02 1.00 9.00 yes",
        "24 3,000 6,000 0.01 0.02 2.00 18.00 yes",
        "32 4,000 8,000 0.01 0.02 4.00 36.00 no",
    ]
    budget = "the widest within 2 ms for 500 candidates at the median"
    assert lines[7] == f"{budget}: write it into the recipe and train: model: {{hidden: [24]}}"


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (tuning(2.0, 1.0, 2.0, 3.0), "the widest within 2 ms for 500 candidates at the median is the recipe's own"),
        (tuning(0.1, 1.0, 2.0), "none is within 0.1 ms for 500 candidates at the median: raise serving.dense_budget"),
        (tuning(None, 1.0, 2.0), "no budget: give the recipe serving.dense_budget_ms"),
    ],
)
def test_without_a_wider_one_it_says_so(capsys: pytest.CaptureFixture[str], found: WidthTuning, words: str) -> None:
    lines = shown(capsys, found)
    assert lines[-1].startswith(words)
    assert ("within" in lines[1]) == (found.budget_ms is not None)


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(words), env={"TERM": "dumb", "COLUMNS": "120"})
    return result.exit_code, " ".join(result.output.split())


def test_the_command_tunes_a_users_recipe_and_leaves_it_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "feed.yaml"
    recipe.write_text("# mine\n" + yaml.safe_dump(RECIPE.model_dump(mode="json", exclude_none=True)))
    before = recipe.read_bytes()

    def found(loaded: Recipe, workspace: Workspace, _: Progress) -> WidthTuning:
        return tune_width(loaded, workspace, measure=saying(0.5, 1.5, 1.9, 4.0))

    monkeypatch.setattr(tune, "tune_width", found)
    status, output = run("tune", "--width", "-r", str(recipe), "-w", str(tmp_path / "run"))
    assert status == 0, output
    assert "model: {hidden: [32, 16]}" in output
    assert recipe.read_bytes() == before
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["width.json"]


def test_what_to_tune_must_be_said() -> None:
    status, output = run("tune")
    assert status == 2
    assert "say what to tune; there is: --width, or --serving" in output


def test_help_names_the_options() -> None:
    assert "--width" in run("tune", "--help")[1]
    assert "--over-budget" in run("export", "--help")[1]


def test_over_budget_goes_with_a_bundle_alone(tmp_path: Path) -> None:
    status, output = run("export", "--over-budget", "--for", "hugectr", str(tmp_path))
    assert status == 2
    assert "writes no bundle" in output
