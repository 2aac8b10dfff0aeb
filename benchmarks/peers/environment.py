"""The peers' environment: made once beside the other artefacts of a benchmark, and asked in JSON."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sparsefeed

__all__ = ["Peers", "merlin_models_python", "merlin_systems_python", "peers_python", "train_peers_python"]

REQUIREMENTS, SCRIPT = Path(__file__).parent / "requirements.txt", Path(__file__).parent / "ids.py"
NUM_THREADS = 2


class Peers:
    """What ids.py measures over the inputs of one folder.

    NVTabular is asked under this very interpreter, for its pandas is 1.5 and the project depends on it.
    """

    def __init__(self, environment: Path, folder: Path) -> None:
        self.python, self.folder = peers_python(environment), folder

    def write_words(self) -> None:
        """Write words.parquet, unless it is there."""
        if not (self.folder / "words.parquet").exists():
            self._run(self.python, "words", str(self.folder))

    def measure(self, kind: str, peer: str) -> dict[str, Any]:
        """One peer's figures over "keys" or "words", from a process of its own."""
        python = Path(sys.executable) if peer == "nvtabular" else self.python
        lines = self._run(python, kind, peer, str(self.folder)).splitlines()
        return dict(json.loads(lines[-1]))

    def _run(self, python: Path, *words: str) -> str:
        environ = {**os.environ, "POLARS_MAX_THREADS": str(NUM_THREADS), "PYTHONWARNINGS": "ignore"}
        command = [str(python), str(SCRIPT), *words]
        return subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=True).stdout


def peers_python(environment: Path) -> Path:
    """The interpreter of the peers' environment, made if it is not there or older than its requirements."""
    return _python(environment, REQUIREMENTS)


def train_peers_python(environment: Path) -> Path:
    """Likewise of the trainers, over the project's own torch and Merlin, which they are the releases for."""
    ours = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    return _python(environment, REQUIREMENTS.with_name("requirements-train.txt"), "--no-deps", beside=sorted(ours))


def merlin_models_python(environment: Path) -> Path:
    """Likewise of merlin-models on TensorFlow (CPU), whose numpy is older than the project's."""
    return _python(environment, REQUIREMENTS.with_name("requirements-merlin-models.txt"), "--no-deps")


def merlin_systems_python(environment: Path) -> Path:
    """Likewise of merlin-systems, over the project, its Merlin and its tritonserver."""
    ours = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), str(Path(sparsefeed.__file__).parents[1])}
    return _python(environment, REQUIREMENTS.with_name("requirements-systems.txt"), "--no-deps", beside=sorted(ours))


def _python(environment: Path, requirements: Path, *options: str, beside: Sequence[str] = ()) -> Path:
    python, made_from = environment / "bin" / "python", environment / "requirements.txt"
    if not made_from.exists() or made_from.read_bytes() != requirements.read_bytes():
        shutil.rmtree(environment, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *options, "-r", str(requirements)], check=True)
        shutil.copy(requirements, made_from)  # last: an environment that was interrupted is made again
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "beside.pth").write_text("".join(f"{folder}\n" for folder in beside))  # the project may have moved
    return python
