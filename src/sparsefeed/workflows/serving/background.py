"""Later: a step that is imported and opened by a thread of the lowest priority.

A bundle is loaded beside the ones that serve, and a process for each of its steps begins: libraries, compiled kernels,
the graph. On few cores that would be seconds in which requests wait for a core. On Linux priority is a thread's own, so
the thread that begins has the lowest, and the one that serves has never had another than it was given.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

__all__ = ["Later", "in_background"]

Result = TypeVar("Result")
_LOWEST = 19


@dataclass(frozen=True)
class Later:
    """A step class by its place.

    Attributes:
        module: where it is.
        name: its own.
    """

    module: str
    name: str

    def open(self, parameters: Mapping[str, str]) -> Any:
        """Import the class and open a bundle's step with it, in the background; returns when that is done."""
        return in_background(lambda: getattr(importlib.import_module(self.module), self.name).open(parameters))


def in_background(work: Callable[[], Result]) -> Result:
    """Do work in a thread of the lowest priority, and wait for it; whatever it raises is raised here."""
    done: Future[Result] = Future()

    def do() -> None:
        with contextlib.suppress(OSError):  # as it was, then
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST)
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=do, name="background").start()
    return done.result()
