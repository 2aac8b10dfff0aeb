"""Demo: the whole way in one process, stage by stage; the shortest account of what sparsefeed is.

simulate -> etl -> train (with and without weights) -> eval -> export -> serve, rank, measure -> report
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsefeed.progress import Progress
from sparsefeed.workflows.measure import measure_serving
from sparsefeed.workflows.recipe import Recipe
from sparsefeed.workflows.report import write_report
from sparsefeed.workflows.stages import evaluate_models, export_serving, prepare, simulate_logs, train_model
from sparsefeed.workflows.workspace import Workspace

__all__ = ["DemoSummary", "run_demo"]

Stage = Callable[[str], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class DemoSummary:
    """What the demo showed."""

    bundle: str
    member: str
    posts: tuple[str, ...]
    quality: dict[str, Any]
    latency: dict[str, Any]
    warnings: tuple[str, ...]
    report: Path
    seconds: float


def run_demo(recipe: Recipe, workspace: Workspace, stage: Stage) -> DemoSummary:
    """Run every stage; what is there already and made from the same input is used again."""
    started = time.perf_counter()
    with stage("simulate") as progress:
        simulate_logs(recipe, workspace, progress)
    with stage("etl") as progress:
        warnings = prepare(recipe, workspace, progress=progress)["warnings"]
    with stage("train") as progress:
        train_model(recipe, workspace, "ips", progress)
    with stage("compare") as progress:
        train_model(recipe, workspace, "none", progress)
    with stage("eval") as progress:
        quality = evaluate_models(recipe, workspace, progress)
    with stage("export") as progress:
        bundle, _ = export_serving(recipe, workspace, progress)
    with stage("serve") as progress:
        latency = measure_serving(recipe, workspace, progress=progress)
    with stage("report"):
        report = write_report(workspace)
    ranking = json.loads(workspace.ranking.read_text("utf-8"))
    return DemoSummary(
        bundle=bundle,
        member=ranking["member"],
        posts=tuple(post["post"] for post in ranking["posts"]),
        quality=quality,
        latency=latency,
        warnings=tuple(warnings),
        report=report,
        seconds=time.perf_counter() - started,
    )
