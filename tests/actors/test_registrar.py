"""The registrar over a real database: what is grouped, who is told of it and when, and how it ends."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import asyncpg
import pytest
import trio
import trio.testing
from chain_events import CONTRACT, GENESIS_S

from fluxora.actors.registrar import Registrar, _uuid7
from fluxora.actors.supervisor import ChildSpec, Supervisor
from fluxora.config import StorageConfig
from fluxora.errors import (
    BadRequest,
    ChainManaged,
    Conflict,
    IdempotencyConflict,
    NotFound,
    StorageUnavailable,
    Unavailable,
)
from fluxora.protocol.addresses import AddressKind, encode
from fluxora.protocol.chain import LedgerBatch
from fluxora.protocol.contract import decode_named
from fluxora.protocol.lifecycle import NewStream
from fluxora.protocol.streams import StreamStatus
from fluxora.storage.store import (
    Appended,
    Command,
    Committed,
    EventQuery,
    IdempotencyKey,
    Registered,
    Store,
    StreamQuery,
    open_store,
)

SENDER, RECIPIENT = (encode(AddressKind.ACCOUNT, bytes([n] * 32)) for n in (1, 2))
NEVER_S = 3600.0


def new(**fields: Any) -> NewStream:
    parties = {"sender": SENDER, "recipient": RECIPIENT}
    return NewStream(**{**parties, "deposit_amount": 10**10, "rate_per_second": 10**5, **fields})


def key(name: str = "k", body: bytes = b"{}") -> IdempotencyKey:
    return IdempotencyKey.of("client", name, body)


class Gate:
    """A store whose transactions wait while it is shut; `groups` are those that it was asked for."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.groups: list[list[Command]] = []
        self.open = trio.Event()

    async def register(self, commands: Sequence[Command]) -> Committed:
        self.groups.append(list(commands))
        await self.open.wait()
        return await self._store.register(commands)


