"""What is recorded and what is to be sent of it are one transaction, whatever ends it; filters mean what they say."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random

import pytest
import trio
from hooked import (
    LIFE_MS,
    SECRET,
    URL,
    Faults,
    check_tables,
    create,
    endpoint,
    opened,
    owed,
    quiet,
    record,
    result,
    rows,
)
from scripted import ACCOUNTS, CONTRACT, DEPOSIT, batch, created, event, header, query, withdrew

from fluxora.config import StorageConfig
from fluxora.errors import StorageUnavailable
from fluxora.protocol.contract import ContractEvent
from fluxora.protocol.messages import stream_id
from fluxora.protocol.streams import StreamStatus
from fluxora.storage import webhook_endpoints
from fluxora.storage.lease import Lease
from fluxora.storage.pool import Connection
from fluxora.storage.store import Change, Store
from fluxora.storage.webhook_records import Endpoint, EndpointChanges, NewEndpoint


def history(random: Random, first: int, last: int) -> list[ContractEvent]:
    """Events of the ledgers, in chain order: creations, withdrawals, new recipients, and some of no stream."""
    events = []
    for ledger in range(first, last + 1):
        for index in range(random.randrange(4)):
            stream, party = random.randrange(4), random.choice(ACCOUNTS[1:5])
            match random.randrange(5):
                case 0 | 1:
                    memo = random.choice([None, "plain", "nul \0 and more"])
                    events.append(created(ledger, index, stream, recipient=party, memo=memo))
                case 2:
                    events.append(withdrew(ledger, index, stream, 10))
                case 3:
                    parties = {"old_recipient": random.choice(ACCOUNTS[1:5]), "new_recipient": party}
                    events.append(event(ledger, index, "recp_upd", stream_id=stream, **parties))
                case _:
                    events.append(event(ledger, index, "gl_pause", paused=True))
    return events


async def some_endpoints(store: Store, random: Random, number: int) -> list:
    streams = [stream_id(CONTRACT, each, 1) for each in range(4)]
    names = ["stream.created", "stream.updated", "stream.cancelled", "stream.reverted", "contract.updated"]

    def some(of: list[str]) -> tuple[str, ...]:
        return tuple(random.sample(of, random.choice([0, 0, 1, 2])))

    return [
        await endpoint(
            store,
            events=some(names),
            stream_ids=some(streams),
            addresses=some(list(ACCOUNTS[:5])),
            ordered=random.random() < 0.3,
        )
        for _ in range(number)
    ]


@pytest.mark.parametrize("seed", range(3))
async def test_an_endpoint_is_owed_what_matches_and_what_takes_it_back(
    storage_config: StorageConfig, seed: int
) -> None:
    random = Random(seed)
    async with opened(storage_config) as (store, lease):
        endpoints, ledger = [], 100
        for _ in range(8):
            endpoints += await some_endpoints(store, random, 2)
            back = ledger - random.randrange(1, 4) if random.random() < 0.5 else None
            first = ledger if back is None else back + 1
            events = history(random, first, ledger + 3)
            headers = (header(ledger + 3, random.randrange(10**6)),)
            one = batch(events, ledger + 3, rollback_to=back, headers=headers)
            more = batch(history(random, ledger + 1, ledger + 4), ledger + 4, rollback_to=ledger)
            await store.append([one, more] if random.random() < 0.3 else [one], lease=lease.number)
            await store.register([create(recipient=random.choice(ACCOUNTS[1:5])) for _ in range(random.randrange(3))])
            ledger += 5
        found = await rows(store)
        assert set(found) == await owed(store.url, endpoints)
        assert len(found) > 50
        ordered = {each.id for each in endpoints if each.ordered}
        streams = {row["position"]: row["stream_id"] for row in await query(store.url, "SELECT * FROM events")}
        assert all(row["queue"] == (streams[at] if id_ in ordered else None) for (id_, at), row in found.items())
        assert {(row["status"], row["attempts"], row["held"]) for row in found.values()} == {("pending", 0, False)}
        await check_tables(store.url)


async def a_rollback(store: Store, lease: Lease, step: int) -> object:
    """Take back the ledger before, and record another in its place."""
    ledger = 200 + step
    events = [created(ledger, 0, 7, memo=str(step)), withdrew(ledger, 1, 7, 5)]
    one = batch(events, ledger, rollback_to=ledger - 1, headers=(header(ledger),))
    return await store.append([one], lease=lease.number)


async def an_append(store: Store, lease: Lease, step: int) -> object:
    return await store.append([batch([withdrew(300 + step, 0, 7, 1)], 300 + step)], lease=lease.number)


async def a_registration(store: Store, _lease: Lease, step: int) -> object:
    name = f"fault-{step}-{uuid.uuid4().hex}"
    commands = [create(name), Change(f"stream-{name}", str(uuid.uuid4()), StreamStatus.PAUSED)]
    return await store.register(commands)


@pytest.mark.parametrize("work", [a_rollback, an_append, a_registration])
@pytest.mark.parametrize("after", [False, True])
async def test_a_cut_at_any_statement_leaves_both_or_neither(
    storage_config: StorageConfig,
    monkeypatch: pytest.MonkeyPatch,
    work: Callable[[Store, Lease, int], Awaitable[object]],
    after: bool,
) -> None:
    async with opened(storage_config) as (store, lease):
        endpoints = [
            await endpoint(store, ordered=True),
            await endpoint(store, stream_ids=(stream_id(CONTRACT, 7, 1),), addresses=(ACCOUNTS[1],)),
        ]
        before = [created(199, 0, 7), *(withdrew(ledger, 0, 7, 1) for ledger in range(200, 210))]
        await store.append([batch(before, 210)], lease=lease.number)
        with monkeypatch.context() as patch:
            faults = Faults(patch)
            cuts = [""]
            at = 1
            for step in range(60):
                faults.arm(at, after=after)
                try:
                    await work(store, lease, step)
                except StorageUnavailable:
                    cuts.append(faults.statements[at - 1])
                    at += 1
                else:
                    at = len(faults.statements)  # it had one less this time: its last one is next
                faults.arm(None)
                await quiet(store.url)
                assert set(await rows(store)) == await owed(store.url, endpoints), (step, cuts)
                (head,) = await query(store.url, "SELECT position, (SELECT max(position) FROM events) FROM log_head")
                assert head[0] == head[1]
                if cuts[-1].startswith("COMMIT"):
                    break
            assert cuts[-1].startswith("COMMIT"), cuts
            assert len(cuts) > 5
            assert any("INSERT INTO webhook_deliveries" in text for text in cuts)
        await check_tables(store.url)


async def test_without_an_endpoint_recording_runs_no_statement_more(
    storage_config: StorageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(storage_config) as (store, lease):
        await store.append([batch([created(100, 0, 1)], 100)], lease=lease.number)
        with monkeypatch.context() as patch:
            faults = Faults(patch)
            counts = []
            for ledger in (101, 102, 103):
                faults.arm(None)
                await store.append([batch([withdrew(ledger, 0, 1, 1)], ledger)], lease=lease.number)
                await store.register([create()])
                counts.append((len(faults.statements), any("webhook_" in text for text in faults.statements)))
                if ledger == 101:
                    made = await endpoint(store)
                elif ledger == 102:
                    await store.webhooks.update(made.id, EndpointChanges(enabled=False), "test")
        assert counts[0] == counts[2]
        assert counts[1][0] > counts[0][0]
        assert [touched for _, touched in counts] == [False, True, False]


async def test_the_last_endpoint_that_disables_itself_costs_one_look(
    storage_config: StorageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(storage_config) as (store, _):
        await endpoint(store)
        await record(store, 1)
        await store.webhooks.enlist("w", LIFE_MS)
        (due,) = (await store.webhooks.turn("w", [], 9, [], [])).deliveries
        await store.webhooks.turn("w", [result(due, "gone")], 0, [], [])
        with monkeypatch.context() as patch:
            faults = Faults(patch)
            for touches in (True, False):
                faults.arm(None)
                await store.register([create()])
                assert any("webhook_endpoints" in text for text in faults.statements) == touches
        assert len(await rows(store)) == 1


async def test_disabled_endpoints_are_owed_nothing(storage_config: StorageConfig) -> None:
    async with opened(storage_config) as (store, _):
        on, off = await endpoint(store), await endpoint(store, enabled=False)
        await record(store, 3)
        assert {id_ for id_, _ in await rows(store)} == {on.id}
        await store.webhooks.update(off.id, EndpointChanges(enabled=True), "test")
        await store.webhooks.update(on.id, EndpointChanges(enabled=False), "test")
        await store.register([create()])
        assert {key for key in await rows(store) if key[1] > 3} == {(off.id, 4)}


async def test_created_position_is_exact_while_others_record(storage_config: StorageConfig) -> None:
    """Endpoints come up in the middle of appends and registrations; each is owed all that is above its position."""
    async with opened(storage_config) as (store, lease):
        await store.append([batch([created(100, 0, 7, deposit_amount=str(DEPOSIT * 10))], 100)], lease=lease.number)
        over = trio.Event()

        async def append() -> None:
            ledger = 100
            while not over.is_set():
                ledger += 1
                await store.append([batch([withdrew(ledger, 0, 7, 1)], ledger)], lease=lease.number)

        async def register() -> None:
            while not over.is_set():
                await store.register([create(), create()])

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(append)
                nursery.start_soon(register)
                endpoints = [await endpoint(store) for _ in range(20)]
                last = await store.position()
                while await store.position() < last + 5:
                    await trio.lowlevel.checkpoint()
                over.set()
        assert set(await rows(store)) == await owed(store.url, endpoints)
        assert len({each.created_position for each in endpoints}) > 5


async def test_what_waited_while_the_first_endpoint_was_made_is_owed_to_it(storage_config: StorageConfig) -> None:
    """A statement that waits for a lock sees other tables as they were when it began."""
    made: list[Endpoint] = []
    async with opened(storage_config) as (store, lease):
        locked = trio.Event()
        token = trio.lowlevel.current_trio_token()

        async def make(connection: Connection) -> None:
            async with connection.transaction():
                await connection.execute("SELECT FROM log_head FOR UPDATE")
                token.run_sync_soon(locked.set)
                waiting = 0
                while waiting < 2:
                    await asyncio.sleep(0.01)
                    await connection.execute("SELECT pg_stat_clear_snapshot()")
                    waiting = await connection.fetchval(
                        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                        "AND wait_event_type = 'Lock'"
                    )
                made.append(await webhook_endpoints.create(connection, NewEndpoint(url=URL), SECRET, "test", 1_000))

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store._write, make)
                await locked.wait()
                nursery.start_soon(partial(store.append, [batch([created(100, 0, 7)], 100)], lease=lease.number))
                nursery.start_soon(store.register, [create()])
        assert set(await rows(store)) == {(made[0].id, 1), (made[0].id, 2)}
