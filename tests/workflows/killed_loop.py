"""A loop in a process of its own that kills itself when it has told of a step, however often it has told others."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

from sparsefeed.workflows.loop import loop
from sparsefeed.workflows.recipe import Recipe
from sparsefeed.workflows.workspace import Workspace

__all__ = ["kill_loop_at"]

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload([__name__])


def kill_loop_at(step: str, recipe: Recipe, root: Path, logs: Path) -> int | None:
    """Run a loop that dies at a step; return the exit code."""
    child = _SERVER.Process(target=_run, args=(step, recipe.model_dump_json(), str(root), str(logs)))
    child.start()
    child.join(200)
    if child.is_alive():
        child.kill()
        child.join()
        return None
    return child.exitcode


def _run(step: str, recipe: str, root: str, logs: str) -> None:
    def die(done: int, total: int, what: str) -> None:
        if step in what:
            os.kill(os.getpid(), signal.SIGKILL)

    list(loop(Recipe.model_validate_json(recipe), Workspace(Path(root)), Path(logs), progress=die))
