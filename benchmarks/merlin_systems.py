"""The peer in serving: a bundle as an ensemble of merlin-systems, in an environment and a tritonserver of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peers.environment import merlin_systems_python

from sparsefeed.models.bundle import Bundle

__all__ = ["measure_merlin_systems"]

SCRIPT = Path(__file__).parent / "peers" / "systems.py"


def measure_merlin_systems(
    bundle: Bundle, logs: Path, environment: Path, out: Path, candidates: Sequence[int] = (100, 500)
) -> dict[str, Any]:
    """Latency of one request in flight, over gRPC by perf_analyzer, for one member and some candidates.

    The requests are those of our own server (measure.real_requests), with the features that a feature store would give.

    Args:
        bundle: the version whose workflow and model are exported.
        logs: the folder it was made from, local.
        environment: of the peer, made when it is not there.
        out: emptied for the repository.
        candidates: a measurement each.

    Returns:
        `loads`: per number of candidates `candidates`, `p50_ms`, `p95_ms`, `p99_ms`, `requests_per_s`, and
        `difference`, the greatest from the probabilities of our own steps.

    Raises:
        RuntimeError: it failed; the message has the end of what it wrote.
    """
    # Absolute, since Triton's model repository is; not resolved, since a venv's python is a link.
    python, program = merlin_systems_python(environment).absolute(), Path(sys.executable).with_name("perf_analyzer")
    where = [str(path.absolute()) for path in (bundle.path, logs, out, program)]
    command = [str(python), "-W", "ignore", str(SCRIPT), *where, *map(str, candidates)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"merlin-systems: ended with {done.returncode}\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))
