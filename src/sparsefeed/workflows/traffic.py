"""Traffic: requests as a product would send them, drawn from its own logs.

Few members ask often and most seldom: members are ranked by their rows of the last day, and the k-th asks with a
probability in proportion to k^-s (Zipf's law). A member's candidates are the posts of a session of theirs; where a
measurement asks for more, posts of the day are added, each as often as it was shown. So ids, histories and unknown
posts have the shares they have in production, and caches what is theirs of it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from datetime import date
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sparsefeed.errors import DataError, ServeError
from sparsefeed.etl.logs import LogFolder
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.workflows.serving.client import FeedClient
from sparsefeed.workflows.serving.perf import perf_input

__all__ = ["Request", "last_day", "real_requests", "replay", "write_requests"]

Request = tuple[str, list[str]]


def real_requests(
    spec: FeedSpec,
    logs: Path | str,
    num_candidates: int | None,
    num_requests: int,
    seed: int = 0,
    zipf: float = 1.0,
    day: date | None = None,
) -> list[Request]:
    """Draw requests, each a member and `num_candidates` different posts.

    Args:
        spec: Names the logs' columns.
        logs: A folder or URL; the first file of a day is read.
        num_candidates: Of each request; None: the posts of the session, no others.
        num_requests: How many.
        seed: Of the draw.
        zipf: The exponent s; 0 has all members of the day ask alike.
        day: None: the last one of the logs.

    Raises:
        DataError: The spec has no member, or the day fewer posts than candidates are wanted.
    """
    if spec.logs.member is None:
        raise DataError(f"{logs}: the spec has no logs.member; give requests of your own")
    if zipf < 0:
        raise DataError(f"zipf: got {zipf}; must be 0 (all alike) or more")
    columns = [spec.logs.member, spec.logs.post, spec.logs.session or spec.logs.time]
    frame = last_day(logs, spec, columns, day).drop_null().to_pandas()
    posts = frame[columns[1]].to_numpy(object)
    distinct = len(set(posts))
    if distinct < (num_candidates or 0):
        raise DataError(f"{logs}: {distinct} posts on the last day, {num_candidates} candidates wanted; ask for fewer")
    ranked = frame[columns[0]].value_counts().sort_index().sort_values(ascending=False, kind="stable").index
    share = np.arange(1, len(ranked) + 1, dtype=np.float64) ** -zipf
    random = np.random.default_rng(seed)
    asking = ranked[random.choice(len(ranked), num_requests, p=share / share.sum())]
    sessions: dict[Any, list[list[str]]] = {}
    theirs = frame[frame[columns[0]].isin(asking)]
    for (member, _), shown in theirs.groupby([columns[0], columns[2]], sort=True)[columns[1]]:
        sessions.setdefault(member, []).append([str(post) for post in shown])
    requests = []
    for member in asking:
        own = sessions[member][random.integers(len(sessions[member]))]
        chosen = dict.fromkeys(own[:num_candidates])
        while num_candidates and len(chosen) < num_candidates:
            chosen.update(dict.fromkeys(map(str, random.choice(posts, num_candidates))))
        requests.append((str(member), list(chosen)[:num_candidates]))
    return requests


def write_requests(path: Path, requests: Sequence[Request]) -> None:
    """Write requests as perf_analyzer's `--input-data`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(perf_input(requests)), "utf-8")


def replay(urls: Sequence[str], requests: Sequence[Request], seconds: float) -> int:
    """Send requests to servers in turn, one after the other and over again, for so long; how many were answered.

    A request that is refused is the server's to count, not an error here.
    """
    end, answered = time.monotonic() + seconds, 0
    with ExitStack() as stack:
        clients = [stack.enter_context(FeedClient(url)) for url in urls]
        for client, (member, posts) in zip(cycle(clients), cycle(requests), strict=False):
            if time.monotonic() >= end:
                break
            with suppress(ServeError):
                client.rank(member, posts)
                answered += 1
    return answered


def last_day(logs: Path | str, spec: FeedSpec, columns: list[str], day: date | None = None) -> pa.Table:
    """These columns of the first file of the last day, or of another one."""
    folder = LogFolder.open(logs, spec, since=day, until=day)
    file = folder.of_days(folder.days[-1:])[0].stored
    with file.reading("breaks off or is damaged"), file.parquet() as whole:
        return whole.read(columns)
