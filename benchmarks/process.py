"""A measured process: what it printed, and the most memory it and its children had at once."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

__all__ = ["run_measured"]

_POLL_S = 0.1
_HIGHER = 1.05  # resident memory that is looked at more closely


def run_measured(command: Sequence[str], environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run a command that prints JSON in its last line; its values, and `peak_bytes`.

    Memory is the proportional set size of the whole tree of processes, what they share counted once. The kernel walks
    all pages to tell it, which cost two processes on two cores a third of their speed when it was asked ten times a
    second: it is asked whenever resident memory, which is a counter, is 5 % above what it was then.
    """
    env = {**os.environ, "PYTHONWARNINGS": "ignore", **(environ or {})}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak, done = [0], threading.Event()

    def poll() -> None:
        looked_at = 0
        while not done.wait(_POLL_S):
            tree = _tree(process.pid)
            if (resident := _sum(tree, _resident_bytes)) > _HIGHER * looked_at:
                looked_at = resident
                peak[0] = max(peak[0], _sum(tree, _proportional_bytes))

    watcher = threading.Thread(target=poll)
    watcher.start()
    out, errors = process.communicate()
    done.set()
    watcher.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: ended with {process.returncode}\n{errors[-2000:]}")
    return {**json.loads(out.splitlines()[-1]), "peak_bytes": peak[0]}


def _tree(process_id: int) -> list[int]:
    try:
        process = psutil.Process(process_id)
        return [process_id, *(child.pid for child in process.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def _sum(processes: Sequence[int], of: Callable[[Path], int]) -> int:
    total = 0
    for process in processes:
        with suppress(OSError):  # it ended meanwhile
            total += of(Path(f"/proc/{process}"))
    return total


def _resident_bytes(process: Path) -> int:
    return int((process / "statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _proportional_bytes(process: Path) -> int:
    lines = (process / "smaps_rollup").read_text("ascii").splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
