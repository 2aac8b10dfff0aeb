from __future__ import annotations

import asyncio

import numpy as np
import pytest

from sparsefeed.errors import RequestError, ServeError
from sparsefeed.workflows.serving.client import AsyncFeedClient, FeedClient
from sparsefeed.workflows.serving.server import TritonServer
from tests.workflows.serving.conftest import config
from tests.workflows.serving.feed import Feed, requests


@pytest.mark.triton
def test_many_requests_in_flight_are_answered_as_one_by_one(server: TritonServer, feeds: dict[str, Feed]) -> None:
    drawn = requests(feeds["b1"], 60, seed=12)

    async def ask() -> list[np.ndarray]:
        async with AsyncFeedClient(server.grpc_url, "b1") as client:
            assert await client.bundles() == ("b1", "b2")
            assert await client.health()
            rankings = await asyncio.gather(*(client.rank(*one) for one in drawn))
            with pytest.raises(RequestError, match='bundle "b1", feed_transform: '):
                await client.rank("m1", ["p1"], {"membre": {}})
        return [ranking.score for ranking in rankings]

    with FeedClient(server.grpc_url, "b1") as client:
        for one, score in zip(drawn, asyncio.run(ask()), strict=True):
            np.testing.assert_array_equal(client.rank(*one).score, score)


def test_without_a_server_the_deadline_holds_and_health_is_false() -> None:
    async def ask() -> None:
        async with AsyncFeedClient(f"127.0.0.1:{config().grpc_port}", timeout_s=1.0) as client:
            assert not await client.health()
            with pytest.raises(ServeError, match="is the server started"):
                await client.rank("m1", ["p1"])

    asyncio.run(asyncio.wait_for(ask(), 5))
