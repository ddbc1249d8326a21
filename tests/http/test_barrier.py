"""The barrier: what is committed behind an acknowledgement is delivered, however closely behind it, and no more is.

Many sockets subscribe at once, each to something else, while the others commit. Each commits what it follows as soon as
it has its acknowledgement, by one of the ways in which commits come about, and reads until that has come.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from random import Random
from typing import Any

import asyncpg
import pytest
import trio
from promises import ALL, WATCH_TRANSACTIONS, Log, Selector, Session, judge, told
from socket_client import Client, connect
from story import account, batch, created
from wsproto.events import TextMessage

from fluxora.actors.feed import Feed
from fluxora.actors.registrar import Registrar
from fluxora.protocol.chain import LedgerBatch
from fluxora.protocol.lifecycle import NewStream
from fluxora.protocol.streams import StreamStatus
from fluxora.storage.store import Appended, Change, Create, Store

TRIALS = 10_000 if os.environ.get("FLUXORA_PROOF") == "long" else 400
SOCKETS = 24  # at once
NEAR = 100  # positions behind the newest one that is known, from which most resume
FORK_EVERY = 10  # commits of the chain between two of which the newest is taken back
PATIENCE_S = 900
PEOPLE = [account(f"barrier {number}") for number in range(6)]


class Database:
    """The database, asked from outside."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def rows(self, text: str, *args: Any) -> Sequence[Any]:
        async def ask() -> Sequence[Any]:
            connection = await asyncpg.connect(self._url)
            try:
                return await connection.fetch(text, *args)
            finally:
                await connection.close()

        return await trio.to_thread.run_sync(lambda: asyncio.run(ask()))


class Writers:
    """Ways to commit an event that a selector matches. `known` is the newest position that somebody has learned."""

    def __init__(
        self, store: Store, feed: Feed, record: Callable[..., Awaitable[Appended]], registrar: Registrar, random: Random
    ) -> None:
        self.known = 0
        self.streams: list[str] = []  # registered ones
        self._store = store
        self._feed = feed
        self._record = record
        self._registrar = registrar
        self._random = random
        self._numbers = count(1)
        self._recording = trio.Lock()
        self._changing = trio.Lock()  # of two changes at once one may be refused

    async def commit(self, wanted: Selector) -> int:
        """Its position; what this process is told of it is left to chance."""
        sender, recipient = self._random.sample(PEOPLE, 2)
        if wanted.name == "sender":
            sender = wanted.value
        elif wanted.name == "recipient":
            recipient = wanted.value
        elif wanted.value in self.streams:
            async with self._changing:
                return await self._change(wanted.value)
        if wanted.name == "streamId" and wanted != ALL:
            return await self._by_another(sender, recipient, wanted.value)
        how = self._random.choice((self._of_the_chain, self._by_the_registrar, self._by_another))
        return await how(sender, recipient)

    async def _of_the_chain(self, sender: str, recipient: str) -> int:
        """As the recorder does; now and then a fork takes it back at once."""
        async with self._recording:
            ledger = 10 + next(self._numbers)
            appended = await self._record(batch(created(ledger, ledger=ledger, sender=sender, recipient=recipient)))
            self._feed.publish(appended)
            if self._random.randrange(FORK_EVERY) == 0:
                self._feed.publish(await self._record(LedgerBatch(rollback_to=ledger - 1)))
        return appended.events[0].position

    async def _by_the_registrar(self, sender: str, recipient: str) -> int:
        made = await self._registrar.create(_new(sender, recipient), None)
        self.streams.append(made.stream_id)
        return int(json.loads(made.body)["position"])

    async def _by_another(self, sender: str, recipient: str, stream_id: str = "") -> int:
        """As another replica: of some commits the bell is heard, before or after whatever was committed next."""
        stream_id = stream_id or f"stream-{next(self._numbers):032x}"
        command = Create(stream_id, f"e{next(self._numbers)}", _new(sender, recipient), None)
        return await self._written(command)

    async def _change(self, stream_id: str) -> int:
        record = await self._store.stream(stream_id)
        assert record is not None
        paused = record.state.status is StreamStatus.PAUSED
        if self._random.random() < 0.5:
            return (await self._registrar.change(stream_id, "active" if paused else "paused")).position
        to = StreamStatus.ACTIVE if paused else StreamStatus.PAUSED
        return await self._written(Change(stream_id, f"e{next(self._numbers)}", to))

    async def _written(self, command: Create | Change) -> int:
        appended = (await self._store.register([command])).appended
        if self._random.random() < 0.5:
            self._feed.publish(appended)
        else:
            self._feed.ring()
        return appended.events[0].position


