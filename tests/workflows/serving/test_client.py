from __future__ import annotations

import subprocess
import sys
from typing import Any, Literal

import numpy as np
import pytest

from sparsefeed.errors import RequestError, ServeError
from sparsefeed.workflows.serving.client import FeedClient, Ranking
from sparsefeed.workflows.serving.server import TritonServer
from tests.workflows.serving.conftest import config
from tests.workflows.serving.feed import RESPONSES, Feed, requests

Protocol = Literal["grpc", "http"]
PROTOCOLS: tuple[Protocol, ...] = ("grpc", "http")


def url(server: TritonServer, protocol: Protocol) -> str:
    return server.grpc_url if protocol == "grpc" else server.http_url


@pytest.mark.triton
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("bundle", ["b1", "b2"])
def test_the_served_probability_is_that_of_the_bundles_parts(
    server: TritonServer, feeds: dict[str, Feed], bundle: str, protocol: Protocol
) -> None:
    feed = feeds[bundle]
    with FeedClient(url(server, protocol), bundle, protocol) as client:
        for member, posts, overrides in requests(feed, 150, seed=5):
            ranking = client.rank(member, posts, overrides)
            want = np.array([feed.probability(member, post, overrides) for post in posts])
            got = np.stack([ranking.probability[response] for response in RESPONSES], axis=1)
            np.testing.assert_allclose(got, want, atol=2e-6)
            assert ranking.posts == tuple(posts)
            assert list(ranking.unknown) == [feed.unknown(member, post, overrides) for post in posts]
            assert ranking.bundle == bundle


@pytest.mark.triton
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("posts", "overrides", "said"),
    [
        (["p1"] * 100_000, None, "post_ids: got 100000 candidates; must be 1 to 1000"),
        (["p1"], {"membre": {}}, 'did you mean "member"?'),
        (["p1"], {"posts": {"p1": {"views": "many"}}}, 'overrides.posts["p1"].views: got "many"'),
    ],
)
def test_a_refused_request_is_a_request_error_with_bundle_step_and_cause(
    server: TritonServer, protocol: Protocol, posts: list[str], overrides: dict[str, Any] | None, said: str
) -> None:
    with FeedClient(url(server, protocol), "b1", protocol) as client:
        with pytest.raises(RequestError) as caught:
            client.rank("m1", posts, overrides)
        assert 'bundle "b1", feed_transform: ' in str(caught.value)
        assert said in str(caught.value)
        assert client.rank("m1", ["p1"]).bundle == "b1"  # the connection and the server live on


@pytest.mark.triton
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_of_several_bundles_one_must_be_named(server: TritonServer, protocol: Protocol) -> None:
    with FeedClient(url(server, protocol), protocol=protocol) as client:
        assert client.health()
        assert client.bundles() == ("b1", "b2")
        with pytest.raises(ServeError, match=r"2 bundles are ready \(b1, b2\); name one of them"):
            client.rank("m1", ["p1"])
    with (
        FeedClient(url(server, protocol), "b9", protocol) as client,
        pytest.raises(ServeError, match='bundle "b9" is not ready; ready are: b1, b2'),
    ):
        client.rank("m1", ["p1"])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_without_a_server_health_is_false_and_a_request_says_so(protocol: Protocol) -> None:
    nobody = f"127.0.0.1:{config().http_port}"
    with FeedClient(nobody, protocol=protocol, timeout_s=2) as client:
        assert not client.health()
        with pytest.raises(ServeError, match=nobody):
            client.rank("m1", ["p1"])


@pytest.mark.parametrize(("posts", "said"), [([], "got none"), (["p\ud800"], "post_ids"), ([1], "post_ids")])
def test_what_cannot_be_sent_is_refused_before_it_is(posts: Any, said: str) -> None:
    client = FeedClient("127.0.0.1:1")
    with pytest.raises(RequestError, match=said):
        client.rank("m1", posts)


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(ServeError, match="allowed: grpc, http"):
        FeedClient("127.0.0.1:1", protocol="ftp")  # type: ignore[arg-type]


def test_the_order_is_by_score_and_of_equals_the_first_asked_for() -> None:
    score = np.array([0.5, 0.9, 0.5, 0.1], np.float32)
    ranking = Ranking(("a", "b", "c", "d"), {}, score, (frozenset(),) * 4, "b1")
    assert ranking.order == ("b", "a", "c", "d")


def test_a_client_needs_neither_the_steps_nor_the_configuration() -> None:
    program = (
        "import sys\n"
        "import sparsefeed.workflows.serving.client\n"
        "banned = {'pydantic', 'numba', 'torch', 'pandas', 'sparsefeed.workflows.serving.config'}\n"
        "print(sorted(banned & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
