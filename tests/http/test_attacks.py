"""What hostile clients have tried: each was a defect once."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest
import trio
import trio.testing
from front import DEADLINE_S, Server, read_to_end

from fluxora.errors import InvalidJson
from fluxora.http import negotiation, strict_json
from fluxora.http.connection import Connection
from fluxora.protocol import addresses

LARGE = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n"
LARGE_LAST = LARGE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
MANY = 64 << 20


async def slow_client(server: Server) -> trio.SocketStream:
    """A client for which the kernel holds little."""
    client = trio.socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await client.connect(("127.0.0.1", server.port))
    return trio.SocketStream(client)


@pytest.mark.parametrize("count", [1, 3])
async def test_an_answer_that_is_taken_slowly_is_not_a_late_head(start, count):
    server = await start(read_head_timeout_s=0.1, keep_alive_s=0.1)
    async with await slow_client(server) as client:
        await client.send_all(LARGE * (count - 1) + LARGE_LAST)
        for _ in range(2):
            assert await server.exchange(b"") == b"", "a silent connection is ended when its time is over"
        received = await read_to_end(client)
    assert received.count(b"HTTP/1.1 200 OK\r\n") == count
    assert b"HTTP/1.1 408" not in received
    head, _, body = received.rpartition(b"HTTP/1.1 200 OK\r\n")[2].partition(b"\r\n\r\n")
    assert b"content-length: %d\r\n" % len(body) in head


class Stuck:
    """A store that does not answer until it is told to."""

    def __init__(self) -> None:
        self.asked = trio.Event()
        self.released = trio.Event()

    async def position(self) -> int:
        self.asked.set()
        await self.released.wait()
        return 0

    async def events(self, _query: Any) -> list[Any]:
        return []


async def test_what_is_sent_ahead_of_an_answer_is_not_kept_without_a_bound(start):
    """The framework reads while it answers, to notice a client that leaves."""
    store = Stuck()
    server = await start(store=store)
    sent = 0

    async def flood(client: trio.SocketStream) -> None:
        nonlocal sent
        chunk = b"G" * (1 << 16)
        while sent < MANY:
            await client.send_all(chunk)
            sent += len(chunk)

    async with await server.connect() as client, trio.open_nursery() as nursery:
        await client.send_all(b"GET /api/export/events.ndjson HTTP/1.1\r\nHost: x\r\n\r\n")
        await store.asked.wait()
        nursery.start_soon(flood, client)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert sent < MANY / 4
        nursery.cancel_scope.cancel()
    store.released.set()


async def test_requests_that_were_sent_far_ahead_of_an_answer_are_answered(start):
    """Held back is not lost: more requests than are looked at before their turn."""
    store = Stuck()
    server = await start(store=store)
    live = b"GET /health/live HTTP/1.1\r\nHost: x\r\nx: " + b"y" * 1000 + b"\r\n\r\n"
    count = (1 << 19) // len(live)
    received = b""

    async def send(client: trio.SocketStream) -> None:
        await client.send_all(b"GET /api/export/events.ndjson HTTP/1.1\r\nHost: x\r\n\r\n")
        await client.send_all(live * count + live.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))

    async with await server.connect() as client, trio.open_nursery() as nursery:
        nursery.start_soon(send, client)
        await store.asked.wait()
        await trio.testing.wait_all_tasks_blocked(0.05)
        store.released.set()
        received = await read_to_end(client)
    assert received.count(b"HTTP/1.1 200 OK\r\n") == count + 2


async def test_a_stop_ends_a_connection_whose_answer_was_going_out(start):
    """Its head promised another request; there will be none."""
    server = await start(keep_alive_s=60.0, drain_s=60.0)
    async with await slow_client(server) as client:
        await client.send_all(LARGE * 3)
        received = bytearray()
        with trio.fail_after(DEADLINE_S):
            while received.count(b"HTTP/1.1 200 OK\r\n") < 3:
                received += await client.receive_some(1 << 16)
            server.backend.stopping.set()
            while data := await client.receive_some(1 << 16):
                received += data
    assert received.count(b"HTTP/1.1 200 OK\r\n") == 3


@pytest.mark.parametrize("how", ["abort", "aclose"])
async def test_a_closed_connection_touches_no_file_that_has_its_number_now(how):
    ours, theirs = socket.socketpair()
    connection = Connection(trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
    number = connection.socket.fileno()
    theirs.close()
    if how == "abort":
        connection.abort()
    else:
        await connection.aclose()
    near, far = socket.socketpair()
    try:
        os.dup2(near.fileno(), number)
        far.send(b"of somebody else")
        with pytest.raises(trio.BrokenResourceError):
            connection.receive_nowait()
        assert near.recv(100) == b"of somebody else"
    finally:
        if number != near.fileno():
            os.close(number)
        near.close()
        far.close()


def test_what_is_no_address_is_not_remembered():
    """A body has room for 250 KB of it, and there is room to remember 32,768 addresses."""
    before = addresses._is_party.cache_info()
    for nth in range(10):
        assert not addresses.is_account_or_contract(f"{nth}" + "G" * 100_000)
    assert addresses._is_party.cache_info() == before


def test_a_long_accept_header_is_not_remembered_whole():
    accept = "text/html;" * 410
    before = negotiation._accepts.cache_info().currsize
    for nth in range(10):
        assert not negotiation.accepts(f"{accept}{nth}", "application/json")
    assert negotiation._accepts.cache_info().currsize <= before + 1


@pytest.mark.parametrize(
    ("body", "deep"),
    [
        (b"[" * 32 + b"]" * 32, False),
        (b"[" * 33 + b"]" * 33, True),
        (b'{"a":' * 33 + b"1" + b"}" * 33, True),
        (b'["' + b"[" * 100 + b'"]', False),
        (b'["\\"' + b"[" * 100 + b'"]', False),
        (b'["\\\\"' + b",[" * 100, True),
        (b"]" * 10 + b"[" * 50, True),
    ],
)
def test_only_brackets_outside_of_strings_nest(body, deep):
    said = ""
    try:
        strict_json.read(body)
    except InvalidJson as error:
        said = str(error)
    assert ("nested deeper" in said) == deep
