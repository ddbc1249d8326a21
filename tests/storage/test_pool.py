"""What a unit of work that loses its connection ends with, whatever the driver makes of it."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from fluxora.config import StorageConfig
from fluxora.errors import StorageUnavailable
from fluxora.storage.bridge import open_bridge
from fluxora.storage.pool import Pool


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
