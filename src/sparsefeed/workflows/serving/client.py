"""FeedClient and AsyncFeedClient: a member and posts in, a Ranking out.

Example:
    >>> client = FeedClient("127.0.0.1:8001")  # doctest: +SKIP
    >>> client.rank("u17", ["p1", "p2", "p3"]).order  # doctest: +SKIP
    ('p3', 'p1', 'p2')
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, TypeVar

from sparsefeed.errors import ServeError, ToolError
from sparsefeed.workflows.serving.exchange import Call, Exchange, Pause, Talk
from sparsefeed.workflows.serving.ranking import Ranking
from sparsefeed.workflows.serving.retry import RetryPolicy

__all__ = ["AsyncFeedClient", "FeedClient", "Ranking", "RetryPolicy"]

Result = TypeVar("Result")
_GREATEST = 2**31 - 1  # bytes of a message
# A server that was away is looked for every half second at the longest, not after gRPC's two minutes; the rest is what
# tritonclient sets where no options are given.
_CHANNEL = [
    ("grpc.max_send_message_length", _GREATEST),
    ("grpc.max_receive_message_length", _GREATEST),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]


class FeedClient:
    """Client of one server. Not for several threads at once; make one each.

    Args:
        url: host:port of the protocol.
        bundle: Which bundle to ask; None asks the router, which knows. Without a router it takes the only bundle that
            is ready, and looks again when it is taken away.
        protocol: gRPC, or HTTP with binary tensors.
        timeout_s: Seconds until a request is given up, retries included; the server drops what waits longer. Over
            HTTP a single answer may take as long again, for its connections know no other limit.
        retry: When a request is sent again; what the client must change never is.
    """

    def __init__(
        self,
        url: str,
        bundle: str | None = None,
        protocol: Literal["grpc", "http"] = "grpc",
        timeout_s: float = 10.0,
        retry: RetryPolicy = RetryPolicy(),
    ) -> None:
        triton, self._failure = _library(protocol)
        self._is_grpc = protocol == "grpc"
        if self._is_grpc:
            self._client = triton.InferenceServerClient(url, channel_args=_CHANNEL)
        else:
            self._client = triton.InferenceServerClient(url, connection_timeout=timeout_s, network_timeout=timeout_s)
        self._exchange = Exchange(url, bundle, triton, self._failure, timeout_s, retry, as_json=self._is_grpc)

    def __enter__(self) -> FeedClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def health(self) -> bool:
        """Whether a request would be answered: the ensemble and its steps are ready, and a small one was.

        False also when nobody answers. Looked at once a second at most. Without a bundle named, of all that are ready.
        """
        return self._perform(self._exchange.health())

    def bundles(self) -> tuple[str, ...]:
        """Ids of the bundles that are ready, sorted."""
        return self._perform(self._exchange.bundles())

    def rank(
        self, member: str, posts: Sequence[str], overrides: Mapping[str, Mapping[str, Any]] | None = None
    ) -> Ranking:
        """Score posts for a member.

        Args:
            member: Member id; empty for an anonymous member.
            posts: 1 to `serving.max_candidates` post ids.
            overrides: `{"member": {feature: value}, "posts": {post: {feature: value}}}`, raw values for this request.

        Raises:
            RequestError: The request must be changed; the message names the bundle, the step and the cause.
            ServeError: No answer, or no bundle (or more than one) to ask.
        """
        return self._perform(self._exchange.rank(member, posts, overrides))

    def _perform(self, talk: Talk[Result]) -> Result:
        try:
            step = next(talk)
            while True:
                try:
                    answer = self._do(step)
                except (self._failure, OSError) as error:
                    step = talk.throw(error)
                else:
                    step = talk.send(answer)
        except StopIteration as end:
            result: Result = end.value
            return result

    def _do(self, step: Call | Pause) -> Any:
        if isinstance(step, Pause):
            return time.sleep(step.seconds)
        limit = {"client_timeout": step.timeout_s} if self._is_grpc else {}
        return getattr(self._client, step.method)(*step.arguments, **step.options, **limit)


class AsyncFeedClient:
    """FeedClient for asyncio, over gRPC; any number of requests may be in flight, all in one event loop.

    Example:
        >>> async with AsyncFeedClient("127.0.0.1:8001") as client:  # doctest: +SKIP
        ...     rankings = await asyncio.gather(*(client.rank(member, posts) for member, posts in asked))
    """

    def __init__(
        self,
        url: str,
        bundle: str | None = None,
        timeout_s: float = 10.0,
        retry: RetryPolicy = RetryPolicy(),
    ) -> None:
        """As FeedClient's; the connection is made in the event loop that uses it first."""
        triton, self._failure = _library("grpc")
        self._url, self._client = url, None
        self._exchange = Exchange(url, bundle, triton, self._failure, timeout_s, retry, as_json=True)

    async def __aenter__(self) -> AsyncFeedClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def health(self) -> bool:
        """FeedClient.health."""
        return await self._perform(self._exchange.health())

    async def bundles(self) -> tuple[str, ...]:
        """FeedClient.bundles."""
        return await self._perform(self._exchange.bundles())

    async def rank(
        self, member: str, posts: Sequence[str], overrides: Mapping[str, Mapping[str, Any]] | None = None
    ) -> Ranking:
        """FeedClient.rank."""
        return await self._perform(self._exchange.rank(member, posts, overrides))

    async def _perform(self, talk: Talk[Result]) -> Result:
        try:
            step = next(talk)
            while True:
                try:
                    answer = await self._do(step)
                except (self._failure, OSError) as error:
                    step = talk.throw(error)
                else:
                    step = talk.send(answer)
        except StopIteration as end:
            result: Result = end.value
            return result

    async def _do(self, step: Call | Pause) -> Any:
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        if self._client is None:
            from tritonclient.grpc import aio

            self._client = aio.InferenceServerClient(self._url, channel_args=_CHANNEL)
        return await getattr(self._client, step.method)(*step.arguments, **step.options, client_timeout=step.timeout_s)


def _library(protocol: str) -> tuple[Any, Any]:
    try:
        from tritonclient.utils import InferenceServerException

        if protocol == "grpc":
            import tritonclient.grpc as triton
        elif protocol == "http":
            import tritonclient.http as triton
        else:
            raise ServeError(f'protocol: got "{protocol}"; allowed: grpc, http')
    except ImportError as error:
        raise ToolError(f"tritonclient: not installed ({error}); pip install 'sparsefeed[triton]'") from error
    return triton, InferenceServerException
