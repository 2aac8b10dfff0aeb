"""Measure a running server with NVIDIA's perf_analyzer on real requests.

Notable: latencies are the client's own; where the time goes is read from the server's counters before and after,
per step, because perf_analyzer's CSV has no columns for the steps of an ensemble.
"""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsefeed.errors import ServeError, ToolError
from sparsefeed.progress import Progress, silent
from sparsefeed.workflows.serving.control import ModelControl
from sparsefeed.workflows.serving.request import ranker_name
from sparsefeed.workflows.serving.runtime import TritonRuntime

__all__ = ["Load", "StepTime", "measure", "parse_csv", "perf_input", "step_times"]


@dataclass(frozen=True)
class StepTime:
    """Mean milliseconds per request in one step of the server, while one load was measured."""

    step: str
    queue_ms: float
    input_ms: float
    infer_ms: float
    output_ms: float


@dataclass(frozen=True)
class Load:
    """One row of a measurement: what clients saw at one concurrency."""

    concurrency: int
    requests_per_s: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    steps: tuple[StepTime, ...] = ()


def measure(
    grpc_url: str,
    bundle: str,
    requests: Sequence[tuple[str, Sequence[str]]],
    *,
    concurrencies: Sequence[int] = (1,),
    num_requests: int = 200,
    timeout_s: float = 300.0,
    progress: Progress = silent,
) -> tuple[Load, ...]:
    """Send requests over gRPC at each concurrency, and return one `Load` for each.

    Args:
        grpc_url: host:port of the server.
        bundle: Whose ensemble is measured.
        requests: Member and posts, used in turn.
        concurrencies: Requests in flight, one measurement each.
        num_requests: Per window; perf_analyzer takes up to three windows.
        timeout_s: For one concurrency.
        progress: Told of each concurrency.

    Raises:
        ToolError: perf_analyzer is not installed.
        ServeError: It failed; the message has the end of its output.
    """
    if not requests:
        raise ServeError("requests: got none; give at least one to measure with")
    loads = []
    with ModelControl(grpc_url) as control, tempfile.TemporaryDirectory(prefix="sparsefeed-perf-") as scratch:
        libraries = Path(scratch) / "libraries"
        runtime = TritonRuntime.find()
        runtime.link_libraries(libraries)
        data = Path(scratch) / "requests.json"
        data.write_text(json.dumps(perf_input(requests)), "utf-8")
        for i, concurrency in enumerate(concurrencies):
            progress(i, len(concurrencies), f"{concurrency} requests in flight")
            table = Path(scratch) / f"{concurrency}.csv"
            flags = {
                "-m": ranker_name(bundle),
                "-u": grpc_url,
                "-i": "grpc",
                "--input-data": data,
                "--concurrency-range": concurrency,
                "--measurement-mode": "count_windows",
                "--measurement-request-count": num_requests,
                "--max-trials": 3,
                "-s": 999,  # percent: else a noisy machine ends the measurement without a result
                "--percentile": 95,
                "-f": table,
            }
            before = control.statistics(bundle)
            command = [_program(), "--verbose-csv", *(str(part) for flag in flags.items() for part in flag)]
            _run(command, runtime.environment(libraries), timeout_s)
            (load,) = parse_csv(table.read_text("utf-8"), step_times(before, control.statistics(bundle)))
            loads.append(load)
        progress(len(concurrencies), len(concurrencies), "measured")
    return tuple(loads)


def perf_input(requests: Sequence[tuple[str, Sequence[str]]]) -> dict[str, Any]:
    """Requests as perf_analyzer's `--input-data`, ready for JSON."""
    return {"data": [_tensors(member, posts) for member, posts in requests]}


def parse_csv(text: str, steps: tuple[StepTime, ...] = ()) -> tuple[Load, ...]:
    """Read perf_analyzer's CSV by its header, which differs between versions; microseconds become milliseconds."""
    try:
        return tuple(
            Load(
                concurrency=int(row["Concurrency"]),
                requests_per_s=float(row["Inferences/Second"]),
                p50_ms=float(row["p50 latency"]) / 1e3,
                p90_ms=float(row["p90 latency"]) / 1e3,
                p95_ms=float(row["p95 latency"]) / 1e3,
                p99_ms=float(row["p99 latency"]) / 1e3,
                steps=steps,
            )
            for row in csv.DictReader(text.splitlines())
        )
    except (KeyError, ValueError, TypeError) as error:
        raise ServeError(f"perf_analyzer: its CSV lacks or garbles a column: {error!r}; got {text[:300]!r}") from error


def step_times(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[StepTime, ...]:
    """Mean time per request and step between two readings of the server's counters (nanoseconds)."""
    times = []
    for step, end in after.items():
        start = before[step]
        count = max(end["success"]["count"] - start["success"]["count"], 1)
        queue, into, infer, out = (
            (end[part]["ns"] - start[part]["ns"]) / count / 1e6
            for part in ("queue", "compute_input", "compute_infer", "compute_output")
        )
        times.append(StepTime(step.removeprefix("feed_"), queue, into, infer, out))
    return tuple(times)


def _tensors(member: str, posts: Sequence[str]) -> dict[str, Any]:
    # perf_analyzer insists on every input; empty overrides are none.
    return {
        "member_id": {"content": [member], "shape": [1]},
        "post_ids": {"content": list(posts), "shape": [len(posts)]},
        "overrides": {"content": [""], "shape": [1]},
    }


def _program() -> str:
    beside = Path(sys.executable).with_name("perf_analyzer")
    found = str(beside) if beside.is_file() else shutil.which("perf_analyzer")
    if found is None:
        raise ToolError("perf_analyzer: not found; pip install 'tritonclient[grpc,http]==2.51.0'")
    return found


def _run(command: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> None:
    try:
        done = subprocess.run(
            command,
            check=False,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired as error:
        raise ServeError(f"perf_analyzer: no result after {timeout_s:.0f} s; send fewer requests") from error
    if done.returncode != 0:
        raise ServeError(f"perf_analyzer: ended with status {done.returncode}\n{done.stdout[-2000:]}")
