"""Publish and rollback against running servers: what is refused, waves, and a kill at every step."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sparsefeed.errors import BundleError, ReleaseError, ServeError
from sparsefeed.models.bundle import Manifest, open_version, publish_version, read_current, set_current, versions
from sparsefeed.workflows.release.canary import promote, start
from sparsefeed.workflows.release.config import ReleaseConfig
from sparsefeed.workflows.release.prune import prune
from sparsefeed.workflows.release.publish import publish
from sparsefeed.workflows.release.recorded import Recorded, Request, recorded_of
from sparsefeed.workflows.release.release import Release
from sparsefeed.workflows.release.rollback import roll_back
from sparsefeed.workflows.serving.client import FeedClient
from sparsefeed.workflows.serving.control import ModelControl
from tests.workflows.release.conftest import Served, serving
from tests.workflows.release.killed import kill_at
from tests.workflows.serving.feed import Feed

pytestmark = pytest.mark.triton


def actions(served: Served) -> list[str]:
    return [line["action"] for line in served.release.log.read()]


def altered(root: Path, id: str, change: Callable[[Path], None]) -> None:
    """Publish the content of b3 under another id, changed before it is sealed."""

    def build(folder: Path) -> None:
        shutil.copytree(root / "versions" / "b3", folder, dirs_exist_ok=True)
        for name in ("SHA256SUMS", "READY"):
            (folder / name).unlink()
        manifest = Manifest.load(folder).model_copy(update={"id": id})
        manifest.save(folder)
        change(folder)

    publish_version(root, id, build)


def test_a_published_bundle_answers_from_the_next_request_on_and_the_one_before_stays_loaded(server: Served) -> None:
    assert server.bundle_for() == "b1"
    publish([server.release], server.root, "b2", server.config, why="a test")
    assert server.bundle_for() == "b2"
    assert read_current(server.root) == "b2"
    assert server.release.routes.previous == ("b1",)
    assert server.release.ready() == {"b1", "b2"}
    (line,) = server.release.log.read()
    assert (line["action"], line["stable"], line["why"]) == ("publish", "b2", "a test")
    assert line["revision"] == server.release.routes.revision
    assert line["largest_difference"] < 1e-5
    assert "@" in line["who"]
    (done,) = roll_back([server.release])
    assert server.bundle_for() == done.stable == read_current(server.root) == "b1"
    with pytest.raises(ReleaseError, match="b1 is all it ever served"):
        roll_back([server.release])


def test_no_request_fails_while_bundles_are_published_and_rolled_back(server: Served) -> None:
    ended, seen, failed = threading.Event(), [], []

    def ask() -> None:
        with FeedClient(server.release.place.grpc_url) as client:
            while not ended.is_set():
                try:
                    seen.append(client.rank("m6", ["p6", "p7"]).bundle)
                except ServeError as error:
                    failed.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    for bundle in ("b2", "b3", "b2"):
        publish([server.release], server.root, bundle, server.config)
    roll_back([server.release])
    roll_back([server.release], to="b2")
    ended.set()
    thread.join()
    assert failed == []
    changes = [bundle for bundle, before in zip(seen, ["", *seen], strict=False) if bundle != before]
    assert changes[:5] == ["b1", "b2", "b3", "b2", "b3"]


@pytest.mark.parametrize(
    ("id", "change", "error", "said"),
    [
        ("newer", lambda f: Manifest.load(f).model_copy(update={"code_version": "99.0.0"}).save(f), ReleaseError,
         "code_version: got 99.0.0; this is 0."),
        ("mixed", lambda f: (f / "dense.onnx").write_bytes(b"no graph"), ReleaseError, "not loadable by onnxruntime"),
        ("other", lambda f: (f / "recorded.json").write_text(
            Recorded(requests=(Request(member="m6", posts=("p6",), score=(9.0,)),)).model_dump_json()),
         ReleaseError, "recorded was 9; does the server read another folder"),
        ("feed", lambda f: (f / "spec.json").write_text(
            (f / "spec.json").read_text().replace('"comment"', '"reshare"')), ReleaseError,
         "responses: got like, reshare; the server's router answers"),
    ],
)  # fmt: skip
def test_what_a_server_cannot_take_is_refused_and_the_old_bundle_serves_on(
    server: Served, id: str, change: Callable[[Path], None], error: type[Exception], said: str
) -> None:
    altered(server.root, id, change)
    try:
        with pytest.raises(error) as caught:
            publish([server.release], server.root, id, server.config)
        assert said in str(caught.value)
        assert "no server was changed" in str(caught.value)
        assert server.bundle_for() == read_current(server.root) == "b1"
        assert server.release.ready() == {"b1"}
        assert actions(server) == ["refuse"]
    finally:
        shutil.rmtree(server.root / "versions" / id)


def test_an_altered_byte_is_refused_before_anything_is_loaded(server: Served, tmp_path: Path) -> None:
    altered(server.root, "broken", lambda folder: None)
    try:
        path = server.root / "versions" / "broken" / "tables" / "post.npy"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.unlink()  # not through a link
        path.write_bytes(data)
        with pytest.raises(BundleError, match=r"post\.npy: altered: SHA-256"):
            publish([server.release], server.root, "broken", server.config)
        assert not (server.release.repository / "feed_ranker_broken").exists()
    finally:
        shutil.rmtree(server.root / "versions" / "broken")


def test_a_bundle_over_its_memory_budget_is_refused(server: Served) -> None:
    small = server.config.model_copy(update={"memory_budget_bytes": 1000})
    with pytest.raises(ReleaseError, match=r"memory_budget_bytes: .* 1,000 are allowed"):
        publish([server.release], server.root, "b2", small)
    assert server.bundle_for() == "b1"


def test_a_wave_that_fails_stops_and_takes_the_waves_before_back(
    servers: list[Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = ModelControl.load
    second = servers[1].release

    def fail(self: ModelControl, bundle: str) -> None:
        if self._url == second.control._url:
            raise ServeError("out of memory")
        load(self, bundle)

    monkeypatch.setattr(ModelControl, "load", fail)
    releases = [served.release for served in servers]
    with pytest.raises(ReleaseError, match="out of memory; back at what they served: 127"):
        publish(releases, servers[0].root, "b2", servers[0].config, wave=1)
    assert [served.bundle_for() for served in servers] == ["b1", "b1"]
    assert read_current(servers[0].root) == "b1"
    assert actions(servers[0]) == ["publish", "take back"]
    assert actions(servers[1]) == ["refuse"]
    monkeypatch.undo()
    publish(releases, servers[0].root, "b2", servers[0].config, wave=1)
    assert [served.bundle_for() for served in servers] == ["b2", "b2"]


def test_a_publish_killed_at_any_step_leaves_one_bundle_whole_and_a_repeated_one_finishes(server: Served) -> None:
    told: list[str] = []
    publish([server.release], server.root, "b2", server.config, progress=lambda done, total, what: told.append(what))
    name, others = server.release.name, ("b2", "b3")
    steps = [step.replace(f"{name}: ", "").replace("b2", "NEW") for step in told]
    assert steps == [
        "verified NEW", "exported NEW", "loaded NEW", "tested NEW", "routes written", "routes in place",
        "decision logged", "answers with NEW", "current set", "old versions pruned",
    ]  # fmt: skip
    for number, step in enumerate(steps):
        old, new = others[number % 2], others[(number + 1) % 2]
        at = f"{name}: {step}".replace("NEW", new) if "NEW" in step else step
        assert kill_at(at, "publish", server.release, server.config, new) == -signal.SIGKILL, step
        flipped = number >= steps.index("routes in place")
        assert {server.bundle_for(member) for member in ("m6", "m7", "")} == {new if flipped else old}, step
        publish([server.release], server.root, new, server.config)
        assert server.bundle_for() == read_current(server.root) == new
        assert list(server.release.log.read())[-1]["stable"] == new
    lines = list(server.release.log.read())
    revisions = [line["revision"] for line in lines]
    assert revisions == list(range(revisions[0], revisions[0] + len(revisions)))  # every change once, in order
    assert len(lines) == len(steps) + 1


@pytest.mark.parametrize("step", ["routes written", "routes in place", "decision logged", "current set"])
def test_a_rollback_killed_at_any_step_is_finished_and_not_repeated(server: Served, step: str) -> None:
    for bundle in ("b2", "b3"):
        publish([server.release], server.root, bundle, server.config)
    assert kill_at(step, "rollback", server.release, server.config) == -signal.SIGKILL
    assert server.bundle_for() == ("b3" if step == "routes written" else "b2")
    if step in ("routes written", "routes in place"):  # else it was logged, and the same words mean one more
        roll_back([server.release])
    assert server.bundle_for() == "b2"
    assert actions(server)[-1] == "rollback"


@pytest.mark.parametrize("step", ["routes written", "routes in place", "decision logged", "current set"])
def test_a_promotion_killed_at_any_step_is_finished(server: Served, step: str) -> None:
    start([server.release], server.root, "b2", 50, server.config)
    assert kill_at(step, "promote", server.release, server.config) == -signal.SIGKILL
    promote([server.release], server.root, ReleaseConfig(), force=True)
    assert {server.bundle_for(f"m{i}") for i in range(10)} == {"b2"}
    assert read_current(server.root) == "b2"
    assert actions(server)[1:] == ["canary promote"]


def test_a_log_that_cannot_be_written_does_not_stop_a_rollback_and_gets_its_line_later(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish([server.release], server.root, "b2", server.config)
    append = type(server.release.log).append
    monkeypatch.setattr(type(server.release.log), "append", full_disk)
    with pytest.warns(UserWarning, match="no space left"):
        roll_back([server.release])
    assert server.bundle_for() == "b1"
    monkeypatch.setattr(type(server.release.log), "append", append)
    assert actions(server) == ["publish"]
    publish([server.release], server.root, "b2", server.config)
    assert actions(server) == ["publish", "rollback", "publish"]


def full_disk(*_: object) -> None:
    raise ReleaseError("no space left on device")


def test_a_route_file_broken_by_hand_is_rolled_back_to_the_one_before(server: Served) -> None:
    publish([server.release], server.root, "b2", server.config)
    server.release.file.path.write_text("{")
    assert server.bundle_for() == "b2"  # the last good one
    (done,) = roll_back([server.release])
    assert (done.stable, server.bundle_for()) == ("b1", "b1")


def test_versions_that_nothing_names_go_and_no_other(servers: list[Served], tmp_path: Path) -> None:
    root = tmp_path / "bundles"
    for seed in range(1, 7):
        Feed.make(1).publish(root, f"v{seed}")
    set_current(root, "v2")
    place = servers[0].release.place.model_copy(update={"bundles": str(root), "grpc_url": "127.0.0.1:1"})
    release = Release.create(tmp_path / "release", place, "v3")
    release.file.replace(release.routes.with_changes(previous=("v4",), pinned={"m1": "v5"}))
    assert prune([], root, keep=1) == ["v1"]  # the register names v3, v4, v5, `current` v2
    assert versions(root) == ["v2", "v3", "v4", "v5", "v6"]
    release.file.path.write_text("{")
    set_current(root, "v6")
    assert prune([], root, keep=1) == []  # who knows what it names


def test_after_a_restart_the_routes_rule_and_a_corrupt_newest_bundle_is_left_by_a_rollback(
    release_root: Path, tmp_path: Path
) -> None:
    root = tmp_path / "bundles"
    shutil.copytree(release_root, root, ignore=shutil.ignore_patterns("released_by"))
    set_current(root, "b1")
    first, served = serving(tmp_path / "server", root)
    with first:
        publish([served.release], root, "b2", served.config)
    (root / "versions" / "b2" / "bundle.json").write_text("{")  # the newest bundle, and current, is corrupt
    (root / "versions" / "b2" / "transform" / "plan.json").write_text("{")
    (done,) = roll_back([Release.open(served.release.folder)])
    assert "when it is started; it does not run now" in done.said
    again, served = serving(tmp_path / "server", root)
    with again:
        assert served.bundle_for() == "b1"


def test_a_bundle_without_recorded_requests_is_tested_with_strangers(server: Served) -> None:
    recorded = recorded_of(server.root, open_version(server.root, "b2"))
    assert [request.member for request in recorded.requests] == ["", "sparsefeed-stranger"]
    assert all(0 < score < 4 for request in recorded.requests for score in request.score)


def test_a_server_is_named_by_its_address_or_its_folder(server: Served) -> None:
    assert Release.open(server.release.name).folder == server.release.folder
    with pytest.raises(ReleaseError, match="neither a release folder nor a server with a router"):
        Release.open("127.0.0.1:1")
