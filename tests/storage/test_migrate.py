from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from scripted import execute, query

from fluxora.config import StorageConfig
from fluxora.errors import ConfigError, MigrationMismatch, StorageUnavailable
from fluxora.storage import migrate
from fluxora.storage.bridge import open_bridge
from fluxora.storage.migrate import Migration
from fluxora.storage.store import open_store


@pytest.fixture
def empty_url(postgres_run) -> Iterator[str]:
    url = postgres_run.create("template0")
    yield url
    postgres_run.drop(url)


async def apply(url: str, files: list[Migration]) -> list[int]:
    async with open_bridge() as bridge:
        return await bridge.run(migrate.apply, url, StorageConfig(database_url=url), files)


async def test_migrations_are_numbered_from_one_without_gaps() -> None:
    files = migrate.migrations()
    assert [file.version for file in files] == list(range(1, len(files) + 1))


async def test_second_run_applies_nothing(empty_url: str) -> None:
    files = migrate.migrations()
    assert await apply(empty_url, files) == [file.version for file in files]
    assert await apply(empty_url, files) == []


async def test_replicas_that_start_together_apply_each_once(empty_url: str) -> None:
    done: list[list[int]] = []

    async def one() -> None:
        done.append(await apply(empty_url, migrate.migrations()))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(one)
    assert sorted(done) == [[], [], [], [file.version for file in migrate.migrations()]]


async def test_changed_missing_and_newer_are_refused(empty_url: str) -> None:
    first = Migration(1, "0001_one.sql", "CREATE TABLE one (x int)")
    second = Migration(2, "0002_two.sql", "CREATE TABLE two (x int)")
    await apply(empty_url, [first, second])
    changed = Migration(1, "0001_one.sql", "CREATE TABLE one (x bigint)")
    with pytest.raises(MigrationMismatch, match=r"0001_one\.sql differs"):
        await apply(empty_url, [changed, second])
    with pytest.raises(MigrationMismatch, match="missing from this program"):
        await apply(empty_url, [second])
    with pytest.raises(MigrationMismatch, match="newer than this program"):
        await apply(empty_url, [first])


async def test_failing_migration_leaves_nothing_behind(empty_url: str) -> None:
    first = Migration(1, "0001_one.sql", "CREATE TABLE one (x int)")
    broken = Migration(2, "0002_two.sql", "CREATE TABLE two (x int); SELECT 1 / 0")
    with pytest.raises(Exception, match="division by zero"):
        await apply(empty_url, [first, broken])
    assert await query(empty_url, "SELECT version FROM schema_migrations") == [(1,)]
    assert await query(empty_url, "SELECT to_regclass('two') IS NULL") == [(True,)]


async def test_unreachable_server_is_unavailable_and_a_missing_database_is_misconfigured(
    empty_url: str, tmp_path: Path
) -> None:
    with pytest.raises(StorageUnavailable):
        await apply(f"postgresql://fluxora@/fluxora?host={tmp_path}", migrate.migrations())
    with pytest.raises(ConfigError, match="DATABASE_URL"):
        await apply(empty_url.replace("/t_", "/nothing_"), migrate.migrations())


async def test_a_log_from_before_webhooks_goes_on(empty_url: str) -> None:
    files = migrate.migrations()
    assert await apply(empty_url, files[:2]) == [1, 2]
    async with open_store(StorageConfig(database_url=empty_url), decimals={}) as store:
        await query(empty_url, "UPDATE log_head SET position = 7, lease = 3")
        assert await store.migrate() == [file.version for file in files[2:]]
        assert (await store.head()).position == 7
        assert await store.webhooks.endpoints() == []
        backlog = await store.webhooks.backlog()
        assert (backlog.pending, backlog.dead_lettered) == (0, 0)


async def test_no_index_goes_unused_by_design(postgres_url: str) -> None:
    """Each index is read by a statement: those that no plan of test_reads shows are listed here with their reader."""
    rows = await query(postgres_url, "SELECT indexrelname AS name FROM pg_stat_user_indexes ORDER BY 1")
    assert {row["name"] for row in rows} == {
        "admin_log_pkey",
        "entry_wants_due",
        "entry_wants_pkey",
        "events_live",  # duplicates, and uniqueness
        "events_of_contract",
        "events_of_kind",
        "events_of_ledger",
        "events_of_stream",
        "events_pkey",
        "idempotency_keys_expiring",
        "idempotency_keys_pkey",
        "ingest_cursor_pkey",  # one row at most
        "ledgers_pkey",
        "limit_processes_pkey",
        "limit_rounds_pkey",
        "limit_salt_pkey",  # one row at most
        "log_head_pkey",  # one row at most
        "log_runs_pkey",
        "schema_migrations_pkey",
        "streams_listed",
        "streams_of_contract",
        "streams_of_recipient",
        "streams_of_sender",
        "streams_of_status",
        "streams_pkey",
        "webhook_attempts_pkey",
        "webhook_claims_pkey",
        "webhook_deliveries_due",  # test_webhook_plans shows these
        "webhook_deliveries_listed",
        "webhook_deliveries_pkey",
        "webhook_deliveries_queued",
        "webhook_endpoints_pkey",
        "webhook_workers_pkey",
    }


async def test_of_endpoints_of_before_nobody_knows_what_was_purged(empty_url: str) -> None:
    files = migrate.migrations()
    at = next(number for number, file in enumerate(files) if file.name.endswith("_purged_deliveries.sql"))
    await apply(empty_url, files[:at])
    made = (
        "INSERT INTO webhook_endpoints (id, url, description, events, stream_ids, addresses, ordered, rate_limit, "
        "max_in_flight, enabled, created_ms, updated_ms, created_position, secret) "
        "VALUES ('we_1', 'https://a.test/', '', '{}', '{}', '{}', false, 0, 1, true, 0, 0, 0, 's')"
    )
    await execute(empty_url, ["UPDATE log_head SET position = 42", made])
    await apply(empty_url, files)
    assert [row["purged_position"] for row in await query(empty_url, "SELECT * FROM webhook_endpoints")] == [42]
