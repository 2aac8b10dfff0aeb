"""Tune: how wide the dense model may be within a latency budget, before anything is trained.

The time of a step depends on shapes alone, so models nobody trained tell it.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsefeed.etl.serving_plan import serving_plan
from sparsefeed.models.config import ModelConfig
from sparsefeed.models.dense_size import DenseSize
from sparsefeed.progress import Progress, silent
from sparsefeed.workflows.recipe import Recipe
from sparsefeed.workflows.serving.config import ServingConfig
from sparsefeed.workflows.serving.cost import Cost, Measure, dense_work, machine, measure_in_turn
from sparsefeed.workflows.serving.steps.dense import DenseStep, open_graph
from sparsefeed.workflows.stages import write_json
from sparsefeed.workflows.workspace import Workspace

__all__ = ["Rung", "WidthTuning", "candidates_of", "ladder", "tune_width"]

_FACTORS = (0.25, 0.5, 2.0, 4.0)
_MULTIPLE = 8  # floats of a vector register
_CANDIDATES = (100, 500)


@dataclass(frozen=True)
class Rung:
    """One width: the hidden layers, floats and products a row (models.dense_size), and a cost by candidates."""

    hidden: tuple[int, ...]
    parameters: int
    products: int
    costs: dict[int, Cost]


@dataclass(frozen=True)
class WidthTuning:
    """What was measured, the cheapest width first.

    Attributes:
        hidden: The recipe's own.
        budget_ms: Allowed for `budget_candidates`; None: no budget.
        machine: Where it was measured.
    """

    rungs: tuple[Rung, ...]
    hidden: tuple[int, ...]
    budget_ms: float | None
    budget_candidates: int
    machine: str

    def fits(self, rung: Rung) -> bool:
        """Whether its median is within the budget."""
        return self.budget_ms is None or rung.costs[self.budget_candidates].p50_ms <= self.budget_ms

    @property
    def widest(self) -> Rung | None:
        """The one with most products of those that fit; None: none does, or there is no budget."""
        fitting = [rung for rung in self.rungs if self.fits(rung)]
        return fitting[-1] if fitting and self.budget_ms is not None else None


def ladder(hidden: Sequence[int]) -> list[tuple[int, ...]]:
    """A quarter to four times these widths, the narrowest first: multiples of 8, but for the widths themselves."""
    scaled = {tuple(_rounded(width * factor) for width in hidden) for factor in _FACTORS}
    scaled.add(tuple(hidden))
    return sorted(scaled, key=lambda widths: (sum(widths), widths))


def _rounded(width: float) -> int:
    return _MULTIPLE * max(1, round(width / _MULTIPLE))


def candidates_of(config: ServingConfig) -> list[int]:
    """How many candidates are measured: 100, 500 and those of the budget, as far as a request may have them."""
    most = config.max_candidates
    return sorted({count for count in (*_CANDIDATES, config.budget_candidates) if count <= most}) or [most]


def tune_width(
    recipe: Recipe, workspace: Workspace, progress: Progress = silent, measure: Measure = measure_in_turn
) -> WidthTuning:
    """Time the dense step of the recipe's model at other widths; writes width.json, and nothing into the recipe.

    Needs neither logs nor a trained model. Takes a minute at most beside the export of the graphs.
    """
    counts, plan = candidates_of(recipe.serving), serving_plan(recipe.feed, _no_scales(recipe))
    models = [recipe.model.model_copy(update={"hidden": hidden}) for hidden in ladder(recipe.model.hidden)]
    works = []
    with tempfile.TemporaryDirectory(prefix="sparsefeed-width-") as folder:
        for number, model in enumerate(models):
            progress(number, len(models), "graphs written")
            path = Path(folder) / f"{number}.onnx"
            _write_untrained(recipe, model, path)
            step = DenseStep("untrained", plan, open_graph(path, recipe.serving.dense_threads, plan))
            works += [dense_work(step, plan, count) for count in counts]
        costs = iter(measure(works, progress))
    rungs = []
    for model in models:
        size = DenseSize.of(recipe.feed, model)
        rungs.append(Rung(model.hidden, size.parameters, size.products, {count: next(costs) for count in counts}))
    tuning = WidthTuning(
        rungs=tuple(sorted(rungs, key=lambda rung: rung.products)),
        hidden=recipe.model.hidden,
        budget_ms=recipe.serving.dense_budget_ms,
        budget_candidates=recipe.serving.budget_candidates,
        machine=machine(),
    )
    write_json(workspace.width, _plain(tuning))
    return tuning


def _write_untrained(recipe: Recipe, model: ModelConfig, path: Path) -> None:
    from sparsefeed.models.calibration import Calibration
    from sparsefeed.models.dense import DenseModel
    from sparsefeed.models.onnx import export_dense

    export_dense(DenseModel(recipe.feed, model), recipe.feed, Calibration.identity(recipe.feed), path)


def _no_scales(recipe: Recipe) -> dict[str, tuple[float, float]]:
    return {feature.name: (0.0, 1.0) for feature in recipe.feed.dense}


def _plain(tuning: WidthTuning) -> dict[str, Any]:
    return dataclasses.asdict(tuning) | {"widest": tuning.widest and list(tuning.widest.hidden)}
