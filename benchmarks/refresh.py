"""A model refreshed daily beside one that stays as it is, and beside one trained anew on all days.

Every day judges the models of the days before it, as they would have served it (`sparsefeed eval --day`), by the
expected metrics on its random sessions.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))

from sparsefeed.etl.config import ClusterConfig
from sparsefeed.progress import Progress, silent
from sparsefeed.workflows.recipe import Recipe
from sparsefeed.workflows.stages import (
    add_day,
    evaluate_day,
    evaluate_models,
    prepare,
    simulate_logs,
    train_day,
    train_model,
)
from sparsefeed.workflows.workspace import Workspace

__all__ = ["Judged", "refreshed"]

BASE_DAYS = 6  # trained before the first refresh


@dataclass(frozen=True)
class Judged:
    """What a day said of the models before it: response -> metric -> value under the true probabilities."""

    day: int  # 1: the first after the base
    frozen: dict[str, dict[str, float]]
    refreshed: dict[str, dict[str, float]]
    retrained: dict[str, dict[str, float]] | None


def refreshed(
    recipe: Recipe, root: Path, num_days: int, retrain_at: Collection[int] = (), progress: Progress = silent
) -> list[Judged]:
    """Refresh a model of BASE_DAYS days `num_days` times, each day judged before it is trained.

    Args:
        recipe: with `simulate`, whose days are set here.
        root: folder of logs and workspaces; what is whole there already stays.
        num_days: days after the base.
        retrain_at: days, from 1, that also judge a model trained anew on all days before them.
        progress: told of every day.
    """
    assert recipe.simulate is not None
    first = recipe.simulate.start
    simulated = recipe.simulate.model_copy(update={"days": BASE_DAYS + num_days + 1})
    logs, loop = Workspace(root), Workspace(root / "loop")
    simulate_logs(recipe.model_copy(update={"simulate": simulated}), logs)
    prepare(_until(recipe, BASE_DAYS), loop, logs.logs)
    train_model(recipe, loop)
    # A day of so few rows is quickest in this process.
    here = recipe.etl.model_copy(update={"cluster": ClusterConfig(workers=0, gpu=False)})
    alone = recipe.model_copy(update={"etl": here})
    judged = []
    for number in range(1, num_days + 1):
        day = first + timedelta(days=BASE_DAYS + number - 1)
        progress(number - 1, num_days, f"day {day}")
        add_day(alone, loop, day, logs.logs)
        models = evaluate_day(recipe, loop, day)
        anew = None
        if number in retrain_at:
            whole = Workspace(root / f"whole-{number}")
            prepare(_until(recipe, BASE_DAYS + number - 1), whole, logs.logs)
            train_model(recipe, whole)
            anew = _expected(evaluate_models(recipe, whole, against=()), "ips")
        last = "base" if "base" in models["models"] else "refreshed"
        judged.append(Judged(number, _expected(models, last), _expected(models, "refreshed"), anew))
        train_day(recipe, loop, day)
    return judged


def _until(recipe: Recipe, num_days: int) -> Recipe:
    """So many days trained, the one after them held out."""
    assert recipe.simulate is not None
    until = recipe.simulate.start + timedelta(days=num_days)
    return recipe.model_copy(update={"etl": recipe.etl.model_copy(update={"until": until})})


def _expected(result: dict[str, Any], model: str) -> dict[str, dict[str, float]]:
    return {response: models[model]["expected"] for response, models in result["responses"].items()}
