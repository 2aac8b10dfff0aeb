from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsefeed.errors import ReleaseError
from sparsefeed.workflows.release.routing.figures import read_figures
from sparsefeed.workflows.release.routing.route_file import RouteFile
from sparsefeed.workflows.release.routing.router import Answer, Router, fault
from sparsefeed.workflows.release.routing.routes import Canary, Routes, Shadow

CANARY = Routes(0, "b1", canary=Canary("b2", 100.0, "salt"))


def answered(bundle: str, num: int = 3) -> Answer[str]:
    return Answer(bundle, np.full(num, 0.5, np.float32), np.array([1 | 2, 2, 0][:num], np.int32))


def failing(*bundles: str) -> Any:
    def ask(bundle: str) -> Answer[str]:
        return Answer(f"{bundle} failed", None, None) if bundle in bundles else answered(bundle)

    return ask


class Takes:
    """Copies that are taken until there are too many."""

    def __init__(self, room: int = 1000) -> None:
        self.taken: list[tuple[str, Any]] = []
        self.room = room

    def offer(self, shadow: Shadow, request: Any, score: Any) -> bool:
        if len(self.taken) == self.room:
            return False
        self.taken.append((shadow.bundle, request))
        return True

    def close(self) -> None:
        pass


def router(folder: Path, routes: Routes = CANARY, **options: Any) -> Router:
    RouteFile(folder / "routes.json").create(routes)
    return Router(folder / "routes.json", **options)


def test_a_replaced_route_file_is_obeyed_by_the_next_request(tmp_path: Path) -> None:
    one = router(tmp_path)
    assert one.route(b"m1", answered) == "b2"
    RouteFile(tmp_path / "routes.json").replace(Routes(1, "b3"))
    assert one.route(b"m1", answered) == "b3"


def test_routes_that_cannot_be_read_leave_the_last_good_ones(tmp_path: Path) -> None:
    one = router(tmp_path)
    (tmp_path / "routes.json").write_text("{")
    assert one.route(b"m1", answered) == "b2"
    assert "not JSON" in one.trouble
    (tmp_path / "routes.json").unlink()
    assert one.route(b"m1", answered) == "b2"
    RouteFile(tmp_path / "routes.json").create(Routes(1, "b3"))
    assert one.route(b"m1", answered) == "b3"
    assert one.trouble == ""


def test_a_router_does_not_begin_without_routes(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="not there"):
        Router(tmp_path / "routes.json")


def test_what_the_canary_cannot_answer_the_stable_bundle_does_and_it_is_counted_against_the_canary(
    tmp_path: Path,
) -> None:
    one = router(tmp_path)
    assert one.route(b"m1", failing("b2")) == "b1"
    figures = one.figures().bundles
    assert (figures["b2"].requests, figures["b2"].errors) == (1, 1)
    assert (figures["b1"].requests, figures["b1"].errors) == (1, 0)


def test_a_failure_of_the_stable_bundle_is_the_answer(tmp_path: Path) -> None:
    one = router(tmp_path, Routes(0, "b1"))
    assert one.route(b"m1", failing("b1")) == "b1 failed"
    assert one.figures().bundles["b1"].errors == 1


def test_a_bundle_unloaded_after_the_routes_moved_on_is_asked_no_more(tmp_path: Path) -> None:
    one = router(tmp_path, Routes(0, "b1"))

    def ask(bundle: str) -> Answer[str]:
        if bundle == "b1":
            RouteFile(tmp_path / "routes.json").replace(Routes(1, "b2"))
            return Answer("b1 is gone", None, None)
        return answered(bundle)

    assert one.route(b"m1", ask) == "b2"


def test_a_refused_request_is_refused_once_and_is_no_error(tmp_path: Path) -> None:
    one, asked = router(tmp_path), []

    def ask(bundle: str) -> Answer[str]:
        asked.append(bundle)
        return Answer("mend it", None, None, refused=True)

    assert one.route(b"m1", ask) == "mend it"
    assert asked == ["b2"]
    assert (one.figures().bundles["b2"].requests, one.figures().bundles["b2"].refused) == (0, 1)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ('bundle "b1", feed_transform: post_ids: missing; it must be given', "INVALID_ARG"),
        ('in ensemble: bundle "b1", feed_hps: KEYS: got shape [2]', "INVALID_ARG"),
        ('bundle "b1", feed_dense: OSError: gone; this is no fault of the request: see the log', "INTERNAL"),
        ("Model 'feed_ranker_b2' is not ready.", "INTERNAL"),
        ("[request id: <id_unknown>] Exceeds maximum queue size", "UNAVAILABLE"),
        ("Request timeout expired", "UNAVAILABLE"),
    ],
)
def test_whose_fault_an_error_is_is_read_from_its_text(message: str, code: str) -> None:
    assert fault(message) == code


def test_figures_are_of_what_was_answered_and_add_up_over_processes(tmp_path: Path) -> None:
    RouteFile(tmp_path / "routes.json").create(CANARY)
    times = iter([0.0, 0.010] * 20)
    routers = [
        Router(tmp_path / "routes.json", tmp_path / "figures", every_s=60, clock=lambda: next(times)) for _ in range(2)
    ]
    for one in routers:
        for _ in range(5):
            one.route(b"m1", answered)
        one.route(b"", answered)
        one.close()
    bundles, _ = read_figures(tmp_path / "figures" / "salt")
    canary = bundles["b2"]
    assert (canary.requests, canary.posts, canary.unknown, canary.strangers) == (10, 30, 20, 10)
    assert bundles["b1"].requests == 2
    assert 0.0097 < canary.latency.quantile(0.99) / 1000 < 0.0104
    assert canary.scores.counts.sum() == 30
    assert 0.48 < canary.scores.quantile(0.5) < 0.52


def test_another_canary_begins_with_new_figures_and_none_are_lost(tmp_path: Path) -> None:
    one = router(tmp_path, figures=tmp_path / "figures", every_s=60)
    one.route(b"m1", answered)
    RouteFile(tmp_path / "routes.json").replace(Routes(1, "b1", canary=Canary("b2", 100.0, "other")))
    for _ in range(2):
        one.route(b"m1", answered)
    one.close()
    assert read_figures(tmp_path / "figures" / "salt")[0]["b2"].requests == 1
    assert read_figures(tmp_path / "figures" / "other")[0]["b2"].requests == 2


def test_figures_that_are_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "1.json").write_text('{"bundles": {"b1": {"requests": 1}}}')
    with pytest.raises(ReleaseError, match=r"1\.json: no figures"):
        read_figures(tmp_path)


def test_the_shadow_gets_its_percent_of_what_was_answered(tmp_path: Path) -> None:
    copies = Takes()
    one = router(tmp_path, Routes(0, "b1", shadow=Shadow("b9", 25.0)), copies=copies)
    for number in range(40):
        assert one.route(b"m1", answered, number) == "b1"
    assert [number for _, number in copies.taken] == list(range(3, 40, 4))
    one.route(b"m1", failing("b1"), "failed")
    assert len(copies.taken) == 10


def test_a_full_queue_drops_copies_and_no_request(tmp_path: Path) -> None:
    one = router(tmp_path, Routes(0, "b1", shadow=Shadow("b9", 100.0)), copies=Takes(room=3))
    assert [one.route(b"m1", answered) for _ in range(10)] == ["b1"] * 10
    figures = one.figures().shadows["b9"]
    assert (figures.copied, figures.dropped) == (3, 7)
