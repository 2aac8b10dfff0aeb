"""ReleaseLog: one line of JSON for every decision, or for every day of a loop, appended and fsynced.

Notable: a server's route file holds the decision that made it, so it is the commit and this log its history: a line
that a crash or a full disk kept out is appended by whoever decides next.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sparsefeed.errors import ReleaseError

__all__ = ["ReleaseLog"]


class ReleaseLog:
    """`release.jsonl` of one server, `loop.jsonl` of a workspace; one writer at a time is the caller's care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, decision: Mapping[str, Any]) -> None:
        """Append a line, whole or not at all.

        Raises:
            ReleaseError: it cannot be written; the log is as it was.
        """
        line = json.dumps(decision, ensure_ascii=False).encode("utf-8") + b"\n"
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                end = self._end(descriptor)
                try:
                    if os.pwrite(descriptor, line, end) != len(line):
                        raise OSError(f"no room for {len(line)} bytes")
                    os.fsync(descriptor)
                except OSError:
                    os.ftruncate(descriptor, end)
                    raise
            finally:
                os.close(descriptor)
        except OSError as error:
            raise ReleaseError(f"{self.path}: not written: {error}; the line is {line.decode()}") from error

    def read(self) -> Iterator[dict[str, Any]]:
        """Decisions, oldest first; a last line that a crash cut off is none.

        Raises:
            ReleaseError: a line is no JSON object.
        """
        if not self.path.exists():
            return
        for number, line in enumerate(self.path.read_bytes().splitlines(keepends=True), 1):
            if not line.endswith(b"\n"):
                return
            try:
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise ValueError("not an object")
            except ValueError as error:
                raise ReleaseError(f"{self.path}: line {number}: {error}; mend it by hand") from error
            yield value

    @property
    def last_revision(self) -> int:
        """Of the last routes it tells of; -1: none."""
        return max((int(line["revision"]) for line in self.read() if "revision" in line), default=-1)

    def _end(self, descriptor: int) -> int:
        """Where the last whole line ends; what a crash left behind it is cut off."""
        size = os.fstat(descriptor).st_size
        end, block = size, 1 << 16
        while end > 0:
            start = max(0, end - block)
            place = os.pread(descriptor, end - start, start).rfind(b"\n")
            if place >= 0:
                end = start + place + 1
                break
            end = start
        if end < size:
            os.ftruncate(descriptor, end)
        return end
