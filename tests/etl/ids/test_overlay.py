from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefeed.etl.ids.overlay import ABSENT, Overlay, _filter_bits, _home
from sparsefeed.etl.ids.slots import mix

# Few enough keys that entries are replaced; the extremes, and neighbours that fall into neighbouring slots.
KEYS = st.integers(0, 12) | st.integers(2**64 - 3, 2**64 - 1)
CHANGES = st.lists(st.dictionaries(KEYS, st.integers(-1, 100), max_size=8), max_size=5)


def arrays(entries: dict[int, int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(list(entries), np.uint64), np.array(list(entries.values()), np.int64)


@settings(max_examples=80, deadline=None)
@given(CHANGES, st.lists(KEYS, max_size=20))
def test_an_overlay_answers_as_a_dictionary(changes: list[dict[int, int]], asked: list[int]) -> None:
    overlay, truth = Overlay.empty(), dict[int, int]()
    for change in changes:
        overlay = overlay.updated(*arrays(change))
        truth.update(change)
    assert overlay.rows(np.array(asked, np.uint64)).tolist() == [truth.get(key, ABSENT) for key in asked]
    assert len(overlay) == len(truth)
    assert dict(zip(*(a.tolist() for a in overlay.items()), strict=True)) == truth


def test_the_order_of_changes_does_not_show() -> None:
    keys = np.arange(100, dtype=np.uint64)
    rows = np.arange(100)
    at_once = Overlay.empty().updated(keys, rows)
    in_pieces = (
        Overlay.empty().updated(keys[60:], rows[60:] + 5).updated(keys[:70], rows[:70]).updated(keys[60:], rows[60:])
    )
    assert (at_once.entries == in_pieces.entries).all()


def test_an_update_leaves_the_old_overlay_as_it_was() -> None:
    old = Overlay.empty().updated(np.array([1], np.uint64), np.array([10]))
    old.updated(np.array([1, 2], np.uint64), np.array([20, 30]))
    assert [a.tolist() for a in old.items()] == [[1], [10]]


def test_some_slots_are_always_free_and_not_many() -> None:
    for num in (1, 2, 3, 4, 5, 64, 65, 1000):
        overlay = Overlay.empty().updated(np.arange(num, dtype=np.uint64), np.arange(num))
        assert num < len(overlay.entries) <= num / 0.7 + 1


def test_the_filter_lets_few_strangers_through_and_every_entry() -> None:
    own, strangers = np.random.default_rng(0).integers(0, 2**64, (2, 20_000), np.uint64)
    overlay = Overlay.empty().updated(own, np.arange(20_000))
    for keys, most_passed in ((own, 1.0), (strangers, 0.05)):
        hashed = [np.uint64(mix(key, np.uint64(0))) for key in keys]  # numba gives Python's integers
        words = overlay.filter[[_home(one, len(overlay.entries)) // 8 for one in hashed]]
        bits = np.array([_filter_bits(one) for one in hashed], np.uint64)
        passed = (words & bits) == bits
        assert passed.mean() <= most_passed
        assert passed.all() or keys is strangers
