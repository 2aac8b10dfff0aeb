"""Triton's Prometheus page, as a scraper reads it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest

import sparsefeed
from sparsefeed.errors import RequestError
from sparsefeed.workflows.serving.client import FeedClient
from sparsefeed.workflows.serving.server import TritonServer
from sparsefeed.workflows.serving.steps.readings import FAMILIES
from tests.workflows.serving.feed import Feed, requests

pytestmark = pytest.mark.triton
LINE = re.compile(r"^(sparsefeed_\w+)\{([^}]*)\} (\S+)$", re.MULTILINE)


def scrape(server: TritonServer) -> dict[str, float]:
    """`name{step="...",...}` of b1 -> value; `bundle` and `process` are left out."""
    with urlopen(server.metrics_url) as answer:
        text = answer.read().decode()
    found: dict[str, float] = {}
    for name, labels, value in LINE.findall(text):
        kept = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if kept.pop("bundle") == "b1":
            kept.pop("process", None)
            found[f"{name}{{{','.join(f'{k}={v}' for k, v in sorted(kept.items()))}}}"] = float(value)
    return found


def wait_for(server: TritonServer, true: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    deadline = time.monotonic() + 15
    while not true(page := scrape(server)):
        assert time.monotonic() < deadline, page
        time.sleep(0.1)
    return page


def test_the_page_counts_what_was_asked_refused_and_unknown_and_tells_the_scores(
    server: TritonServer, feeds: dict[str, Feed]
) -> None:
    feed = feeds["b1"]
    drawn = requests(feed, 120, seed=21)
    ok = "sparsefeed_requests_total{outcome=ok,step=feed_dense}"
    with FeedClient(server.grpc_url, "b1") as client:
        client.rank("m6", ["p6"])
        time.sleep(2.5)  # what other tests asked is on the page
        before = scrape(server)
        scores = np.concatenate([client.rank(*one).score for one in drawn])
        for _ in range(3):
            with pytest.raises(RequestError):
                client.rank("m6", ["p" * 2000])
        assert client.health()  # which asks as well, but is not counted
    page = wait_for(server, lambda page: page[ok] - before[ok] >= 120)
    time.sleep(1.5)
    page = scrape(server)

    def added(name: str) -> float:
        return page[name] - before[name]

    for step in ("feed_transform", "feed_hps", "feed_dense"):
        assert added(f"sparsefeed_requests_total{{outcome=ok,step={step}}}") == 120
        assert 1 <= added(f"sparsefeed_calls_total{{step={step}}}") <= 123
        assert 0 < added(f"sparsefeed_compute_seconds_total{{step={step}}}") < 60
        buckets = [
            added(name) for name in page if name.startswith("sparsefeed_compute_seconds_bucket{") and step in name
        ]
        assert max(buckets) == added(f"sparsefeed_calls_total{{step={step}}}")
    assert added("sparsefeed_requests_total{outcome=refused,step=feed_transform}") == 3
    assert added("sparsefeed_candidates_total{step=feed_transform}") == len(scores)
    for kind in ("member_id", "post_id", "post_feature_id", "member_state", "post_state"):
        want = sum(kind in feed.unknown(member, post, changes) for member, posts, changes in drawn for post in posts)
        assert added(f"sparsefeed_unknown_total{{kind={kind},step=feed_transform}}") == want
    assert page["sparsefeed_score_window_posts{step=feed_dense}"] >= len(scores)
    assert page["sparsefeed_score_reference_mean{step=feed_dense}"] == pytest.approx(feed.score_bins()["mean"])
    assert abs(page["sparsefeed_score_mean{step=feed_dense}"] - feed.score_bins()["mean"]) < 1
    assert 0 <= page["sparsefeed_score_psi{step=feed_dense}"] < 1
    assert {name.split("{")[0] for name in page} == set(FAMILIES)


def test_the_how_to_lists_every_name_with_a_query() -> None:
    page = (Path(sparsefeed.__file__).parents[2] / "docs" / "howto" / "serve.md").read_text("utf-8")
    for name in FAMILIES:
        rows = [line for line in page.splitlines() if line.startswith("|") and f"`{name}" in line]
        assert rows, name
