"""The hub behind the real feed over the real log, while many write: readers come and go and miss nothing.

The writers have many connections, and each transaction takes another while between its rows and its commit: long enough
for others that began after it to be done before it, were it not for the log's head, which it holds.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from itertools import count
from random import Random
from threading import Event

import asyncpg
import pytest
import trio
from cache_world import created
from hub_world import Reader

from fluxora.actors.feed import Feed
from fluxora.actors.hub import Hub
from fluxora.config import StorageConfig
from fluxora.protocol.addresses import AddressKind, encode
from fluxora.protocol.chain import LedgerBatch
from fluxora.protocol.lifecycle import NewStream
from fluxora.protocol.messages import LogEvent
from fluxora.protocol.sockets import ALL, Selector
from fluxora.protocol.streams import StreamStatus
from fluxora.storage import statements
from fluxora.storage.store import Appended, Change, Create, EventQuery, Store, open_store

PATIENCE_S = 120
WRITERS = 64
CHANGES = 8
ROLLBACKS = 6
CONNECTIONS = 24
# At the commit of each transaction, for up to 4 ms, mostly much less.
LINGER = (
    """
    CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        PERFORM pg_sleep(0.004 * random() ^ 3);
        RETURN NULL;
    END $$
    """,
    """
    CREATE CONSTRAINT TRIGGER linger AFTER INSERT ON events DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION linger()
    """,
)
# A writer that does not hold the head, and has its position from a sequence.
FROM_A_SEQUENCE = (
    ("LOCK_FOR_COMMANDS", "SELECT FROM log_head FOR UPDATE", "SELECT"),
    ("READ_FOR_COMMANDS", "h.position AS head", "nextval('positions') - 1 AS head"),
)
SENDERS = [encode(AddressKind.ACCOUNT, sha256(f"sender {n}".encode()).digest()) for n in range(4)]
RECIPIENTS = [encode(AddressKind.ACCOUNT, sha256(f"recipient {n}".encode()).digest()) for n in range(3)]
STREAM_IDS = [f"stream-{number:032x}" for number in range(WRITERS)]
SELECTORS = [
    ALL,
    *(Selector("sender", one) for one in SENDERS),
    *(Selector("recipient", one) for one in RECIPIENTS[:2]),
    *(Selector("stream", one) for one in STREAM_IDS[:5]),
]


async def write(store: Store, feed: Feed, number: int) -> None:
    """Register a stream and pause and resume it; the feed hears of some of it here and of the rest from elsewhere."""

    def tell(appended: Appended, nth: int) -> None:
        if (number + nth) % 3:
            feed.publish(appended)
        elif nth % 2:
            feed.ring()

    new = NewStream(
        sender=SENDERS[number % 4], recipient=RECIPIENTS[number % 3], deposit_amount=10**10, rate_per_second=10**5
    )
    tell((await store.register([Create(STREAM_IDS[number], f"e{number}", new, None)])).appended, 0)
    for nth in range(1, CHANGES + 1):
        to = StreamStatus.PAUSED if nth % 2 else StreamStatus.ACTIVE
        tell((await store.register([Change(STREAM_IDS[number], f"e{number}-{nth}", to)])).appended, nth)


async def roll_back(store: Store, feed: Feed, lease: int) -> None:
    """A stream of the chain comes, and is taken away again."""
    for ledger in range(10, 10 + ROLLBACKS):
        feed.publish(await store.append([LedgerBatch(events=(created(ledger, SENDERS[ledger % 4]),))], lease=lease))
        feed.publish(await store.append([LedgerBatch(rollback_to=ledger - 1)], lease=lease))


async def come_and_go(hub: Hub, selector: Selector, random: Random, told: list[int], done: trio.Event) -> None:
    """Follow through many connections, each resumed behind what the one before was told."""
    for last in (False, True):
        while last or not done.is_set():
            reader = Reader(("v2", "sse")[random.randrange(2)])
            hub.join(reader)
            assert await hub.resume(reader, selector, told[-1] if told else 0) is not None
            if not last:
                for _ in range(random.randrange(40)):
                    await trio.lowlevel.checkpoint()
            hub.leave(reader)
            told += reader.told
            if last:
                break


async def whole_log(store: Store) -> list[LogEvent]:
    events: list[LogEvent] = []
    while page := await store.events(EventQuery(after=len(events), limit=1000)):
        events += page
    return events


def follows(selector: Selector, event: LogEvent, taken_from: dict[str, str]) -> bool:
    """By the payload as a client reads it; of a stream that is gone, by what its creation said."""
    if selector == ALL:
        return True
    if selector.kind == "stream":
        return event.stream_id == selector.value
    payload = json.loads(event.payload)
    if "reverts" in payload:
        assert payload["stream"] is None
        return selector.kind == "sender" and taken_from[event.stream_id or ""] == selector.value
    return payload[selector.kind] == selector.value


@pytest.fixture
async def lingering(storage_config: StorageConfig) -> StorageConfig:
    """Storage with many connections, whose commits take their time."""
    await trio.to_thread.run_sync(lambda: asyncio.run(run_statements(str(storage_config.database_url), LINGER)))
    return replace(storage_config, pool_size=CONNECTIONS)


async def run_statements(url: str, statements: tuple[str, ...]) -> None:
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def read_on(url: str, done: Event, told: list[int]) -> None:
    """Whatever is above the last position that was seen, again and again; nothing of ours is in between."""
    connection = await asyncpg.connect(url)
    try:
        while True:
            last = done.is_set()
            page = await connection.fetch(
                "SELECT position FROM events WHERE position > $1 ORDER BY position", told[-1] if told else 0
            )
            told += [row["position"] for row in page]
            if last:
                return
            await connection.execute("SELECT pg_sleep(0.002 * random())")  # it looks now and then, as such readers do
    finally:
        await connection.close()


@asynccontextmanager
async def tailing(store: Store) -> AsyncIterator[list[int]]:
    """What a reader of PostgreSQL that tails the log by position has seen, once the block has ended."""
    told: list[int] = []
    done = Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, lambda: asyncio.run(read_on(store.url, done, told)))
        try:
            yield told
        finally:
            done.set()


async def test_a_reader_of_what_comes_from_a_sequence_would_skip(
    lingering: StorageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the other tests here would see, did the log not hand out its positions under the lock of its head."""
    for name, held, free in FROM_A_SEQUENCE:
        statement = getattr(statements, name)
        assert held in statement
        monkeypatch.setattr(statements, name, statement.replace(held, free))
    async with open_store(lingering, decimals={}) as store:
        feed = Feed(store)
        await trio.to_thread.run_sync(lambda: asyncio.run(run_statements(store.url, ("CREATE SEQUENCE positions",))))
        async with tailing(store) as told, trio.open_nursery() as writers:
            for number in range(WRITERS):
                writers.start_soon(write, store, feed, number)
    assert len(told) < WRITERS * (CHANGES + 1)


