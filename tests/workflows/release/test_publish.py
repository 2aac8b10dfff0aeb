from __future__ import annotations

import pytest

from sparsefeed.models.bundle import read_current
from sparsefeed.workflows.release.publish import publish
from sparsefeed.workflows.release.rollback import roll_back
from tests.workflows.release.conftest import Served

pytestmark = pytest.mark.triton


def test_a_published_bundle_answers_from_the_next_request_on_and_the_one_before_stays_loaded(server: Served) -> None:
    assert server.bundle_for() == "b1"
    publish([server.release], server.root, "b2", server.config, why="a test")
    assert server.bundle_for() == "b2"
    assert read_current(server.root) == "b2"
    assert server.release.routes.previous == ("b1",)
    assert server.release.ready() == {"b1", "b2"}
    (line,) = server.release.log.read()
    assert (line["action"], line["stable"], line["why"], line["revision"]) == (
        "publish",
        "b2",
        "a test",
        server.release.routes.revision,
    )
    assert line["largest_difference"] < 1e-5
    assert "@" in line["who"]


def test_a_rollback_is_effective_on_the_next_request(server: Served) -> None:
    publish([server.release], server.root, "b2", server.config)
    (done,) = roll_back([server.release])
    assert server.bundle_for() == "b1"
    assert done.stable == "b1"
    assert read_current(server.root) == "b1"
