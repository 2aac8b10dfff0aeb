"""Links: a version's files beside its parent's, what they share being one file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["copy", "link"]


def link(source: Path, target: Path) -> None:
    """Hard-link a file, or every file of a folder; both lie on one file system."""
    _take(source, target, os.link)


def copy(source: Path, target: Path) -> None:
    """Copy a file, or a folder, without its times and rights."""
    _take(source, target, shutil.copyfile)


def _take(source: Path, target: Path, one: Callable[[Any, Any], Any]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=one)
    else:
        one(source, target)
