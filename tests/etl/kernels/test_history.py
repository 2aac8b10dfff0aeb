"""As-of histories against a slow plain-python reference."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefeed.etl.kernels.history import Events, as_of, latest

event = st.tuples(st.integers(1, 4), st.integers(1, 12), st.integers(1, 9))  # member, time, item


def reference(events: list[tuple[int, int, int]], member: int, time: int, max_length: int) -> list[int]:
    """Most recent first; of one moment the greater item first."""
    seen = sorted((t, item) for m, t, item in events if m == member and t < time)
    return [item for _, item in reversed(seen)][:max_length]


def sorted_events(events: list[tuple[int, int, int]]) -> Events:
    columns = np.array(events, np.int64).reshape(-1, 3)
    return Events.sort(columns[:, 0].astype(np.uint64), columns[:, 1], columns[:, 2].astype(np.uint64))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(event, max_size=40),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 14)), min_size=1, max_size=20),
    st.integers(1, 5),
)
def test_a_history_is_what_the_reference_says(
    events: list[tuple[int, int, int]], queries: list[tuple[int, int]], max_length: int
) -> None:
    member = np.array([m for m, _ in queries], np.uint64)
    time_ms = np.array([t for _, t in queries], np.int64)
    offsets, items = as_of(sorted_events(events), member, time_ms, max_length)
    for i, (m, t) in enumerate(queries):
        assert items[offsets[i] : offsets[i + 1]].tolist() == reference(events, m, t, max_length)


def test_an_event_at_the_very_moment_of_the_impression_is_not_seen() -> None:
    events = sorted_events([(1, 100, 7)])
    for time, expected in ((100, []), (101, [7])):
        _, items = as_of(events, np.array([1], np.uint64), np.array([time]), 5)
        assert items.tolist() == expected


@settings(max_examples=30, deadline=None)
@given(st.permutations([(1, 3, 5), (1, 3, 6), (2, 1, 5), (1, 9, 5), (2, 1, 1)]))
def test_the_order_events_arrive_in_does_not_matter(events: list[tuple[int, int, int]]) -> None:
    _, items = as_of(sorted_events(events), np.array([1, 2], np.uint64), np.array([10, 10]), 9)
    assert items.tolist() == [5, 6, 5, 5, 1]


def test_without_events_every_history_is_empty() -> None:
    offsets, items = as_of(sorted_events([]), np.array([1, 2], np.uint64), np.array([10, 10]), 9)
    assert offsets.tolist() == [0, 0, 0]
    assert len(items) == 0


def test_the_latest_row_of_a_key_wins_and_ties_are_decided() -> None:
    keys, index = latest(np.array([5, 3, 5, 5], np.uint64), np.array([1, 1, 9, 9]), np.array([0, 0, 1, 0]))
    assert keys.tolist() == [3, 5]
    assert index.tolist() == [1, 2]


def reference_frequent(events: list[tuple[int, int, int]], member: int, time: int, window: int, num: int) -> list[int]:
    """The most frequent first, of equal ones the last met, of one moment the greater item."""
    seen = sorted((t, item) for m, t, item in events if m == member and time - window <= t < time)
    last = {item: place for place, (_, item) in enumerate(seen)}
    counts = Counter(item for _, item in seen)
    return sorted(counts, key=lambda item: (-counts[item], -last[item]))[:num]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(event, max_size=40),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 14)), min_size=1, max_size=20),
    st.integers(1, 5),
    st.integers(1, 20),
)
def test_windows_and_frequencies_are_what_the_references_say(
    events: list[tuple[int, int, int]], queries: list[tuple[int, int]], max_length: int, window: int
) -> None:
    member = np.array([m for m, _ in queries], np.uint64)
    time_ms = np.array([t for _, t in queries], np.int64)
    recent = as_of(sorted_events(events), member, time_ms, max_length, window)
    frequent = as_of(sorted_events(events), member, time_ms, max_length, window, frequent=True)
    for i, (m, t) in enumerate(queries):
        inside = [e for e in events if e[1] >= t - window]
        offsets, items = recent
        assert items[offsets[i] : offsets[i + 1]].tolist() == reference(inside, m, t, max_length)
        offsets, items = frequent
        assert items[offsets[i] : offsets[i + 1]].tolist() == reference_frequent(events, m, t, window, max_length)


def test_only_the_last_512_events_are_counted() -> None:
    events = sorted_events([(1, i, 7 if i < 400 else i) for i in range(1000)])
    _, items = as_of(events, np.array([1], np.uint64), np.array([1000]), 3, frequent=True)
    assert items.tolist() == [999, 998, 997]
