"""The ingest benchmark's own view of PostgreSQL: progress, a digest of what was stored, and the bare COPY baseline."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import asyncpg
import msgspec

from fluxora.config import StorageConfig
from fluxora.storage.migrate import apply, migrations

TABLES = ("ledgers", "events", "streams")
CHAIN_EVENTS = """
    SELECT substr(event_id, 3) AS id FROM events
    WHERE action <> 'corrected' AND event_id NOT LIKE '%.1' ORDER BY event_id
"""
COUNTS = """
    SELECT count(*) AS rows, count(DISTINCT event_id) AS ids, (SELECT position FROM log_head) AS position,
           pg_database_size(current_database()) AS size
    FROM events
"""
STATES = """
    SELECT chain_stream_id::text, sender, recipient, deposit_amount::text, rate_per_second::text,
           withdrawn_amount::text, start_time::text, cliff_time::text, end_time::text, status
    FROM streams
"""


class Stored(msgspec.Struct, frozen=True):
    """What a database holds. Rows are of the log; not every one is an event of the chain (children, corrections)."""

    rows: int
    chain_events: int
    distinct_ids: int
    position: int
    streams: int
    bytes: int
    ids_digest: str
    states_digest: str


async def create_database(url: str, name: str) -> str:
    """Make an empty database beside the one of `url`; returns its URL."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(f"CREATE DATABASE {name}")
    finally:
        await connection.close()
    head, _, query = url.partition("?")
    return f"{head.rpartition('/')[0]}/{name}?{query}"


async def migrate(url: str) -> None:
    """The program's own schema."""
    await apply(url, StorageConfig(database_url=url), migrations())


async def stored(url: str) -> Stored:
    """Count and digest. Ids are read in order, so that a missing, doubled or foreign one changes the digest."""
    connection = await asyncpg.connect(url)
    try:
        ids = hashlib.sha256()
        chain_events = 0
        async with connection.transaction():
            async for row in connection.cursor(CHAIN_EVENTS, prefetch=10_000):
                ids.update(f"{row['id']}\n".encode())
                chain_events += 1
        counts = await connection.fetchrow(COUNTS)
        rows = await connection.fetch(STATES)
    finally:
        await connection.close()
    return Stored(
        rows=counts["rows"],
        chain_events=chain_events,
        distinct_ids=counts["ids"],
        position=counts["position"],
        streams=len(rows),
        bytes=counts["size"],
        ids_digest=ids.hexdigest(),
        states_digest=states_digest([tuple(row.values()) for row in rows]),
    )


def states_digest(rows: list[tuple[str, ...]]) -> str:
    """One digest of all streams, whatever their order; each row is the fields of STATES as text."""
    digest = hashlib.sha256()
    for row in sorted(rows):
        digest.update("\t".join(row).encode() + b"\n")
    return digest.hexdigest()


async def settle(url: str) -> None:
    """Let the server come to rest, so that the baseline has it to itself: nothing to flush, nothing to vacuum."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("ALTER SYSTEM SET autovacuum = off")
        await connection.execute("SELECT pg_reload_conf()")
        await connection.execute("CHECKPOINT", timeout=600)
    finally:
        await connection.close()


async def copy_baseline(source_url: str, target_url: str, folder: Path) -> tuple[int, float]:
    """COPY the rows of one database into the same, indexed and empty, tables of another: (events, seconds).

    Only the COPY into the target and its commit are timed; the rows come from files in PostgreSQL's binary form.
    """
    source = await asyncpg.connect(source_url)
    try:
        columns = {table: await _columns(source, table) for table in TABLES}
        for table in TABLES:
            await source.copy_from_table(
                table, columns=columns[table], output=str(folder / table), format="binary", timeout=600
            )
        events: int = await source.fetchval("SELECT count(*) FROM events")
    finally:
        await source.close()
    target = await asyncpg.connect(target_url)
    try:
        began = time.perf_counter()
        async with target.transaction():
            for table in TABLES:
                await target.copy_to_table(
                    table, columns=columns[table], source=str(folder / table), format="binary", timeout=600
                )
        return events, time.perf_counter() - began
    finally:
        await target.close()


async def _columns(connection: Any, table: str) -> list[str]:
    rows = await connection.fetch(
        "SELECT column_name FROM information_schema.columns "
        "WHERE table_name = $1 AND table_schema = 'public' AND is_generated = 'NEVER' ORDER BY ordinal_position",
        table,
    )
    return [row["column_name"] for row in rows]
