"""Canary and shadow against running servers: shares, automatic abort, labels, comparison."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sparsefeed.errors import ReleaseError
from sparsefeed.models.bundle import read_current
from sparsefeed.workflows.release.canary import abort, look, post_labels, promote, start, watch
from sparsefeed.workflows.release.config import Guardrails, ReleaseConfig
from sparsefeed.workflows.release.publish import publish
from sparsefeed.workflows.release.rollback import roll_back
from sparsefeed.workflows.release.shadow import shadow_figures, start_shadow, stop_shadow
from sparsefeed.workflows.serving.client import FeedClient
from tests.workflows.release.conftest import Served

pytestmark = pytest.mark.triton
LENIENT = Guardrails(min_requests=20, p99_ratio=None, psi=None, error_rate=0.9, unknown_rate=0.9)


def answers(served: Served, members: list[str]) -> list[str]:
    with FeedClient(served.release.place.grpc_url) as client:
        return [client.rank(member, ["p6", "p7"]).bundle for member in members]


def actions(served: Served) -> list[str]:
    return [line["action"] for line in served.release.log.read()]


def test_a_canary_answers_its_share_of_members_the_same_on_every_server(servers: list[Served]) -> None:
    releases = [served.release for served in servers]
    start(releases, servers[0].root, "b2", 20.0, servers[0].config)
    members = [f"someone-{i}" for i in range(300)]
    first, second = (answers(served, members) for served in servers)
    assert first == second == answers(servers[0], members)
    share = Counter(first)["b2"] / len(members)
    assert abs(share - 0.2) <= 3 * (0.2 * 0.8 / len(members)) ** 0.5
    start(releases, servers[0].root, "b2", 40.0, servers[0].config)
    more = answers(servers[0], members)
    assert all(after == "b2" for before, after in zip(first, more, strict=True) if before == "b2")
    assert Counter(more)["b2"] > Counter(first)["b2"]
    assert actions(servers[1]) == ["canary start", "canary start"]
    with pytest.raises(ReleaseError, match="b2 is the canary; promote or abort it first"):
        start(releases, servers[0].root, "b3", 5.0, servers[0].config)
    with pytest.raises(ReleaseError, match="b1 is the stable bundle"):
        start(releases, servers[0].root, "b1", 5.0, servers[0].config)
    abort(releases, "enough")
    assert set(answers(servers[1], members)) == {"b1"}
    with pytest.raises(ReleaseError, match="no canary runs"):
        look(releases, Guardrails())


def test_a_canary_that_passes_is_promoted_and_one_that_waits_is_not(server: Served) -> None:
    start([server.release], server.root, "b2", 50.0, server.config)
    with pytest.raises(ReleaseError, match=r"canary b2: wait: 0 requests, 20 wanted of either; wait, abort it, or"):
        promote([server.release], server.root, ReleaseConfig(guardrails=LENIENT))
    answers(server, [f"m{i}" for i in range(200)])
    time.sleep(1.2)  # figures are written every second
    config = ReleaseConfig(guardrails=LENIENT)
    assert watch([server.release], config).verdict == "pass"
    assert promote([server.release], server.root, config) == "b2"
    assert set(answers(server, ["m1", "m2", "m3", ""])) == {"b2"}
    assert read_current(server.root) == "b2"
    assert server.release.routes.previous == ("b1",)
    line = list(server.release.log.read())[-1]
    assert (line["action"], line["verdict"], line["forced"]) == ("canary promote", "pass", False)
    assert line["canary_requests"] + line["stable_requests"] == 200
    assert {rail["name"] for rail in line["rails"]} == {"error rate", "unknown posts"}


def test_a_canary_that_fails_is_aborted_by_itself_and_no_member_saw_an_error(server: Served) -> None:
    start([server.release], server.root, "b2", 50.0, server.config)
    server.release.control.unload("b2")  # it cannot answer
    assert set(answers(server, [f"m{i}" for i in range(200)])) == {"b1"}
    time.sleep(1.2)
    told: list[Any] = []
    judgement = watch([server.release], ReleaseConfig(), tell=told.append)
    assert (judgement.verdict, len(told)) == ("abort", 1)
    assert server.release.routes.canary is None
    line = list(server.release.log.read())[-1]
    assert line["action"] == "canary abort"
    assert line["why"].startswith("guardrail: error rate: 1 against 0, worse by 0.")
    (rail,) = [rail for rail in line["rails"] if rail["state"] == "beyond"]
    assert (rail["name"], rail["canary"], rail["stable"]) == ("error rate", 1.0, 0.0)


def test_posted_labels_abort_and_a_batch_counts_once(server: Served) -> None:
    start([server.release], server.root, "b2", 50.0, server.config)
    lines = [
        {"bundle": "b1", "response": "like", "shown": 50_000, "positive": 5000},
        {"bundle": "b2", "response": "like", "shown": 50_000, "positive": 3000},
        {"bundle": "b9", "response": "like", "shown": 10, "positive": 1},
    ]
    assert post_labels(server.release, lines) == 3
    assert post_labels(server.release, lines) == 0
    _, judgement = look([server.release], LENIENT)
    (rail,) = [rail for rail in judgement.rails if rail.name == "rate of like"]
    assert (rail.stable, rail.canary, rail.state) == (0.1, 0.06, "beyond")
    assert watch([server.release], ReleaseConfig(guardrails=LENIENT)).verdict == "abort"
    for wrong, said in (
        ({"bundle": "b1"}, "line 1: got"),
        ({**lines[0], "shown": "many"}, "shown: got 'many'; must be int"),
        ({**lines[0], "positive": 60_000}, "positive: got 60000 of 50000 shown"),
    ):
        start([server.release], server.root, "b2", 50.0, server.config)
        with pytest.raises(ReleaseError, match=said):
            post_labels(server.release, [wrong])


def test_a_rollback_ends_the_canary_first_and_then_goes_back(server: Served) -> None:
    publish([server.release], server.root, "b2", server.config)
    start([server.release], server.root, "b3", 100.0, server.config)
    assert server.bundle_for() == "b3"
    (done,) = roll_back([server.release])
    assert (done.stable, server.bundle_for()) == ("b2", "b2")
    assert done.said == "left b3; b2 answers from the next request on"
    roll_back([server.release])
    assert server.bundle_for() == "b1"


def test_a_pinned_member_is_sent_to_their_bundle(server: Served) -> None:
    server.release.control.load("b1")
    publish([server.release], server.root, "b2", server.config)
    with server.release.alone():
        server.release.decide("pin", "a test", lambda now: now.with_changes(pinned={"m6": "b1"}))
    assert answers(server, ["m6", "m7"]) == ["b1", "b2"]


def test_a_shadow_is_compared_and_answers_nobody(server: Served) -> None:
    folder = server.release.folder
    start_shadow([server.release], server.root, "b2", 50.0, server.config)
    answers(server, ["m1", "m2"])  # the first starts the process that compares
    time.sleep(2)
    asked = [f"m{i}" for i in range(5, 15)]
    assert set(answers(server, asked)) == {"b1"}
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and (
        "b2" not in shadow_figures([server.release]) or shadow_figures([server.release])["b2"].compared < 5
    ):
        time.sleep(0.2)
    found = shadow_figures([server.release])["b2"]
    assert (found.compared, found.failed, found.posts) == (5, 0, 10)
    with FeedClient(server.release.place.grpc_url, "b1") as b1, FeedClient(server.release.place.grpc_url, "b2") as b2:
        pairs = [(b1.rank(m, ["p6", "p7"]).score, b2.rank(m, ["p6", "p7"]).score) for m in asked]
    apart = [abs(one - other).max() for one, other in pairs]
    assert any(found.largest == pytest.approx(max(apart[i::2]), rel=1e-4) for i in (0, 1))
    lines = [json.loads(line) for line in (folder / "shadow.jsonl").read_text().splitlines()]
    assert len(lines) == 5
    assert {line["shadow"] for line in lines} == {"b2"}
    stop_shadow([server.release], "seen enough")
    (line,) = [line for line in server.release.log.read() if line["action"] == "shadow stop"]
    assert line["found"]["compared"] == 5


def test_a_workspace_file_of_labels_is_read_line_by_line(server: Served, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from sparsefeed.workflows.cli import app

    start([server.release], server.root, "b2", 50.0, server.config)
    path = tmp_path / "labels.jsonl"
    path.write_text('{"bundle": "b1", "response": "like", "shown": 10, "positive": 1}\n\n')
    done = CliRunner().invoke(app, ["canary", "labels", str(path), "--servers", server.release.name])
    assert done.output == "1 lines counted\n"
    done = CliRunner().invoke(app, ["canary", "status", "--servers", server.release.name])
    assert "canary b2, 50 % of members" in done.output
    assert "wait: 0 requests, 500 wanted of either" in done.output
    done = CliRunner().invoke(app, ["canary", "abort", "--servers", str(server.release.folder), "--why", "a test"])
    assert done.output == "canary b2 answers nobody\n"
