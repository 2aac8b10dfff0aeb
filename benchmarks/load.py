"""Load on a server over gRPC: closed, so many requests in flight, or open, so many a second whatever becomes of them.

The generator has its part of the cores that the server is measured on, and a call of gRPC's Python client takes 0.3 ms
of them, nearly half of what an answer takes. So a unary call is written here as the frames of HTTP/2 (RFC 9113) that it
is: requests are bytes, made once and sent again and again, and of an answer the status alone is read. An open load
sends and reads every 4 ms, what is due by then and what has come: half the work, and up to 4 ms of latency that count.
"""

from __future__ import annotations

import math
import selectors
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle

import numpy as np
from tritonclient.grpc import service_pb2

__all__ = ["Generator", "Outcome"]

Request = tuple[str, list[str]]
_CONNECTIONS = 32
_WAIT_S = 30.0  # for answers after the last request
_TICK_S = 0.004  # of an open load

_METHOD = b"/inference.GRPCInferenceService/ModelInfer"
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM = _ACK = 0x1
_END_HEADERS = 0x4
_FIRST_WINDOW, _LARGEST_WINDOW, _LARGEST_FRAME = 65_535, 2**31 - 1, 16_384
_OK, _UNAVAILABLE = 0, 14


@dataclass
class Outcome:
    """What became of the requests of one run.

    Attributes:
        seconds: from the first request to the last answer.
        answered_ms: latency of each that was answered, from when it was due.
        refused_ms: of each that was refused as UNAVAILABLE.
        errors: messages of all others.
    """

    seconds: float = 0.0
    answered_ms: list[float] = field(default_factory=list)
    refused_ms: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def num_requests(self) -> int:
        """All that have an outcome."""
        return len(self.answered_ms) + len(self.refused_ms) + len(self.errors)

    def goodput(self, within_ms: float = math.inf) -> float:
        """Answers a second that came in time."""
        return sum(latency <= within_ms for latency in self.answered_ms) / self.seconds

    def quantile_ms(self, q: float) -> float:
        """Of the latencies of answers; NaN without one."""
        return float(np.quantile(self.answered_ms, q)) if self.answered_ms else math.nan

    def add(self, latency_ms: float, status: int, words: str) -> None:
        """Note one that has ended with a gRPC status."""
        if status == _OK:
            self.answered_ms.append(latency_ms)
        elif status == _UNAVAILABLE:
            self.refused_ms.append(latency_ms)
        else:
            self.errors.append(f"gRPC status {status}: {words}")


class Generator:
    """Sends a list of requests in turn to one model, over 32 connections."""

    def __init__(self, url: str, model: str, requests: Sequence[Request]) -> None:
        host, port = url.rsplit(":", 1)
        self._bodies = cycle([_body(model, member, posts) for member, posts in requests])
        self._selector = selectors.DefaultSelector()
        self._connections = [_Connection(host, int(port), self._selector) for _ in range(_CONNECTIONS)]

    def closed(self, in_flight: int, seconds: float) -> Outcome:
        """Keep so many requests in flight for so long."""
        outcome, started = Outcome(), time.perf_counter()
        for number in range(in_flight):
            self._connections[number % _CONNECTIONS].call(next(self._bodies), started)
        while self._in_flight():
            for connection in self._ended(_WAIT_S, outcome):
                now = time.perf_counter()
                if now < started + seconds:
                    connection.call(next(self._bodies), now)
        outcome.seconds = time.perf_counter() - started
        return outcome

    def open(self, per_second: float, seconds: float) -> Outcome:
        """Send so many requests a second, evenly but for the tick, for so long, whether or not they are answered."""
        outcome, connections = Outcome(), cycle(self._connections)
        total, started, sent = int(per_second * seconds), time.perf_counter(), 0
        while sent < total or self._in_flight():
            now = time.perf_counter()
            while sent < total and (due := started + sent / per_second) <= now:
                next(connections).call(next(self._bodies), due)
                sent += 1
            if sent < total:
                time.sleep(max(0.0, now + _TICK_S - time.perf_counter()))
            deque(self._ended(0.0 if sent < total else _WAIT_S, outcome), maxlen=0)
        outcome.seconds = time.perf_counter() - started
        return outcome

    def close(self) -> None:
        """Close the connections."""
        for connection in self._connections:
            connection.close()
        self._selector.close()

    def _in_flight(self) -> bool:
        return any(connection.due for connection in self._connections)

    def _ended(self, wait_s: float, outcome: Outcome) -> Iterator[_Connection]:
        """Read what comes within a time; the connection of each request that has ended.

        Raises:
            TimeoutError: nothing came in all of _WAIT_S.
        """
        events = self._selector.select(wait_s)
        if not events and wait_s == _WAIT_S:
            raise TimeoutError(f"no answer in {_WAIT_S:g} s")
        for key, _ in events:
            connection: _Connection = key.data
            for due, status, words in connection.exchange():
                outcome.add(1e3 * (time.perf_counter() - due), status, words)
                yield connection


