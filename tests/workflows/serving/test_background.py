from __future__ import annotations

import os
import threading

import pytest

from sparsefeed.errors import BundleError
from sparsefeed.workflows.serving.background import Later, in_background


def priority() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_work_has_the_lowest_priority_and_the_one_who_waits_keeps_theirs() -> None:
    before = priority()
    assert in_background(priority) == 19
    assert priority() == before


def test_what_the_work_raises_is_raised() -> None:
    step = Later("sparsefeed.workflows.serving.steps.dense", "DenseStep")
    with pytest.raises(BundleError, match="nowhere"):
        step.open({"bundle": "b1", "folder": "/nowhere", "threads": "1"})
