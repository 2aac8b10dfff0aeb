"""Releases under constant load: publishes, rollbacks and deltas, what requests saw of them, and what routing costs.

A request saw a wrong version where the bundle it names was not the routes' at any moment between its being due and its
answer. Latency is from when a request is due, so a stalled server is not measured by fewer requests.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from release_days import release_days
from results import Recorder, Row

from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.bundle import Bundle, open_version
from sparsefeed.models.delta import RowChange, apply_delta, write_delta
from sparsefeed.models.store.store import ParameterStore
from sparsefeed.workflows.console import stage
from sparsefeed.workflows.measure import real_requests
from sparsefeed.workflows.recipe import Recipe
from sparsefeed.workflows.release.canary import abort, start
from sparsefeed.workflows.release.publish import publish
from sparsefeed.workflows.release.release import Release, ServerPlace
from sparsefeed.workflows.release.rollback import roll_back
from sparsefeed.workflows.release.routing.routes import Shadow
from sparsefeed.workflows.release.shadow import shadow_figures, start_shadow
from sparsefeed.workflows.serving.client import FeedClient
from sparsefeed.workflows.serving.config import ServingConfig
from sparsefeed.workflows.serving.export import export, export_router
from sparsefeed.workflows.serving.server import TritonServer
from sparsefeed.workflows.stages import export_serving, prepare, read_etl, simulate_logs, train_model
from sparsefeed.workflows.workspace import Workspace

_PUBLISHES, _DELTAS, _MEMBERS, _PERCENT = 50, 20, 4000, 10.0
_RATE, _CANDIDATES, _QUIET_S, _ROUNDS = 20.0, 100, 20.0, 150


@dataclass
class Timeline:
    """When the routes named which bundle, on the clock that the load has."""

    moments: list[tuple[float, float, str]] = field(default_factory=list)  # written, in place, bundle
    switches: list[tuple[float, float]] = field(default_factory=list)  # of commands, loading included
    _written: float = 0.0

    def tell(self, bundle: str, done: int, total: int, what: str) -> None:
        """Be a release's progress."""
        if what == "routes written":
            self._written = time.time()
        elif what == "routes in place":
            self.moments.append((self._written, time.time(), bundle))

    @contextmanager
    def switch(self) -> Iterator[None]:
        """Note one command."""
        begun = time.time()
        yield
        self.switches.append((begun, time.time()))

    def may_name(self, bundle: str, begun: float, ended: float) -> bool:
        """Whether the bundle was the routes' at some moment of a request."""
        ends = [place for _, place, _ in self.moments[1:]] + [float("inf")]
        spans = zip(self.moments, ends, strict=True)
        return any(name == bundle and since <= ended and begun <= until for (since, _, name), until in spans)


def release(recipe: Recipe, workspace: Workspace, record: Recorder) -> list[Row]:
    """The suite; a server of its own on free ports."""
    simulate_logs(recipe, workspace)
    prepare(recipe, workspace)
    train_model(recipe, workspace, "ips")
    with stage("export") as progress:
        first, _ = export_serving(recipe, workspace, progress)
    with tempfile.TemporaryDirectory(prefix="sparsefeed-release-") as scratch:
        with stage("days") as progress:
            rows = release_days(recipe, record, Path(scratch) / "days", progress)
        server, one, config = _server(recipe, workspace, first, Path(scratch))
        version = open_version(workspace.bundles, first)
        requests = real_requests(FeedSpec.load(version.spec), read_etl(recipe, workspace)[1]["logs"], _CANDIDATES, 200)
        with server:
            rows += _under_load(record, workspace.bundles, one, config, requests, Path(scratch))
            rows += _canary(record, workspace.bundles, one, config)
            rows += _costs(record, workspace.bundles, one, config, requests)
    return rows


