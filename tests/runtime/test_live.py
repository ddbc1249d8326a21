"""WebSockets of a whole runtime: what they are told is the log, through forks, reconnections and a stop."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import trio
from in_process import config
from trio_websocket import ConnectionClosed, WebSocketConnection, open_websocket_url
from truth import Books, caught_up
from waiting import eventually

import fluxora
from fluxora.localnet import Network, Script, open_localnet

OpenBooks = Callable[[str], Awaitable[Books]]
SEED = 43


class Reader:
    """Follows everything behind what it has, and notes what it is told."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.codes: list[int] = []

    @property
    def after(self) -> str:
        return self.told[-1]["position"] if self.told else "0"

    async def follow(self, url: str) -> None:
        """Until the server closes the connection."""
        async with open_websocket_url(f"{url.replace('http', 'ws', 1)}/ws/streams") as socket:
            await socket.send_message(json.dumps({"type": "subscribe", "streamId": "*", "after": self.after}))
            try:
                await self._read(socket)
            finally:
                await trio.aclose_forcefully(socket._stream)

    async def _read(self, socket: WebSocketConnection) -> None:
        try:
            while True:
                message = json.loads(await socket.get_message())
                assert message["type"] == "stream_update"
                self.told.append(message)
        except ConnectionClosed as closed:
            self.codes.append(0 if closed.reason is None else closed.reason.code)


async def follow_through_a_fork(reader: Reader, net: Network, books: Books) -> None:
    """Until it has been told all of the log."""
    await net.close_ledgers(5)
    await caught_up(books, net)
    await net.fork(3)
    await net.close_ledgers(3)
    await caught_up(books, net)
    head = str(await books.position())
    await eventually(lambda: reader.after == head, "the reader has been told all of it")


async def test_sockets_tell_the_log_through_a_fork_and_a_restart(postgres_url: str, books_of: OpenBooks) -> None:
    books, reader = await books_of(postgres_url), Reader()
    async with open_localnet(seed=SEED, script=Script(SEED, streams_per_ledger=3)) as net:
        await net.close_ledgers(20)
        for _ in range(2):  # the second run goes on behind what the first one told
            async with trio.open_nursery() as nursery:
                async with fluxora.open_runtime(config(net, postgres_url)) as rt:
                    nursery.start_soon(reader.follow, rt.url)
                    await follow_through_a_fork(reader, net, books)
                    async with httpx.AsyncClient() as client:
                        assert (await client.get(f"{rt.url}/health")).json()["wsConnections"] == 1
                await eventually(lambda: bool(reader.codes), "the server has closed the connection as it stopped")
                assert reader.codes.pop() == 1001
        rows = await books.rows("SELECT event_id, payload::text FROM events ORDER BY position")
    assert [(one["eventId"], one["payload"]) for one in reader.told] == [(row[0], json.loads(row[1])) for row in rows]
    assert [int(one["position"]) for one in reader.told] == list(range(1, len(rows) + 1))
    assert "stream.reverted" in {one["event"] for one in reader.told}
