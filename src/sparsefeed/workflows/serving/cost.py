"""Cost: how long the dense step takes, and whether a bundle keeps to its budget.

What is timed is the step that Triton runs (steps.dense), for one member and so many candidates, in this process: the
cut of the vectors, the graph and the score; not the queue and the transfer between processes. A budget is held against
the median: the same request is the same work every time, so the tail is the machine's, not the model's.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsefeed.errors import ServeError
from sparsefeed.etl.plan import ServingPlan
from sparsefeed.models.bundle import Manifest
from sparsefeed.progress import Progress, silent
from sparsefeed.workflows.serving.config import ServingConfig
from sparsefeed.workflows.serving.steps.dense import DenseStep
from sparsefeed.workflows.serving.steps.step import Tensors

__all__ = ["Cost", "Measure", "Work", "check_budget", "dense_request", "dense_work", "machine", "measure_in_turn"]

Work = Callable[[], object]
_WARM_UP, _FEWEST = 5, 20


@dataclass(frozen=True)
class Cost:
    """Milliseconds that one piece of work took, over `runs` runs."""

    p50_ms: float
    p99_ms: float
    runs: int


Measure = Callable[[Sequence[Work], Progress], list[Cost]]


def measure_in_turn(
    works: Sequence[Work],
    progress: Progress = silent,
    *,
    runs: int = 300,
    limit_s: float = 60.0,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Cost]:
    """Time each piece of work in turn, again and again, so that what disturbs the machine hits all alike.

    Every turn has an order of its own: none always finds the caches as the same other one left them.

    Args:
        works: What is done; what it returns is dropped. Five runs of each come first and are not counted.
        progress: Told of the runs.
        runs: Of each.
        limit_s: After so many seconds no further run begins, but there are 20 at least.
        clock: Seconds, from anywhere.

    Returns:
        A cost for each, in order.
    """
    for work in works:
        for _ in range(_WARM_UP):
            work()
    taken_s: list[list[float]] = [[] for _ in works]
    begun, random = clock(), np.random.default_rng(0)
    for run in range(runs):
        if run >= _FEWEST and clock() - begun > limit_s:
            break
        progress(run, runs, "runs of each")
        for number in random.permutation(len(works)):
            started = clock()
            works[number]()
            taken_s[number].append(clock() - started)
    quantiles = (1000 * np.quantile(seconds, (0.5, 0.99)) for seconds in taken_s)
    return [Cost(float(p50), float(p99), len(taken_s[0])) for p50, p99 in quantiles]


def dense_request(plan: ServingPlan, num_candidates: int) -> Tensors:
    """What feed_dense gets for one member and so many candidates, with random values; every list is full."""
    random = np.random.default_rng(0)
    rows = {"member": 1, "candidate": num_candidates}
    dims = {table.name: table.dim * table.keys_per_id for table in plan.tables}
    floats = sum(rows[item.side] * item.max_length * dims[item.table] for item in plan.lookups)
    request: dict[str, NDArray[Any]] = {"OUTPUT0": random.normal(size=floats).astype(np.float32)}
    for side, dense in (("member", plan.member_dense), ("candidate", plan.candidate_dense)):
        request[f"{side}_dense"] = random.normal(size=(rows[side], len(dense.names))).astype(np.float32)
    for item in plan.lookups:
        if item.kind != "id":
            request[f"len_{item.name}"] = np.full(rows[item.side], item.max_length, np.int64)
    return request


def dense_work(step: DenseStep, plan: ServingPlan, num_candidates: int) -> Work:
    """One such request, answered by the step."""
    request = dense_request(plan, num_candidates)

    def work() -> None:
        (answer,) = step.run([request])
        if isinstance(answer, Exception):
            raise answer

    return work


def check_budget(
    folder: Path,
    config: ServingConfig,
    *,
    over_budget: bool = False,
    progress: Progress = silent,
    measure: Measure = partial(measure_in_turn, limit_s=20.0),
) -> str:
    """Measure the dense step of a bundle's folder against `serving.dense_budget_ms`.

    Args:
        folder: Holds bundle.json, dense.onnx and transform/plan.json; need not be published.
        config: With a budget.
        over_budget: Take it all the same.
        progress: Told of the runs.
        measure: Times the step.

    Returns:
        What was measured, in words.

    Raises:
        ServeError: The step takes longer, and `over_budget` is False.
    """
    allowed_ms, num_candidates = config.dense_budget_ms, config.budget_candidates
    assert allowed_ms is not None
    bundle = Manifest.load(folder).id
    served = {"threads": str(config.dense_threads), "format": config.dense_format}
    step = DenseStep.open({"bundle": bundle, "folder": str(folder), **served})
    plan = ServingPlan.load(folder / "transform" / "plan.json")
    (cost,) = measure([dense_work(step, plan, num_candidates)], progress)
    said = f"{cost.p50_ms:.3g} ms for {num_candidates:,} candidates (median of {cost.runs}), {allowed_ms:g} ms allowed"
    if cost.p50_ms > allowed_ms and not over_budget:
        raise ServeError(
            f"serving.dense_budget_ms: the dense step of bundle {bundle} takes {said}; nothing was published. Make "
            "model.hidden narrower and train again (`sparsefeed tune --width` names the widest that fits), raise the "
            "budget, or publish it all the same with `sparsefeed export --over-budget`"
        )
    return f"dense step: {said}{': over budget' if cost.p50_ms > allowed_ms else ''}"


def machine() -> str:
    """What the figures are of."""
    return f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"
