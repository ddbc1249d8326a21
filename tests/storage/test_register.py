"""API writes over a real database: what one transaction holds, what a key promises, and their place among appends."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import asyncpg
import pytest
import trio
from scripted import ACCOUNTS, CONTRACT, DECIMALS, batch, close_time, created, event, execute, query, withdrew

from fluxora.config import StorageConfig
from fluxora.errors import BadRequest, ChainManaged, Conflict, IdempotencyConflict, NotFound
from fluxora.protocol.lifecycle import NewStream
from fluxora.protocol.messages import LogEvent, StreamRecord, encode_view, stream_id
from fluxora.protocol.streams import StreamStatus
from fluxora.storage import register
from fluxora.storage import statements as sql
from fluxora.storage.store import (
    Change,
    Command,
    Committed,
    Create,
    EventQuery,
    IdempotencyKey,
    Outcome,
    Registered,
    Store,
    StreamQuery,
    open_store,
)

PAUSED, COMPLETED, CANCELLED = StreamStatus.PAUSED, StreamStatus.COMPLETED, StreamStatus.CANCELLED


class Clock:
    """Stands in for the time module of the module under test."""

    def __init__(self) -> None:
        self.now_ms = close_time(0) * 1000 + 123

    def time_ns(self) -> int:
        return self.now_ms * 1_000_000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(register, "time", SimpleNamespace(time_ns=clock.time_ns))
    return clock


@pytest.fixture
async def store(storage_config: StorageConfig) -> AsyncIterator[Store]:
    async with open_store(storage_config, decimals=DECIMALS) as opened:
        yield opened


def create(key: IdempotencyKey | None = None, **fields: Any) -> Create:
    parties = {"sender": ACCOUNTS[0], "recipient": ACCOUNTS[1]}
    new = NewStream(**{**parties, "deposit_amount": 10**10, "rate_per_second": 10**5, **fields})
    return Create(f"stream-{uuid.uuid4().hex}", str(uuid.uuid4()), new, key)


def change(stream: str, to: StreamStatus) -> Change:
    return Change(stream, str(uuid.uuid4()), to)


def key(name: str = "k", body: bytes = b"{}", scope: str = "client") -> IdempotencyKey:
    return IdempotencyKey.of(scope, name, body)


async def one(store: Store, command: Command) -> Outcome:
    (outcome,) = (await store.register([command])).outcomes
    return outcome


def made(outcome: Outcome) -> Registered:
    assert isinstance(outcome, Registered), outcome
    return outcome


def kinds(committed: Committed) -> Counter[str]:
    return Counter(type(outcome).__name__ for outcome in committed.outcomes)


async def test_a_created_stream_is_a_row_an_event_and_an_answer_that_agree(store: Store, clock: Clock) -> None:
    command = create(start_time=close_time(0) - 100)
    committed = await store.register([command])
    answer, appended = made(committed.outcomes[0]), committed.appended
    record = await store.stream(command.stream_id)
    assert record is not None
    assert (record.origin, record.contract_id, record.ledger, record.decimals) == ("api", None, None, 7)
    assert record.created_at == record.updated_at == clock.now_ms
    assert answer == Registered(command.stream_id, encode_view(record, close_time(0)), replayed=False)
    assert json.loads(answer.body)["streamedAmount"] == "1.0000000"
    assert appended.streams == {command.stream_id: record}
    (logged,) = await store.events(EventQuery())
    assert appended.events == [logged]
    assert (appended.position, appended.epoch, appended.outcomes) == (1, 1, [])
    payload = json.loads(logged.payload)
    assert payload.pop("change")["startTime"] == close_time(0) - 100
    assert payload == json.loads(answer.body)
    assert logged == LogEvent(
        1, command.event_id, "stream.created", "created", record.id, None, None, None, clock.now_ms, logged.payload
    )
    assert await store.streams(StreamQuery(sender=ACCOUNTS[0])) == [record]
    (row,) = await query(
        store.url,
        "SELECT chain_stream_id, status, deposit_amount, last_event_id, raw FROM streams JOIN events ON stream_id = id",
    )
    assert tuple(row) == (None, "active", 10**10, command.event_id, None)


async def test_each_change_is_an_event_with_the_stream_after_it(store: Store, clock: Clock) -> None:
    command = create()
    await store.register([command])
    for to, event_name, action in (
        (StreamStatus.PAUSED, "stream.updated", "paused"),
        (StreamStatus.ACTIVE, "stream.updated", "resumed"),
        (StreamStatus.CANCELLED, "stream.cancelled", "cancelled"),
    ):
        clock.now_ms += 10_000
        committed = await store.register([change(command.stream_id, to)])
        record = await store.stream(command.stream_id)
        assert record is not None
        assert committed.outcomes == [record]
        assert committed.appended.streams == {record.id: record}
        assert (record.state.status, record.updated_at, record.created_position) == (to, clock.now_ms, 1)
        (logged,) = await store.events(EventQuery(after=committed.appended.position - 1))
        assert committed.appended.events == [logged]
        assert (logged.event, logged.action, logged.position) == (event_name, action, record.position)
        payload = json.loads(logged.payload)
        assert payload.pop("change")["to"] == to.name.lower()
        assert payload == json.loads(encode_view(record, clock.now_ms // 1000))
    assert record.state.cumulative_paused_duration == 10
    assert record.state.cancelled_at == clock.now_ms // 1000
    assert [found.id for found in await store.streams(StreamQuery(status="cancelled"))] == [record.id]


async def test_commands_of_a_group_see_what_those_before_them_did(store: Store) -> None:
    first, second = create(), create()
    await store.register([second])
    committed = await store.register(
        [first, change(first.stream_id, PAUSED), *(change(second.stream_id, CANCELLED) for _ in range(200))]
    )
    assert kinds(committed) == Counter(Registered=1, StreamRecord=2, Conflict=199)
    assert isinstance(committed.outcomes[2], StreamRecord)
    assert [one.action for one in committed.appended.events] == ["created", "paused", "cancelled"]
    assert await store.events(EventQuery(after=1)) == committed.appended.events
    assert committed.appended.streams == {id_: await store.stream(id_) for id_ in (first.stream_id, second.stream_id)}


async def test_what_cannot_be_done_fails_alone_and_leaves_nothing(store: Store, clock: Clock) -> None:
    lease = await store.try_lease()
    assert lease is not None
    chained = stream_id(CONTRACT, 1, 1)
    await store.append([batch([created(100, 0, 1)])], lease=lease.number)
    await lease.aclose()
    before = await query(store.url, "SELECT * FROM streams")
    bad = [change("stream-none", CANCELLED), change(chained, CANCELLED), create(key(), end_time=close_time(0))]
    committed = await store.register(bad)
    assert [type(outcome) for outcome in committed.outcomes] == [NotFound, ChainManaged, BadRequest]
    assert (committed.appended.position, committed.appended.events, committed.appended.streams) == (1, [], {})
    assert await query(store.url, "SELECT * FROM streams") == before
    assert await query(store.url, "SELECT * FROM idempotency_keys") == []
    good = create()
    committed = await store.register([bad[0], good, bad[1]])
    assert kinds(committed) == Counter(NotFound=1, ChainManaged=1, Registered=1)
    assert await store.position() == 2


async def test_a_transaction_that_fails_leaves_nothing_and_frees_its_connection(
    storage_config: StorageConfig, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(storage_config, pool_size=1)
    async with open_store(config, decimals={}) as store:
        with pytest.raises(asyncpg.CharacterNotInRepertoireError):
            await store.register([create(key("a")), create(sender="not\0text"), create()])
        assert await store.position() == 0
        assert await query(store.url, "SELECT 1 FROM idempotency_keys") == []
        made(await one(store, create(key("a"))))
        assert await store.position() == 1
    assert caplog.messages == []  # the driver says so when it is left to end a transaction


async def test_a_cancelled_caller_leaves_the_head_free(storage_config: StorageConfig, store: Store) -> None:
    async with open_store(replace(storage_config, pool_size=1), decimals={}) as other:
        for _ in range(20):
            with trio.move_on_after(0):
                await other.register([create()])
        made(await one(store, create()))
        made(await one(other, create()))
    rows = await query(store.url, "SELECT position FROM events ORDER BY position")
    assert [row["position"] for row in rows] == list(range(1, await store.position() + 1))


# -- keys --------------------------------------------------------------------------------------------------------------


async def test_a_key_is_answered_as_the_first_time_even_after_a_restart(
    storage_config: StorageConfig, clock: Clock
) -> None:
    """Though by then the stream has changed, and its end lies in the past."""
    first = create(key(), end_time=close_time(0) + 60)
    async with open_store(storage_config, decimals={}) as store:
        answer = made(await one(store, first))
        await store.register([change(first.stream_id, CANCELLED)])
    clock.now_ms += 3_600_000
    async with open_store(storage_config, decimals={}) as store:
        committed = await store.register([create(key(), end_time=close_time(0) + 60)])
        again = made(committed.outcomes[0])
        assert again == Registered(first.stream_id, answer.body, replayed=True)
        assert committed.appended.events == []
        assert isinstance(await one(store, create(key(body=b"other"))), IdempotencyConflict)
        assert made(await one(store, create(key(scope="another")))).stream_id != first.stream_id
        assert made(await one(store, create(key("K")))).stream_id != first.stream_id
        assert await store.position() == 4


async def test_a_key_holds_within_a_group(store: Store) -> None:
    commands = [create(key()), create(key()), create(key(body=b"other")), create(key())]
    committed = await store.register(commands)
    answers = [made(committed.outcomes[at]) for at in (0, 1, 3)]
    assert [answer.replayed for answer in answers] == [False, True, True]
    assert len({(answer.stream_id, answer.body) for answer in answers}) == 1
    assert isinstance(committed.outcomes[2], IdempotencyConflict)
    assert len(committed.appended.events) == 1


async def test_200_creates_under_one_key_from_two_replicas_make_one_stream(
    storage_config: StorageConfig, store: Store
) -> None:
    answers: list[Registered] = []

    async def send(to: Store) -> None:
        answers.append(made(await one(to, create(key()))))

    async with open_store(storage_config, decimals={}) as other, trio.open_nursery() as nursery:
        for n in range(200):
            nursery.start_soon(send, (store, other)[n % 2])
    assert len({answer.body for answer in answers}) == 1
    assert Counter(answer.replayed for answer in answers) == {True: 199, False: 1}
    assert [found.id for found in await store.streams(StreamQuery())] == [answers[0].stream_id]
    assert await store.position() == 1


async def test_200_cancels_from_two_replicas_give_one_success(storage_config: StorageConfig, store: Store) -> None:
    command = create()
    await store.register([command])
    outcomes: list[Outcome] = []

    async def send(to: Store) -> None:
        outcomes.append(await one(to, change(command.stream_id, CANCELLED)))

    async with open_store(storage_config, decimals={}) as other, trio.open_nursery() as nursery:
        for n in range(200):
            nursery.start_soon(send, (store, other)[n % 2])
    assert Counter(type(outcome) for outcome in outcomes) == {StreamRecord: 1, Conflict: 199}
    assert [logged.action for logged in await store.events(EventQuery())] == ["created", "cancelled"]


async def test_a_key_is_kept_for_a_day_and_then_free(store: Store, clock: Clock) -> None:
    first = made(await one(store, create(key())))
    clock.now_ms += 24 * 3_600_000 - 1
    assert made(await one(store, create(key()))).replayed
    clock.now_ms += 1
    second = made(await one(store, create(key(body=b"other"))))
    assert (second.replayed, second.stream_id == first.stream_id) == (False, False)
    assert made(await one(store, create(key(body=b"other")))).body == second.body
    assert isinstance(await one(store, create(key())), IdempotencyConflict)
    (row,) = await query(store.url, "SELECT * FROM idempotency_keys")
    assert (row["stream_id"], row["created_ms"], row["expires_ms"]) == (
        second.stream_id,
        clock.now_ms,
        clock.now_ms + 24 * 3_600_000,
    )


async def test_expired_keys_are_purged_in_bounded_steps(store: Store, clock: Clock) -> None:
    await store.register([create(key(f"old-{n}")) for n in range(5)])
    clock.now_ms += 3_600_000
    await store.register([create(key(f"new-{n}")) for n in range(2)])
    assert await store.purge_idempotency_keys(10) == 0
    clock.now_ms += 23 * 3_600_000
    assert [await store.purge_idempotency_keys(2) for _ in range(4)] == [2, 2, 1, 0]
    rows = await query(store.url, "SELECT key FROM idempotency_keys ORDER BY key")
    assert [row["key"] for row in rows] == ["new-0", "new-1"]


async def test_keys_are_found_and_purged_by_index(store: Store) -> None:
    fill = "INSERT INTO idempotency_keys SELECT 'client', 'key-' || n, '', 'stream-0', '', n, n "
    await execute(store.url, [fill + "FROM generate_series(1, 20000) n", "ANALYZE idempotency_keys"])
    purge = sql.PURGE_KEYS.replace("$1", "1000").replace("$2", "100")
    assert "idempotency_keys_expiring" in await plan(store.url, purge)
    read = sql.READ_FOR_COMMANDS.replace("$1", "ARRAY['stream-0']").replace("$2", "ARRAY['client', 'client']")
    read = read.replace("$3", "ARRAY['key-1', 'key-2']").replace("$4", "5")
    found = await plan(store.url, read)
    assert "idempotency_keys_pkey" in found
    assert "streams_pkey" in found


async def plan(url: str, statement: str) -> str:
    return "\n".join(row[0] for row in await query(url, f"EXPLAIN {statement}"))


# -- beside the chain --------------------------------------------------------------------------------------------------


async def registered_rows(store: Store) -> list[Any]:
    streams = await query(store.url, "SELECT * FROM streams WHERE origin = 'api' ORDER BY id")
    return [*streams, *await query(store.url, "SELECT * FROM events WHERE event_id NOT LIKE '_-%' ORDER BY position")]


async def test_rollbacks_and_new_epochs_leave_registered_streams_alone(store: Store) -> None:
    lease = await store.try_lease()
    assert lease is not None
    first, second = create(), create(key())
    await store.register([first])
    await store.append([batch([created(100, 0, 1), withdrew(101, 0, 1)], 101)], lease=lease.number)
    await store.register([second, change(first.stream_id, PAUSED)])
    await store.append([batch([withdrew(102, 0, 1), event(103, 0, "gl_pause", paused=True)], 103)], lease=lease.number)
    before = await registered_rows(store)
    appended = await store.append([batch([], rollback_to=100)], lease=lease.number)
    assert appended.outcomes[0].rolled_back == 3
    assert await registered_rows(store) == before
    appended = await store.append([batch([], new_epoch=True), batch([created(5, 0, 1)], 5)], lease=lease.number)
    assert appended.epoch == 2
    assert await registered_rows(store) == before
    listed = [found.id for found in await store.streams(StreamQuery())]
    assert listed == [first.stream_id, second.stream_id, stream_id(CONTRACT, 1, 2)]
    committed = await store.register([change(first.stream_id, CANCELLED), create(key())])
    assert kinds(committed) == Counter(StreamRecord=1, Registered=1)
    assert committed.appended.epoch == 2
    assert made(committed.outcomes[1]).stream_id == second.stream_id
    (cursor,) = await query(store.url, "SELECT epoch, complete_through, newest_event_id FROM ingest_cursor")
    assert tuple(cursor) == (2, 5, created(5, 0, 1).id)
    await lease.aclose()


async def test_an_append_tells_every_stream_that_it_wrote(store: Store) -> None:
    lease = await store.try_lease()
    assert lease is not None
    ids = [stream_id(CONTRACT, n, 1) for n in range(4)]
    appended = await store.append([batch([created(100, 0, 0), created(101, 0, 1)])], lease=lease.number)
    assert appended.streams == {id_: await store.stream(id_) for id_ in ids[:2]}
    appended = await store.append([batch([withdrew(102, 0, 1), created(102, 1, 2)])], lease=lease.number)
    assert appended.streams == {id_: await store.stream(id_) for id_ in ids[1:3]}
    appended = await store.append(
        [batch([created(103, 0, 3)]), batch([], rollback_to=100), batch([withdrew(101, 0, 0)])], lease=lease.number
    )
    assert appended.streams == {ids[0]: await store.stream(ids[0]), **dict.fromkeys(ids[1:])}
    assert await store.stream(ids[1]) is None
    appended = await store.append([batch([event(104, 0, "gl_pause", paused=True)])], lease=lease.number)
    assert appended.streams == {}
    await lease.aclose()


async def test_positions_have_no_gaps_and_are_in_commit_order_among_all_writers(
    storage_config: StorageConfig, store: Store
) -> None:
    """The chain and two replicas' API writes at once; a reader that tails the log meets every event."""
    lease = await store.try_lease()
    assert lease is not None
    told: list[LogEvent] = []
    streams: dict[str, StreamRecord | None] = {}
    tailed: list[LogEvent] = []
    writing = trio.CancelScope()

    async def follow_chain() -> None:
        for n in range(60):
            ledger = 100 + n - (7 if n % 10 == 9 else 0)  # some of it late, which begins a new run
            events = [created(ledger, n % 5, n), withdrew(ledger, 10 + n % 5, n)]
            appended = await store.append([batch(events)], lease=lease.number)
            told.extend(appended.events)
            streams.update(appended.streams)

    async def write(to: Store) -> None:
        for n in range(60):
            command = create(key(f"key-{n}"))
            committed = await to.register([command, create(), change(command.stream_id, PAUSED)])
            told.extend(committed.appended.events)
            streams.update(committed.appended.streams)

    async def tail() -> None:
        with writing:
            while True:
                tailed.extend(await store.events(EventQuery(after=tailed[-1].position if tailed else 0, limit=1000)))
                await trio.lowlevel.checkpoint()

    async with open_store(storage_config, decimals={}) as other, trio.open_nursery() as nursery:
        nursery.start_soon(tail)
        async with trio.open_nursery() as writers:
            writers.start_soon(follow_chain)
            writers.start_soon(write, store)
            writers.start_soon(write, other)
        writing.cancel()
    await lease.aclose()
    tailed.extend(await store.events(EventQuery(after=tailed[-1].position, limit=1000)))
    assert [one.position for one in tailed] == list(range(1, await store.position() + 1))
    assert sorted(told, key=lambda logged: logged.position) == tailed
    rows = await store.streams(StreamQuery(limit=1000))
    newest = {logged.stream_id: logged.position for logged in tailed}
    assert {row.id: row.position for row in rows} == newest
    assert streams == {row.id: row for row in rows}
    # Ranges of ledgers are found by runs, which API rows interrupt without a ledger of their own.
    for low, high in ((100, 120), (118, 131), (152, None), (None, None)):
        found = await store.events(EventQuery(ledger_from=low, ledger_to=high, limit=1000))
        wanted = (
            [one for one in tailed if one.ledger is not None and (low or 0) <= one.ledger <= (high or 10**6)]
            if (low, high) != (None, None)
            else tailed
        )
        assert found == wanted
