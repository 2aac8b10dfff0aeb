"""`sparsefeed tune --serving`: which counts are tried, which is best, and the copy of the recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsefeed.errors import SpecError
from sparsefeed.workflows import tune_serving as tuning
from sparsefeed.workflows.recipe import load_recipe
from sparsefeed.workflows.serving.config import ServingConfig
from sparsefeed.workflows.serving.perf import Load
from sparsefeed.workflows.tune_serving import Choice, choices, lines, tune_serving, write_choice
from sparsefeed.workflows.workspace import Workspace


@pytest.mark.parametrize("cores", [1, 2, 6, 64])
def test_the_dense_steps_threads_are_no_more_than_the_cores(cores: int) -> None:
    tried = choices(cores)
    assert len(set(tried)) == len(tried)
    assert all(one.dense_threads * one.dense <= cores for one in tried)
    assert {(1, cores), (cores, 1)} <= {(one.dense_threads, one.dense) for one in tried}


def test_the_choice_that_answers_most_is_the_first(tmp_path: Path) -> None:
    served: list[ServingConfig] = []
    rates: list[float] = []

    def serve(config: ServingConfig) -> Load:
        served.append(config)
        good = (config.dense_threads, config.instances.dense, config.instances.transform) == (1, 2, 1)
        rates.append(300.0 + len(served) if good else 100.0)
        return Load(4, rates[-1], 5.0, 6.0, 7.0, 8.0 + len(served))

    recipe = load_recipe("tiny")
    tried = tune_serving(recipe, Workspace(tmp_path), num_cores=2, serve=serve)
    assert tried[0].choice == Choice(1, 2, 1)
    assert tried[0].requests_per_s == max(rates) > 300  # the better of its two turns
    assert len(served) == 2 * len(choices(2)) == 2 * len(tried)
    assert {config.instances.hps for config in served} == {recipe.serving.instances.hps}
    assert lines(tried)[1].split()[:3] == ["1", "2", "1"]


def test_a_copy_of_the_recipe_has_the_counts_and_all_else(tmp_path: Path) -> None:
    write_choice("tiny", Choice(2, 3, 4), tmp_path / "mine.yaml")
    written, recipe = load_recipe(str(tmp_path / "mine.yaml")), load_recipe("tiny")
    assert (written.serving.dense_threads, written.serving.instances.dense) == (2, 3)
    assert written.serving.instances.transform == 4
    assert written.model_copy(update={"serving": recipe.serving}) == recipe


def test_no_file_is_overwritten_and_no_recipe_of_sparsefeed(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("feed:")
    with pytest.raises(SpecError, match="is there already"):
        write_choice("tiny", Choice(1, 1, 1), tmp_path / "mine.yaml")
    with pytest.raises(SpecError, match="recipe of sparsefeed itself"):
        write_choice("tiny", Choice(1, 1, 1), tuning._PACKAGED / "another.yaml")
    assert not (tuning._PACKAGED / "another.yaml").exists()
