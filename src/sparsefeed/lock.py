"""One writer of a folder at a time; the kernel holds the lock, so a process that dies leaves nothing to clean up."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["only_writer"]


@contextmanager
def only_writer(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the folder's lock; False, without it, when another holds it and `wait` is not set."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)
