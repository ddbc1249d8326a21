"""What a unit of work that loses its connection ends with, whatever the driver makes of it."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest
import trio
from dumped import name_of

from fluxora.config import StorageConfig
from fluxora.errors import StorageUnavailable
from fluxora.storage.bridge import Bridge, open_bridge
from fluxora.storage.pool import Pool, PoolStatus, connect

# What PostgreSQL says while it cannot answer, and what it says of a statement that is wrong whenever it is sent.
AWAY = {
    "08006": "connection failure",
    "08P01": "a pooler in front that has no server to give",
    "25006": "cannot execute UPDATE in a read-only transaction: a standby, or a primary that is out of disk",
    "25P03": "idle in transaction for too long",
    "25P04": "the transaction took longer than the server allows",
    "28P01": "password authentication failed",
    "3D000": "the database does not exist",
    "40001": "could not serialize access",
    "40P01": "deadlock detected",
    "53100": "disk full",
    "53200": "out of memory",
    "53300": "too many connections",
    "55000": "recovery is in progress; the database is not accepting connections",
    "55006": "the database is being used by other users",
    "55P03": "lock not available",
    "57014": "canceling statement due to statement timeout",
    "57P01": "terminating connection due to administrator command",
    "57P02": "terminating connection because of crash of another server process",
    "57P03": "the database system is starting up",
    "57P05": "idle session timeout",
    "58030": "could not read the file",
    "72000": "snapshot too old",
    "F0000": "could not load the configuration",
    "XX000": "internal error",
    "XX001": "data corrupted",
}
WRONG = {
    "0A000": "not supported",
    "22001": "too long",
    "22P02": "no such value",
    "23505": "there already",
    "25001": "a transaction is open",
    "25P02": "the transaction has failed before",
    "42501": "permission denied",
    "42601": "no SQL",
    "42P01": "no such table",
    "54001": "statement too complex",
    "55P02": "cannot be set now",
    "P0001": "raised",
}


async def copy(connection: Any) -> None:
    await connection.copy_to_table("ledgers", source=io.BytesIO(b""), format="csv")


async def query(connection: Any) -> None:
    await connection.fetchval("SELECT 1")


@pytest.mark.parametrize("last", [copy, query])
@pytest.mark.parametrize("looks", range(4))
async def test_a_connection_that_is_cut_inside_a_transaction(
    last: Callable[[Any], Awaitable[None]], looks: int, storage_config: StorageConfig
) -> None:
    url = str(storage_config.database_url)

    async def unit(connection: Any) -> None:
        async with connection.transaction():
            pid = await connection.fetchval("SELECT pg_backend_pid()")
            other = await asyncpg.connect(url)
            await other.fetchval("SELECT pg_terminate_backend($1, 5000)", pid)
            await other.close()
            for _ in range(looks):  # turns of the loop in which the end of the connection may be seen
                await asyncio.sleep(0)
            await last(connection)

    async def again(connection: Any) -> int:
        found: int = await connection.fetchval("SELECT 1")
        return found

    async with open_bridge() as bridge:
        pool = await bridge.run(Pool.open, bridge, url, storage_config)
        with pytest.raises(StorageUnavailable, match="PostgreSQL cannot answer"):
            await bridge.run(lambda: pool.work(unit), deadline_s=20)
        assert await bridge.run(lambda: pool.work(again), deadline_s=20) == 1
        await bridge.run(pool.close)


async def test_what_a_failed_rollback_hides_counts(storage_config: StorageConfig) -> None:
    async def unit(_connection: Any) -> None:
        try:
            raise asyncpg.InternalClientError("cannot switch to state 21; another operation (2) is in progress")
        finally:
            raise asyncpg.InterfaceError("cannot perform operation: another operation is in progress")

    async def misuse(_connection: Any) -> None:
        raise asyncpg.InterfaceError("cannot perform operation: another operation is in progress")

    async with open_bridge() as bridge:
        pool = await bridge.run(Pool.open, bridge, str(storage_config.database_url), storage_config)
        with pytest.raises(StorageUnavailable, match="InternalClientError"):
            await bridge.run(lambda: pool.work(unit))
        with pytest.raises(asyncpg.InterfaceError):
            await bridge.run(lambda: pool.work(misuse))
        await bridge.run(pool.close)


LOCKED = 7


async def wait_for_the_lock(connection: Any) -> None:
    await connection.execute(f"SELECT pg_advisory_xact_lock({LOCKED})")


async def end_all_others(connection: Any) -> None:
    await connection.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


async def test_it_says_how_many_work_and_wait(storage_config: StorageConfig) -> None:
    """Of seven, four have a connection, and wait for a lock there; two of all are given up, one of each kind."""
    url = str(storage_config.database_url)
    async with open_bridge() as bridge, trio.open_nursery() as nursery:
        pool = await bridge.run(Pool.open, bridge, url, storage_config)
        holder = await bridge.run(asyncpg.connect, url)
        await bridge.run(holder.execute, f"SELECT pg_advisory_lock({LOCKED})")
        scopes: list[trio.CancelScope] = []
        for number in range(1, 8):
            scopes.append(trio.CancelScope())
            nursery.start_soon(work, bridge, pool, scopes[-1])
            await until(lambda number=number: pool.status.in_use + pool.status.waiting == number)
        await until(lambda: pool.status == PoolStatus(4, open=4, in_use=4, waiting=3, acquired=4, given_up=0))
        assert (bridge.status.in_flight, bridge.status.waiting) == (7, 0)
        scopes[0].cancel()
        await until(lambda: pool.status.acquired == 5)
        scopes[6].cancel()
        await until(lambda: pool.status.given_up == 1)
        assert (pool.status.in_use, pool.status.waiting) == (4, 1)
        await bridge.run(holder.close)
        await until(lambda: bridge.status.in_flight == 0)
        assert (pool.status.in_use, pool.status.waiting, pool.status.acquired) == (0, 0, 6)
        await bridge.run(pool.close)
        assert pool.status.open == 0


async def work(bridge: Bridge, pool: Pool, scope: trio.CancelScope) -> None:
    with scope:
        await bridge.run(lambda: pool.work(wait_for_the_lock))


async def until(true: Callable[[], bool]) -> None:
    """Wait for the other thread; the bound only ends a broken test."""
    with trio.fail_after(20):
        while not true():
            await trio.sleep(0.005)


async def test_connections_that_are_cut_are_not_counted_as_open(storage_config: StorageConfig) -> None:
    url = str(storage_config.database_url)
    async with open_bridge() as bridge:
        pool = await bridge.run(Pool.open, bridge, url, storage_config)
        await bridge.run(lambda: pool.work(query))
        assert pool.status.open == 1
        other = await bridge.run(asyncpg.connect, url)
        await bridge.run(end_all_others, other)
        await until(lambda: pool.status.open == 0)
        await bridge.run(lambda: pool.work(query))
        assert pool.status.open == 1
        await bridge.run(other.close)
        await bridge.run(pool.close)


async def test_what_was_not_done_in_time_is_counted(storage_config: StorageConfig) -> None:
    url = str(storage_config.database_url)
    async with open_bridge() as bridge:
        pool = await bridge.run(Pool.open, bridge, url, storage_config)
        with pytest.raises(StorageUnavailable, match="no answer within"):
            await bridge.run(lambda: pool.work(sleep_long), deadline_s=0.3)
        assert bridge.status.timeouts == 1
        assert bridge.status.durations.total >= 0.2
        await bridge.run(lambda: pool.work(query), deadline_s=20)
        assert (bridge.status.timeouts, sum(bridge.status.durations.counts)) == (1, 3)
        await bridge.run(pool.close)


async def sleep_long(connection: Any) -> None:
    await connection.execute("SELECT pg_sleep(60)")


def says(sqlstate: str) -> Callable[[Any], Awaitable[None]]:
    async def unit(connection: Any) -> None:
        await connection.execute(f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{sqlstate}'; END $$")

    return unit


async def test_what_the_server_says_tells_whether_it_cannot_answer(storage_config: StorageConfig) -> None:
    async with open_bridge() as bridge:
        pool = await bridge.run(Pool.open, bridge, str(storage_config.database_url), storage_config)
        found: dict[str, type[Exception]] = {}
        for sqlstate in (*AWAY, *WRONG):
            with pytest.raises((StorageUnavailable, asyncpg.PostgresError)) as caught:
                await bridge.run(lambda said=sqlstate: pool.work(says(said)), deadline_s=20)
            said = caught.value if isinstance(caught.value, asyncpg.PostgresError) else caught.value.__cause__
            assert isinstance(said, asyncpg.PostgresError)
            assert said.sqlstate == sqlstate
            found[sqlstate] = StorageUnavailable if caught.type is StorageUnavailable else asyncpg.PostgresError
        await bridge.run(pool.close)
    assert found == dict.fromkeys(AWAY, StorageUnavailable) | dict.fromkeys(WRONG, asyncpg.PostgresError)


async def test_a_database_that_takes_no_connections_is_away(storage_config: StorageConfig, postgres_run: Any) -> None:
    """As while it is being copied or moved: PostgreSQL says 55000 to who connects."""
    url = str(storage_config.database_url)
    name = name_of(url)

    async def takes(connections: str) -> None:
        statement = f"ALTER DATABASE {name} ALLOW_CONNECTIONS {connections}"
        await trio.to_thread.run_sync(postgres_run.sql, statement)

    await takes("false")
    async with open_bridge() as bridge:
        pool = await bridge.run(Pool.open, bridge, url, storage_config)
        with pytest.raises(StorageUnavailable, match="not currently accepting connections"):
            await bridge.run(lambda: pool.work(query), deadline_s=20)
        with pytest.raises(StorageUnavailable, match="not currently accepting connections"):
            await bridge.run(lambda: connect(url, storage_config), deadline_s=20)
        await takes("true")
        await bridge.run(lambda: pool.work(query), deadline_s=20)
        await bridge.run(pool.close)
