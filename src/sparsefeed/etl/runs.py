"""Runs: what each partition leaves for a later step, by ascending key, in files; merged range by range of the keys.

Counting, sorting and joining more than memory holds come down to it: a task writes one run, a later task takes the
same range of keys from all runs and merges that. Keys are hashes, so ranges of equal width hold about as much.
A run is an Arrow IPC file, memory-mapped when it is read; a task that is run again writes the same file again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from sparsefeed.errors import DataError
from sparsefeed.etl.columns import ranges

__all__ = ["Runs"]


@dataclass(frozen=True)
class Runs:
    """The runs of one step, in a folder that all workers reach.

    Attributes:
        folder: made when the first run is written.
    """

    folder: Path

    def write(self, number: int, table: pa.Table) -> int:
        """Write the run of partition `number`, whole or not at all; returns its bytes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{number:06d}.arrow"
        partial = path.with_suffix(f".{os.getpid()}.partial")
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        partial.replace(path)
        return path.stat().st_size

    def tables(self) -> list[pa.Table]:
        """All runs, memory-mapped, by number."""
        return [pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in sorted(self.folder.glob("*.arrow"))]

    @property
    def num_bytes(self) -> int:
        """Of all runs, on the disk."""
        return sum(path.stat().st_size for path in self.folder.glob("*.arrow"))

    def ranges(self, rows: int, num_runs: int) -> Iterator[list[pa.Table]]:
        """The runs cut at the same keys, so that a range has about `rows` rows over all runs.

        Each range is a list of tables, one per run that has something in it, at least one; keys ascend from range to
        range. Runs stay: a task that is made again, because its worker died, must find them.

        Raises:
            DataError: there are not `num_runs` of them; fewer would be ids and events lost without a word.
        """
        tables = self.tables()
        if len(tables) != num_runs:
            raise DataError(
                f"{self.folder}: {len(tables)} runs, {num_runs} were written; the workspace must be on a disk that all "
                "workers reach"
            )
        for parts in ranges(tables, rows):
            if filled := [part for part in parts if len(part)]:
                yield filled

    def remove(self) -> None:
        """Remove all runs."""
        shutil.rmtree(self.folder, ignore_errors=True)
