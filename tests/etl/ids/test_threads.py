from __future__ import annotations

import threading

import pytest

from sparsefeed.etl.kernels.threads import over_slices


@pytest.fixture(autouse=True)
def three_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numba.core.config.NUMBA_NUM_THREADS", 3)


@pytest.mark.parametrize(
    ("num_items", "min_slice", "expected"),
    [
        (0, 10, [(0, 0)]),
        (19, 10, [(0, 19)]),
        (20, 10, [(0, 10), (10, 20)]),
        (100, 10, [(0, 33), (33, 66), (66, 100)]),
    ],
)
def test_slices_cover_all_items_in_order(num_items: int, min_slice: int, expected: list[tuple[int, int]]) -> None:
    assert over_slices(lambda start, stop: (start, stop), num_items, min_slice) == expected


def test_slices_run_side_by_side_and_a_single_one_on_the_calling_thread() -> None:
    meeting = threading.Barrier(3, timeout=10)  # passes only if all three are inside at once
    over_slices(lambda *_: meeting.wait(), 30, 10)
    assert over_slices(lambda *_: threading.get_ident(), 30, 100) == [threading.get_ident()]


def test_an_error_in_a_slice_is_raised() -> None:
    def fails_in_the_second(start: int, _: int) -> None:
        if start == 10:
            raise ValueError(f"slice at {start}")

    with pytest.raises(ValueError, match="slice at 10"):
        over_slices(fails_in_the_second, 30, 10)