class Callers:
    """Tasks that each give one command; `answers` are what came of them, errors too, in the order of their ends."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.answers: list[Any] = []

    def give(self, command: Callable[..., Awaitable[Any]], *args: Any, scope: trio.CancelScope | None = None) -> None:
        self._nursery.start_soon(self._give, command, args, scope or trio.CancelScope())

    async def _give(self, command: Callable[..., Awaitable[Any]], args: tuple[Any, ...], scope: Any) -> None:
        with scope:
            try:
                self.answers.append(await command(*args))
            except Exception as error:  # noqa: BLE001 (the errors are what is looked at)
                self.answers.append(error)

    async def until(self, count: int) -> None:
        """Wait for so many answers."""
        while len(self.answers) < count:
            await trio.lowlevel.checkpoint()

    def kinds(self) -> Counter[str]:
        return Counter(type(answer).__name__ for answer in self.answers)


@asynccontextmanager
async def calling() -> AsyncIterator[Callers]:
    """Waits at the end until everyone has an answer."""
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            yield Callers(nursery)


@asynccontextmanager
async def running(store: Any, **settings: Any) -> AsyncIterator[Registrar]:
    published: list[Appended] = []
    registrar = Registrar(cast("Store", store), **{"publish": published.append, **settings})
    async with trio.open_nursery() as nursery:
        await nursery.start(registrar.run)
        yield registrar
        nursery.cancel_scope.cancel()


async def blocked() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def test_what_waits_becomes_one_transaction_up_to_the_bound(store: Store) -> None:
    gate = Gate(store)
    published: list[Appended] = []
    async with running(gate, group=4, publish=published.append) as registrar, calling() as callers:
        callers.give(registrar.create, new(), None)
        await blocked()
        for n in range(9):
            callers.give(registrar.create, new(deposit_amount=n + 1), None)
        await blocked()
        assert registrar.waiting == 9
        gate.open.set()
    assert [len(group) for group in gate.groups] == [1, 4, 4, 1]
    assert registrar.waiting == 0
    assert callers.kinds() == Counter(Registered=10)
    assert [appended.position for appended in published] == [1, 5, 9, 10]
    assert [logged for appended in published for logged in appended.events] == await store.events(EventQuery())
    assert len({answer.stream_id for answer in callers.answers}) == 10


async def test_those_who_come_again_behind_their_answer_are_taken_together(
    autojump_clock: trio.testing.MockClock,
) -> None:
    groups: list[int] = []

    class Slow:
        async def register(self, commands: Sequence[Command]) -> Committed:
            groups.append(len(commands))
            await trio.sleep(0.003)
            outcomes = [Registered(command.stream_id, b"", replayed=False) for command in commands]
            return Committed(Appended(0, 1, [], [], {}), outcomes)

    async def client(registrar: Registrar, thinks_s: float) -> None:
        for _ in range(5):
            await registrar.create(new(), None)
            await trio.sleep(thinks_s)

    async with running(Slow()) as registrar, trio.open_nursery() as nursery:
        for nth in range(8):
            nursery.start_soon(client, registrar, 0.0001 * nth)
    assert groups == [8] * 5, "each just misses the next group, and groups of half the size take turns"
    groups.clear()
    async with running(Slow()) as registrar:
        began = trio.current_time()
        await client(registrar, 0.0)
        assert trio.current_time() - began == pytest.approx(5 * 0.003)  # who is alone waits for nobody


async def test_commands_and_their_refusals_come_to_whoever_gave_them(store: Store, lease: int) -> None:
    of_chain = decode_named(
        id=f"{5 << 32:019d}-{0:010d}",
        ledger=5,
        closed_at=GENESIS_S,
        contract_id=CONTRACT,
        tx_hash="ab" * 32,
        topic="created",
        payload={
            "stream_id": 1,
            "sender": SENDER,
            "recipient": RECIPIENT,
            "deposit_amount": "1000",
            "rate_per_second": "1",
            "start_time": GENESIS_S,
            "cliff_time": GENESIS_S,
            "end_time": GENESIS_S + 1000,
        },
    )
    await store.append([LedgerBatch(events=(of_chain,))], lease=lease)
    (chained,) = await store.streams(StreamQuery())
    async with running(store) as registrar:
        with pytest.raises(ChainManaged):
            await registrar.change(chained.id, "paused")
        made = await registrar.create(new(), key())
        assert re.fullmatch(r"stream-[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}", made.stream_id)
        assert await registrar.create(new(), key()) == Registered(made.stream_id, made.body, replayed=True)
        changed = await registrar.change(made.stream_id, "completed")
        assert changed == await store.stream(made.stream_id)
        assert changed.state.status == StreamStatus.COMPLETED
        for refused, error in (
            (registrar.change(made.stream_id, "cancelled"), Conflict),
            (registrar.change("stream-none", "cancelled"), NotFound),
            (registrar.create(new(end_time=5), None), BadRequest),
            (registrar.create(new(), key(body=b"other")), IdempotencyConflict),
        ):
            with pytest.raises(error):
                await refused


async def test_a_commit_is_published_before_anyone_is_answered(store: Store) -> None:
    callers: Callers
    seen: list[tuple[int, list[Any]]] = []

    def publish(appended: Appended) -> None:
        seen.append((appended.position, list(callers.answers)))
        assert appended.streams.keys() == {logged.stream_id for logged in appended.events}

    async with running(store, publish=publish) as registrar, calling() as callers:
        for _ in range(3):
            callers.give(registrar.create, new(), None)
    assert seen[0] == (seen[0][0], [])
    assert seen[-1][0] == await store.position() == 3


async def test_200_creates_with_one_key_make_one_stream(storage_config: StorageConfig, store: Store) -> None:
    """On two replicas: in flight on this one is a conflict at once, on the other one it is waited for."""
    async with (
        open_store(storage_config, decimals={}) as elsewhere,
        running(store) as here,
        running(elsewhere) as there,
        calling() as callers,
    ):
        for n in range(200):
            callers.give((here, there)[n % 2].create, new(), key())
    assert callers.kinds() == Counter(Registered=2, Conflict=198)
    first, second = (answer for answer in callers.answers if isinstance(answer, Registered))
    assert (first.stream_id, first.body) == (second.stream_id, second.body)
    assert {first.replayed, second.replayed} == {True, False}
    assert [found.id for found in await store.streams(StreamQuery())] == [first.stream_id]


async def test_200_cancels_give_one_success(store: Store) -> None:
    async with running(store) as registrar:
        made = await registrar.create(new(), None)
        async with calling() as callers:
            for _ in range(200):
                callers.give(registrar.change, made.stream_id, "cancelled")
    assert callers.kinds() == Counter(StreamRecord=1, Conflict=199)
    assert await store.position() == 2


async def test_a_cancelled_caller_does_not_stop_its_command_or_free_its_key(store: Store) -> None:
    gate, left = Gate(store), trio.CancelScope()
    async with running(gate) as registrar, calling() as callers:
        callers.give(registrar.create, new(), None)
        await blocked()
        callers.give(registrar.create, new(), key(), scope=left)
        await blocked()
        left.cancel()
        await blocked()
        with pytest.raises(Conflict, match="in flight"):
            await registrar.create(new(), key())
        gate.open.set()
        while await store.position() < 2:
            await trio.lowlevel.checkpoint()
        await blocked()
        again = await registrar.create(new(), key())
    assert again.replayed
    assert callers.kinds() == Counter(Registered=1)
    assert await store.position() == 2


async def test_one_that_breaks_the_transaction_fails_alone(store: Store) -> None:
    gate = Gate(store)
    async with running(gate) as registrar, calling() as callers:
        callers.give(registrar.create, new(), None)
        await blocked()
        for n in range(5):
            callers.give(registrar.create, new(sender="not\0text") if n == 2 else new(), key(f"k{n}"))
        await blocked()
        gate.open.set()
    assert [len(group) for group in gate.groups] == [1, 5, 1, 1, 1, 1, 1]
    assert callers.kinds() == Counter(Registered=5, CharacterNotInRepertoireError=1)
    assert await store.position() == 5
    async with running(store) as registrar:
        with pytest.raises(asyncpg.CharacterNotInRepertoireError):
            await registrar.create(new(sender="not\0text"), None)
        assert (await registrar.create(new(), key("k4"))).replayed


async def test_a_database_that_is_away_fails_the_group_and_is_used_again_when_back(
    store: Store, storage_config: StorageConfig, postgres_run: Any
) -> None:
    database = (storage_config.database_url or "").partition("?")[0].rpartition("/")[2]
    sql = partial(trio.to_thread.run_sync, postgres_run.sql)
    async with running(store) as registrar:
        kept = await registrar.create(new(), key("kept"))
        await sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'")
        await sql(f"ALTER DATABASE {database} RENAME TO {database}_away")
        try:
            async with calling() as callers:
                for n in range(5):
                    callers.give(registrar.create, new(), key(f"k{n}"))
        finally:
            await sql(f"ALTER DATABASE {database}_away RENAME TO {database}")
        assert callers.kinds() == Counter(StorageUnavailable=5)
        assert len({id(error) for error in callers.answers}) == 5
        assert (await registrar.create(new(), key("kept"))).stream_id == kept.stream_id
        for n in range(5):  # the same again, under the same key, is safe
            await registrar.create(new(), key(f"k{n}"))
        assert await store.position() == 6


async def test_the_database_lost_while_one_by_one_is_not_asked_for_each(store: Store) -> None:
    class Failing(Gate):
        async def register(self, commands: Sequence[Command]) -> Committed:
            self.groups.append(list(commands))
            await self.open.wait()
            raise StorageUnavailable("away") if len(commands) == 1 else RuntimeError("broken")

    gate = Failing(store)
    async with running(gate) as registrar, calling() as callers:
        callers.give(registrar.create, new(), None)
        await blocked()
        for _ in range(4):
            callers.give(registrar.create, new(), None)
        await blocked()
        gate.open.set()
    assert callers.kinds() == Counter(StorageUnavailable=5)
    assert [len(group) for group in gate.groups] == [1, 4, 1]


async def test_whoever_waits_when_it_crashes_is_refused_and_it_runs_again(store: Store) -> None:
    gate = Gate(store)
    broken = True

    def publish(_appended: Appended) -> None:
        if broken:
            raise RuntimeError("broken")

    registrar = Registrar(cast("Store", gate), publish=publish, group=2)
    supervisor = Supervisor("test", [ChildSpec(registrar.name, registrar.run, drain=registrar.drain)], jitter=lambda: 1)
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        async with calling() as callers:
            for n in range(7):
                callers.give(registrar.create, new(), key(f"k{n}"))
            await blocked()
            gate.open.set()
        assert callers.kinds() == Counter(Unavailable=7)
        broken = False
        with trio.fail_after(5):
            while supervisor.statuses()[0].state != "running" or registrar._door is None:
                await trio.lowlevel.checkpoint()
            committed = await store.position()
            answers = [await registrar.create(new(), key(f"k{n}")) for n in range(7)]
        assert sum(answer.replayed for answer in answers) == committed > 0
        assert await store.position() == 7
        supervisor.stop()


async def test_a_drain_finishes_what_waits_and_takes_no_more(store: Store) -> None:
    gate = Gate(store)
    registrar = Registrar(cast("Store", gate), publish=lambda _appended: None, group=2)
    with pytest.raises(Unavailable):
        await registrar.create(new(), key())
    async with trio.open_nursery() as nursery, calling() as callers:
        await nursery.start(registrar.run)
        for _ in range(5):
            callers.give(registrar.create, new(), None)
        await blocked()
        registrar.drain()
        with pytest.raises(Unavailable):
            await registrar.create(new(), key())
        with pytest.raises(Unavailable):
            await registrar.change("stream-0", "cancelled")
        gate.open.set()
    assert callers.kinds() == Counter(Registered=5)
    assert await store.position() == 5


async def test_a_stop_in_the_middle_leaves_nobody_waiting(store: Store) -> None:
    gate = Gate(store)
    async with calling() as callers:
        async with running(gate, group=2) as registrar:
            for n in range(5):
                callers.give(registrar.create, new(), key(f"k{n}"))
            await blocked()
        await blocked()
        assert callers.kinds() == Counter(Unavailable=5)
    assert await store.position() == 0
    async with trio.open_nursery() as nursery:
        gate.open.set()
        await nursery.start(registrar.run)
        assert not (await registrar.create(new(), key("k0"))).replayed
        registrar.drain()


async def test_a_full_inbox_refuses_at_once(store: Store) -> None:
    gate = Gate(store)
    async with running(gate, inbox=3) as registrar, calling() as callers:
        callers.give(registrar.create, new(), None)
        await blocked()
        for _ in range(3):
            callers.give(registrar.create, new(), None)
        await blocked()
        with pytest.raises(Unavailable):
            await registrar.create(new(), key())
        gate.open.set()
    assert callers.kinds() == Counter(Registered=4)
    async with running(store) as registrar:
        assert not (await registrar.create(new(), key())).replayed


async def test_every_command_is_counted_once_by_how_it_ended(store: Store) -> None:
    gate = Gate(store)
    async with running(gate, inbox=5, group=4) as registrar, calling() as callers:
        tally = registrar.tally
        callers.give(registrar.create, new(), key("a"))
        await blocked()
        callers.give(registrar.create, new(), key("a"))  # in flight: no command
        callers.give(registrar.create, new(end_time=1, start_time=2), None)
        for _ in range(4):
            callers.give(registrar.create, new(), None)
        await blocked()
        callers.give(registrar.create, new(), None)  # no room
        await blocked()
        gate.open.set()
        await callers.until(8)
        made = await registrar.create(new(), key("a"))
        assert made.replayed
        with pytest.raises(IdempotencyConflict):
            await registrar.create(new(), key("a", b"[]"))
        await registrar.change(made.stream_id, "paused")
    ended = {"created": 5, "changed": 1, "replayed": 1, "refused": 2, "turned_away": 1, "failed": 0, "lost": 0}
    assert tally.commands == ended
    assert tally.keys == {"replayed": 1, "in_flight": 1, "mismatched": 1}
    assert (sum(tally.sizes.counts), tally.sizes.total) == (6, 9), "groups of 1, 4 and 1, and three commands alone"
    assert sum(tally.seconds.counts) == 6
    assert tally.seconds.total > 0


async def test_what_nobody_knows_of_is_counted_as_such(store: Store) -> None:
    class Away(Gate):
        async def register(self, commands: Sequence[Command]) -> Committed:
            await self.open.wait()
            raise StorageUnavailable("away") if commands[0].key else ZeroDivisionError

    gate = Away(store)
    async with calling() as callers, running(gate) as registrar:
        callers.give(registrar.create, new(), key())
        await blocked()
        gate.open.set()
        await callers.until(1)
        callers.give(registrar.create, new(), None)
        await callers.until(2)
        gate.open = trio.Event()
        callers.give(registrar.create, new(), None)
        await blocked()
    assert (registrar.tally.commands["lost"], registrar.tally.commands["failed"]) == (2, 1)


async def test_expired_keys_are_purged_now_and_then(
    store: Store, storage_config: StorageConfig, postgres_run: Any
) -> None:
    database = (storage_config.database_url or "").partition("?")[0].rpartition("/")[2]
    sql = partial(trio.to_thread.run_sync, postgres_run.sql)
    fill = "INSERT INTO idempotency_keys SELECT 'client', 'key-' || n, '', 'stream-0', '', n, "
    await sql(fill + "n FROM generate_series(1, 2500) n", database)
    await sql(fill + "9e15 FROM generate_series(3001, 3002) n", database)
    count = partial(sql, "SELECT count(*) FROM idempotency_keys", database)
    async with running(store, purge_every_s=NEVER_S):
        assert (await count())[0][0] == 2502
    async with running(store, purge_every_s=0.0):
        with trio.fail_after(10):
            while (await count())[0][0] > 2:
                await trio.lowlevel.checkpoint()


async def test_a_purge_that_fails_is_tried_again(store: Store) -> None:
    purged: list[int] = []

    class Away:
        async def purge_idempotency_keys(self, limit: int) -> int:
            purged.append(limit)
            await trio.lowlevel.checkpoint()
            raise StorageUnavailable("away")

    async with running(Away(), purge_every_s=0.0):
        with trio.fail_after(5):
            while len(purged) < 3:
                await trio.lowlevel.checkpoint()


def test_ids_are_uuids_of_version_7_and_of_their_time() -> None:
    made = [_uuid7() for _ in range(1000)]
    assert {(one.version, one.variant) for one in made} == {(7, "specified in RFC 4122")}
    assert len(set(made)) == 1000
    times = [one.int >> 80 for one in made]
    assert times == sorted(times)
