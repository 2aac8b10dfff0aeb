"""Tune serving: how many threads and processes answer most requests a second on this machine, measured on a server.

What is best hangs on cores, candidates and the model, so it is tried: every choice is served in turn, by real requests
with two in flight per core, and the one that answers most is taken.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sparsefeed.errors import SpecError
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.bundle import open_version
from sparsefeed.progress import Progress, silent
from sparsefeed.workflows.measure import real_requests
from sparsefeed.workflows.recipe import Recipe, load_recipe
from sparsefeed.workflows.serving.config import ServingConfig
from sparsefeed.workflows.serving.export import export
from sparsefeed.workflows.serving.perf import Load, measure
from sparsefeed.workflows.serving.server import TritonServer
from sparsefeed.workflows.stages import read_etl
from sparsefeed.workflows.workspace import Workspace

__all__ = ["Choice", "Tried", "choices", "lines", "tune_serving", "write_choice"]

_PACKAGED = Path(__file__).parent / "recipes"
_TURNS = 2  # of every choice; the better one counts, for what disturbs the machine only slows
_IN_FLIGHT_PER_CORE = 2

Serve = Callable[[ServingConfig], Load]  # serves a configuration for a while, and says what clients saw


@dataclass(frozen=True)
class Choice:
    """Counts that are tried together."""

    dense_threads: int
    dense: int
    transform: int

    def of(self, config: ServingConfig) -> ServingConfig:
        """The configuration with these counts."""
        instances = config.instances.model_copy(update={"dense": self.dense, "transform": self.transform})
        return config.model_copy(update={"dense_threads": self.dense_threads, "instances": instances})


@dataclass(frozen=True)
class Tried:
    """A choice and the best that clients saw of it."""

    choice: Choice
    requests_per_s: float
    p50_ms: float
    p99_ms: float


def choices(num_cores: int) -> list[Choice]:
    """Powers of two, and the cores themselves: threads times processes of the dense step are no more than the cores."""
    counts = sorted({*(2**i for i in range(num_cores.bit_length()) if 2**i <= num_cores), num_cores})
    return [
        Choice(threads, dense, transform)
        for threads in counts
        for dense in counts
        for transform in {1, max(1, num_cores // 2), num_cores}
        if threads * dense <= num_cores
    ]


def tune_serving(
    recipe: Recipe,
    workspace: Workspace,
    progress: Progress = silent,
    num_cores: int | None = None,
    serve: Serve | None = None,
) -> list[Tried]:
    """Serve the current bundle with every choice, the best first; half a minute a choice.

    Raises:
        BundleError: there is no bundle; export one first.
    """
    cores = num_cores or len(os.sched_getaffinity(0))
    options = sorted(choices(cores), key=lambda one: (one.dense_threads, one.dense, one.transform))
    with tempfile.TemporaryDirectory(prefix="sparsefeed-tune-") as scratch:
        serve = serve or _server(recipe, workspace, Path(scratch), cores * _IN_FLIGHT_PER_CORE)
        loads: dict[Choice, list[Load]] = {one: [] for one in options}
        for turn in range(_TURNS):
            for number, one in enumerate(options):
                progress(turn * len(options) + number, _TURNS * len(options), f"{one}")
                loads[one].append(serve(one.of(recipe.serving)))
    tried = [
        Tried(
            one,
            max(load.requests_per_s for load in some),
            statistics.median(load.p50_ms for load in some),
            min(load.p99_ms for load in some),
        )
        for one, some in loads.items()
    ]
    return sorted(tried, key=lambda one: -one.requests_per_s)


def _server(recipe: Recipe, workspace: Workspace, scratch: Path, in_flight: int) -> Serve:
    version = open_version(workspace.bundles)
    spec, logs = FeedSpec.load(version.spec), read_etl(recipe, workspace)[1]["logs"]
    requests = real_requests(spec, logs, min(recipe.serving.max_candidates, recipe.serving.budget_candidates), 100)

    def serve(config: ServingConfig) -> Load:
        export(workspace.bundles, version.id, config, scratch)
        with TritonServer(scratch, [version.id], config) as server:
            (load,) = measure(server.grpc_url, version.id, requests, concurrencies=(in_flight,))
        return load

    return serve


def write_choice(recipe: str, choice: Choice, path: Path) -> None:
    """Write a copy of a recipe with these counts; the recipe itself stays as it is, and loses no comment.

    Raises:
        SpecError: the file is there already, or would be one of sparsefeed's own recipes.
    """
    if path.resolve().parent == _PACKAGED.resolve():
        raise SpecError(f"{path}: is a recipe of sparsefeed itself; name a file of your own")
    if path.exists():
        raise SpecError(f"{path}: is there already; name a new file, it becomes a copy of the recipe")
    source = Path(recipe) if Path(recipe).suffix in (".yaml", ".yml") else _PACKAGED / f"{recipe}.yaml"
    value: dict[str, Any] = yaml.safe_load(source.read_text("utf-8"))
    serving = value.setdefault("serving", {})
    serving["dense_threads"] = choice.dense_threads
    serving.setdefault("instances", {}).update({"dense": choice.dense, "transform": choice.transform})
    path.write_text(yaml.safe_dump(value, sort_keys=False), "utf-8")
    load_recipe(str(path))


def lines(tried: Sequence[Tried]) -> list[str]:
    """What was tried, the best first, as lines of a table."""
    head = "threads  dense  transform  requests/s  p50 ms  p99 ms"
    rows = [
        f"{one.choice.dense_threads:7d}  {one.choice.dense:5d}  {one.choice.transform:9d}  {one.requests_per_s:10.0f}  "
        f"{one.p50_ms:6.1f}  {one.p99_ms:6.1f}"
        for one in tried
    ]
    return [head, *rows]
