"""A measured process: what it printed, and the most memory it and its children had at once."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

__all__ = ["run_measured"]

_POLL_S = 0.1


def run_measured(command: Sequence[str], environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run a command that prints JSON in its last line; its values, and `peak_bytes`.

    Memory is the proportional set size of the whole tree of processes, what they share counted once, polled ten times
    a second.
    """
    env = {**os.environ, "PYTHONWARNINGS": "ignore", **(environ or {})}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak, done = [0], threading.Event()

    def poll() -> None:
        while not done.wait(_POLL_S):
            peak[0] = max(peak[0], _tree_bytes(process.pid))

    watcher = threading.Thread(target=poll)
    watcher.start()
    out, errors = process.communicate()
    done.set()
    watcher.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: ended with {process.returncode}\n{errors[-2000:]}")
    return {**json.loads(out.splitlines()[-1]), "peak_bytes": peak[0]}


def _tree_bytes(process_id: int) -> int:
    total = 0
    try:
        processes = [psutil.Process(process_id), *psutil.Process(process_id).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in processes:
        try:
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text("ascii")
        except OSError:
            continue  # it ended meanwhile
        total += 1024 * sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return total
