"""As-of histories: the last or most frequent items a member responded to strictly before a moment.

Of numpy's arrays, and of CuPy's on their device (`history_device`), by one algorithm of integers.

Events lie sorted by (member, time, item); a query is one binary search and a short walk back, so a row's
history can hold nothing that happened at or after its impression: no leak by construction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sparsefeed.etl.kernels.arrays import array_module, to_host
from sparsefeed.etl.kernels.threads import over_slices

__all__ = ["MOST_EVENTS", "Events", "Steps", "as_of", "bounds", "found_by", "frequent_items", "last_items", "latest"]

MOST_EVENTS = 512  # of a member that are counted for what is frequent
_MIN_SLICE = 1 << 14  # rows per thread below which starting a thread costs more than it saves


@dataclass(frozen=True)
class Events:
    """Responses of members to items, ascending by (member, time, item); all numpy's or all CuPy's.

    Attributes:
        member: uint64 [n] keys.
        time_ms: int64 [n].
        item: uint64 [n] keys.
    """

    member: NDArray[np.uint64]
    time_ms: NDArray[np.int64]
    item: NDArray[np.uint64]

    @classmethod
    def sort(cls, member: NDArray[np.uint64], time_ms: NDArray[np.int64], item: NDArray[np.uint64]) -> Events:
        """Sort events given in any order, which does not show; numpy's or CuPy's columns, where they lie."""
        order = _order((item, time_ms, member))
        return cls(member[order], time_ms[order], item[order])


def as_of(
    events: Events,
    member: NDArray[np.uint64],
    time_ms: NDArray[np.int64],
    max_length: int,
    window_ms: int | None = None,
    frequent: bool = False,
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Items of each row's member before its time: the last events, most recent first, or the most frequent items.

    It is computed where the events lie, numpy's in host memory or CuPy's on their device, bit for bit the same; rows
    that lie elsewhere are copied there first. One copy of a number from the device is waited for, the sum of lengths.

    Args:
        events: sorted.
        member: uint64 [n] keys of the rows.
        time_ms: int64 [n]; events at exactly this time are not seen.
        max_length: items at most.
        window_ms: events more than this before the row's time are not seen; None: all before it are.
        frequent: each item once, the most frequent first, of equal ones the last met; of the last 512 events seen.

    Returns:
        offsets int64 [n+1] and item keys uint64 [offsets[n]], where the events lie.
    """
    xp = array_module(events.member)
    if xp is np:
        return found_by(_ON_HOST, np, events, to_host(member), to_host(time_ms), max_length, window_ms, frequent)
    from sparsefeed.etl.kernels.history_device import ON_DEVICE  # imports CUDA

    rows = xp.asarray(member), xp.asarray(time_ms)
    return found_by(ON_DEVICE, xp, events, *rows, max_length, window_ms, frequent)


class Steps(NamedTuple):
    """What `found_by` leaves to loops over rows; each writes its last arguments.

    Attributes:
        ends: (events, member [n], time_ms [n], end [n], length [n]): per row, the first event it must not see and the
            number of its member's events before that.
        walk_back: (item, end [n], offsets [n + 1], out): the last offsets[i + 1] - offsets[i] items before `end`.
        most_frequent: (item, end [n], length [n], items [n, max_length], lengths [n]): see `frequent_items`.
    """

    ends: Callable[..., None]
    walk_back: Callable[..., None]
    most_frequent: Callable[..., None]


