"""Recipes: those that come along are valid, and what cannot be meant is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sparsefeed.errors import SpecError
from sparsefeed.etl.spec import validate
from sparsefeed.models.config import TrainConfig
from sparsefeed.workflows.recipe import load_recipe, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_that_comes_along_is_valid(name: str) -> None:
    assert load_recipe(name).feed.tables


@pytest.mark.parametrize("name", recipe_names())
def test_the_gate_of_a_refresh_can_watch_a_day_of_every_recipe(name: str) -> None:
    day = load_recipe(name).train.of_a_day.model_dump() | {"validation": {"rows": 1000}}
    assert validate(TrainConfig, day, where="train").validation


def test_an_unknown_recipe_is_named_with_the_nearest() -> None:
    with pytest.raises(SpecError, match=r'recipe "tinny" is not there; did you mean "tiny"\?'):
        load_recipe("tinny")


@pytest.mark.parametrize(
    ("section", "key", "message"),
    [
        (
            "train",
            "batchsize",
            r'recipe\.yaml: train\.batchsize: "batchsize" is not a key; did you mean "batch_size"\?',
        ),
        ("serving", "row_fromat", r'serving\.row_fromat: "row_fromat" is not a key; did you mean "row_format"\?'),
        ("model", "hiden", r'model\.hiden: "hiden" is not a key; did you mean "hidden"\?'),
        ("etl", "eval_day", r'etl\.eval_day: "eval_day" is not a key; did you mean "eval_days"\?'),
        (None, "fed", r'recipe\.yaml: fed: "fed" is not a key; did you mean "feed"\?'),
    ],
)
def test_an_unknown_key_is_named_with_its_section_and_the_nearest(
    tmp_path: Path, section: str | None, key: str, message: str
) -> None:
    value = {"feed": load_recipe("tiny").feed.model_dump(mode="json")}
    (value.setdefault(section, {}) if section else value)[key] = 1
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(value))
    with pytest.raises(SpecError, match=message):
        load_recipe(str(path))


def test_a_file_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("feed: [")
    with pytest.raises(SpecError, match=r"recipe\.yaml: not readable as YAML"):
        load_recipe(str(path))
