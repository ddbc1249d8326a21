"""A consumer of webhooks that does as little as one can: it reads a request, notes its id and when, answers 204.

Says its port. Then, for each line {} of its input, what has arrived since the line before: how many, how many different
ids, when the first and the last came, and how old the events were when they came.
"""

from __future__ import annotations

import asyncio
import sys
import time
from datetime import datetime
from itertools import pairwise
from typing import cast

import msgspec
import uvloop

from bench.child import say

ANSWER = b"HTTP/1.1 204 No Content\r\n\r\n"
_LENGTH, _ID, _TIMESTAMP = b"\r\ncontent-length: ", b"\r\nwebhook-id: ", b'"timestamp":"'


class Arrived(msgspec.Struct, kw_only=True):
    """Times are Unix seconds; ages are from the event's own timestamp (to the ms) to its arrival, ascending, in ms."""

    requests: int
    distinct: int
    first_at: float
    last_at: float
    longest_pause_s: float
    ages_ms: list[float]


class _Consumer(asyncio.Protocol):
    """One connection. Requests come one at a time, each perhaps in pieces."""

    def __init__(self, arrivals: list[tuple[bytes, float, bytes]]) -> None:
        self._arrivals = arrivals
        self._buffer = b""
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's own type

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[: end + 2]
        lower = head.lower()
        length = int(_value(lower, lower, _LENGTH))
        if len(self._buffer) < end + 4 + length:
            return
        body = self._buffer[end + 4 : end + 4 + length]
        self._buffer = self._buffer[end + 4 + length :]
        at = body.index(_TIMESTAMP) + len(_TIMESTAMP)
        self._arrivals.append((_value(head, lower, _ID), time.time(), body[at : at + 24]))
        assert self._transport is not None
        self._transport.write(ANSWER)


def _value(head: bytes, lower: bytes, name: bytes) -> bytes:
    """The value behind `name` in a request's head; `lower` is the head in lower case."""
    start = lower.index(name) + len(name)
    return head[start : head.index(b"\r\n", start)]


def main() -> None:
    uvloop.run(_consume())


async def _consume() -> None:
    arrivals: list[tuple[bytes, float, bytes]] = []
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Consumer(arrivals), "127.0.0.1", 0)
    say({"port": server.sockets[0].getsockname()[1]})
    while await loop.run_in_executor(None, sys.stdin.readline):
        say(_summary(arrivals))
        arrivals.clear()


def _summary(arrivals: list[tuple[bytes, float, bytes]]) -> Arrived:
    times = [at for _, at, _ in arrivals]
    ages = sorted((at - datetime.fromisoformat(stamp.decode()).timestamp()) * 1e3 for _, at, stamp in arrivals)
    return Arrived(
        requests=len(arrivals),
        distinct=len({delivery for delivery, _, _ in arrivals}),
        first_at=times[0] if times else 0.0,
        last_at=times[-1] if times else 0.0,
        longest_pause_s=max((later - earlier for earlier, later in pairwise(times)), default=0.0),
        ages_ms=ages,
    )


if __name__ == "__main__":
    main()
