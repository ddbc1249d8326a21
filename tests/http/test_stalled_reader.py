"""A reader that stalls: bounded memory for it, no harm to others, and an end behind which nothing is missing.

Over real TCP, with readers whose kernel takes little. What waits for them is not what a connection says of itself, but
what the interpreter has allocated in it.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from random import Random
from typing import Any

import pytest
import trio
import trio.testing
from front import DEADLINE_S, Server
from narrow_readers import OverEvents, OverWebSocket
from socket_client import connect
from story import batch, created

from fluxora.http import backlog, connection
from fluxora.http.connection import MAX_OFFERED_BYTES, Connection

MOST_EVENTS = 400  # until it is let go
BESIDE = 16_384  # bytes of the connections that are no queue, and what a buffer has to grow


@pytest.fixture
def carrier() -> str:
    """Once for all: the listener's own carrier serves what goes on."""
    return "direct"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever takes nothing is waited for not long."""
    monkeypatch.setattr("fluxora.actors.lag.STUCK_S", 0.1)


@pytest.fixture
async def server(start: Any, store: Any, cache: Any, live: Any) -> Server:
    return await start(store=store, cache=cache, hub=live.hub)


@pytest.fixture
def commit(record: Any, live: Any) -> Callable[[int], Awaitable[None]]:
    """Commit the event of a position: the first ones are small, and the others of some 10 to 40 KB."""
    random = Random(3)

    async def committed(position: int) -> None:
        memo = "m" * (random.randint(10_000, 40_000) if position > 5 else 0)
        live.feed.publish(await record(batch(created(position, ledger=9 + position, memo=memo))))

    return committed


class Memory:
    """What the connections have allocated, in bytes."""

    def __init__(self) -> None:
        self.most = 0

    def look(self) -> int:
        found = tracemalloc.take_snapshot().filter_traces(
            [tracemalloc.Filter(True, one.__file__) for one in (backlog, connection)]
        )
        held = sum(trace.size for trace in found.traces)
        self.most = max(self.most, held)
        return held


@pytest.fixture
def memory() -> Iterator[Memory]:
    tracemalloc.start()
    yield Memory()
    tracemalloc.stop()


@pytest.fixture(params=[OverWebSocket, OverEvents])
def transport(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What waits in any connection, by its own account, after each offer to it."""
    seen: list[int] = []
    offer = Connection.offer

    def watched(connection: Connection, frame: bytes) -> bool:
        taken = offer(connection, frame)
        seen.append(connection.offered_bytes)
        return taken

    monkeypatch.setattr(Connection, "offer", watched)
    return seen


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(DEADLINE_S):
        while not condition():
            await trio.lowlevel.checkpoint()


async def test_it_is_let_go_at_a_mebibyte_loses_nothing_and_costs_the_others_nothing(
    transport: Any, server: Server, commit: Any, memory: Memory, offered: list[int]
) -> None:
    hub = server.backend.hub
    stalled = await transport.open(server)
    async with await connect(server) as socket_, await connect(server) as second:
        others = [socket_, second]
        for one in others:
            await one.ask({"type": "subscribe", "streamId": "*", "ref": "r"})
        await until(lambda: hub.status.subscribers == 3)
        head = 0
        while not hub.status.dropped:
            head += 1
            assert head < MOST_EVENTS
            await commit(head)
            for one in others:
                assert (await one.message())["position"] == str(head)
            if max(offered[-3:]) > MAX_OFFERED_BYTES // 2:
                assert memory.look() <= MAX_OFFERED_BYTES + BESIDE
        await commit(head + 1)
        for one in others:
            assert (await one.message())["position"] == str(head + 1)
        assert hub.status.dropped == 1
        assert max(offered) <= MAX_OFFERED_BYTES
        assert max(offered) > MAX_OFFERED_BYTES - 50_000, "it was let go no earlier than it had to be"
        assert memory.most > MAX_OFFERED_BYTES - 50_000, "that is where it was"
        read = await stalled.read_to_the_end()
        await stalled.close()
        assert 0 < len(read) < head
        assert read == list(range(1, len(read) + 1))
        again = await transport.open(server, after=read[-1])
        assert await again.read(head + 1 - read[-1]) == list(range(read[-1] + 1, head + 2))
        await again.close()
    await until(lambda: not hub.status.subscribers)
    assert transport.ended(server)[4001] == 1
    assert memory.look() <= BESIDE


async def test_one_that_reads_now_and_then_has_no_more_waiting(
    transport: Any, server: Server, commit: Any, memory: Memory, offered: list[int]
) -> None:
    """What it takes of its queue makes room for as much, and not for more."""
    hub = server.backend.hub
    slow = await transport.open(server)
    await until(lambda: hub.status.subscribers == 1)
    (outlet,) = server.backend.sockets._open
    head = read = 0
    for _ in range(3):
        while outlet.line.offered_bytes < MAX_OFFERED_BYTES - 100_000:
            head += 1
            await commit(head)
            await until(lambda head=head: hub.head == head)
            if outlet.line.offered_bytes > MAX_OFFERED_BYTES // 2:
                assert memory.look() <= MAX_OFFERED_BYTES + BESIDE
        assert server.backend.sockets.queued == (1, outlet.line.offered_bytes)
        before = outlet.line.offered_bytes
        while outlet.line.offered_bytes > before - 700_000:
            assert await slow.read(1) == [read + 1]
            read += 1
    assert await slow.read(head - read) == list(range(read + 1, head + 1))
    await until(lambda: server.backend.sockets.queued == (0, 0))
    assert not hub.status.dropped
    assert max(offered) <= MAX_OFFERED_BYTES
    await slow.close()


async def test_one_that_is_ended_while_it_catches_up_is_told_why_behind_all_that_was_on_its_way(
    server: Server, commit: Any
) -> None:
    for position in range(1, 61):
        await commit(position)
    await until(lambda: server.backend.hub.head == 60)
    readers = [await OverWebSocket.open(server, after=0) for _ in range(8)]
    await until(lambda: len(outlets := server.backend.sockets._open) == 8 and all(one.follows for one in outlets))
    outlets = tuple(server.backend.sockets._open)
    await until(lambda: all(one.line.offered_bytes for one in outlets))
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert server.backend.sockets.disconnect(lambda _: True) == 8
    for reader in readers:
        read = await reader.read_to_the_end(4403)
        assert read == list(range(1, len(read) + 1))
        assert 5 < len(read) < 60
        await reader.close()
