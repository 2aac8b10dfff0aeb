"""Shadow: copies of requests, put to another bundle beside the request's path, and how its answers differ.

Notable: the queue is a socket pair of the kernel. The router puts a copy into it or, when it is full, at once drops
it: no lock, no thread that holds the interpreter, no memory that grows. A process of its own with the lowest priority
takes one copy after the other, asks the shadow as any client would, and compares.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsefeed.errors import ServeError
from sparsefeed.workflows.release.routing.figures import ShadowFigures, write_figures
from sparsefeed.workflows.release.routing.routes import Shadow

__all__ = ["Copy", "ShadowPipe", "main", "pack", "unpack"]

_QUEUE_BYTES = 1 << 18
_LOG_BYTES = 1 << 24  # of shadow.jsonl, then it begins anew and the old one is kept once
_HEADER = struct.Struct("<4I")


@dataclass(frozen=True)
class Copy:
    """One copied request, and the scores that were answered, float32 [n]."""

    shadow: str
    member: str
    posts: list[str]
    overrides: str
    score: NDArray[np.float32]


def pack(shadow: str, member: bytes, posts: list[bytes], overrides: bytes, score: NDArray[np.float32]) -> bytes:
    """A copy as one message: a header of lengths, the texts, the scores."""
    name = shadow.encode()
    lengths = np.fromiter(map(len, posts), np.uint32, len(posts))
    header = _HEADER.pack(len(name), len(member), len(overrides), len(posts))
    return b"".join((header, name, member, overrides, lengths.tobytes(), *posts, score.astype("<f4").tobytes()))


def unpack(message: bytes) -> Copy:
    """Read what `pack` gave; its texts were answered, so they are UTF-8."""
    *sizes, num_posts = _HEADER.unpack_from(message)
    at, texts = _HEADER.size, []
    for size in sizes:
        texts.append(message[at : at + size].decode("utf-8"))
        at += size
    lengths = np.frombuffer(message, "<u4", num_posts, at)
    at += 4 * num_posts
    posts = []
    for size in lengths.tolist():
        posts.append(message[at : at + size].decode("utf-8"))
        at += size
    return Copy(texts[0], texts[1], posts, texts[2], np.frombuffer(message, "<f4", num_posts, at))


class ShadowPipe:
    """The router's end; the other process is started by the first copy, beside the request's path."""

    def __init__(self, grpc_url: str, figures: Path, command: list[str] | None = None) -> None:
        self._command = command or [shutil.which("python3") or sys.executable, "-m", __name__, grpc_url, str(figures)]
        self._starting = False
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def offer(self, shadow: Shadow, request: Mapping[str, Any], score: NDArray[np.float32]) -> bool:
        """Take a copy, or not: `request` are Triton's tensors by name."""
        if self._socket is None:
            self._start()
            return False
        overrides = request["overrides"].as_numpy() if "overrides" in request else [b""]
        message = pack(
            shadow.bundle,
            request["member_id"].as_numpy()[0],
            request["post_ids"].as_numpy().tolist(),
            overrides[0],
            score,
        )
        try:
            self._socket.send(message, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except OSError:  # too long for one message, or the other process has died
            if self._process is not None and self._process.poll() is not None:
                self.close()
            return False
        return True

    def close(self) -> None:
        """Close the pipe; the other process ends at its end."""
        if self._socket is not None:
            self._socket.close()
        self._socket, self._starting = None, False

    def _start(self) -> None:
        if not self._starting:
            self._starting = True
            threading.Thread(target=self._open, daemon=True).start()

    def _open(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _QUEUE_BYTES)
        with theirs:
            self._process = subprocess.Popen(self._command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL)
        self._socket = ours


def main(grpc_url: str, figures: Path) -> None:
    """Take copies from standard input until its other end is closed."""
    from sparsefeed.workflows.serving.client import FeedClient

    os.nice(19)
    pipe = socket.socket(fileno=os.dup(0))
    counted: dict[str, ShadowFigures] = {}
    clients: dict[str, FeedClient] = {}
    path = figures / "shadow" / f"{os.getpid()}-{time.time_ns()}.json"
    log, written = figures.parent / "shadow.jsonl", time.monotonic()
    pipe.settimeout(1.0)
    ended = False
    while not ended:
        try:
            message = pipe.recv(1 << 22)
            ended = not message
        except TimeoutError:
            message = b""
        if message:
            copy = unpack(message)
            if copy.shadow not in clients:
                clients = {copy.shadow: FeedClient(grpc_url, copy.shadow)}
            _compare(copy, clients[copy.shadow], counted, log)
        if ended or time.monotonic() - written > 1.0:
            written = time.monotonic()
            write_figures(path, {}, counted)


def _compare(copy: Copy, client: Any, counted: dict[str, ShadowFigures], log: Path) -> None:
    figures = counted.setdefault(copy.shadow, ShadowFigures())
    begun = time.perf_counter()
    try:
        answer = client.rank(copy.member, copy.posts, json.loads(copy.overrides) if copy.overrides else None)
    except ServeError as error:
        figures.failed += 1
        _log(log, {"shadow": copy.shadow, "posts": len(copy.posts), "error": str(error)[:300]})
        return
    figures.compare(copy.score, answer.score)
    apart = np.abs(copy.score - answer.score)
    line = {
        "shadow": copy.shadow,
        "posts": len(copy.posts),
        "ms": round(1000 * (time.perf_counter() - begun), 3),
        "mean_difference": float(apart.mean()),
        "largest_difference": float(apart.max()),
        "same_first": bool(np.argmax(copy.score) == np.argmax(answer.score)),
    }
    _log(log, line)


def _log(path: Path, line: Mapping[str, Any]) -> None:
    try:
        if path.exists() and path.stat().st_size > _LOG_BYTES:
            path.replace(path.with_suffix(".jsonl.1"))
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"when": time.time(), **line}) + "\n")
    except OSError:
        pass  # a full disk is no reason to stop comparing


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
