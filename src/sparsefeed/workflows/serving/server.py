"""TritonServer: the real tritonserver as a child process, from start to SIGTERM.

Notable: every start has shared-memory names of its own that carry the starter's process id, so what a killed
server left in /dev/shm is known and removed at the next start; and the server's own log is the source of both
progress and the text of an error.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, TracebackType
from urllib.error import URLError
from urllib.request import urlopen

from sparsefeed.allocators import GIVE_BACK
from sparsefeed.errors import ServeError
from sparsefeed.progress import Progress, silent
from sparsefeed.workflows.serving.config import LOOPBACK, ServingConfig
from sparsefeed.workflows.serving.control import ModelControl
from sparsefeed.workflows.serving.key import PROTOCOLS, new_key
from sparsefeed.workflows.serving.native import require_built
from sparsefeed.workflows.serving.request import ROUTER, STEPS, ranker_name
from sparsefeed.workflows.serving.runtime import TritonRuntime

__all__ = ["TritonServer"]

_SHARED_MEMORY = Path("/dev/shm")
_SHARED_MEMORY_PREFIX = "sparsefeed_"
_LOADED = re.compile(r"successfully loaded '([^']+)'")
_TAIL_LINES = 30

# However we end, SIGKILL included, the kernel then tells the server: prctl(PR_SET_PDEATHSIG), which outlasts exec.
# A program of its own, since a preexec_fn is unsafe beside other threads.
_END_WITH_PARENT = f"""
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, {int(signal.SIGTERM)})
os.execv(sys.argv[1], sys.argv[1:])
"""


class TritonServer:
    """A tritonserver on this machine, ready when the `with` block begins and gone when it ends.

    Its HTTP is on the loopback address alone, since control over it cannot be closed in this version; over gRPC models
    are controlled with `key`. More bundles are loaded and unloaded while it runs by `control`. It never outlives the
    thread that started it.

    Example:
        >>> with TritonServer(repository, ["b1"], config) as server:  # doctest: +SKIP
        ...     FeedClient(server.grpc_url).rank("u1", ["p1", "p2"]).order
    """

    def __init__(
        self,
        repository: Path,
        bundles: Sequence[str],
        config: ServingConfig,
        *,
        router: bool = False,
        key: str | None = None,
        log_path: Path | None = None,
        timeout_s: float = 120.0,
        progress: Progress = silent,
    ) -> None:
        """Name what is served; nothing is started yet.

        Args:
            repository: Folder that `export` wrote.
            bundles: Ids whose ensembles are loaded at start.
            config: Its hosts and ports are the server's; the rest was written into the repository by `export`.
            router: Load the router, too, which `export_router` wrote.
            key: Of model control (serving.key); None makes one that is gone with this object.
            log_path: The server's log; None keeps it in a temporary folder until the server stops.
            timeout_s: Seconds until ready, after which the start is given up.
            progress: Told of each model loaded.
        """
        self._repository = Path(repository)
        self._bundles = tuple(bundles)
        self._models = [*(ranker_name(bundle) for bundle in bundles), *([ROUTER] if router else [])]
        self._config = config
        self._log_path = log_path
        self._key = key or new_key()
        self._timeout_s = timeout_s
        self._progress = progress
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._prefix = ""

    @property
    def http_url(self) -> str:
        """host:port of HTTP."""
        return f"{self._config.http_host}:{self._config.http_port}"

    @property
    def grpc_url(self) -> str:
        """host:port of gRPC, for clients on this machine."""
        return f"{_reached(self._config.grpc_host)}:{self._config.grpc_port}"

    @property
    def metrics_url(self) -> str:
        """Address of the Prometheus page, for clients on this machine."""
        return f"http://{_reached(self._config.metrics_host)}:{self._config.metrics_port}/metrics"

    def control(self) -> ModelControl:
        """Control of this server, with its key; close it after use."""
        return ModelControl(self.grpc_url, self._key)

    @property
    def process_id(self) -> int | None:
        """Of the running server; None when there is none."""
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def log_path(self) -> Path:
        """Where the server writes its log; ServeError before it was started."""
        if self._log_path:
            return self._log_path
        if self._scratch is None:
            raise ServeError("tritonserver: not started, so it has no log; enter the `with` block first")
        return Path(self._scratch.name) / "tritonserver.log"

    def __enter__(self) -> TritonServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start and wait until all models are ready.

        Raises:
            ServeError: A model's folder is missing, its lookup is native and not built here, a port is taken (with the
                process that holds it, where this user may know), or the server died or hung (with the end of its log).
                Nothing is left running.
            ToolError: tritonserver is not installed.
        """
        if self.process_id is not None:
            raise ServeError(f"tritonserver: already running as process {self.process_id}; stop it first")
        for model in self._models:
            if not (self._repository / model / "config.pbtxt").is_file():
                raise ServeError(f"{self._repository}: no model {model}; export the bundle into this repository first")
        for bundle in self._bundles:
            require_built(self._repository, bundle)
        for name in ("http", "grpc", "metrics"):
            _claim(f"{name}_port", getattr(self._config, f"{name}_host"), getattr(self._config, f"{name}_port"))
        _remove_shared_memory_of_the_dead()
        runtime = TritonRuntime.find()
        self._scratch = tempfile.TemporaryDirectory(prefix="sparsefeed-triton-")
        self._prefix = f"{_SHARED_MEMORY_PREFIX}{os.getpid()}_{secrets.token_hex(4)}_"
        backends = Path(self._scratch.name) / "backends"
        runtime.link_backends(backends)
        try:
            with self.log_path.open("wb") as log:
                self._process = subprocess.Popen(
                    [
                        sys.executable,
                        "-I",
                        "-S",
                        "-c",
                        _END_WITH_PARENT,
                        str(runtime.server),
                        *self._flags(runtime, backends),
                    ],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=GIVE_BACK | runtime.environment() | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"},
                    start_new_session=True,  # a Ctrl-C reaches it through us, once
                )
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def wait(self) -> int:
        """Stay in the foreground until the server ends, and return its exit status.

        SIGINT and SIGTERM are passed on, so that requests in flight finish (2-5 s). Main thread only.
        """
        process = self._process
        if process is None:
            raise ServeError("tritonserver: not started; enter the `with` block first")

        def pass_on(number: int, frame: FrameType | None) -> None:
            process.send_signal(signal.SIGTERM)

        before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            return process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop(self) -> None:
        """SIGTERM, so that requests in flight finish; SIGKILL after 30 s. Doing it twice is no error."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGTERM)
                try:
                    self._process.wait(30)
                except subprocess.TimeoutExpired:
                    os.killpg(self._process.pid, signal.SIGKILL)
                    self._process.wait()
            self._process = None
        if self._prefix:
            _remove_shared_memory(self._prefix)
            self._prefix = ""
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def _flags(self, runtime: TritonRuntime, backends: Path) -> list[str]:
        config = self._config
        return [
            f"--model-repository={self._repository}",
            "--model-control-mode=explicit",
            *(f"--load-model={model}" for model in self._models),
            "--model-load-thread-count=1",  # a bundle's processes beginning together take the cores of those that serve
            "--disable-auto-complete-config",  # else each model starts a second stub, +1.5 s
            *(f"--http-address={config.http_host}", f"--http-port={config.http_port}"),
            *(f"--grpc-address={config.grpc_host}", f"--grpc-port={config.grpc_port}"),
            *(f"--metrics-address={config.metrics_host}", f"--metrics-port={config.metrics_port}"),
            f"--grpc-restricted-protocol={','.join(PROTOCOLS)}:admin-key={self._key}",
            "--allow-gpu-metrics=false",
            "--exit-timeout-secs=15",
            "--pinned-memory-pool-byte-size=0",
            f"--backend-directory={backends}",
            f"--cache-directory={runtime.caches}",
            "--backend-config=python,stub-timeout-seconds=30",
            f"--backend-config=python,shm-region-prefix-name={self._prefix}",
        ]

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        total = sum(1 if model == ROUTER else len(STEPS) + 1 for model in self._models)
        deadline = time.monotonic() + self._timeout_s
        num_loaded = -1
        while not (_is_ready(self.http_url) and _listens(self._config)):  # which opens after HTTP
            if self._process.poll() is not None:
                raise ServeError(
                    f"tritonserver: ended with status {self._process.returncode} before it was ready; "
                    f"mend what its log says\n{self._tail()}"
                )
            if time.monotonic() > deadline:
                raise ServeError(f"tritonserver: not ready after {self._timeout_s:.0f} s; its log ends\n{self._tail()}")
            loaded = _LOADED.findall(self.log_path.read_text("utf-8", "replace"))
            if len(loaded) != num_loaded:
                num_loaded = len(loaded)
                self._progress(num_loaded, total, f"loading {loaded[-1]}" if loaded else "starting tritonserver")
            time.sleep(0.05)
        self._progress(total, total, "tritonserver is ready")

    def _tail(self) -> str:
        lines = self.log_path.read_text("utf-8", "replace").splitlines()
        # The server's tables and reports of its progress bury the cause.
        causes = [line for line in lines if line.strip() and not re.match(r"I\d{4} |[|+]", line)]
        return "\n".join(list(dict.fromkeys(causes or lines))[-_TAIL_LINES:])


def _is_ready(http_url: str) -> bool:
    try:
        with urlopen(f"http://{http_url}/v2/health/ready", timeout=1) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


def _listens(config: ServingConfig) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((_reached(config.metrics_host), config.metrics_port)) == 0


def _reached(host: str) -> str:
    """The address by which a host of this machine is reached from it."""
    return LOOPBACK if host == "0.0.0.0" else host


def _claim(name: str, host: str, port: int) -> None:
    """ServeError when something listens on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ServeError(f"serving.{name}: cannot listen on {host}:{port}: {error.strerror}") from error
            raise ServeError(
                f"serving.{name}: port {port} is in use{_holder(port)}; stop it or choose another port"
            ) from error


def _holder(port: int) -> str:
    """` by PROGRAM (process N)`, or nothing where this user may not look."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        lines = Path(table).read_text().splitlines()[1:] if Path(table).exists() else []
        for fields in map(str.split, lines):
            if fields[3] == "0A" and int(fields[1].rsplit(":", 1)[1], 16) == port:  # 0A: listening
                inodes.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(str(descriptor.readlink()) in inodes for descriptor in (process / "fd").iterdir()):
                return f" by {(process / 'comm').read_text().strip()} (process {process.name})"
        except OSError:
            continue  # another user's, or ended meanwhile
    return ""


def _remove_shared_memory(prefix: str) -> None:
    for path in _SHARED_MEMORY.glob(f"{prefix}*"):
        path.unlink(missing_ok=True)


def _remove_shared_memory_of_the_dead() -> None:
    for path in _SHARED_MEMORY.glob(f"{_SHARED_MEMORY_PREFIX}*"):
        starter = path.name.removeprefix(_SHARED_MEMORY_PREFIX).split("_")[0]
        if starter.isdigit() and not Path("/proc", starter).exists():
            path.unlink(missing_ok=True)