async def test_who_comes_back_misses_nothing_though_64_write(lingering: StorageConfig) -> None:
    async with open_store(lingering, decimals={}) as store:
        held = await store.try_lease()
        assert held is not None
        feed = Feed(store, keep=150, poll_interval_s=0.01)
        hub = Hub(store, feed)
        told: list[tuple[Selector, list[int]]] = [(selector, []) for selector in SELECTORS for _ in range(2)]
        watcher = Reader("v2")
        seeds = count(1)
        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as actors:
                await actors.start(feed.run)
                await actors.start(hub.run)
                hub.join(watcher)
                assert hub.subscribe(watcher, ALL) == 0
                done = trio.Event()
                async with trio.open_nursery() as readers:
                    for selector, into in told:
                        readers.start_soon(come_and_go, hub, selector, Random(next(seeds)), into, done)
                    async with tailing(store) as tailed, trio.open_nursery() as writers:
                        for number in range(WRITERS):
                            writers.start_soon(write, store, feed, number)
                        writers.start_soon(roll_back, store, feed, held.number)
                    head = await store.position()
                    while hub.head < head:
                        await trio.sleep(0.001)
                    done.set()
                actors.cancel_scope.cancel()
        await held.aclose()
        events = await whole_log(store)
    assert len(events) == WRITERS * (CHANGES + 1) + 2 * ROLLBACKS
    assert tailed == watcher.told == list(range(1, len(events) + 1))
    taken_from = {
        event.stream_id or "": json.loads(event.payload)["sender"]
        for event in events
        if event.event == "stream.created"
    }
    for selector, positions in told:
        assert positions == [event.position for event in events if follows(selector, event, taken_from)]
