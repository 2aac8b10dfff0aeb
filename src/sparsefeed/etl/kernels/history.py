"""As-of histories: the last or most frequent items a member responded to strictly before a moment.

Events lie sorted by (member, time, item); a query is one binary search and a short walk back, so a row's
history can hold nothing that happened at or after its impression: no leak by construction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sparsefeed.etl.kernels.threads import over_slices

__all__ = ["MOST_EVENTS", "Events", "as_of", "latest"]

MOST_EVENTS = 512  # of a member that are counted for what is frequent
_MIN_SLICE = 1 << 14  # rows per thread below which starting a thread costs more than it saves


@dataclass(frozen=True)
class Events:
    """Responses of members to items, ascending by (member, time, item).

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
        """Events in any order; the result does not depend on it."""
        order = np.lexsort((item, time_ms, member))
        return cls(member[order], time_ms[order], item[order])


@njit(cache=True, nogil=True)
def _bounds(event_member, event_time, member, time_ms):  # type: ignore[no-untyped-def]
    """First event of the member, and the first of its events at or after time_ms."""
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
def _ends(event_member, event_time, member, time_ms, end, length):  # type: ignore[no-untyped-def]
    """Per row, the first event it must not see and the number of its member's events before that."""
    for i in range(len(member)):
        first, stop = _bounds(event_member, event_time, member[i], time_ms[i])
        end[i], length[i] = stop, stop - first


@njit(cache=True, nogil=True)
def _walk_back(event_item, end, offsets, out):  # type: ignore[no-untyped-def]
    for i in range(len(end)):
        for k in range(offsets[i + 1] - offsets[i]):
            out[offsets[i] + k] = event_item[end[i] - 1 - k]


@njit(cache=True, nogil=True)
def _most_frequent(event_item, end, length, max_length, items, lengths):  # type: ignore[no-untyped-def]
    """Per row, the distinct items of the events before `end`, the most frequent first, of equal ones the last met."""
    distinct, counts = np.empty(MOST_EVENTS, np.uint64), np.empty(MOST_EVENTS, np.int64)
    for i in range(len(end)):
        num = 0
        for k in range(min(length[i], MOST_EVENTS)):  # backwards, so that `distinct` is by recency
            item = event_item[end[i] - 1 - k]
            place = 0
            while place < num and distinct[place] != item:
                place += 1
            if place == num:
                distinct[num], counts[num] = item, 0
                num += 1
            counts[place] += 1
        lengths[i] = min(num, max_length)
        for k in range(lengths[i]):
            best = 0
            for place in range(1, num):
                if counts[place] > counts[best]:
                    best = place
            items[i, k] = distinct[best]
            counts[best] = 0


def as_of(
    events: Events,
    member: NDArray[np.uint64],
    time_ms: NDArray[np.int64],
    max_length: int,
    window_ms: int | None = None,
    frequent: bool = False,
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Items of each row's member before its time: the last events, most recent first, or the most frequent items.

    Args:
        events: sorted.
        member: uint64 [n] keys of the rows.
        time_ms: int64 [n]; events at exactly this time are not seen.
        max_length: items at most.
        window_ms: events more than this before the row's time are not seen; None: all before it are.
        frequent: each item once, the most frequent first, of equal ones the last met; of the last 512 events seen.

    Returns:
        offsets int64 [n+1] and item keys uint64 [offsets[n]].
    """
    num = len(member)
    end, length = np.empty(num, np.int64), np.empty(num, np.int64)
    over_slices(
        lambda i, j: _ends(events.member, events.time_ms, member[i:j], time_ms[i:j], end[i:j], length[i:j]),
        num,
        _MIN_SLICE,
    )
    if window_ms is not None:
        begin, before = np.empty(num, np.int64), np.empty(num, np.int64)
        since = time_ms - window_ms
        over_slices(
            lambda i, j: _ends(events.member, events.time_ms, member[i:j], since[i:j], begin[i:j], before[i:j]),
            num,
            _MIN_SLICE,
        )
        length -= before
    if frequent:
        items, lengths = np.empty((num, max_length), np.uint64), np.empty(num, np.int64)
        over_slices(
            lambda i, j: _most_frequent(events.item, end[i:j], length[i:j], max_length, items[i:j], lengths[i:j]),
            num,
            _MIN_SLICE,
        )
        return np.r_[np.int64(0), np.cumsum(lengths)], items[np.arange(max_length) < lengths[:, None]]
    offsets = np.zeros(num + 1, np.int64)
    np.cumsum(np.minimum(length, max_length), out=offsets[1:])
    out = np.empty(offsets[-1], np.uint64)
    over_slices(lambda i, j: _walk_back(events.item, end[i:j], offsets[i : j + 1], out), num, _MIN_SLICE)
    return offsets, out


def latest(
    key: NDArray[np.uint64], time_ms: NDArray[np.int64], tie: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The index of each key's last row, (time, tie) decides; keys ascending."""
    order = np.lexsort((tie, time_ms, key))
    ordered = key[order]
    last = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True]) if len(key) else np.zeros(0, np.int64)
    return ordered[last], order[last]
