"""Recipe: one YAML file that holds the FeedSpec and the settings of every stage.

Settings live beside what they set (etl.config, models.config, serving.config); this module only joins them.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from sparsefeed.errors import SpecError, did_you_mean
from sparsefeed.etl.config import EtlConfig
from sparsefeed.etl.simulate import SimulateConfig
from sparsefeed.etl.spec import FeedSpec, Frozen, validate
from sparsefeed.models.config import ModelConfig, TrainConfig
from sparsefeed.workflows.release.config import ReleaseConfig
from sparsefeed.workflows.serving.config import ServingConfig

__all__ = ["Recipe", "load_recipe", "recipe_names"]

_FOLDER = Path(__file__).parent / "recipes"


class Recipe(Frozen):
    """A feed and how to simulate, prepare, train, serve and release it."""

    feed: FeedSpec
    simulate: SimulateConfig | None = None  # None: the logs are real
    etl: EtlConfig = EtlConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    serving: ServingConfig = ServingConfig()
    release: ReleaseConfig = ReleaseConfig()


def recipe_names() -> list[str]:
    """Recipes that come with sparsefeed."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_recipe(name_or_path: str, scale: str | None = None) -> Recipe:
    """A recipe by its name or file; SpecError names the file, the key, what was got and what is allowed."""
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = _FOLDER / f"{name_or_path}.yaml"
        if not path.exists():
            raise SpecError(f'recipe "{name_or_path}" is not there{did_you_mean(name_or_path, recipe_names())}')
    try:
        value = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SpecError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(value, dict):
        raise SpecError(f"{path}: holds {type(value).__name__}, not keys and values; a recipe begins with `feed:`")
    if scale is not None:
        if not isinstance(value.get("simulate"), dict):
            raise SpecError(f"{path}: has no `simulate` section, so --scale means nothing; leave it out")
        value["simulate"]["scale"] = scale
    return validate(Recipe, value, where=str(path))
