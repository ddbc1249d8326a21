"""The ingest lease over a real database: one holder, a number that grows, and a loss that ends it."""

from __future__ import annotations

import secrets
import struct
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import structlog
import trio
import trio.testing

from fluxora.actors.lease import LeaseKeeper
from fluxora.actors.progress import Progress
from fluxora.config import StorageConfig
from fluxora.errors import LeaseLost
from fluxora.protocol.chain import LedgerBatch
from fluxora.storage import lease
from fluxora.storage.store import Lease, Store, open_store

PATIENCE_S = 20


class Replica:
    """A keeper and what it was granted."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.progress = Progress()
        self.number = 0
        self.granted = trio.Event()
        self.keeper = LeaseKeeper(store, progress=self.progress, granted=self._granted)

    async def _granted(self, number: int) -> None:
        assert self.progress.leading
        self.number = number
        self.granted.set()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluxora.storage.lease.RETRY_S", 0.05)


@pytest.fixture
def soon_hung(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluxora.storage.lease.HUNG_S", 0.3)


@pytest.fixture
async def other_store(storage_config: StorageConfig) -> AsyncIterator[Store]:
    async with open_store(storage_config, decimals={}) as opened:
        yield opened


async def test_the_second_waits_and_takes_over_with_a_higher_number(store: Store, other_store: Store) -> None:
    one, two = Replica(store), Replica(other_store)
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(one.keeper.run)
            await one.granted.wait()
            await nursery.start(two.keeper.run)
            assert await other_store.try_lease() is None
            assert (two.granted.is_set(), two.progress.leading) == (False, False)
            one.keeper.drain()
            await two.granted.wait()
            assert (one.progress.leading, two.progress.leading) == (False, True)
            assert two.number > one.number
            with pytest.raises(LeaseLost):
                await store.append([LedgerBatch()], lease=one.number)
            await store.append([LedgerBatch()], lease=two.number)
            two.keeper.drain()
    assert not two.progress.leading


async def test_drain_lets_go_at_once(store: Store, other_store: Store) -> None:
    one = Replica(store)
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(one.keeper.run)
            await one.granted.wait()
            one.keeper.drain()
    held = await other_store.try_lease()
    assert held is not None
    await held.aclose()


async def test_cancellation_lets_go_too(store: Store, other_store: Store) -> None:
    one = Replica(store)
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(one.keeper.run)
            await one.granted.wait()
            nursery.cancel_scope.cancel()
    held = await other_store.try_lease()
    assert held is not None
    await held.aclose()


async def test_a_connection_that_dies_ends_it(store: Store, storage_config: StorageConfig, postgres_run: Any) -> None:
    one = Replica(store)
    database = (storage_config.database_url or "").partition("?")[0].rpartition("/")[2]
    cut = f"SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_database d ON d.oid = database WHERE locktype = 'advisory' AND datname = '{database}'"  # noqa: E501
    with trio.fail_after(PATIENCE_S), pytest.RaisesGroup(LeaseLost):
        async with trio.open_nursery() as nursery:
            await nursery.start(one.keeper.run)
            await one.granted.wait()
            await trio.to_thread.run_sync(partial(postgres_run.sql, cut))
    assert not one.progress.leading


@pytest.mark.usefixtures("soon_hung")
@pytest.mark.parametrize(
    "stopped_in", ["", "CREATE TEMPORARY TABLE t (t text); COPY t FROM STDIN"], ids=["idle", "copy"]
)
async def test_one_that_hangs_in_a_transaction_does_not_keep_the_next_from_it(store: Store, stopped_in: str) -> None:
    """It has the log's head locked. In the middle of a COPY, no time-out of PostgreSQL's would ever end that."""
    with trio.fail_after(PATIENCE_S):
        async with session(store.url, "fluxora deadbeef") as hung:
            await hung.says(f"BEGIN; SELECT FROM log_head FOR UPDATE; {stopped_in}")
            held = await store.try_lease()
            await hung.is_ended()
    assert held is not None
    await held.aclose()


@pytest.mark.usefixtures("soon_hung")
async def test_what_waits_for_a_lock_in_a_process_that_hangs_is_ended_as_well(store: Store) -> None:
    """It would get the log's head next, and hang with it."""
    with trio.fail_after(PATIENCE_S):
        async with session(store.url, "fluxora deadbeef") as one, session(store.url, "fluxora deadbeef") as two:
            await one.says(LOCK)
            await two.begins(LOCK)
            await lock_is_waited_for(store)
            with structlog.testing.capture_logs() as lines:
                held = await store.try_lease()
            await one.is_ended()
            await two.is_ended()
    assert held is not None
    assert [line["transactions"] for line in lines if line["event"] == "lease.hung_process_cut"] == [2]
    await held.aclose()


