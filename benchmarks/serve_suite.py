"""The suite `serve`: a request in process beside what the machine allows, the ensemble beside empty models, and load.

In process a request is the three Python steps one after the other, by real requests of the held-out day. The ensemble,
its lookup the native one, is measured with one request in flight, by perf_analyzer, in turns with an ensemble of the
same shapes that computes nothing, three Python models, and with the steps in process; load by a generator in this
process, whose own work is part of what two cores have; the peak in turns with twice as much. A machine's speed changes
by a third within minutes: only what was measured in turns can be divided.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from floor import Floor, products_of
from identity import NAME, write_identity
from load import Generator
from merlin_systems import measure_merlin_systems
from ports import free_ports
from process import run_measured
from results import Recorder, Row

from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.bundle import Bundle, open_version
from sparsefeed.models.store.rows import quantise
from sparsefeed.models.store.store import ParameterStore
from sparsefeed.native import library
from sparsefeed.workflows.console import stage
from sparsefeed.workflows.measure import real_requests
from sparsefeed.workflows.recipe import Recipe
from sparsefeed.workflows.serving.config import Instances
from sparsefeed.workflows.serving.export import export
from sparsefeed.workflows.serving.perf import measure
from sparsefeed.workflows.serving.request import ranker_name
from sparsefeed.workflows.serving.server import TritonServer
from sparsefeed.workflows.serving.steps.dense import DenseStep
from sparsefeed.workflows.serving.steps.lookup import LookupStep
from sparsefeed.workflows.serving.steps.transform import TransformStep
from sparsefeed.workflows.stages import export_serving, prepare, read_etl, simulate_logs, train_model
from sparsefeed.workflows.workspace import Workspace

__all__ = ["serve"]

FOLDER = Path(__file__).parent
CANDIDATES = (100, 500)
RUNS, TURNS = 300, 5
CLIENTS = (1, 2, 4, 8, 16, 32)
SECONDS = 4.0
OVERLOAD, ROUNDS, PEAK_S, OVERLOAD_S = 2.0, 9, 2.0, 4.0
IN_TIME_MS = 250.0  # an answer later than this is no good to a feed
QUEUE = 32  # requests that wait for a step
PEER = "merlin-systems"


def serve(recipe: Recipe, workspace: Workspace, record: Recorder) -> list[Row]:
    """Everything of one bundle, which is made if it is not there."""
    library.build()  # the native lookup, which the server then takes by itself
    simulate_logs(recipe, workspace)
    prepare(recipe, workspace)
    train_model(recipe, workspace, "ips")
    with stage("export") as progress:
        bundle, _ = export_serving(recipe, workspace, progress)
    version, logs = open_version(workspace.bundles, bundle), str(read_etl(recipe, workspace)[1]["logs"])
    root = workspace.root / "serve"
    rows = tables(record, version, root)
    with stage("in process") as progress:
        progress(0, 1, "a request, and its floor")
        rows += _in_process(record, version, logs)
    with stage("ensemble") as progress:
        progress(0, 1, "beside models that compute nothing")
        rows += _ensemble(record, recipe, workspace, version, logs)
    with stage("load") as progress:
        progress(0, 1, "1 to 32 clients, and twice what it can")
        rows += _load(record, recipe, workspace, version, logs)
    with stage("shared memory") as progress:
        progress(0, 1, "two servers")
        rows += _two_servers(record, recipe, workspace, version, logs)
    with stage(PEER) as progress:
        progress(0, 1, "its ensemble, in an environment of its own")
        rows += _peer(record, recipe, workspace, version, logs)
    return rows


def tables(record: Recorder, version: Bundle, root: Path) -> list[Row]:
    """Bytes of int8 rows beside fp32's, and a table larger than any of the feed's."""
    values = np.random.default_rng(0).normal(size=(1000, 32)).astype(np.float32)
    sizes = [quantise(values, name).nbytes / 1000 for name in ("int8", "fp32")]  # type: ignore[arg-type]
    folder = root / "large"
    command = [sys.executable, str(FOLDER / "large_table.py"), str(folder)]
    run_measured(command)  # writes it, and compiles
    found = run_measured(command)
    case = "50M rows of 32 in int8"
    return [
        record.row("rows of 32", "bytes of an int8 row", sizes[0], "B", "fp32", sizes[1]),
        record.row(case, "open", found["open_s"], "s"),
        record.row(case, "memory of its own", found["own_mb"], "MB", "file", found["file_mb"]),
        record.row(case, "memory that 100 lookups add", found["grown_mb"], "MB"),
    ]


def _in_process(record: Recorder, version: Bundle, logs: str) -> list[Row]:
    """Steps, whole and floor, in turns."""
    spec = FeedSpec.load(version.spec)
    parameters = {"bundle": version.id, "folder": str(version.path), "max_candidates": "1000", "threads": "1"}
    transform = TransformStep.open(parameters)
    steps = (transform, LookupStep.open(parameters), DenseStep.open(parameters))
    store = ParameterStore.open(version.tables)
    map_bytes = sum(id_map.lookup_bytes for id_map in transform.id_maps.values())
    rows = []
    for num in CANDIDATES:
        asked = [_tensors(*one) for one in real_requests(spec, logs, num, 100)]
        for one in asked[:20]:
            _answer(steps, one)
        made, _ = _answer(steps, asked[0])
        ends = np.cumsum(made["NUMKEYS"][0])
        keys = np.split(made["KEYS"][0], ends[:-1])
        floor = Floor.of(products_of(version.dense_onnx), num, keys, [table.base for table in store.tables], map_bytes)
        taken, floors = [], []
        for turn in range(TURNS):  # in turns, so that what disturbs the machine hits both
            floors.append(floor.seconds(RUNS // TURNS))
            taken += [_answer(steps, asked[(turn + i) % len(asked)])[1] for i in range(RUNS // TURNS)]
        case = f"in process, {num} candidates"
        parts_ms = 1e3 * np.median(np.array(taken), axis=0)
        total_ms = 1e3 * float(np.median(np.array(taken).sum(axis=1)))
        least_ms = 1e3 * np.median(np.array(floors), axis=0)
        rows.append(record.row(case, "p50", total_ms, "ms", "floor", float(least_ms.sum())))
        for step, part in zip(steps, parts_ms, strict=True):
            rows.append(record.row(case, f"p50 of {step.name}", float(part), "ms"))
        for name, part in zip(("products", "rows", "ids"), least_ms, strict=True):
            rows.append(record.row(case, f"floor, {name}", float(part), "ms"))
        rows.append(record.row(case, "rate of products", floor.flops / least_ms[0] / 1e6, "GFLOP/s"))
    return rows


def _answer(steps: Any, tensors: dict[str, Any]) -> tuple[dict[str, Any], list[float]]:
    """All tensors of a request, and seconds by step."""
    taken = []
    for step in steps:
        started = time.perf_counter()
        (answer,) = step.run([tensors])
        taken.append(time.perf_counter() - started)
        if isinstance(answer, Exception):
            raise answer
        tensors = {**tensors, **answer}
    return tensors, taken


def _tensors(member: str, posts: list[str]) -> dict[str, Any]:
    return {
        "member_id": np.array([member.encode()], object),
        "post_ids": np.array([post.encode() for post in posts], object),
    }


def _ensemble(record: Recorder, recipe: Recipe, workspace: Workspace, version: Bundle, logs: str) -> list[Row]:
    """p50 of the ensemble and, in turns, of one that computes nothing and in process; the peer value is these two's."""
    spec, rows = FeedSpec.load(version.spec), []
    config = recipe.serving.model_copy(update=free_ports())
    parameters = {"bundle": version.id, "folder": str(version.path), "max_candidates": "1000", "threads": "1"}
    steps = (TransformStep.open(parameters), LookupStep.open(parameters), DenseStep.open(parameters))
    for num in CANDIDATES:
        requests = real_requests(spec, logs, num, 200)
        repository = workspace.root / "serve" / f"repository-{num}"
        export(workspace.bundles, version.id, config, repository)
        asked = [_tensors(*one) for one in requests[: RUNS // TURNS]]
        write_identity(spec, config, _answer(steps, asked[0])[0], repository)
        loads: dict[str, list[Any]] = {version.id: [], NAME: []}
        taken: list[float] = []
        with TritonServer(repository, [version.id, NAME], config) as server:
            for _ in range(TURNS):
                for name in loads:
                    loads[name] += measure(server.grpc_url, name, requests, num_requests=200)
                taken += [sum(_answer(steps, one)[1]) for one in asked]
            (busy,) = measure(server.grpc_url, version.id, requests, concurrencies=(4,))
        case = f"ensemble, {num} candidates"
        ours, empty = (statistics.median(load.p50_ms for load in loads[name]) for name in (version.id, NAME))
        compute = 1e3 * statistics.median(taken)
        rows += [
            record.row(case, "p50", ours, "ms", "empty models and the compute", empty + compute),
            record.row(case, "p50 of empty models", empty, "ms"),
            record.row(case, "p50 in process", compute, "ms"),
        ]
        for load in (sorted(loads[version.id], key=lambda load: load.p50_ms)[TURNS // 2], busy):
            seen = f"{num} candidates, {load.concurrency} in flight"
            rows += [
                record.row(seen, name.removesuffix("_ms"), getattr(load, name), "ms")
                for name in ("p50_ms", "p95_ms", "p99_ms")
            ]
            rows.append(record.row(seen, "requests per second", load.requests_per_s, "requests/s"))
    return rows


def _load(record: Recorder, recipe: Recipe, workspace: Workspace, version: Bundle, logs: str) -> list[Row]:
    """Clients from 1 to 32 in flight; then twice the peak's rate."""
    config = recipe.serving.model_copy(update={**free_ports(), "max_queue_size": QUEUE})
    repository = workspace.root / "serve" / "repository-load"
    export(workspace.bundles, version.id, config, repository)
    requests = real_requests(FeedSpec.load(version.spec), logs, CANDIDATES[0], 200)
    rows, errors, goodput = [], 0, dict[int, float]()
    with TritonServer(repository, [version.id], config) as server:
        generator = Generator(server.grpc_url, ranker_name(version.id), requests)
        generator.closed(4, 1.0)
        for clients in CLIENTS:
            outcome = generator.closed(clients, SECONDS)
            errors += len(outcome.errors) + len(outcome.refused_ms)
            goodput[clients] = outcome.goodput()
            case = f"{CANDIDATES[0]} candidates, {clients} clients"
            rows += [record.row(case, f"p{q}", outcome.quantile_ms(q / 100), "ms") for q in (50, 95, 99)]
            rows.append(record.row(case, "requests per second", outcome.goodput(), "requests/s"))
        rows.append(record.row("1 to 32 clients", "errors", errors, "requests"))
        rows += _overload(record, generator, max(goodput, key=lambda clients: goodput[clients]))
        generator.close()
    return rows


def _overload(record: Recorder, generator: Generator, clients: int) -> list[Row]:
    """Twice the peak, which so many clients reach, in turns with the peak; the turn whose share is the median."""
    turns = []
    for _ in range(ROUNDS):
        before = generator.closed(clients, PEAK_S)
        if before.errors or before.refused_ms:
            raise RuntimeError(f"peak: {len(before.refused_ms)} refused, errors: {before.errors[:1]}")
        peak = before.goodput()
        outcome = generator.open(OVERLOAD * peak, OVERLOAD_S)
        if outcome.errors:
            raise RuntimeError(f"overload: {len(outcome.errors)} errors that are not UNAVAILABLE: {outcome.errors[0]}")
        turns.append((outcome.goodput(IN_TIME_MS) / peak, peak, outcome))
    turns.sort(key=lambda turn: turn[0])
    _, peak, outcome = turns[ROUNDS // 2]
    case, refused = f"{OVERLOAD:g} times the peak", [latency for *_, one in turns for latency in one.refused_ms]
    rows = [
        record.row(case, "answers in time", outcome.goodput(IN_TIME_MS), "requests/s", "peak", peak),
        record.row(case, "least share in time of all turns", 100 * turns[0][0], "%"),
        record.row(case, "p99 of answers", outcome.quantile_ms(0.99), "ms"),
        record.row(case, "refused", 100 * len(outcome.refused_ms) / outcome.num_requests, "%"),
    ]
    if refused:
        rows.append(record.row(case, "p50 of refusals", statistics.median(refused), "ms"))
    return rows


def _two_servers(record: Recorder, recipe: Recipe, workspace: Workspace, version: Bundle, logs: str) -> list[Row]:
    """Pages of the table files that all processes of two servers hold, each page counted once."""
    requests = real_requests(FeedSpec.load(version.spec), logs, CANDIDATES[1], 100)
    instances = Instances(hps=2, transform=1, dense=1)
    configs = [recipe.serving.model_copy(update={**free_ports(), "instances": instances}) for _ in range(2)]
    repository = workspace.root / "serve" / "repository-two"
    export(workspace.bundles, version.id, configs[0], repository)
    with (
        TritonServer(repository, [version.id], configs[0]) as one,
        TritonServer(repository, [version.id], configs[1]) as other,
    ):
        for server in (one, other):
            generator = Generator(server.grpc_url, ranker_name(version.id), requests)
            generator.closed(4, SECONDS)
            generator.close()
        held, resident = _held_bytes(version.tables)
    files = sum(path.stat().st_size for path in version.tables.glob("*.npy"))
    return [
        record.row("two servers, four lookups", "tables held", held / 1e6, "MB", "files", files / 1e6),
        record.row("two servers, four lookups", "tables held, had each its own", resident / 1e6, "MB"),
    ]


def _held_bytes(folder: Path) -> tuple[int, int]:
    """Proportional and resident bytes of the folder's files over all processes, this one among them."""
    proportional = resident = 0
    for smaps in Path("/proc").glob("[0-9]*/smaps"):
        try:
            lines = smaps.read_text("utf-8", "replace").splitlines()
        except OSError:
            continue  # it ended, or is another user's
        inside = False
        for line in lines:
            name = line.split(None, 5)
            if "-" in name[0] and not name[0].endswith(":"):
                inside = len(name) > 5 and name[5].startswith(str(folder.resolve()))
            elif inside and line.startswith("Pss:"):
                proportional += 1024 * int(name[1])
            elif inside and line.startswith("Rss:"):
                resident += 1024 * int(name[1])
    return proportional, resident


def _peer(record: Recorder, recipe: Recipe, workspace: Workspace, version: Bundle, logs: str) -> list[Row]:
    """The peer's ensemble; ours waits meanwhile, and is measured before and after."""
    config = recipe.serving.model_copy(update=free_ports())
    repository, beside = workspace.root / "serve" / "repository-peer", workspace.root.parent
    export(workspace.bundles, version.id, config, repository)
    asked = {num: real_requests(FeedSpec.load(version.spec), logs, num, 200) for num in CANDIDATES}
    ours: dict[int, list[float]] = {num: [] for num in CANDIDATES}
    with TritonServer(repository, [version.id], config) as server:

        def measure_ours() -> None:
            for num, requests in asked.items():
                for _ in range(TURNS):
                    (load,) = measure(server.grpc_url, version.id, requests, num_requests=200)
                    ours[num].append(load.p50_ms)

        measure_ours()
        found = measure_merlin_systems(version, Path(logs), beside / "peers-systems", beside / "systems", CANDIDATES)
        measure_ours()
    peers = {int(load["candidates"]): load["p50_ms"] for load in found["loads"]}
    return [
        record.row(f"ensemble, {num} candidates", "p50", statistics.median(p50), "ms", PEER, peers[num])
        for num, p50 in ours.items()
    ]