def _server(
    recipe: Recipe, workspace: Workspace, bundle: str, scratch: Path
) -> tuple[TritonServer, Release, ServingConfig]:
    sockets = [socket.socket() for _ in range(3)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    names = ("http_port", "grpc_port", "metrics_port")
    config = recipe.serving.model_copy(update=dict(zip(names, ports, strict=True)))
    place = ServerPlace(
        grpc_url=f"127.0.0.1:{config.grpc_port}",
        repository=str(scratch / "triton_repo"),
        bundles=str(workspace.bundles.resolve()),
    )
    made = Release.create(scratch / "release", place, bundle)
    export(workspace.bundles, bundle, config, made.repository)
    export_router(open_version(workspace.bundles, bundle), config, made.folder, made.repository)
    log = scratch / "tritonserver.log"
    server = TritonServer(made.repository, [bundle], config, router=True, key=made.key, log_path=log)
    return server, made, config


def _next(root: Path, parent: Bundle, number: int, scratch: Path) -> Bundle:
    """A version made of another by a delta that changes some rows of every table."""
    random = np.random.default_rng(number)
    changes = {}
    for table in ParameterStore.open(parent.tables).tables:
        rows = np.unique(random.integers(1, table.rows, 200))
        changes[table.name] = RowChange(rows, random.normal(0, 0.1, (len(rows), table.dim)).astype(np.float32))
    new = f"{parent.id.split('_')[0]}_{number}-{int(time.time())}"
    delta = write_delta(
        parent,
        new,
        scratch / new,
        step=parent.manifest.step + 1,
        created=time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        code_version=parent.manifest.code_version,
        trained_days=parent.manifest.trained_days,
        rows=changes,
        ids={},
        build=lambda folder: None,
    )
    return open_version(root, apply_delta(root, delta.path))


@contextmanager
def _load(one: Release, bundle: str, requests: object, scratch: Path, name: str) -> Iterator[Path]:
    (scratch / "requests.json").write_text(json.dumps(requests), "utf-8")
    out = scratch / f"{name}.csv"
    program = Path(__file__).with_name("release_load.py")
    command = [sys.executable, str(program), one.place.grpc_url, bundle, str(_RATE), str(scratch / "requests.json")]
    with subprocess.Popen([*command, str(out)]) as process:
        try:
            time.sleep(3)  # it starts
            yield out
        finally:
            process.terminate()


def _under_load(
    record: Recorder, root: Path, one: Release, config: ServingConfig, requests: object, scratch: Path
) -> list[Row]:
    """50 publishes, 50 rollbacks, 20 deltas: what failed, what was wrong, how late answers were."""
    first = open_version(root, one.routes.stable)
    second = _next(root, first, 0, scratch)
    line = Timeline(moments=[(0.0, 0.0, first.id)])

    def put(bundle: str) -> None:
        with line.switch():
            publish([one], root, bundle, config, keep=4, progress=partial(line.tell, bundle))

    with _load(one, "-", requests, scratch, "load") as out, stage("release") as progress:
        quiet = time.time(), time.time() + _QUIET_S
        time.sleep(_QUIET_S)
        for number in range(_PUBLISHES):
            progress(number, _PUBLISHES, "publishes and rollbacks")
            put(second.id)
            with line.switch():
                roll_back([one], progress=partial(line.tell, first.id))
        parent = second  # a version has one next one
        for number in range(_DELTAS):
            progress(number, _DELTAS, "deltas")
            parent = _next(root, parent, number + 1, scratch)
            put(parent.id)
        time.sleep(1)
    answers = [text.split(",", 3) for text in out.read_text("utf-8").splitlines() if text.count(",") >= 3]
    times = np.array([(float(begun), float(ended)) for begun, ended, *_ in answers])
    failed = sum(bool(error) for *_, error in answers)
    wrong = sum(
        bool(bundle) and not line.may_name(bundle, begun, ended)
        for (begun, ended), (_, _, bundle, _) in zip(times.tolist(), answers, strict=True)
    )
    latency_ms = 1000 * (times[:, 1] - times[:, 0])
    calm = (times[:, 0] >= quiet[0]) & (times[:, 1] <= quiet[1])
    switching = np.zeros(len(times), np.bool_)
    for begun, ended in line.switches:
        switching |= (times[:, 1] >= begun) & (times[:, 0] <= ended)
    before, during = (float(np.quantile(latency_ms[chosen], 0.99)) for chosen in (calm, switching))
    seconds = [ended - begun for begun, ended in line.switches]
    case = f"{_PUBLISHES} publishes, {_PUBLISHES} rollbacks, {_DELTAS} deltas"
    return [
        record.row(case, "requests", len(answers), "requests"),
        record.row(case, "failed", failed, "requests"),
        record.row(case, "wrong version", wrong, "requests"),
        record.row(case, "p99 during a switch", during, "ms", "before", before),
        record.row(case, "longest answer", float(latency_ms.max()), "ms"),
        record.row(case, "a publish takes", float(np.median(seconds[: 2 * _PUBLISHES : 2])), "s"),
        record.row(case, "a rollback takes", float(np.median(seconds[1 : 2 * _PUBLISHES : 2])), "s"),
    ]


def _canary(record: Recorder, root: Path, one: Release, config: ServingConfig) -> list[Row]:
    """The share of members, in standard deviations, and how many changed sides when asked again."""
    canary = _other(root, one)
    start([one], root, canary, _PERCENT, config)
    with FeedClient(one.place.grpc_url) as client:
        once, twice = (
            [client.rank(f"someone-{i}", ["p1"]).bundle == canary for i in range(_MEMBERS)] for _ in range(2)
        )
    abort([one], "measured")
    p = _PERCENT / 100
    apart = abs(sum(once) - _MEMBERS * p) / (_MEMBERS * p * (1 - p)) ** 0.5
    case = f"canary of {_PERCENT:g} %, {_MEMBERS} members"
    return [
        record.row(case, "share", 100 * sum(once) / _MEMBERS, "%"),
        record.row(case, "share, off by", apart, "standard deviations"),
        record.row(case, "changed sides", sum(a != b for a, b in zip(once, twice, strict=True)), "members"),
    ]


def _costs(
    record: Recorder, root: Path, one: Release, config: ServingConfig, requests: list[tuple[str, list[str]]]
) -> list[Row]:
    """The router against its bundle directly, and with a shadow against without, request by request in turn."""
    stable, shadow = one.routes.stable, _other(root, one)
    case = f"{_CANDIDATES} candidates, 1 in flight"
    with FeedClient(one.place.grpc_url) as routed, FeedClient(one.place.grpc_url, stable) as direct:
        asked = {"direct": direct, "router": routed}
        found = _in_turn({name: partial(_ask, client, requests) for name, client in asked.items()})
        rows = [record.row(case, "router p50", found["router"], "ms", "direct", found["direct"])]
        start_shadow([one], root, shadow, 100.0, config)
        routed.rank(*requests[0])  # starts the process that compares
        time.sleep(2)

        def shadowed(on: bool, number: int) -> float:
            now = one.routes
            if (now.shadow is not None) != on:
                one.file.replace(now.with_changes(shadow=Shadow(shadow, 100.0) if on else None))
                time.sleep(0.05)
            time.sleep(1 / _RATE)  # a rate that leaves the machine time for the copy
            return _ask(routed, requests, number)

        found = _in_turn({"off": partial(shadowed, False), "on": partial(shadowed, True)}, block=10)
        rows.append(record.row(case, "p50 with a shadow", found["on"], "ms", "without", found["off"]))
        figures = shadow_figures([one])[shadow]
        rows.append(record.row(case, "copies compared", figures.compared, "requests"))
    return rows


def _other(root: Path, one: Release) -> str:
    """A bundle that is not the stable one: the one before."""
    return next(bundle for bundle in one.routes.previous if open_version(root, bundle))


def _ask(client: FeedClient, requests: list[tuple[str, list[str]]], number: int) -> float:
    begun = time.perf_counter()
    client.rank(*requests[number % len(requests)])
    return 1000 * (time.perf_counter() - begun)


def _in_turn(calls: dict[str, Callable[[int], float]], block: int = 1) -> dict[str, float]:
    """Medians; so many of each, then of the next, so that what disturbs the machine hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for begin in range(0, _ROUNDS, block):
        for name, call in calls.items():
            times[name] += [call(number) for number in range(begin, begin + block)]
    return {name: float(np.median(values)) for name, values in times.items()}
