"""docs/contracts/router.md, sentence by sentence."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import xxhash
from tritonclient.utils import InferenceServerException

from sparsefeed.errors import ReleaseError
from sparsefeed.models.bundle import versions
from sparsefeed.workflows.release.canary import start
from sparsefeed.workflows.release.prune import prune
from sparsefeed.workflows.release.publish import publish
from sparsefeed.workflows.release.routing.route_file import CAPACITY_BYTES, RouteFile
from sparsefeed.workflows.release.routing.router import Answer, Router
from sparsefeed.workflows.release.routing.routes import Canary, Routes, Shadow
from sparsefeed.workflows.release.shadow_pipe import ShadowPipe, pack, unpack
from sparsefeed.workflows.serving.client import FeedClient
from tests.children import ask_child
from tests.workflows.release.conftest import Served, both, release_root, server, servers
from tests.workflows.release.killed import kill_at
from tests.workflows.serving.feed import Feed

__all__ = ["both", "release_root", "server", "servers"]  # fixtures

SALT = "b2-1"
MEMBERS = [f"u{i}" for i in range(4000)]


def placed(member: str) -> float:
    """A member's place, by the words of the contract and another's hash."""
    return (xxhash.xxh64_intdigest(member.encode(), xxhash.xxh64_intdigest(SALT.encode(), 0)) >> 11) / 2**53


def answer(bundle: str) -> Answer[str]:
    return Answer(bundle, np.ones(1, np.float32), np.zeros(1, np.int32))


@pytest.mark.triton
def test_0_the_outputs_are_those_of_the_request_contract(server: Served) -> None:
    place = server.release.place.grpc_url
    posts = ["p6", "p7", "p8"]
    with FeedClient(place) as routed, FeedClient(place, "b1") as direct:
        got, want = routed.rank("m6", posts), direct.rank("m6", posts)
        assert got.bundle == "b1"
        np.testing.assert_array_equal(got.score, want.score)
        assert got.unknown == want.unknown
        for response, probability in want.probability.items():
            np.testing.assert_array_equal(got.probability[response], probability)
        overrides = {"member": {"age": 77}}
        np.testing.assert_array_equal(
            routed.rank("m6", posts, overrides).score, direct.rank("m6", posts, overrides).score
        )


def test_1_a_pin_then_the_place_then_the_stable_bundle() -> None:
    routes = Routes(0, "b1", canary=Canary("b2", 30.0, SALT), pinned={"u7": "b9", "u8": "b1"})
    for member in MEMBERS[:300]:
        want = {"u7": "b9", "u8": "b1"}.get(member, "b2" if placed(member) < 0.3 else "b1")
        assert routes.choose(member.encode()).bundle == want
    assert Routes(0, "b1", canary=Canary("b2", 100.0, SALT)).choose(b"").bundle == "b1"


def test_2_the_share_is_the_percent_and_grows_with_it() -> None:
    inside = {}
    for percent in (5.0, 20.0, 60.0):
        routes = Routes(0, "b1", canary=Canary("b2", percent, SALT))
        inside[percent] = {member for member in MEMBERS if routes.choose(member.encode()).bundle == "b2"}
        assert inside[percent] == {member for member in MEMBERS if placed(member) < percent / 100}
        p = percent / 100
        assert abs(len(inside[percent]) - len(MEMBERS) * p) <= 3 * (len(MEMBERS) * p * (1 - p)) ** 0.5
    assert inside[5.0] < inside[20.0] < inside[60.0]
    other = Routes(0, "b1", canary=Canary("b2", 5.0, "b2-2"))
    assert {member for member in MEMBERS if other.choose(member.encode()).bundle == "b2"} != inside[5.0]


def test_3_what_cannot_be_meant_is_refused_and_leaves_the_last_good_routes(tmp_path: Path) -> None:
    path = tmp_path / "routes.json"
    good = json.loads(Routes(0, "b1").dump())
    for wrong in (
        {**good, "stabel": "b1"},
        {key: value for key, value in good.items() if key != "shadow"},
        {**good, "revision": "1"},
        {**good, "canary": {"bundle": "b2", "percent": 101, "salt": SALT}},
        {**good, "canary": {"bundle": "b2", "percent": float("nan"), "salt": SALT}},
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(ReleaseError, match=f"{path}: "):
            Router(path)
        path.write_text(json.dumps(good))
        router = Router(path)
        path.write_text(json.dumps(wrong))
        assert router.route(b"u1", answer) == "b1"
        assert str(path) in router.trouble


@pytest.mark.triton
def test_4_a_replacement_counts_from_the_next_request_on(server: Served) -> None:
    publish([server.release], server.root, "b2", server.config)
    with FeedClient(server.release.place.grpc_url) as client:
        for bundle in ("b1", "b2", "b1", "b2"):
            server.release.file.replace(server.release.routes.with_changes(stable=bundle))
            assert client.rank("m6", ["p6"]).bundle == bundle


def test_5_a_replacement_writes_the_spare_alone_and_takes_no_room(tmp_path: Path) -> None:
    file = RouteFile(tmp_path / "routes.json")
    file.create(Routes(0, "b0"))
    for number in range(1, 6):
        old, spare = file.path.stat(), file.spare.stat()
        file.replace(Routes(number, f"b{number}"))
        assert (file.path.stat().st_ino, file.spare.stat().st_ino) == (spare.st_ino, old.st_ino)
        assert file.spare.stat().st_mtime_ns == old.st_mtime_ns
        assert [path.stat().st_size for path in (file.path, file.spare)] == [CAPACITY_BYTES, CAPACITY_BYTES]
        assert file.path.stat().st_blocks == spare.st_blocks


@pytest.mark.triton
def test_6_the_stable_bundle_stands_in_and_a_request_to_be_mended_is_refused(server: Served) -> None:
    start([server.release], server.root, "b2", 100.0, server.config)
    with triton.InferenceServerClient(server.release.place.grpc_url) as plain:
        posts = triton.InferInput("post_ids", [1], "BYTES")
        posts.set_data_from_numpy(np.array([b"p6"], object))
        with pytest.raises(InferenceServerException, match="member_id: missing") as caught:
            plain.infer("feed", [posts])
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        assert 'bundle "b1", feed_transform: ' in caught.value.message()
    assert server.bundle_for() == "b2"
    server.release.control.unload("b2")
    assert server.bundle_for() == "b1"


def test_7_a_copy_that_finds_the_queue_full_is_dropped_at_once(tmp_path: Path) -> None:
    posts, score = [f"p{i}".encode() for i in range(500)], np.arange(500, dtype=np.float32)
    copied = unpack(pack("b9", "ü".encode(), posts, b"{}", score))
    assert (copied.shadow, copied.member, copied.posts, copied.overrides) == (
        "b9",
        "ü",
        [p.decode() for p in posts],
        "{}",
    )
    np.testing.assert_array_equal(copied.score, score)

    class Tensor:
        def __init__(self, *values: bytes) -> None:
            self._values = values

        def as_numpy(self) -> Any:
            return np.array(self._values, object)

    pipe = ShadowPipe("", tmp_path, command=["sleep", "60"])  # takes nothing out
    request = {"member_id": Tensor(b"u1"), "post_ids": Tensor(*posts)}
    deadline = time.monotonic() + 10
    while not pipe.offer(Shadow("b9", 100.0), request, score) and time.monotonic() < deadline:
        time.sleep(0.01)  # the other process is being started
    begun, taken = time.monotonic(), 0
    for _ in range(1000):
        taken += pipe.offer(Shadow("b9", 100.0), request, score)
    assert 1 <= taken < 200
    assert time.monotonic() - begun < 5
    assert pipe._process is not None
    pipe._process.kill()
    pipe._process.wait()
    assert not pipe.offer(Shadow("b9", 100.0), request, score)  # gone, which is no error of a request
    pipe.close()


@pytest.mark.triton
def test_8_every_replacement_is_one_line_that_a_crash_does_not_lose(server: Served) -> None:
    release = server.release
    begun = release.routes.revision

    def change(die_at: str) -> None:
        def die(done: int, total: int, what: str) -> None:
            if what == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

        with release.alone():
            release.decide("pin", "a test", lambda now: now.with_changes(pinned={"u1": "b1"}), progress=die)

    change("")
    assert ask_child(lambda: change("routes in place"))[0] == -signal.SIGKILL
    assert [line["revision"] for line in release.log.read()] == [begun + 1]
    with release.log.path.open("ab") as log:
        log.write(b'{"action": "torn')  # as a crash while it is written would leave it
    change("")
    lines = list(release.log.read())
    assert [line["revision"] for line in lines] == [begun + 1, begun + 2, begun + 3]
    assert lines[-1] == release.routes.decision
    assert {"action", "when", "who", "why", "revision", "stable", "previous"} <= set(lines[0])


@pytest.mark.triton
def test_9_whatever_dies_one_bundle_answers_and_the_same_command_finishes(server: Served) -> None:
    for step, answering in ((f"{server.release.name}: loaded b2", "b1"), ("routes in place", "b2")):
        assert kill_at(step, "publish", server.release, server.config, "b2") == -signal.SIGKILL
        assert {server.bundle_for(member) for member in ("m5", "m6", "m7", "")} == {answering}
    publish([server.release], server.root, "b2", server.config)
    assert [line["action"] for line in server.release.log.read()] == ["publish"]


@pytest.mark.triton
def test_10_what_is_named_is_not_removed(servers: list[Served]) -> None:
    first, second = servers
    Feed.make(1).publish(first.root, "a0")  # named by nobody, and older by its name
    publish([second.release], second.root, "b2", second.config, keep=2)
    assert (first.root / "released_by").read_text().count("\n") >= 2
    removed = prune([first.release, second.release], first.root, keep=3)
    assert "a0" not in versions(first.root)
    assert not {"b1", "b2"} & set(removed)
