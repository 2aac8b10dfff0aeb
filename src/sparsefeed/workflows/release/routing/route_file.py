"""RouteFile: routes on disk, replaced whole, read anew when they change.

Notable: a replacement needs no room on the disk. Two files of one fixed size stand side by side; the new routes are
written over the spare one, whose blocks it has had since the beginning, and the two names are exchanged
(renameat2(2), RENAME_EXCHANGE). Where a file system cannot exchange, the spare is renamed and made anew from the
blocks of the old one. A reader sees the old routes or the new.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from pathlib import Path

from sparsefeed.errors import ReleaseError
from sparsefeed.progress import Progress, silent
from sparsefeed.workflows.release.routing.routes import Routes

__all__ = ["CAPACITY_BYTES", "RouteFile"]

CAPACITY_BYTES = 1 << 16
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_CANNOT_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}
_TRIES = 20
_Identity = tuple[int, int]


class RouteFile:
    """`routes.json` of one server; `read` is one stat when nothing changed. The caller sees to one writer at a time."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.spare = self.path.with_name(f".{self.path.name}.spare")
        self._read: tuple[_Identity, Routes] | None = None

    def read(self) -> Routes:
        """The routes as they are now.

        Raises:
            ReleaseError: the file is not there, or is none; the message says which key.
        """
        for _ in range(_TRIES):
            before = self._identity()
            if self._read is not None and self._read[0] == before:
                return self._read[1]
            content = self._content()
            # Only what is not at the path is ever written over, and no two writings have one time: the same file with
            # the same time before and after was whole in between.
            if self._identity() == before:
                self._read = before, self._parse(content)
                return self._read[1]
        raise ReleaseError(f"{self.path}: changes faster than it can be read; who is writing it?")

    def create(self, routes: Routes) -> None:
        """Write the first routes, and take the room that every later replacement needs."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._write_spare(routes)
        self.spare.replace(self.path)
        self._write_spare(routes)
        _sync(self.path.parent)

    def replace(self, routes: Routes, progress: Progress = silent) -> None:
        """Put other routes in the place of these; they are read from now on.

        Args:
            routes: the next ones.
            progress: told when they are written, and when they are in place.

        Raises:
            ReleaseError: they do not fit, or the disk takes no write; the old routes are in place.
        """
        try:
            self._write_spare(routes)
            progress(0, 2, "routes written")
            if not _exchange(self.spare, self.path):
                self.spare.replace(self.path)
            if not self.spare.exists() or self.spare.stat().st_size != CAPACITY_BYTES:
                self._restore_spare(routes)  # renamed, or it was edited by hand and has given its blocks back
            _sync(self.path.parent)
            progress(1, 2, "routes in place")
        except OSError as error:
            raise ReleaseError(f"{self.path}: not replaced: {error}; the routes are as they were") from error

    def restore(self) -> Routes:
        """Bring back the routes before these, where these cannot be read (edited by hand, say); nothing is written.

        Raises:
            ReleaseError: those before cannot be read either.
        """
        routes = RouteFile(self.spare).read()
        if not _exchange(self.spare, self.path):
            self.spare.replace(self.path)
        _sync(self.path.parent)
        return routes

    def _write_spare(self, routes: Routes) -> None:
        content = routes.dump().encode("utf-8")
        if len(content) >= CAPACITY_BYTES:
            raise ReleaseError(
                f"{self.path}: {len(content):,} bytes of routes; {CAPACITY_BYTES - 1:,} fit; pin fewer members"
            )
        descriptor = os.open(self.spare, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            # Blanks to the end: the file never shrinks, so its blocks stay its own.
            whole = content.ljust(CAPACITY_BYTES - 1) + b"\n"
            if os.pwrite(descriptor, whole, 0) != len(whole):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.spare))
            os.utime(descriptor, ns=(time.time_ns(), self._next_time()))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _next_time(self) -> int:
        """Now, but later than either file: the kernel's own clock ticks in milliseconds."""
        times = [path.stat().st_mtime_ns for path in (self.path, self.spare) if path.exists()]
        return max(time.time_ns(), *(one + 1 for one in times)) if times else time.time_ns()

    def _restore_spare(self, routes: Routes) -> None:
        try:
            self._write_spare(routes)
        except OSError:
            self.spare.unlink(missing_ok=True)  # half a spare would look like room that is there

    def _identity(self) -> _Identity:
        try:
            stat = self.path.stat()
        except FileNotFoundError as error:
            raise ReleaseError(f"{self.path}: not there; `sparsefeed serve` writes it") from error
        return stat.st_ino, stat.st_mtime_ns

    def _content(self) -> bytes:
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise ReleaseError(f"{self.path}: not readable: {error}; run `sparsefeed rollback`") from error

    def _parse(self, content: bytes) -> Routes:
        try:
            return Routes.parse(content.decode("utf-8"), str(self.path))
        except UnicodeDecodeError as error:
            raise ReleaseError(f"{self.path}: not UTF-8: {error}; run `sparsefeed rollback`") from error


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names atomically; False where this system or file system cannot."""
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2"):
        return False
    if library.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(other))


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
