"""What the commands about HugeCTR do: check its data, take its model, give it weights."""

from __future__ import annotations

from pathlib import Path

from sparsefeed.errors import TrainError
from sparsefeed.lock import only_writer
from sparsefeed.progress import Progress, silent
from sparsefeed.workflows.recipe import Recipe
from sparsefeed.workflows.stages import read_etl
from sparsefeed.workflows.workspace import Workspace

__all__ = ["give_weights", "take_run"]


def take_run(recipe: Recipe, workspace: Workspace, folder: Path, progress: Progress = silent) -> Path:
    """Take a run of HugeCTR as the workspace's trained model; its checkpoint.

    Everything after training then goes on with it: `eval`, `export`, `train --day`.
    """
    from sparsefeed.models.hugectr.exchange import HugectrRun, from_hugectr

    spec, _ = read_etl(recipe, workspace)
    if spec.weighted and recipe.train.weights == "none":
        raise TrainError(f"{folder}: HugeCTR's rows are weighted, the recipe says train.weights: none; take that out")
    run, model = HugectrRun.read(folder), recipe.model
    # What HugeCTR cannot say, a run is not of.
    for name, got in {**run.model.model_dump(), "experts": 1, "cross_residual": True}.items():
        if got != getattr(model, name):
            raise TrainError(
                f"{folder}: was trained with {name} {got}, the recipe's model has {getattr(model, name)}; plan and "
                "train again, or change the recipe"
            )
    out = workspace.training(recipe.train.weights)
    out.mkdir(parents=True, exist_ok=True)
    with only_writer(out, wait=False) as alone:
        if not alone:
            raise TrainError(f"{out}: another training is writing it now; wait for it, or name another workspace")
        config = recipe.train.model_copy(update={"processes": 1})
        return from_hugectr(folder, spec, workspace.etl, out, model, config, progress)


def give_weights(recipe: Recipe, workspace: Workspace, folder: Path, plan: Path | None) -> Path:
    """Write the workspace's trained model as weights that HugeCTR begins with; the checkpoint they are of."""
    from sparsefeed.models.hugectr.exchange import to_hugectr
    from sparsefeed.models.plan import Plan
    from sparsefeed.models.torchrec.checkpoint import finished

    spec, _ = read_etl(recipe, workspace)
    checkpoint = finished(workspace.training(recipe.train.weights))
    if checkpoint is None:
        raise TrainError(f"{workspace.training(recipe.train.weights)}: no finished model; run `sparsefeed train` first")
    to_hugectr(checkpoint, spec, Plan.load(plan) if plan else None, folder)
    return checkpoint
