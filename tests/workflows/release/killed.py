"""Commands of a release in a process that kills itself at a step.

A fork of the test's own process would have its gRPC without its threads; these come from a clean one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

from sparsefeed.workflows.release.canary import promote
from sparsefeed.workflows.release.config import ReleaseConfig
from sparsefeed.workflows.release.publish import publish
from sparsefeed.workflows.release.release import Release
from sparsefeed.workflows.release.rollback import roll_back
from sparsefeed.workflows.serving.config import ServingConfig

__all__ = ["kill_at"]

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload([__name__])


def kill_at(step: str, command: str, release: Release, config: ServingConfig, bundle: str = "") -> int | None:
    """Run a command that dies when it has told of a step; return the exit code."""
    # The process does not know that tests leave a native lookup that lies here alone (tests/conftest.py).
    plain = config.model_copy(update={"lookup_backend": "python"}).model_dump_json()
    child = _SERVER.Process(target=_run, args=(step, command, str(release.folder), plain, bundle))
    child.start()
    child.join(60)
    if child.is_alive():
        child.kill()
        child.join()
        return None
    return child.exitcode


def _run(step: str, command: str, folder: str, config: str, bundle: str) -> None:
    def die(done: int, total: int, what: str) -> None:
        if what == step:
            os.kill(os.getpid(), signal.SIGKILL)

    release = Release.open(folder)
    root = Path(release.place.bundles)
    if command == "publish":
        publish([release], root, bundle, ServingConfig.model_validate_json(config), progress=die)
    elif command == "rollback":
        roll_back([release], progress=die)
    else:
        promote([release], root, ReleaseConfig(), force=True, progress=die)
