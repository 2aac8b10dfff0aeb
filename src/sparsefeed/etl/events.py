"""EventFiles: responses of members to items on the disk, sorted by member and time, mapped by whoever asks.

Events of all partitions come as runs by member; each range of members is sorted by itself and appended, so sorting
needs memory for a range alone, and no worker is ever sent the events.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from sparsefeed.etl.array_file import ArrayFile
from sparsefeed.etl.kernels.history import Events
from sparsefeed.etl.runs import KEY, Runs

__all__ = ["EventFiles"]

_ROWS_AT_ONCE = 4_000_000
_COLUMNS = {"member": np.uint64, "time_ms": np.int64, "item": np.uint64}


@dataclass(frozen=True)
class EventFiles:
    """Events of one kind; pickles as its folder.

    Attributes:
        folder: of `member.npy`, `time_ms.npy` and `item.npy`.
    """

    folder: Path

    @staticmethod
    def run(events: Events) -> pa.Table:
        """Events of a partition as a run, by member."""
        ordered = Events.sort(events.member, events.time_ms, events.item)
        return pa.table({KEY: ordered.member, "time_ms": ordered.time_ms, "item": ordered.item})

    def build(self, runs: Runs, num_runs: int) -> int:
        """Merge the runs, so many; returns the number of events."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            files = {
                name: stack.enter_context(ArrayFile(self.folder / f"{name}.npy", dtype))
                for name, dtype in _COLUMNS.items()
            }
            for tables in runs.ranges(_ROWS_AT_ONCE, num_runs):
                whole = pa.concat_tables(tables)
                events = Events.sort(*(whole[name].to_numpy() for name in (KEY, "time_ms", "item")))
                for name, file in files.items():
                    file.append(getattr(events, name))
        return files["member"].num_rows

    @cached_property
    def events(self) -> Events:
        """The events, memory-mapped."""
        return Events(*(np.load(self.folder / f"{name}.npy", mmap_mode="r").view(np.ndarray) for name in _COLUMNS))

    def __getstate__(self) -> dict[str, Path]:
        return {"folder": self.folder}