@pytest.mark.usefixtures("soon_hung")
async def test_api_writes_go_on_though_one_hangs_and_another_leads(store: Store, other_store: Store) -> None:
    one, two = Replica(store), Replica(other_store)
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery, session(store.url, "fluxora deadbeef") as hung:
            await nursery.start(one.keeper.run)
            await one.granted.wait()
            await nursery.start(two.keeper.run)
            await hung.says(LOCK)
            await other_store.register([])
            await hung.is_ended()
            assert one.progress.leading
            nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("soon_hung")
async def test_one_that_computes_in_a_transaction_and_shows_life_is_left_alone(store: Store) -> None:
    """As a deep rollback does; whoever wants the log's head waits."""
    with trio.fail_after(PATIENCE_S):
        async with session(store.url, "fluxora deadbeef") as busy, session(store.url, "fluxora deadbeef") as pings:
            await busy.says(LOCK)
            async with trio.open_nursery() as nursery:
                asking = trio.CancelScope()

                async def ask() -> None:
                    with asking:
                        held = await store.try_lease()
                        pytest.fail(f"it was cut, and {held} taken")

                nursery.start_soon(ask)
                await lock_is_waited_for(store)
                for _ in range(5):
                    await pings.says("SELECT pg_sleep(0.2)")
                asking.cancel()
            await busy.says("COMMIT")


@pytest.mark.usefixtures("soon_hung")
async def test_one_that_hangs_is_found_where_the_user_acts_as_another(
    storage_config: StorageConfig, postgres_run: Any
) -> None:
    """As with `ALTER ROLE ... SET role`, where the tables are another's than who logs in."""
    url, role = storage_config.database_url or "", f"acted_{secrets.token_hex(4)}"
    postgres_run.sql(f"CREATE ROLE {role} SUPERUSER")
    try:
        acting = replace(storage_config, database_url=f"{url}{'&' if '?' in url else '?'}role={role}")
        with trio.fail_after(PATIENCE_S):
            async with open_store(acting, decimals={}) as store:
                await (await until_hung(store)).aclose()
    finally:
        postgres_run.sql(f"DROP ROLE {role}")


@pytest.mark.usefixtures("soon_hung")
@pytest.mark.parametrize("name", ["psql", "fluxora", "fluxora exporter", "fluxora DEADBEEF", "x fluxora deadbeef"])
async def test_programs_that_are_not_ours_are_left_alone(store: Store, name: str) -> None:
    with trio.fail_after(PATIENCE_S):
        async with session(store.url, name) as theirs:
            await theirs.says("BEGIN; CREATE TABLE theirs ()")
            held = await until_hung(store)
            await theirs.says("COMMIT")
            await held.aclose()


