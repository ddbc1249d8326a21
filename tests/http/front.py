"""A real server on a real socket, spoken to with httpx or byte by byte."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trio

from fluxora.actors.status import (
    DatabaseStatus,
    Dependencies,
    HealthReport,
    IndexerStatus,
    RpcStatus,
    WebhookStatus,
)
from fluxora.http.backend import Backend

DEADLINE_S = 10.0
OURS = pytest.mark.parametrize("carrier", ["direct"])
"""For what is the listener's own business: handshakes, frames and pings, tasks, and clients that never read again.
Where another server has the port it is that server's."""


def report(status: str = "ok") -> HealthReport:
    return HealthReport(
        status=status,
        version="1.2.3",
        timestamp="2026-01-01T00:00:00.000Z",
        indexer=IndexerStatus(status="not_configured", summary="no source"),
        dependencies=Dependencies(database=DatabaseStatus(status="ok"), stellar_rpc=RpcStatus(status="not_configured")),
        webhooks=WebhookStatus(),
        actors=[],
    )


class Server:
    """One running front and ways to speak to it."""

    def __init__(self, backend: Backend, port: int) -> None:
        self.backend = backend
        self.port = port

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=DEADLINE_S) as client:
            yield client

    async def get(self, url: str, **options: Any) -> httpx.Response:
        async with self.client() as client:
            return await client.get(url, **options)

    async def request(self, method: str, url: str, **options: Any) -> httpx.Response:
        async with self.client() as client:
            return await client.request(method, url, **options)

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def exchange(self, data: bytes) -> bytes:
        """Send raw bytes, return everything up to the server's end of stream."""
        async with await self.connect() as stream:
            await stream.send_all(data)
            return await read_to_end(stream)


async def read_to_end(stream: trio.SocketStream) -> bytes:
    received = b""
    with trio.fail_after(DEADLINE_S):
        while data := await stream.receive_some():
            received += data
    return received


async def read_replies(stream: trio.SocketStream, count: int, received: bytes = b"") -> list[bytes]:
    """Bodies of `count` replies with a content-length on one connection."""
    bodies: list[bytes] = []
    with trio.fail_after(DEADLINE_S):
        while True:
            head, separator, rest = received.partition(b"\r\n\r\n")
            if separator:
                length = next(int(x.split(b":")[1]) for x in head.split(b"\r\n") if x.startswith(b"content-length"))
                if len(rest) >= length:
                    bodies.append(rest[:length])
                    received = rest[length:]
                    if len(bodies) == count:
                        return bodies
                    continue
            data = await stream.receive_some()
            assert data, f"the connection ended after {received!r}"
            received += data