def _new(sender: str, recipient: str) -> NewStream:
    return NewStream(sender=sender, recipient=recipient, deposit_amount=10**10, rate_per_second=10**5)


class Trials:
    """Sockets that try the barrier again and again."""

    def __init__(self, server: Any, writers: Writers, random: Random) -> None:
        self.done: list[tuple[Selector, Session, int]] = []  # what was followed, what was told, what had to be
        self._server = server
        self._writers = writers
        self._random = random
        self._left = TRIALS

    async def run(self) -> None:
        while self._left > 0:
            self._left -= 1
            async with await connect(self._server) as client:
                await self._try(client)

    async def _try(self, client: Client) -> None:
        wanted, session = self._wanted(), Session("websocket", self._after())
        message: dict[str, Any] = {"type": "subscribe", wanted.name: wanted.value, "ref": "r"}
        if session.after is not None:
            message["after"] = str(session.after)
        await client.send(message)
        await read(client, session, until=None)
        position = await self._writers.commit(wanted)
        self._writers.known = max(self._writers.known, position)
        await read(client, session, until=position)
        self.done.append((wanted, session, position))

    def _wanted(self) -> Selector:
        """All, an address, a stream that is there or one that will be."""
        what = self._random.randrange(5)
        if what == 0:
            return ALL
        if what < 3:
            return Selector(("sender", "recipient")[what - 1], self._random.choice(PEOPLE))
        if what == 3 and self._writers.streams:
            return Selector("streamId", self._random.choice(self._writers.streams))
        return Selector("streamId", f"stream-to-be-{self._random.getrandbits(64):016x}")

    def _after(self) -> int | None:
        """Half of them begin with what is new; of the others a few begin long ago, and some where the log ends."""
        if self._random.random() < 0.5:
            return None
        back = self._random.choice((0, 0, self._random.randint(0, NEAR), self._random.randint(0, NEAR * 10)))
        return max(0, self._writers.known - back)


async def read(client: Client, session: Session, *, until: int | None) -> None:
    """Up to the acknowledgement, or to a position."""
    while True:
        event = await client.event()
        assert isinstance(event, TextMessage), event
        message = told(event.data)
        if message.type == "ack":
            session.mark(int(message.position))
            assert until is None
            return
        assert message.type == "stream_update", event.data
        session.tell(int(message.position), message.looks_like)
        if until is not None and session.told[-1] >= until:
            return


@pytest.fixture
def carrier() -> str:
    """Once for all: the framework carries no WebSocket."""
    return "direct"


@pytest.fixture
async def writers(store: Store, live: Any, record: Any, nursery: trio.Nursery) -> Writers:
    registrar = Registrar(store, publish=live.feed.publish)
    await nursery.start(registrar.run)
    return Writers(store, live.feed, record, registrar, Random(5))


async def test_what_is_committed_behind_an_acknowledgement_is_delivered(
    start: Any, store: Store, cache: Any, live: Any, writers: Writers
) -> None:
    database = Database(store.url)
    for statement in WATCH_TRANSACTIONS:
        await database.rows(statement)
    trials = Trials(await start(store=store, cache=cache, hub=live.hub), writers, Random(6))
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as sockets:
            for _ in range(SOCKETS):
                sockets.start_soon(trials.run)
    log = await Log.read(database)
    assert log.faults == []
    assert len(trials.done) >= TRIALS
    for wanted, session, position in trials.done:
        assert judge(log, wanted, [session]) == []
        assert len(session.marks) == 1
        assert session.told[-1] == position, "of what lies above the acknowledgement, what was committed comes last"
    raced = sum(len(log.matching(ALL, session.marks[0][1], position)) > 1 for _, session, position in trials.done)
    print(f"{len(trials.done)} trials, {raced} of them with other commits in between; log of {log.head}")
    assert raced > TRIALS // 4
