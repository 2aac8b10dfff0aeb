from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from sparsefeed.errors import ServeError, ToolError
from sparsefeed.workflows.serving.client import FeedClient
from sparsefeed.workflows.serving.config import ServingConfig
from sparsefeed.workflows.serving.control import ModelControl
from sparsefeed.workflows.serving.export import export
from sparsefeed.workflows.serving.runtime import TritonRuntime
from sparsefeed.workflows.serving.server import TritonServer
from tests.workflows.serving.conftest import config

pytestmark = pytest.mark.triton


def ours_in_shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob(f"sparsefeed_{os.getpid()}_*")}


@pytest.fixture(autouse=True)
def nothing_left_in_shared_memory() -> Iterator[None]:
    before = ours_in_shared_memory()  # of the session's own server
    yield
    assert ours_in_shared_memory() == before


@pytest.fixture(scope="module")
def one_bundle(bundle_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one")
    export(bundle_root, "b1", config(instances={"transform": 1, "hps": 1, "dense": 1}), out)
    return out


def test_progress_ends_with_all_models_and_the_server_leaves_nothing(one_bundle: Path) -> None:
    told: list[tuple[int, int, str]] = []
    before = ours_in_shared_memory()
    server = TritonServer(one_bundle, ["b1"], config(), progress=lambda *step: told.append(step))
    with server:
        process_id = server.process_id
        assert process_id is not None
        assert ours_in_shared_memory() > before
        assert b"nv_inference_request_success" in urlopen(server.metrics_url).read()
        with pytest.raises(ServeError, match=f"already running as process {process_id}"):
            server.start()
    assert told[0] == (0, 4, "starting tritonserver")
    assert told[-1] == (4, 4, "tritonserver is ready")
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert server.process_id is None
    assert not Path("/proc", str(process_id)).exists()
    assert ours_in_shared_memory() == before
    server.stop()  # twice is no error


def test_a_port_in_use_is_named_with_its_holder(one_bundle: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServeError) as caught:
            TritonServer(one_bundle, ["b1"], config(http_port=port)).start()
    assert f"serving.http_port: port {port} is in use by " in str(caught.value)
    assert f"(process {os.getpid()})" in str(caught.value)


def test_a_server_that_dies_at_start_shows_the_cause_from_its_log(one_bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "repository"
    subprocess.run(["cp", "-r", str(one_bundle), str(broken)], check=True)
    path = broken / "feed_hps_b1" / "config.pbtxt"
    text = path.read_text()
    path.write_text(text.replace("/versions/b1", "/versions/gone"))
    with pytest.raises(ServeError) as caught:
        TritonServer(broken, ["b1"], config(), log_path=tmp_path / "log").start()
    # Of what it dies is Triton's affair: mostly status 1, at times a signal on its way out.
    assert re.search(r"ended with status -?\d+ before it was ready", str(caught.value))
    assert "BundleError" in str(caught.value)
    assert "versions/gone" in str(caught.value)
    assert "| model_control_mode" not in str(caught.value)
    assert "versions/gone" in (tmp_path / "log").read_text()


def test_a_bundle_that_was_not_exported_is_refused_before_the_start(one_bundle: Path) -> None:
    with pytest.raises(ServeError, match="no model feed_ranker_b9; export the bundle"):
        TritonServer(one_bundle, ["b9"], config()).start()


def test_a_server_killed_hard_is_cleaned_up_and_started_again(one_bundle: Path) -> None:
    server = TritonServer(one_bundle, ["b1"], config())
    server.start()
    assert server.process_id is not None
    os.killpg(server.process_id, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while server.process_id is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.process_id is None
    server.stop()
    with server, FeedClient(server.grpc_url) as client:
        assert client.rank("m6", ["p6"]).bundle == "b1"


def test_shared_memory_of_a_dead_starter_is_removed_at_the_next_start(one_bundle: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = Path(f"/dev/shm/sparsefeed_{dead.pid}_0123abcd_triton")
    left.write_bytes(b"left behind")
    with TritonServer(one_bundle, ["b1"], config()):
        assert not left.exists()


def starter(repository: Path, then: str) -> list[str]:
    """A program that serves b1, prints the server's process id, and goes on as told."""
    program = (
        "import os, signal, sys, threading, time\n"
        "from pathlib import Path\n"
        "from sparsefeed.workflows.serving.config import ServingConfig\n"
        "from sparsefeed.workflows.serving.server import TritonServer\n"
        "config = ServingConfig.model_validate_json(sys.argv[2])\n"
        "with TritonServer(Path(sys.argv[1]), ['b1'], config) as server:\n"
        "    print(server.process_id, flush=True)\n"
        f"    {then}\n"
    )
    return [sys.executable, "-c", program, str(repository), config().model_dump_json()]


def test_in_the_foreground_a_sigterm_ends_the_server_and_the_command(one_bundle: Path) -> None:
    then = "threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start(); sys.exit(server.wait())"
    with subprocess.Popen(starter(one_bundle, then), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        server_id = int(process.stdout.readline())
        assert process.wait(30) == 0
    assert not Path("/proc", str(server_id)).exists()
    assert not list(Path("/dev/shm").glob(f"sparsefeed_{process.pid}_*"))


def test_a_server_does_not_outlive_its_killed_starter(one_bundle: Path) -> None:
    with subprocess.Popen(starter(one_bundle, "time.sleep(60)"), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        server_id = int(process.stdout.readline())
        process.kill()
    deadline = time.monotonic() + 30
    while is_running(server_id) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(server_id)


def is_running(process_id: int) -> bool:
    try:
        return Path("/proc", str(process_id), "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_bundles_are_loaded_and_unloaded_while_the_server_runs(bundle_root: Path, one_bundle: Path) -> None:
    with (
        TritonServer(one_bundle, ["b1"], config()) as server,
        FeedClient(server.grpc_url) as client,
        server.control() as control,
    ):
        assert control.ready() == client.bundles() == ("b1",)
        assert client.rank("m6", ["p6"]).bundle == "b1"
        export(bundle_root, "b2", config(instances={"transform": 1, "hps": 1, "dense": 1}), one_bundle)
        control.load("b2")
        assert control.ready() == ("b1", "b2")
        control.unload("b1")
        # The client took the only bundle there was; now it finds the other one by itself.
        assert client.rank("m6", ["p6"]).bundle == "b2"
        with pytest.raises(ServeError, match="feed_ranker_b9"):
            control.load("b9")


def test_control_of_no_server_says_so() -> None:
    with pytest.raises(ServeError, match="is the server started"):
        ModelControl(f"127.0.0.1:{config().grpc_port}").ready()


def test_a_missing_wheel_is_a_tool_error_that_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ToolError, match=r"pip install --no-deps nvidia-pytriton==0\.4\.2"):
        TritonRuntime.find()


def test_a_server_that_was_never_started_has_no_log_and_nothing_to_wait_for(one_bundle: Path) -> None:
    server = TritonServer(one_bundle, ["b1"], ServingConfig())
    with pytest.raises(ServeError, match="not started"):
        _ = server.log_path
    with pytest.raises(ServeError, match="not started"):
        server.wait()
    server.stop()
