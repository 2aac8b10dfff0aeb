"""EngagedSessions: the sessions in which a member responded to anything, found without holding them in memory.

Rows of other sessions say little of what a member likes; whether leaving them out helps is a switch of the recipe
(`sampling.sessions`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparsefeed.etl.array_file import ArrayFile
from sparsefeed.etl.cluster import compute
from sparsefeed.etl.columns import KEY
from sparsefeed.etl.ids.sorted_keys import places
from sparsefeed.etl.runs import Runs

__all__ = ["EngagedSessions"]

_ROWS_AT_ONCE = 8_000_000


@dataclass(frozen=True)
class EngagedSessions:
    """Keys of sessions with a response.

    Attributes:
        path: of the keys, uint64, ascending, each once.
    """

    path: Path

    @classmethod
    def find(
        cls,
        over: Callable[[Callable[[Iterable[tuple[int, Any]]], int]], list[int]],
        keys_of: Callable[[Any], NDArray[np.uint64]],
        scratch: Path,
        path: Path,
    ) -> EngagedSessions:
        """Look through all partitions; `scratch` is used and removed.

        Args:
            over: gives the numbered frame of every partition to a function, where the partitions are read.
            keys_of: of a frame, the keys of its sessions with a response, repeated or not.
            scratch: for runs.
            path: of the result.
        """
        runs = Runs(scratch / "engaged")
        num_runs = len(over(partial(_note, keys_of, runs)))
        compute([partial(_merge, runs, num_runs, path)])
        runs.remove()
        return cls(path)

    def has(self, keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which sessions are among them: bool [n]."""
        ascending: NDArray[Any] = np.load(self.path, mmap_mode="r").view(np.ndarray)
        return places(ascending, keys) >= 0


def _note(keys_of: Callable[[Any], NDArray[np.uint64]], runs: Runs, frames: Iterable[tuple[int, Any]]) -> int:
    ((number, part),) = frames
    return runs.write(number, pa.table({KEY: np.unique(keys_of(part))}))


def _merge(runs: Runs, num_runs: int, path: Path) -> int:
    with ArrayFile(path, np.uint64) as file:
        for tables in runs.ranges(_ROWS_AT_ONCE, num_runs):
            file.append(np.unique(np.concatenate([table[KEY].to_numpy() for table in tables])))
    return file.num_rows
