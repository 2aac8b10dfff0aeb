"""As-of histories: the last items a member responded to strictly before a moment.

Events lie sorted by (member, time, item); a query is one binary search and a short walk back, so a row's
history can hold nothing that happened at or after its impression: no leak by construction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sparsefeed.etl.kernels.threads import over_slices

__all__ = ["Events", "as_of", "latest"]

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


def as_of(
    events: Events, member: NDArray[np.uint64], time_ms: NDArray[np.int64], max_length: int
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """The last `max_length` items of each row's member before its time, most recent first.

    Args:
        events: sorted.
        member: uint64 [n] keys of the rows.
        time_ms: int64 [n]; events at exactly this time are not seen.
        max_length: items at most.

    Returns:
        offsets int64 [n+1] and item keys uint64 [offsets[n]].
    """
    end, length = np.empty(len(member), np.int64), np.empty(len(member), np.int64)
    over_slices(
        lambda i, j: _ends(events.member, events.time_ms, member[i:j], time_ms[i:j], end[i:j], length[i:j]),
        len(member),
        _MIN_SLICE,
    )
    offsets = np.zeros(len(member) + 1, np.int64)
    np.cumsum(np.minimum(length, max_length), out=offsets[1:])
    out = np.empty(offsets[-1], np.uint64)
    over_slices(lambda i, j: _walk_back(events.item, end[i:j], offsets[i : j + 1], out), len(member), _MIN_SLICE)
    return offsets, out


def latest(
    key: NDArray[np.uint64], time_ms: NDArray[np.int64], tie: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The index of each key's last row, (time, tie) decides; keys ascending."""
    order = np.lexsort((tie, time_ms, key))
    ordered = key[order]
    last = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True]) if len(key) else np.zeros(0, np.int64)
    return ordered[last], order[last]
