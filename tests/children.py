"""Child processes that may die: by a signal, or by hanging."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

FORK = multiprocessing.get_context("fork")  # a child begins with what its parent built and compiled


def ask_child(action: Callable[[], object], seconds: float = 60) -> tuple[int | None, Any]:
    """Do this in a child.

    Returns:
        The exit code: 0, minus the signal that ended the child, or None where it had to be ended after `seconds`;
        and what the action returned, or the text of its exception (None where it came to neither).
    """
    receiver, sender = FORK.Pipe(duplex=False)

    def act() -> None:
        try:
            answer = action()
        except BaseException as error:
            answer = repr(error)
        sender.send(answer)

    child = FORK.Process(target=act)
    child.start()
    sender.close()  # or the end of the child would not show
    answered = receiver.poll(seconds)
    try:
        answer = receiver.recv() if answered else None
    except EOFError:
        answer = None
    if not answered:
        child.kill()
    child.join()
    return child.exitcode if answered else None, answer
