"""Ports for servers that a benchmark starts."""

from __future__ import annotations

import socket

__all__ = ["free_ports"]


def free_ports() -> dict[str, int]:
    """Three that nobody listens on now, under the names that ServingConfig has for them."""
    sockets = [socket.socket() for _ in range(3)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return dict(zip(("http_port", "grpc_port", "metrics_port"), ports, strict=True))