def found_by(
    steps: Steps,
    xp: Any,
    events: Events,
    member: NDArray[np.uint64],
    time_ms: NDArray[np.int64],
    max_length: int,
    window_ms: int | None,
    frequent: bool,
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """`as_of`, given the loops and the library of all arrays."""
    num = len(member)
    end, length = xp.empty(num, np.int64), xp.empty(num, np.int64)
    steps.ends(events, member, time_ms, end, length)
    if window_ms is not None:
        begin, before = xp.empty(num, np.int64), xp.empty(num, np.int64)
        steps.ends(events, member, time_ms - window_ms, begin, before)
        length -= before
    offsets = xp.zeros(num + 1, np.int64)
    if frequent:
        items, lengths = xp.empty((num, max_length), np.uint64), xp.empty(num, np.int64)
        steps.most_frequent(events.item, end, length, items, lengths)
        offsets[1:] = xp.cumsum(lengths)
        return offsets, items[xp.arange(max_length) < lengths[:, None]]
    offsets[1:] = xp.cumsum(xp.minimum(length, max_length))
    out = xp.empty(int(offsets[-1]), np.uint64)
    steps.walk_back(events.item, end, offsets, out)
    return offsets, out


def latest(
    key: NDArray[np.uint64], time_ms: NDArray[np.int64], tie: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The index of each key's last row, (time, tie) decides; keys ascending; numpy's or CuPy's, where `key` lies."""
    xp, order = array_module(key), _order((tie, time_ms, key))
    ordered = key[order]
    is_last = xp.ones(len(key), bool)
    is_last[:-1] = ordered[1:] != ordered[:-1]
    return ordered[is_last], order[is_last]


def _order(columns: tuple[NDArray[Any], ...]) -> NDArray[np.int64]:
    """The order of rows by the last column, then by the one before it, ..., as `np.lexsort` has it."""
    xp = array_module(columns[0])
    order: NDArray[np.int64] = np.lexsort(columns) if xp is np else _order_by_sorts(columns)
    return order


def _order_by_sorts(columns: tuple[NDArray[Any], ...]) -> NDArray[np.int64]:
    """`np.lexsort` in stable sorts: CuPy's own takes one matrix, in which uint64 and int64 would meet as floats."""
    xp = array_module(columns[0])
    order: NDArray[np.int64] = xp.argsort(columns[0], kind="stable")
    for column in columns[1:]:
        order = order[xp.argsort(column[order], kind="stable")]
    return order


# What is done for one row; numba compiles it for the CPU and for a GPU alike (whose built-in target has no `min`).


@njit(cache=True, nogil=True)
def bounds(event_member, event_time, member, time_ms):  # type: ignore[no-untyped-def]
    """Find the first event of the member, and the first of its events at or after time_ms."""
    low, high = 0, len(event_member)
    while low < high:
        middle = (low + high) >> 1
        if event_member[middle] < member:
            low = middle + 1
        else:
            high = middle
    first = low
    high = len(event_member)
    while low < high:
        middle = (low + high) >> 1
        if event_member[middle] == member and event_time[middle] < time_ms:
            low = middle + 1
        else:
            high = middle
    return first, low


@njit(cache=True, nogil=True)
def last_items(event_item, end, out, start, stop):  # type: ignore[no-untyped-def]
    """Write the items of the events before `end`, the last first, to out[start:stop]."""
    for k in range(stop - start):
        out[start + k] = event_item[end - 1 - k]


@njit(cache=True, nogil=True)
def frequent_items(event_item, end, length, distinct, counts, items, row):  # type: ignore[no-untyped-def]
    """Write the distinct items of the `length` events before `end` to items[row], and tell how many they are.

    The most frequent first, of equal ones the last met; as many as items[row] holds. Of more than MOST_EVENTS events
    the last count. `distinct` (uint64) and `counts` (int64), [MOST_EVENTS], are scratch.
    """
    num = 0
    for k in range(length if length < MOST_EVENTS else MOST_EVENTS):  # backwards, so that `distinct` is by recency
        item = event_item[end - 1 - k]
        place = 0
        while place < num and distinct[place] != item:
            place += 1
        if place == num:
            distinct[num], counts[num] = item, 0
            num += 1
        counts[place] += 1
    written = num if num < items.shape[1] else items.shape[1]
    for k in range(written):
        best, most = 0, counts[0]
        for place in range(1, num):
            if counts[place] > most:
                best, most = place, counts[place]
        items[row, k] = distinct[best]
        counts[best] = 0
    return written


@njit(cache=True, nogil=True)
def _ends(event_member, event_time, member, time_ms, end, length):  # type: ignore[no-untyped-def]
    for i in range(len(member)):
        first, stop = bounds(event_member, event_time, member[i], time_ms[i])
        end[i], length[i] = stop, stop - first


@njit(cache=True, nogil=True)
def _walk_back(event_item, end, offsets, out):  # type: ignore[no-untyped-def]
    for i in range(len(end)):
        last_items(event_item, end[i], out, offsets[i], offsets[i + 1])


@njit(cache=True, nogil=True)
def _most_frequent(event_item, end, length, items, lengths):  # type: ignore[no-untyped-def]
    distinct, counts = np.empty(MOST_EVENTS, np.uint64), np.empty(MOST_EVENTS, np.int64)
    for i in range(len(end)):
        lengths[i] = frequent_items(event_item, end[i], length[i], distinct, counts, items, i)


def _over_rows(kernel: Any, *columns: Any) -> None:
    """Run a kernel over slices of columns [n] (or [n, k]) on threads."""
    over_slices(lambda i, j: kernel(*(column[i:j] for column in columns)), len(columns[0]), _MIN_SLICE)


def _ends_on_host(events: Events, *rows: Any) -> None:
    _over_rows(partial(_ends, events.member, events.time_ms), *rows)


def _walk_back_on_host(item: Any, end: Any, offsets: Any, out: Any) -> None:
    over_slices(lambda i, j: _walk_back(item, end[i:j], offsets[i : j + 1], out), len(end), _MIN_SLICE)


def _most_frequent_on_host(item: Any, *rows: Any) -> None:
    _over_rows(partial(_most_frequent, item), *rows)


_ON_HOST = Steps(_ends_on_host, _walk_back_on_host, _most_frequent_on_host)
