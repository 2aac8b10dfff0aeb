"""Which rows a rank trains on, and in what order.

Notable: an epoch is all row groups laid end to end, as they stand, which is by time, or in a seeded order. By time,
P ranks go along it together: each takes a P-th of every stretch of P shuffle buffers, and so of the last, shorter one.
In a seeded order rank r takes the r-th P-th of all rows. Either way a row group is cut in the middle where need be, so
every rank has exactly as many rows and batches as any other however the files are cut (a rank with one batch more would
wait for ever in a collective), and at most P - 1 rows are left out. Rows are then shuffled within a buffer.

Row groups are read by threads of their own, and batches are made by another, so that a step finds the next one there.
They take what steps leave of the cores, for a step waits for the slowest of its threads.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.torchrec.columns import Batch, Part, Rows, read_part
from sparsefeed.models.torchrec.lookup_keys import lookup_order

__all__ = ["Loader"]


@dataclass(frozen=True)
class Loader:
    """Batches of one rank; equal seeds give equal batches.

    Attributes:
        spec: The declaration.
        parts: Row groups of the split, the same on every rank.
        capacities: Rows per table; an id outside is a DataError that names the file.
        columns: Columns to read: `Rows.columns`.
        batch_size: Rows per batch and rank; an epoch's last batch may be smaller, equally on every rank.
        rank: This rank, in [0, world_size).
        world_size: Number of ranks.
        shuffle_rows: Rows of a shuffle buffer; memory is about three times their size.
        seed: Seed of both orders.
        read_threads: Row groups that are read at once; of more than one, batches are made by as many threads too.
        batches_ahead: Batches that are made before they are asked for; 0: none.
        pinned: Make them in pinned memory, for a GPU.
        by_time: An epoch goes from the first row group to the last; else in a seeded order, another each epoch.
    """

    spec: FeedSpec
    parts: Sequence[Part]
    capacities: dict[str, int]
    columns: Sequence[str]
    batch_size: int
    rank: int
    world_size: int
    shuffle_rows: int
    seed: int
    read_threads: int = 1
    batches_ahead: int = 0
    pinned: bool = False
    by_time: bool = False

    @property
    def rows_per_epoch(self) -> int:
        """Rows of this rank, the same on every rank."""
        return sum(part.num_rows for part in self.parts) // self.world_size

    @property
    def batches_per_epoch(self) -> int:
        """Batches of this rank, the same on every rank."""
        return -(-self.rows_per_epoch // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch, None, None]:
        """Batches of one epoch from batch number `start` on, the same as if it had begun at 0.

        Of the rows before, those of its shuffle buffer alone are read.

        Raises:
            DataError: A null or an id outside its table; names the file.
            BadFileError: A file cannot be read.
        """
        batches = self._batches(epoch, start)
        return _ahead(batches, self.batches_ahead) if self.batches_ahead else batches

    def locate(self, epoch: int, batch: int, row: int) -> tuple[Path, int]:
        """File and row in it of a row of a batch."""
        size = self._buffer_rows
        buffer, place = divmod(batch * self.batch_size + row, size)
        order = self._shuffle(epoch, buffer, min(size, self.rows_per_epoch - buffer * size))
        place = buffer * size + int(order[place])
        for part, first, num in self._share(epoch):
            if place < num:
                return part.path, part.first_row + first + place
            place -= num
        raise IndexError(f"batch {batch}, row {row}: beyond the epoch")

    @property
    def _buffer_rows(self) -> int:
        # A whole number of batches leaves no rest to carry into the next buffer.
        return max(1, self.shuffle_rows // self.batch_size) * self.batch_size

    def _shuffle(self, epoch: int, buffer: int, rows: int) -> NDArray[np.int64]:
        return np.random.default_rng((self.seed, epoch, self.rank, buffer)).permutation(rows)

    def _batches(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        pieces = self._pieces(epoch, start)
        if self.read_threads == 1:
            yield from (self._batch(*piece) for piece in pieces)
            return
        making: deque[Future[Batch]] = deque()
        with ThreadPoolExecutor(self.read_threads, initializer=_give_way) as pool:
            for piece in pieces:
                making.append(pool.submit(self._batch, *piece))
                if len(making) > self.read_threads:
                    yield making.popleft().result()
            while making:
                yield making.popleft().result()

    def _batch(self, rows: Rows, numbers: NDArray[np.int64]) -> Batch:
        batch = rows.take(lookup_order(self.spec), numbers)
        return batch.pinned() if self.pinned else batch

    def _pieces(self, epoch: int, start: int) -> Iterator[tuple[Rows, NDArray[np.int64]]]:
        """A buffer, and the rows of it that are a batch, from batch number `start` on."""
        first = start // (self._buffer_rows // self.batch_size)
        number = first * (self._buffer_rows // self.batch_size)
        for index, (table, last) in enumerate(self._buffers(epoch, first), first):
            num_batches = -(-table.num_rows // self.batch_size) if last else table.num_rows // self.batch_size
            if number + num_batches > start:
                shuffle = self._shuffle(epoch, index, table.num_rows)
                rows = Rows.from_arrow(self.spec, table)
                for i in range(max(0, start - number), num_batches):
                    yield rows, shuffle[i * self.batch_size : (i + 1) * self.batch_size]
            number += num_batches

    def _buffers(self, epoch: int, first: int) -> Iterator[tuple[pa.Table, bool]]:
        """Buffers of a whole number of batches, the last excepted, from the `first` on, and whether it is the last."""
        size = self._buffer_rows
        left, held, num_held = self.rows_per_epoch - first * size, [], 0
        for table in self._slices(epoch, first * size):
            held.append(table)
            num_held += table.num_rows
            while num_held >= size and left > size:
                joined = pa.concat_tables(held)
                yield joined.slice(0, size), False
                held, num_held, left = [joined.slice(size)], num_held - size, left - size
        if held:
            yield pa.concat_tables(held), True

    def _slices(self, epoch: int, skip: int) -> Iterator[pa.Table]:
        """Read this rank's share of the epoch's row groups but its first `skip` rows."""
        reading: deque[Future[pa.Table]] = deque()
        with ThreadPoolExecutor(self.read_threads, initializer=_give_way) as pool:
            for piece in self._share(epoch, skip):
                reading.append(pool.submit(self._read, *piece))
                if len(reading) > self.read_threads:
                    yield reading.popleft().result()
            while reading:
                yield reading.popleft().result()

    def _share(self, epoch: int, skip: int = 0) -> list[tuple[Part, int, int]]:
        """Row groups of this rank in an epoch's order, with the first row and the rows to take, but `skip` rows."""
        order = np.arange(len(self.parts))
        if not self.by_time:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.parts))
        ends = np.cumsum([self.parts[number].num_rows for number in order])
        share = []
        for begin, end in self._stretches():
            passed = min(skip, end - begin)
            skip -= passed
            row = begin + passed
            while row < end:
                at = int(np.searchsorted(ends, row, side="right"))
                part = self.parts[order[at]]
                low = row - (int(ends[at]) - part.num_rows)
                num = min(part.num_rows - low, end - row)
                share.append((part, low, num))
                row += num
        return share

    def _stretches(self) -> Iterator[tuple[int, int]]:
        """What this rank takes of an epoch's rows, from one to another."""
        if not self.by_time:
            yield self.rank * self.rows_per_epoch, (self.rank + 1) * self.rows_per_epoch
            return
        for start in range(0, self.rows_per_epoch, self._buffer_rows):
            own = min(self._buffer_rows, self.rows_per_epoch - start)
            begin = start * self.world_size + self.rank * own
            yield begin, begin + own

    def _read(self, part: Part, first: int, rows: int) -> pa.Table:
        return read_part(self.spec, part, self.columns, self.capacities).slice(first, rows)


def _give_way() -> None:
    """Let threads of other processes and of this one go before the calling one."""
    if sys.platform == "linux":  # elsewhere it would be the whole process
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def _ahead(batches: Iterator[Batch], depth: int) -> Generator[Batch, None, None]:
    """The same batches, made by a thread up to `depth` before they are asked for; its error is raised here."""
    made: Queue[Batch | BaseException | None] = Queue(depth)
    stopped = threading.Event()

    def make() -> None:
        _give_way()
        last: BaseException | None = None
        try:
            for batch in batches:
                made.put(batch)
                if stopped.is_set():
                    return
        except BaseException as error:  # whatever it is, the trainer must not wait for ever
            last = error
        made.put(last)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while isinstance(got := made.get(), Batch):
            yield got
        if got is not None:
            raise got
    finally:
        stopped.set()
        while thread.is_alive():  # it may wait for room
            with suppress(Empty):
                made.get(timeout=0.01)
