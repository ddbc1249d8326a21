"""Clients that mean harm by being slow: each opens a connection, begins something, and never gets on with it.

head: a request head that comes byte by byte. body: a whole head that announces a body, which comes byte by byte.
read: requests for large pages, one behind the other, of which not a byte is read.

Says how many connections it has opened and begun to use; then goes on until its input ends, or the server ends them.
"""

from __future__ import annotations

import random
import socket
import sys
from typing import Literal

import msgspec
import trio

from bench.child import say
from fluxora import logs

OPENING_AT_ONCE = 50
BYTE_EVERY_S = (0.5, 1.5)  # from and to, so that they do not all come at once
PAGES = 20  # asked for by a client that reads none: far more than socket buffers hold
SEGMENT_BYTES = 1400  # as over a real network; the loopback's own 64 KiB would make the kernel buffer megabytes
RECEIVE_BUFFER_BYTES = 4096
Kind = Literal["head", "body", "read"]

BEGINNINGS: dict[Kind, bytes] = {
    "head": b"GET /health HTTP/1.1\r\nhost: slow.example\r\nx-slow: ",
    "body": (
        b"POST /api/streams HTTP/1.1\r\nhost: slow.example\r\n"
        b'content-type: application/json\r\ncontent-length: 100000\r\n\r\n{"sender":"'
    ),
    "read": b"GET /api/streams?limit=100 HTTP/1.1\r\nhost: slow.example\r\n\r\n" * PAGES,
}


class Task(msgspec.Struct, kw_only=True):
    """Whom to bother, and how."""

    port: int
    kind: Kind
    connections: int


def main() -> None:
    task = msgspec.json.decode(sys.argv[1], type=Task)
    logs.configure("warning", human=False)
    trio.run(_bother, task)


async def _bother(task: Task) -> None:
    opening = trio.CapacityLimiter(OPENING_AT_ONCE)
    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as openers:
            for _ in range(task.connections):
                openers.start_soon(_open, task, opening, nursery)
        say({"opened": task.connections})
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


async def _open(task: Task, opening: trio.CapacityLimiter, connections: trio.Nursery) -> None:
    """Connect and begin; what follows runs in `connections`."""
    async with opening:
        own = trio.socket.socket()
        own.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT_BYTES)
        if task.kind == "read":
            own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        await own.connect(("127.0.0.1", task.port))
        stream = trio.SocketStream(own)
        await stream.send_all(BEGINNINGS[task.kind])
    connections.start_soon(_hold if task.kind == "read" else _drip, stream)


async def _hold(stream: trio.SocketStream) -> None:
    """Keep the connection, and read nothing."""
    async with stream:
        await trio.sleep_forever()  # the benchmark ends this process


async def _drip(stream: trio.SocketStream) -> None:
    """Send a byte now and then, until the server has had enough."""
    async with stream, trio.open_nursery() as nursery:
        nursery.start_soon(_until_ended, stream, nursery.cancel_scope)
        while True:
            await trio.sleep(random.uniform(*BYTE_EVERY_S))
            try:
                await stream.send_all(b"a")
            except trio.BrokenResourceError:
                return


async def _until_ended(stream: trio.SocketStream, scope: trio.CancelScope) -> None:
    try:
        while await stream.receive_some():  # an answer, perhaps, before the end
            pass
    except trio.BrokenResourceError:
        pass  # cut off, which is an end as well
    scope.cancel()


if __name__ == "__main__":
    main()
