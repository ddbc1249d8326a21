"""The ingest lease over a real database: one holder, a number that grows, and a loss that ends it."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import trio
import trio.testing

from fluxora.actors.lease import LeaseKeeper
from fluxora.actors.progress import Progress
from fluxora.config import StorageConfig
from fluxora.errors import LeaseLost
from fluxora.protocol.chain import LedgerBatch
from fluxora.storage.store import Store, open_store

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
    monkeypatch.setattr("fluxora.actors.lease._RETRY_S", 0.01)


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


async def test_one_that_hangs_in_the_middle_of_a_copy_does_not_keep_the_next_from_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the log's head locked, and no time-out of PostgreSQL's would ever end that."""
    monkeypatch.setattr("fluxora.storage.lease.HUNG_S", 0.0)
    with trio.fail_after(PATIENCE_S):
        async with hung_in_a_copy(store.url):
            held = await store.try_lease()
    assert held is not None
    await held.aclose()


@asynccontextmanager
async def hung_in_a_copy(url: str) -> AsyncIterator[None]:
    """A client that stops in the middle, spoken by hand: a driver would go on, or end the transaction."""
    where = urlsplit(url)
    folder = parse_qs(where.query)["host"][0]
    async with await trio.open_unix_socket(f"{folder}/.s.PGSQL.5432") as stream:
        names = f"user\0{where.username}\0database\0{where.path[1:]}\0\0".encode()
        await stream.send_all(struct.pack("!II", len(names) + 8, 3 << 16) + names)
        statements = b"BEGIN; SELECT FROM log_head FOR UPDATE; CREATE TEMPORARY TABLE t (t text); COPY t FROM STDIN\0"
        await stream.send_all(b"Q" + struct.pack("!I", len(statements) + 4) + statements)
        received = b""
        while b"G\0\0\0\x09" not in received:  # CopyInResponse, one column of text
            received += await stream.receive_some()
            assert received
        yield


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
