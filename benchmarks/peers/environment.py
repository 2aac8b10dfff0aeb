"""The peers' environment: made once beside the other artefacts of a benchmark, and asked in JSON."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["Peers", "peers_python"]

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
    python, made_from = environment / "bin" / "python", environment / "requirements.txt"
    if not made_from.exists() or made_from.read_bytes() != REQUIREMENTS.read_bytes():
        shutil.rmtree(environment, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "-r", str(REQUIREMENTS)], check=True)
        shutil.copy(REQUIREMENTS, made_from)  # last: an environment that was interrupted is made again
    return python
