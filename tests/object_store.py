"""A small object store over HTTP, in a process of its own: listings, ranges, entity tags, a record of what was asked.

    python object_store.py FOLDER RECORD

serves FOLDER read-only at a free port of the loopback address, prints its URL, and adds a line per answered request to
RECORD: method, path, first byte, number of bytes. Whatever lies under a folder named `denied` is forbidden.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote

__all__ = ["Request", "Store", "open_store"]


@dataclass(frozen=True)
class Request:
    """One answered request."""

    method: str
    path: str
    first: int
    num_bytes: int


@dataclass(frozen=True)
class Store:
    """A running store.

    Attributes:
        url: of its root.
        folder: that it serves.
        record: of its requests.
    """

    url: str
    folder: Path
    record: Path

    def requests(self, method: str = "GET", suffix: str = ".parquet") -> list[Request]:
        """Those of a kind since the record was last forgotten."""
        lines = (line.split(" ") for line in self.record.read_text("utf-8").splitlines())
        asked = [Request(method, path, int(first), int(size)) for method, path, first, size in lines]
        return [request for request in asked if request.method == method and request.path.endswith(suffix)]

    def forget(self) -> None:
        """Begin the record anew."""
        self.record.write_text("", "utf-8")


@contextmanager
def open_store(folder: Path, record: Path) -> Iterator[Store]:
    """Run a store until the block ends."""
    record.touch()
    command = [sys.executable, "-S", "-E", __file__, str(folder), str(record)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Store(process.stdout.readline().strip(), folder, record)
        finally:
            process.terminate()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open
    folder: Path
    record: Path
    lock = threading.Lock()

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.folder / unquote(self.path).strip("/")
        if "denied" in path.parts:
            self._send(403, b"")
        elif path.is_dir():
            names = sorted(child.name + "/" * child.is_dir() for child in path.iterdir())
            as_link = quote if "escaped" in path.parts else str  # Python's own server escapes "="
            page = "".join(f'<a href="{as_link(name)}">{name}</a>' for name in names)
            self._send(200, page.encode(), body, {"Content-Type": "text/html"})
        else:
            try:
                data, mark = path.read_bytes(), path.stat().st_mtime_ns
            except OSError:
                self._send(404, b"")
                return
            headers = {"ETag": f'"{len(data):x}-{mark:x}"', "Content-Type": "application/octet-stream"}
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if asked and int(asked[1]) >= len(data):
                self._send(416, b"")
            elif asked:
                first, last = int(asked[1]), min(int(asked[2]), len(data) - 1)
                headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
                self._send(206, data[first : last + 1], body, headers, first)
            else:
                self._send(200, data, body, headers)

    def _send(
        self, status: int, data: bytes, body: bool = True, headers: dict[str, str] | None = None, first: int = 0
    ) -> None:
        with self.lock, self.record.open("a", encoding="utf-8") as record:
            record.write(f"{self.command} {self.path} {first} {len(data) if body else 0}\n")
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """The record says it."""


if __name__ == "__main__":
    _Handler.folder, _Handler.record = Path(sys.argv[1]), Path(sys.argv[2])
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads = True
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()
