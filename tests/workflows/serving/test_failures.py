"""Processes that are killed under load: what fails, for how long, and that nothing is different afterwards."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparsefeed.models.bundle import open_version
from sparsefeed.workflows.serving.client import FeedClient, RetryPolicy
from sparsefeed.workflows.serving.export import export
from sparsefeed.workflows.serving.memory import running
from sparsefeed.workflows.serving.request import STEPS, step_name
from sparsefeed.workflows.serving.server import TritonServer
from tests.workflows.serving.conftest import config
from tests.workflows.serving.feed import Feed, requests
from tests.workflows.serving.load import Load, kill, stubs

pytestmark = pytest.mark.triton
CORES = len(os.sched_getaffinity(0))
MIB = 2**20


@pytest.fixture
def started(bundle_root: Path, tmp_path: Path) -> Iterator[TritonServer]:
    settings = config()
    export(bundle_root, "b1", settings, tmp_path / "repository")
    with TritonServer(tmp_path / "repository", ["b1"], settings) as server:
        yield server


def recovery_limit_s() -> float:
    """3 s on a machine that has nothing else to do; where others compute, as much longer as they take from us."""
    return 3.0 * max(1.0, os.getloadavg()[0] / CORES)


def shared_memory() -> dict[str, int]:
    """Bytes of each file of our servers in /dev/shm."""
    return {path.name: path.stat().st_size for path in Path("/dev/shm").glob(f"sparsefeed_{os.getpid()}_*")}


def test_steps_stand_back_behind_the_threads_that_take_requests(started: TritonServer) -> None:
    """Beyond capacity these refuse at once, whatever the steps have to do."""
    assert started.process_id is not None
    front = os.getpriority(os.PRIO_PROCESS, started.process_id)
    of_steps = [pid for pids in stubs(started.process_id).values() for pid in pids]
    assert len(of_steps) >= 2
    assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in of_steps} == {min(front + 10, 19)}


@pytest.mark.parametrize("step", STEPS)
def test_a_killed_step_is_back_in_seconds_and_answers_as_before(
    started: TritonServer, feeds: dict[str, Feed], step: str
) -> None:
    asked = requests(feeds["b1"], 30, seed=8)
    model = step_name(step, "b1")
    assert started.process_id is not None
    with FeedClient(started.grpc_url, "b1") as client:
        before = [client.rank(*one).score.tobytes() for one in asked]
    shared_before = shared_memory()
    with Load(lambda: started.grpc_url) as load:
        load.wait_for(50, limit_s=60)
        (victim,) = stubs(started.process_id)[model]
        limit_s = recovery_limit_s()
        killed_s = time.monotonic()
        kill(victim)
        took_s = load.wait_for(20, limit_s=60)
        load.wait_for(50, limit_s=60)
        after_s = killed_s + took_s
        failed = [one for one in load.asked if one.scores is None]
        assert took_s < limit_s, failed
        assert 1 <= len(failed) <= 3 * (took_s / 0.5 + 2)  # of each client what was in flight, and what waited too long
        assert all(killed_s - 5 < one.begun_s < after_s for one in failed), failed
        assert len({one.scores for one in load.asked if one.scores}) == 1  # and no answer was ever another
    assert stubs(started.process_id)[model] != [victim]
    with FeedClient(started.grpc_url, "b1") as client:
        assert [client.rank(*one).score.tobytes() for one in asked] == before
        assert client.health()
    assert sum(shared_memory().values()) - sum(shared_before.values()) < 8 * MIB
    print(f"{step}: {len(failed)} of {len(load.asked)} failed, back after {took_s:.2f} s")


def test_a_killed_server_is_started_again_and_clients_find_it_by_themselves(
    started: TritonServer, feeds: dict[str, Feed]
) -> None:
    asked = requests(feeds["b1"], 30, seed=9)
    with FeedClient(started.grpc_url, "b1", retry=RetryPolicy(max_share=0, burst=0)) as client:
        before = [client.rank(*one).score.tobytes() for one in asked]
        with Load(lambda: started.grpc_url) as load:
            load.wait_for(50, limit_s=60)
            assert started.process_id is not None
            os.killpg(started.process_id, signal.SIGKILL)
            while started.process_id is not None:
                time.sleep(0.01)
            assert not client.health()
            killed = len(load.asked)
            started.stop()
            started.start()
            ready_s = time.monotonic()
            limit_s = recovery_limit_s()
            assert load.wait_for(20, limit_s=60) < limit_s  # gRPC's own pause between looks is half a second here
            failed = [one for one in load.asked[killed - 3 :] if one.scores is None]
            assert failed  # nobody waits for a server that is gone
            assert all(one.begun_s < ready_s + limit_s for one in failed)
            assert len({one.scores for one in load.asked if one.scores}) == 1
        time.sleep(1.1)  # for which health is kept
        assert client.health()
        assert [client.rank(*one).score.tobytes() for one in asked] == before


def test_health_is_false_while_a_step_cannot_be_started_again(started: TritonServer, tmp_path: Path) -> None:
    assert started.process_id is not None
    with FeedClient(started.grpc_url, "b1", timeout_s=1.0) as client:
        assert client.health()
        (tmp_path / "repository" / "feed_dense_b1" / "1" / "model.py").unlink()
        kill(stubs(started.process_id)["feed_dense_b1"][0])
        for _ in range(3):
            time.sleep(1.1)
            assert not client.health()
    with FeedClient(started.http_url, "b1", "http", timeout_s=1.0) as client:
        assert not client.health()
    os.killpg(started.process_id, signal.SIGKILL)  # which a SIGTERM would wait for in vain


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_five_minutes_of_load_leave_memory_and_shared_memory_as_they_were(
    started: TritonServer, bundle_root: Path, tmp_path: Path
) -> None:
    bundle = open_version(bundle_root, "b1")

    def held() -> dict[int, int]:
        return {p.process_id: p.pss_bytes for p in running(tmp_path / "repository", bundle)}

    with Load(lambda: started.grpc_url, posts=tuple(f"p{i % 60}" for i in range(500))) as load:
        time.sleep(30)
        before, shared_before = held(), shared_memory()
        time.sleep(300)
        after, shared = held(), shared_memory()
    assert after.keys() == before.keys()
    for process_id, size in after.items():
        assert size - before[process_id] < 16 * MIB, (process_id, before, after)
    assert shared == shared_before
    assert not [one for one in load.asked if one.scores is None]
    assert len({one.scores for one in load.asked}) == 1
    print(f"{len(load.asked)} requests; memory by process {before} -> {after}; /dev/shm {shared_before} -> {shared}")
