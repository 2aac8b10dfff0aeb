"""ActionIndex: the later actions of a day by the impression they belong to, on the disk, looked up in place.

Joining impressions with actions that came later needs neither a shuffle nor either side in memory: the actions of
a day, far fewer than its impressions, are sorted once into an index of columns that readers map, and every partition
of impressions looks its own up. A small directory over the keys makes a lookup two memory accesses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit
from numpy.typing import NDArray

from sparsefeed.etl.array_file import ArrayFile
from sparsefeed.etl.cluster import compute
from sparsefeed.etl.columns import KEY
from sparsefeed.etl.logs import Partition
from sparsefeed.etl.parquet import event_keys, milliseconds, no_nulls, read_pieces
from sparsefeed.etl.runs import Runs
from sparsefeed.etl.spec import Actions

__all__ = ["ActionIndex"]

_ROWS_AT_ONCE = 2_000_000
_KEYS_PER_ENTRY = 4  # of the directory
_COLUMNS = {KEY: np.uint64, "check": np.uint64, "response": np.uint8, "time": np.int64}
_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class ActionIndex:
    """First action of each response of each impression, by day of the action.

    Attributes:
        folder: of an index per day.
        responses: names; an action of another name is nobody's response.
        attribution_days: an action later than that belongs to no impression.
        days: that have an index.
    """

    folder: Path
    responses: tuple[str, ...]
    attribution_days: int
    days: frozenset[date]

    @classmethod
    def build(
        cls, partitions: Sequence[Partition], actions: Actions, responses: Sequence[str], folder: Path
    ) -> ActionIndex:
        """Index the actions of all partitions; runs are written into `folder` meanwhile."""
        names = tuple(responses)
        runs = {p.day: Runs(folder / f"runs-{p.day}") for p in partitions}
        compute([partial(_note, p, actions, names, runs[p.day]) for p in partitions])
        num_runs = Counter(p.day for p in partitions)
        compute([partial(_index, runs[day], num_runs[day], folder / str(day)) for day in sorted(runs)])
        for some in runs.values():
            some.remove()
        return cls(folder, names, actions.attribution_days, frozenset(runs))

    def first_times(self, day: date, keys: NDArray[np.uint64]) -> dict[str, NDArray[np.int64]]:
        """Per response, the time in ms of the first action of each impression of a day, 0 for none.

        Args:
            day: of the impressions.
            keys: of `event_keys`, uint64 [n, 2].
        """
        times = np.full((len(self.responses), len(keys)), _NEVER)
        for later in range(self.attribution_days + 1):
            of_actions = day + timedelta(days=later)
            if of_actions in self.days:
                _look_up(*_opened(self.folder / str(of_actions)), keys, times)
        times[times == _NEVER] = 0
        return dict(zip(self.responses, times, strict=True))


def _note(partition: Partition, actions: Actions, responses: Sequence[str], runs: Runs) -> int:
    """Write the actions of a partition that are responses, by key."""
    columns = [actions.impression, actions.action, actions.time]
    parts: list[list[NDArray[Any]]] = []
    for piece, read in read_pieces(partition.pieces, columns, [actions.action]):
        table = read.filter(pc.is_valid(read[actions.impression]))
        moment = no_nulls(piece, actions.time, milliseconds, table)
        response = pc.index_in(table[actions.action].cast(pa.string()), pa.array(responses, pa.string()))
        wanted = response.is_valid().to_numpy()
        keys = event_keys(table[actions.impression])[wanted]
        number = response.fill_null(0).to_numpy()[wanted].astype(np.uint8)
        parts.append([keys[:, 0], keys[:, 1], number, moment[wanted]])
    whole = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return runs.write(partition.number, pa.table(dict(zip(_COLUMNS, _first(*whole), strict=True))))


def _first(
    key: NDArray[np.uint64], check: NDArray[np.uint64], response: NDArray[np.uint8], time: NDArray[np.int64]
) -> list[NDArray[Any]]:
    """Sort, and keep the first action of each response of an impression: later and repeated ones add nothing."""
    order = np.lexsort((time, response, check, key))
    columns = [column[order] for column in (key, check, response, time)]
    same = np.ones(max(len(key) - 1, 0), np.bool_)
    for column in columns[:3]:
        same &= column[1:] == column[:-1]
    first = np.flatnonzero(np.append(True, ~same)[: len(key)])
    return [column[first] for column in columns]


def _index(runs: Runs, num_runs: int, folder: Path) -> int:
    """Merge a day's runs, range by range, into columns on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        files = [stack.enter_context(ArrayFile(folder / f"{name}.npy", dtype)) for name, dtype in _COLUMNS.items()]
        for tables in runs.ranges(_ROWS_AT_ONCE, num_runs):
            whole = pa.concat_tables(tables)
            for file, column in zip(files, _first(*(whole[name].to_numpy() for name in _COLUMNS)), strict=True):
                file.append(column)
    num = files[0].num_rows
    bits = max(1, (num // _KEYS_PER_ENTRY).bit_length())
    bounds = np.arange(1 << bits, dtype=np.uint64) << np.uint64(64 - bits)
    keys = _mapped(folder, KEY)
    directory = np.append(np.searchsorted(keys, bounds), num).astype(np.int64)
    np.save(folder / "directory.npy", directory)
    return num


def _mapped(folder: Path, name: str) -> NDArray[Any]:
    return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")).view(np.ndarray)


def _opened(folder: Path) -> tuple[NDArray[Any], ...]:
    return np.load(folder / "directory.npy"), *(_mapped(folder, name) for name in _COLUMNS)


@njit(nogil=True, cache=True)
def _look_up(
    directory: NDArray[np.int64],
    key: NDArray[np.uint64],
    check: NDArray[np.uint64],
    response: NDArray[np.uint8],
    time: NDArray[np.int64],
    asked: NDArray[np.uint64],
    times: NDArray[np.int64],
) -> None:
    """Write the earliest time of each response of each impression asked for, where it is earlier."""
    bits = 0
    while 1 << bits < len(directory) - 1:
        bits += 1
    shift = np.uint64(64 - bits)
    for i in range(len(asked)):
        entry = asked[i, 0] >> shift
        for place in range(directory[entry], directory[entry + np.uint64(1)]):
            if key[place] == asked[i, 0] and check[place] == asked[i, 1]:
                times[response[place], i] = min(times[response[place], i], time[place])
