"""Measure: perf_analyzer on real requests against a server of the current bundle, and one feed ranked.

Requests are drawn from the logs' last day, as members come back (workflows.traffic).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from sparsefeed.errors import DataError
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.bundle import open_version
from sparsefeed.progress import Progress, silent
from sparsefeed.workflows.recipe import Recipe
from sparsefeed.workflows.serving.client import FeedClient
from sparsefeed.workflows.serving.cost import machine
from sparsefeed.workflows.serving.perf import measure
from sparsefeed.workflows.serving.server import TritonServer
from sparsefeed.workflows.stages import read_etl, write_json
from sparsefeed.workflows.traffic import last_day, real_requests, write_requests
from sparsefeed.workflows.workspace import Workspace

__all__ = ["bench_server", "measure_serving", "rank_one_feed", "real_requests"]


def bench_server(
    server: TritonServer,
    bundles: Path,
    bundle: str,
    logs: Path | str,
    *,
    candidates: Sequence[int] = (100, 500),
    concurrencies: Sequence[int] = (1, 4),
    num_requests: int = 300,
    requests_out: Path | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Latency by number of candidates and concurrency, with its parts by step, and the memory of each table.

    The requests of each number of candidates are kept as `requests_out/requests-<candidates>.json`, if that is given.
    """
    version = open_version(bundles, bundle)
    spec = FeedSpec.load(version.spec)
    loads = []
    for i, num_candidates in enumerate(candidates):

        def told(done: int, total: int, what: str, before: int = i, n: int = num_candidates) -> None:
            progress(before * total + done, total * len(candidates), f"{n} candidates, {what}")

        requests = real_requests(spec, logs, num_candidates, 200)
        if requests_out:
            write_requests(requests_out / f"requests-{num_candidates}.json", requests)
        measured = measure(
            server.grpc_url,
            bundle,
            requests,
            concurrencies=concurrencies,
            num_requests=num_requests,
            progress=told,
        )
        loads += [{"candidates": num_candidates, **dataclasses.asdict(load)} for load in measured]
    index = json.loads((version.tables / "tables.json").read_text("utf-8"))
    tables = [
        {
            **{key: table[key] for key in ("name", "rows", "dim", "row_format")},
            "bytes": (version.tables / f"{table['name']}.npy").stat().st_size,
            "bytes_int8": table["rows"] * (table["dim"] + 8),
        }
        for table in index["tables"]
    ]
    return {"bundle": bundle, "machine": machine(), "loads": loads, "tables": tables}


def rank_one_feed(server: TritonServer, spec: FeedSpec, logs: Path | str) -> dict[str, Any]:
    """One production session of the last day: its posts as they were shown and as the bundle ranks them."""
    if spec.logs.member is None:
        raise DataError(f"{logs}: the spec has no logs.member; give requests of your own")
    columns = [spec.logs.member, spec.logs.post, spec.logs.time]
    columns += [c for c in (spec.logs.position, spec.sessions.column if spec.sessions else None) if c]
    table = last_day(logs, spec, columns)
    if spec.sessions:
        table = table.filter(pc.field(spec.sessions.column) == spec.sessions.production)
    frame = table.drop_null().to_pandas()
    sessions = frame.groupby([spec.logs.member, spec.logs.time], sort=False)
    member, session = max(((key[0], group) for key, group in list(sessions)[:200]), key=lambda found: len(found[1]))
    if spec.logs.position:
        session = session.sort_values(spec.logs.position)
    posts = [str(post) for post in session[spec.logs.post]]
    with FeedClient(server.grpc_url) as client:
        ranking = client.rank(str(member), posts)
    after = {post: i for i, post in enumerate(ranking.order, 1)}
    return {
        "bundle": ranking.bundle,
        "member": str(member),
        "posts": [
            {
                "post": post,
                "before": i + 1,
                "after": after[post],
                "score": float(ranking.score[i]),
                "probability": {name: float(p[i]) for name, p in ranking.probability.items()},
                "unknown": sorted(ranking.unknown[i]),
            }
            for i, post in enumerate(posts)
        ],
    }


def measure_serving(
    recipe: Recipe,
    workspace: Workspace,
    logs: Path | str | None = None,
    progress: Progress = silent,
    requests_out: Path | None = None,
) -> dict[str, Any]:
    """Start a server of the current bundle, rank one feed, measure; writes ranking.json and bench.json."""
    version = open_version(workspace.bundles)
    source = logs or read_etl(recipe, workspace)[1]["logs"]
    with TritonServer(
        workspace.triton_repo, [version.id], recipe.serving, log_path=workspace.server_log, progress=progress
    ) as server:
        write_json(workspace.ranking, rank_one_feed(server, FeedSpec.load(version.spec), source))
        result = bench_server(
            server, workspace.bundles, version.id, source, requests_out=requests_out, progress=progress
        )
    write_json(workspace.bench, result)
    return result
