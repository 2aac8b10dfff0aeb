"""A version through a canary into service by one call, which goes on where it was cut off."""

from __future__ import annotations

from functools import partial

import pytest

from sparsefeed.errors import ReleaseError
from sparsefeed.models.bundle import read_current
from sparsefeed.workflows.release.canary import promote, start
from sparsefeed.workflows.release.config import Guardrails, ReleaseConfig
from sparsefeed.workflows.release.promotion import through_canary
from sparsefeed.workflows.release.publish import publish
from sparsefeed.workflows.release.release import Release
from sparsefeed.workflows.traffic import replay
from tests.workflows.release.conftest import Served

pytestmark = pytest.mark.triton
LENIENT = Guardrails(min_requests=20, p99_ratio=None, psi=None, error_rate=0.9, unknown_rate=0.9)
CONFIG = ReleaseConfig(guardrails=LENIENT, look_every_s=1.5)  # figures are written every second
ASKED = [(f"m{i}", ["p6", "p7"]) for i in range(50)]


def releases_of(servers: list[Served]) -> list[Release]:
    return [served.release for served in servers]


def promoted(servers: list[Served], config: ReleaseConfig = CONFIG) -> None:
    releases = releases_of(servers)
    asking = partial(replay, [release.place.grpc_url for release in releases], ASKED)
    through_canary(releases, servers[0].root, "b2", 50.0, config, servers[0].config, why="a test", sleep=asking)


def actions(served: Served) -> list[str]:
    return [line["action"] for line in served.release.log.read()]


def test_a_version_that_passes_answers_everybody_on_every_server(servers: list[Served]) -> None:
    promoted(servers)
    assert [served.bundle_for() for served in servers] == ["b2", "b2"]
    assert read_current(servers[0].root) == "b2"
    promoted(servers)
    assert [actions(served) for served in servers] == [["canary start", "canary promote"]] * 2


def test_cut_off_while_it_watches_or_promotes_it_goes_on(servers: list[Served]) -> None:
    releases = releases_of(servers)

    def cut(seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        through_canary(releases, servers[0].root, "b2", 50.0, CONFIG, servers[0].config, sleep=cut)
    canary = releases[0].routes.canary
    assert canary is not None
    replay([releases[0].place.grpc_url], ASKED, 2.0)
    promote(releases[:1], servers[0].root, CONFIG, force=True)  # as if it had died after the first server
    assert releases[1].routes.canary == canary
    promoted(servers)
    assert [served.bundle_for() for served in servers] == ["b2", "b2"]
    assert [actions(served) for served in servers] == [["canary start", "canary promote"]] * 2


def test_one_that_is_aborted_is_an_error_that_says_how_to_go_on(servers: list[Served]) -> None:
    start(releases_of(servers), servers[0].root, "b2", 50.0, servers[0].config)
    for served in servers:
        served.release.control.unload("b2")  # it cannot answer
    said = r"canary b2: aborted: error rate: .*; the stable bundle answers all members\. .*`sparsefeed publish b2`"
    with pytest.raises(ReleaseError, match=said):
        promoted(servers, ReleaseConfig(look_every_s=1.5, guardrails=Guardrails(min_requests=20)))
    assert [served.release.routes.canary for served in servers] == [None, None]
    assert [served.bundle_for() for served in servers] == ["b1", "b1"]
    publish(releases_of(servers), servers[0].root, "b2", servers[0].config)
    promoted(servers)
    assert [served.bundle_for() for served in servers] == ["b2", "b2"]
