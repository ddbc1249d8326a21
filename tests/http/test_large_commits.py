"""A commit that is larger than what may wait for one connection, for readers who take what they are given."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from front import DEADLINE_S, Server
from narrow_readers import OverEvents, OverWebSocket
from story import batch, created, event

from fluxora.http.connection import MAX_OFFERED_BYTES

ROOM = 1 << 16
EVENTS = 250
MEMO = "m" * 21_000  # in all over 5 MiB


@pytest.fixture(params=["direct", "hosted"])
def carrier(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
async def server(start: Any, store: Any, cache: Any, live: Any) -> Server:
    return await start(store=store, cache=cache, hub=live.hub)


@pytest.fixture
def commit_much(record: Any, live: Any) -> Callable[[int], Awaitable[None]]:
    """Commit EVENTS large events at once, above a position."""

    async def committed(after: int) -> None:
        numbers = range(after + 1, after + EVENTS + 1)
        ledger = 10 + after
        live.feed.publish(await record(batch(*(created(nth, ledger=ledger, index=nth, memo=MEMO) for nth in numbers))))

    return committed


@pytest.fixture(params=[OverWebSocket, OverEvents])
def transport(request: pytest.FixtureRequest) -> Any:
    return request.param


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(DEADLINE_S):
        while not condition():
            await trio.lowlevel.checkpoint()


async def test_who_reads_has_every_event_once_and_in_order_and_is_not_closed(
    transport: Any, server: Server, commit_much: Any, record: Any, live: Any
) -> None:
    hub = server.backend.hub
    reader = await transport.open(server, room=ROOM)
    await until(lambda: hub.status.subscriptions == 1)
    (outlet,) = server.backend.sockets._open
    for after in (0, EVENTS):
        await commit_much(after)
        await until(lambda after=after: hub.head == after + EVENTS and hub.status.behind == 1)
        read = []
        while len(read) < EVENTS:
            read += await reader.read(1)
            assert outlet.line.offered_bytes <= MAX_OFFERED_BYTES
        assert read == list(range(after + 1, after + EVENTS + 1))
        await until(lambda: not hub.status.behind)
    live.feed.publish(await record(batch(event("gl_pause", {"paused": True}, ledger=2_000))))
    assert await reader.read(1) == [2 * EVENTS + 1]
    assert hub.status.dropped == 0
    await reader.close()
    await until(lambda: not hub.status.subscribers)
    assert not transport.ended(server)[4001]


async def test_who_leaves_while_it_is_behind_leaves_nothing_behind(
    transport: Any, server: Server, commit_much: Any
) -> None:
    hub = server.backend.hub
    reader = await transport.open(server)
    await until(lambda: hub.status.subscriptions == 1)
    await commit_much(0)
    await until(lambda: hub.status.behind == 1)
    await reader.close()
    await until(lambda: not hub.status.subscribers)
    assert (hub.status.behind, server.backend.sockets.count + server.backend.sockets.streams) == (0, 0)