async def test_a_holder_whose_trio_thread_hangs_loses_it(
    store: Store, storage_config: StorageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other thread lives and could go on to ping; nothing would be ingested."""
    monkeypatch.setattr("fluxora.storage.lease.SILENT_S", 0.6)
    monkeypatch.setattr("fluxora.storage.lease.PING_EVERY_S", 0.1)
    held = await store.try_lease()
    assert held is not None
    numbers: list[int] = []

    async def take_over() -> None:
        with trio.fail_after(PATIENCE_S):
            async with open_store(storage_config, decimals={}) as other:
                lease = await other.wait_for_lease()
                numbers.append(lease.number)
                await lease.aclose()

    other = threading.Thread(target=trio.run, args=(take_over,))
    other.start()
    other.join(PATIENCE_S)  # on trio's thread, which is the point of it
    assert numbers == [held.number + 1]
    with trio.fail_after(PATIENCE_S):
        await held.lost.wait()


async def test_a_holder_that_lives_keeps_it_for_longer_than_the_server_waits(
    store: Store, other_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fluxora.storage.lease.SILENT_S", 1.0)
    monkeypatch.setattr("fluxora.storage.lease.PING_EVERY_S", 0.1)
    with trio.fail_after(PATIENCE_S):
        held = await store.try_lease()
        assert held is not None
        async with session(store.url, "psql") as watch:
            await watch.says("SELECT pg_sleep(2.5)")
        assert await other_store.try_lease() is None
        assert not held.lost.is_set()
        await held.aclose()


async def test_ingest_goes_on_within_five_seconds_as_the_server_is_told(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    begin_s, promised_s, stall_s = 1.0, 5.0, 2.0
    held = await store.try_lease()
    assert held is not None
    shown = await held._bridge.run(held._connection.fetchval, "SHOW idle_session_timeout")
    await held.aclose()
    silent_s = int(shown.removesuffix("s"))
    assert silent_s + lease.RETRY_S + begin_s <= promised_s
    assert silent_s - lease.PING_EVERY_S >= stall_s, "who stalls for a moment keeps it"
    ended_s = lease.HUNG_S + max(lease.RETRY_S, lease.PING_EVERY_S)
    assert ended_s <= silent_s - lease.PING_EVERY_S, "what hung is gone when the next holder comes"


LOCK = "BEGIN; SELECT FROM log_head FOR UPDATE"


class Session:
    """A client that stops where it is told to, spoken by hand: a driver would go on, or end the transaction."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream

    async def begins(self, statements: str) -> None:
        """Send them, and wait for nothing."""
        text = statements.encode() + b"\0"
        await self._stream.send_all(b"Q" + struct.pack("!I", len(text) + 4) + text)

    async def says(self, statements: str) -> None:
        """Send them, and wait until the server waits for more."""
        await self.begins(statements)
        await self.ready()

    async def ready(self) -> None:
        """Wait for ReadyForQuery, or for CopyInResponse with one column of text."""
        received = b""
        while not (b"G\0\0\0\x09" in received or received[-6:-1] == b"Z\0\0\0\x05"):
            received += (more := await self._stream.receive_some())
            assert more, "the server has ended it"

    async def is_ended(self) -> None:
        """Wait until the server has ended it."""
        with suppress(trio.BrokenResourceError):
            while await self._stream.receive_some():
                pass


@asynccontextmanager
async def session(url: str, name: str) -> AsyncIterator[Session]:
    """One of the process that calls itself `name`."""
    where = urlsplit(url)
    folder = parse_qs(where.query)["host"][0]
    async with await trio.open_unix_socket(f"{folder}/.s.PGSQL.5432") as stream:
        names = f"user\0{where.username}\0database\0{where.path[1:]}\0application_name\0{name}\0\0".encode()
        await stream.send_all(struct.pack("!II", len(names) + 8, 3 << 16) + names)
        client = Session(stream)
        await client.ready()
        yield client


async def lock_is_waited_for(store: Store) -> None:
    """Until a session of the database waits for a lock."""
    async with session(store.url, "psql") as watch:
        await watch.says(
            "DO $$ BEGIN WHILE NOT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
            "AND datname = current_database()) LOOP PERFORM pg_sleep(0.01), pg_stat_clear_snapshot(); END LOOP; END $$"
        )


async def until_hung(store: Store) -> Lease:
    """Hold the lease after one of ours that hung was ended."""
    async with session(store.url, "fluxora deadbeef") as hung:
        await hung.says(LOCK)
        held = await store.try_lease()
        assert held is not None
        await hung.is_ended()
        return held


async def test_a_keeper_that_waits_can_be_drained(store: Store, other_store: Store) -> None:
    held = await store.try_lease()
    assert held is not None
    two = Replica(other_store)
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(two.keeper.run)
            await trio.testing.wait_all_tasks_blocked(0)
            two.keeper.drain()
    assert not two.granted.is_set()
    await held.aclose()
