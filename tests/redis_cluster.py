"""Redis servers on the loopback address: a cluster of three that may lose one, and a plain one."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.ports import free_port

__all__ = ["Cluster", "plain_redis", "running_cluster"]

_NODES = 3
_EDGES = [16384 * i // _NODES for i in range(_NODES + 1)]  # node i has the slots from one to below the next
_SECONDS = 30


class Cluster:
    """Three primaries without replicas and without persistence: a node that comes back has its slots, and no rows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = [free_port() for _ in range(_NODES)]
        self._bus_ports = [free_port() for _ in range(_NODES)]  # else port + 10000, which may be beyond 65535
        self._nodes = [_client(port) for port in self.ports]
        self._servers: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start the nodes, give each a third of the slots, and make them meet."""
        for i in range(_NODES):
            self._servers.append(self._server(i))
            _until(lambda i=i: _answers(self.ports[i]), self.folder)
        for i in range(_NODES):
            self._ask(i, "CLUSTER", "ADDSLOTSRANGE", _EDGES[i], _EDGES[i + 1] - 1)
        for port, bus_port in zip(self.ports[1:], self._bus_ports[1:], strict=True):
            self._ask(0, "CLUSTER", "MEET", "127.0.0.1", port, bus_port)
        self.wait()

    def stop(self) -> None:
        """End all nodes."""
        for node in self._nodes:
            node.close()
        for server in self._servers:
            server.kill()
            server.wait()

    @contextmanager
    def without(self, i: int) -> Iterator[None]:
        """Kill a node (SIGKILL); on leaving it is back, without its rows, and the cluster whole."""
        self._servers[i].kill()
        self._servers[i].wait()
        try:
            yield
        finally:
            self._servers[i] = self._server(i)
            self.wait()

    @contextmanager
    def hung(self, i: int) -> Iterator[None]:
        """Stop a node (SIGSTOP): it takes connections and answers none; on leaving it goes on."""
        self._servers[i].send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._servers[i].send_signal(signal.SIGCONT)
            self.wait()

    def wait_until_down(self) -> None:
        """Until some node has noticed that another is lost."""
        _until(
            lambda: not all(self._is_whole(i) for i in range(_NODES) if self._servers[i].poll() is None), self.folder
        )

    def wait(self) -> None:
        """Until every node says that the cluster is whole."""
        _until(lambda: all(self._is_whole(i) for i in range(_NODES)), self.folder)

    def flush(self) -> None:
        """Empty all nodes."""
        for i in range(_NODES):
            self._ask(i, "FLUSHALL")

    @property
    def address(self) -> str:
        """All nodes, as RedisTier takes them."""
        return ",".join(f"127.0.0.1:{port}" for port in self.ports)

    def hgetall(self, name: str) -> dict[bytes, bytes]:
        """One hash, from the node that has it, over a plain connection."""
        return dict(self._where(name).hgetall(name))

    def set_hash(self, name: str, field: bytes, value: bytes) -> None:
        """Write one field of a hash to the node that has it, over a plain connection."""
        self._where(name).hset(name, field, value)

    def names(self) -> set[str]:
        """Every name on every node."""
        return {name.decode() for i in range(_NODES) for name in self._ask(i, "KEYS", "*")}

    def _server(self, i: int) -> subprocess.Popen[bytes]:
        folder = self.folder / f"node{i}"
        folder.mkdir(exist_ok=True)
        return _start(
            folder, self.ports[i], "--cluster-enabled", "yes", "--cluster-port", str(self._bus_ports[i]),
            "--cluster-node-timeout", "1000",
        )  # fmt: skip

    def _ask(self, i: int, *command: object) -> Any:
        return self._nodes[i].execute_command(*command)

    def _where(self, name: str) -> redis.Redis:
        slot = int(self._ask(0, "CLUSTER", "KEYSLOT", name))
        return self._nodes[next(i for i in range(_NODES) if slot < _EDGES[i + 1])]

    def _is_whole(self, i: int) -> bool:
        try:
            state = self._ask(i, "CLUSTER INFO")
        except redis.exceptions.ConnectionError:
            return False
        return bool(state["cluster_state"] == "ok" and int(state["cluster_known_nodes"]) == _NODES)


@contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster; its files are in the folder."""
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@contextmanager
def plain_redis(folder: Path, *arguments: str) -> Iterator[int]:
    """A Redis that is no cluster; its port."""
    port = free_port()
    server = _start(folder, port, *arguments)
    try:
        _until(lambda: _answers(port), folder)
        yield port
    finally:
        server.kill()
        server.wait()


def _start(folder: Path, port: int, *arguments: str) -> subprocess.Popen[bytes]:
    program = shutil.which("redis-server")
    if program is None:
        pytest.fail("redis-server is not installed, and tests of RedisTier need it: apt-get install -y redis-server")
    fixed = ["--bind", "127.0.0.1", "--dir", str(folder), "--save", "", "--appendonly", "no", "--logfile", "log"]
    return subprocess.Popen([program, "--port", str(port), *fixed, *arguments])


def _client(port: int) -> redis.Redis:
    return redis.Redis(port=port, protocol=2, retry=Retry(NoBackoff(), 0))


def _answers(port: int) -> bool:
    with _client(port) as node:
        try:
            return bool(node.ping())
        except redis.exceptions.AuthenticationError:
            return True
        except redis.exceptions.ConnectionError:
            return False


def _until(holds: Callable[[], bool], folder: Path) -> None:
    end = time.monotonic() + _SECONDS
    while not holds():
        if time.monotonic() > end:
            logs = "\n".join(path.read_text() for path in sorted(folder.rglob("log")))
            pytest.fail(f"redis-server did not get ready in {_SECONDS} s:\n{logs[-4000:]}")
        time.sleep(0.02)