class _Connection:
    """Unary gRPC calls over one connection of HTTP/2, many at a time.

    The peer may keep no table of header fields (SETTINGS_HEADER_TABLE_SIZE is 0), so that a status stands as text in
    its trailers. Its answers are never held back for want of a window.
    """

    def __init__(self, host: str, port: int, selector: selectors.BaseSelector) -> None:
        self._socket = socket.create_connection((host, port), timeout=_WAIT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)
        self._selector = selector
        selector.register(self._socket, selectors.EVENT_READ, self)
        self._headers = _headers(f"{host}:{port}")
        self._stream, self._window = 1, _FIRST_WINDOW
        self._waiting: deque[tuple[int, bytes]] = deque()  # calls the peer has no window for
        self._out, self._in = bytearray(), bytearray()
        self._writes = False
        self._received = 0  # bytes of answers since the window was opened
        self.due: dict[int, float] = {}  # stream -> when its request was due
        settings = _setting(1, 0) + _setting(4, _LARGEST_WINDOW)
        self._out += _PREFACE + _frame(_SETTINGS, 0, 0, settings)
        self._open_window(_LARGEST_WINDOW - _FIRST_WINDOW)
        self._flush()

    def call(self, body: bytes, due: float) -> None:
        """Begin a call, which is in `due` until it has ended."""
        self.due[self._stream] = due
        self._waiting.append((self._stream, body))
        self._stream += 2
        self._flush()

    def exchange(self) -> Iterator[tuple[float, int, str]]:
        """Write and read what can be; when it was due, status and trailers of each call that has ended."""
        try:
            got = self._socket.recv(2**18)
        except BlockingIOError:
            got = None
        if got == b"":
            raise ConnectionError("the server closed the connection")
        self._in += got or b""
        while len(self._in) >= 9:
            end = 9 + int.from_bytes(self._in[:3], "big")
            if len(self._in) < end:
                break
            kind, flags, stream = self._in[3], self._in[4], int.from_bytes(self._in[5:9], "big") & _LARGEST_WINDOW
            payload = bytes(self._in[9:end])
            del self._in[:end]
            if kind == _HEADERS and flags & _END_STREAM:
                yield self.due.pop(stream), *_status(payload)
            elif kind == _RST_STREAM:
                yield self.due.pop(stream), -1, f"reset, code {int.from_bytes(payload, 'big')}"
            else:
                self._heed(kind, flags, stream, payload)
        self._flush()

    def close(self) -> None:
        """Close it."""
        self._selector.unregister(self._socket)
        self._socket.close()

    def _heed(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        """Do what a frame that ends no call asks for."""
        if kind == _DATA:
            self._received += len(payload)
            if self._received > _LARGEST_WINDOW // 2:
                self._open_window(self._received)
                self._received = 0
        elif kind == _WINDOW_UPDATE and stream == 0:
            self._window += int.from_bytes(payload, "big")
        elif kind in (_SETTINGS, _PING) and not flags & _ACK:
            self._out += _frame(kind, _ACK, 0, payload if kind == _PING else b"")
        elif kind == _GOAWAY:
            raise ConnectionError(f"the server goes away: {payload!r}")

    def _open_window(self, more: int) -> None:
        self._out += _frame(_WINDOW_UPDATE, 0, 0, more.to_bytes(4, "big"))

    def _flush(self) -> None:
        while self._waiting and len(self._waiting[0][1]) <= self._window:
            stream, body = self._waiting.popleft()
            self._window -= len(body)
            self._out += _frame(_HEADERS, _END_HEADERS, stream, self._headers)
            self._out += _frame(_DATA, _END_STREAM, stream, body)
        try:
            while self._out:
                del self._out[: self._socket.send(self._out)]
        except BlockingIOError:
            pass
        if self._writes != bool(self._out):
            self._writes = bool(self._out)
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._writes else 0)
            self._selector.modify(self._socket, events, self)


def _body(model: str, member: str, posts: Sequence[str]) -> bytes:
    """A ModelInferRequest as a message of gRPC; texts are their length in four bytes and themselves."""
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, texts in (("member_id", [member]), ("post_ids", posts)):
        request.inputs.add(name=name, datatype="BYTES", shape=[len(texts)])
        encoded = [text.encode() for text in texts]
        request.raw_input_contents.append(b"".join(len(one).to_bytes(4, "little") + one for one in encoded))
    message: bytes = request.SerializeToString()
    body = b"\0" + len(message).to_bytes(4, "big") + message
    if len(body) > _LARGEST_FRAME:
        raise ValueError(f"a request of {len(body)} bytes; at most {_LARGEST_FRAME}, one frame of HTTP/2: fewer posts")
    return body


def _headers(authority: str) -> bytes:
    """The fields of a call (RFC 7541): indexed ones of the static table, then literals that no table keeps."""
    literals = ((b"\x04", _METHOD), (b"\x01", authority.encode()), (b"\x0f\x10", b"application/grpc"))
    fields = b"".join(name + bytes([len(value)]) + value for name, value in literals)
    return b"\x83\x86" + fields + b"\x00\x02te\x08trailers"


def _status(trailers: bytes) -> tuple[int, str]:
    """The gRPC status in trailers, and the trailers as they are."""
    name = b"grpc-status"
    at = trailers.find(name) + len(name)
    if at < len(name) or trailers[at] > 2:  # not there, or not two digits of text
        return -1, f"no status in {trailers!r}"
    return int(trailers[at + 1 : at + 1 + trailers[at]]), repr(trailers)


def _setting(name: int, value: int) -> bytes:
    return name.to_bytes(2, "big") + value.to_bytes(4, "big")


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload
