"""The folder of an ETL's result: what an earlier run left in it, and how a new one takes its place."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any
from uuid import uuid4

from sparsefeed.errors import DataError
from sparsefeed.lock import only_writer

__all__ = ["FORMAT", "Result", "emptied", "finished", "publish"]

FORMAT = 2  # of etl.json; 1 had no state/

_FULL_BYTES = 1 << 20


@dataclass(frozen=True)
class Result:
    """A result as it was when somebody looked.

    Attributes:
        folder: where it lies.
        summary: the content of its etl.json.
    """

    folder: Path
    summary: dict[str, Any]

    @property
    def last_day(self) -> date:
        """The last day that it was fitted on, or a part of it was."""
        return date.fromisoformat(self.summary["train_days"][-1])

    @property
    def name(self) -> str:
        """The last day, or the moment until which a part of it goes."""
        return str(self.summary.get("until") or self.last_day)

    def must_be_unchanged(self) -> None:
        """DataError where another result has taken its place."""
        if finished(self.folder).get("fingerprint") != self.summary["fingerprint"]:
            raise DataError(f"{self.folder}: was replaced meanwhile; run again, on what there is now")


def finished(out: Path) -> dict[str, Any]:
    """The etl.json of an earlier run, {} where there is none; DataError when `out` is something else."""
    if not out.exists():
        return {}
    try:
        summary: dict[str, Any] = json.loads((out / "etl.json").read_text("utf-8"))
        return dict(summary)
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{out}: exists and is no finished ETL result ({error}); remove it or name another") from error


def publish(out: Path, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Make a result beside `out`, write etl.json into it, last, and put it in the place of the old one.

    Whatever fails, `out` is the old result or none.

    Args:
        out: the result.
        make: fills an empty folder; gives the content of etl.json.

    Raises:
        DataError: another run is making the same result.
        OSError: ENOSPC, the disk is full.
    """
    partial = out.with_name(f".{out.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    with only_writer(partial, wait=False) as alone:
        if not alone:
            raise DataError(f"{out}: another ETL is writing it now; wait for it, or name another workspace")
        emptied(partial)  # of what a run left that was killed
        # A folder of its own: on a cluster that outlives its client, tasks of that run may still be writing.
        attempt = partial / uuid4().hex
        attempt.mkdir()
        try:
            summary = make(attempt)
            (attempt / "etl.json").write_text(json.dumps(summary, indent=1) + "\n", "utf-8")
            shutil.rmtree(out, ignore_errors=True)
            attempt.rename(out)
            shutil.rmtree(partial, ignore_errors=True)
        except Exception as error:
            # A library may say so in words of its own, or say something else.
            full = os.strerror(errno.ENOSPC) in str(error) or shutil.disk_usage(out.parent).free < _FULL_BYTES
            shutil.rmtree(partial, ignore_errors=True)
            if full:
                raise OSError(errno.ENOSPC, f"the disk of {out.parent} is full") from error
            raise
    return summary


def emptied(folder: Path) -> Path:
    """The folder, with nothing in it."""
    for left in folder.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    return folder
