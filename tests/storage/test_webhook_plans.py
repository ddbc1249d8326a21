"""Turns, lists and counts read what they need from indexes: as many pages of the tables at any size."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import trio
from hooked import HOUR_MS, URL, endpoint
from scripted import execute

from fluxora.config import StorageConfig
from fluxora.storage import webhook_claims as claims
from fluxora.storage import webhook_deliveries as deliveries
from fluxora.storage import webhook_settling as settling
from fluxora.storage import webhook_tallies as tallies
from fluxora.storage.pool import Connection
from fluxora.storage.store import Store, open_store
from fluxora.storage.webhook_records import DeliveryQuery

TABLES = {"webhook_deliveries", "webhook_attempts", "events"}
NOW_MS = 2_000_000_000_000
PAGES = 400  # of a statement that claims or shows up to a hundred deliveries; each takes three or four


async def load(store: Store, number: int) -> list[str]:
    """`number` events and as many deliveries to each of three endpoints, with every status; ids of the endpoints.

    Of the newest tenth half is pending, of which a third is due; of the last endpoint all of it, in a queue of ten
    streams.
    """
    made = [(await endpoint(store, ordered=nth == 2, url=f"{URL}/{nth}")).id for nth in range(3)]
    pending = number * 9 // 10
    await execute(
        store.url,
        [
            f"""
            INSERT INTO events (position, event_id, epoch, stream_id, event, action, timestamp_ms, payload)
            SELECT n, n::text, 1, 'stream-' || n % 10, 'stream.created', 'created', 0, '{{}}'
            FROM generate_series(1, {number}) n
            """,
            f"""
            INSERT INTO webhook_deliveries (endpoint_id, position, status, at_ms, due_ms, created_ms, queue, held)
            SELECT e.id, n,
                CASE WHEN n > {pending} AND (e.ordered OR n % 2 = 0) THEN 'pending'
                    WHEN n % 50 = 3 THEN 'dead' ELSE 'delivered' END,
                1000 * n, CASE WHEN n % 3 = 0 THEN 0 ELSE {NOW_MS} + n END, 1000 * n,
                CASE WHEN e.ordered THEN 'stream-' || n % 10 END, e.ordered AND n % 2 = 1
            FROM webhook_endpoints e, generate_series(1, {number}) n
            """,
            """
            INSERT INTO webhook_attempts (endpoint_id, position, at_ms, status, latency_ms, response)
            SELECT endpoint_id, position, 0, 200, 5, '' FROM webhook_deliveries WHERE status <> 'pending'
            """,
            "VACUUM ANALYZE",
        ],
    )
    return made


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


class Cost:
    """Pages that each statement reads, which must read the large tables from their indexes."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.pages: dict[str, int] = {}

    async def of(self, name: str, text: str, *values: Any) -> None:
        (row,) = await self._connection.fetch(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {text}", *values)
        plan = json.loads(row[0])[0]["Plan"]
        for node in nodes(plan):
            if node.get("Relation Name") in TABLES and node["Node Type"] != "ModifyTable":
                assert node["Node Type"] in {"Index Scan", "Index Only Scan"}, (name, node, text)
        self.pages[name] = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]


async def turn_costs(store: Store, made: Sequence[str], number: int) -> dict[str, int]:
    """Pages by statement of a turn, and of what is asked every few seconds; whatever they do is rolled back."""
    ids = list(made)

    async def measure(connection: Connection) -> dict[str, int]:
        cost = Cost(connection)
        await connection.execute(claims._BEGIN)
        try:
            await cost.of("lock", claims.LOCK_DUE, [], NOW_MS)
            await cost.of("next", claims.NEXT, [])
            await cost.of("pick", claims.PICK, ids, [32, 32, 32], NOW_MS)
            await cost.of("hold", claims._HOLD, ids, [number, number, number])
            at = [number // 2, number // 2 + 1, number // 2 + 2]
            await connection.execute(
                "INSERT INTO webhook_claims SELECT v.*, 'w' FROM unnest($1::text[], $2::bigint[]) v", ids, at
            )
            columns = [["dead"] * 3, [0] * 3, [500] * 3, ["no"] * 3, [1] * 3, [""] * 3, [0] * 3]
            await cost.of("settle", settling._SETTLE, "w", NOW_MS, ids, at, *columns)
            await cost.of("let go", settling._LET_GO, [made[2], made[2]], ["stream-1", "stream-2"])
        finally:
            await connection.execute("ROLLBACK")
        await cost.of("oldest", tallies.OLDEST)
        return cost.pages

    return await store._write(measure)


async def list_costs(store: Store, made: Sequence[str], number: int) -> dict[str, int]:
    """The same for what operators ask for, and for purging."""

    async def measure(connection: Connection) -> dict[str, int]:
        cost = Cost(connection)
        for query_ in (
            DeliveryQuery(limit=20),
            DeliveryQuery(limit=20, status="pending"),
            DeliveryQuery(limit=20, status="dead", endpoint_id=made[0]),
            DeliveryQuery(limit=20, before="msg_x_1"),
        ):
            text, values = deliveries.delivery_page(query_)
            place = [] if query_.before is None else [500 * number, number // 2, made[1]]
            await cost.of(f"page {query_.status} {query_.before}", text, *values, *place)
        await cost.of("one", deliveries._ONE, made[0], 5)
        await cost.of("attempts", deliveries._ATTEMPTS, made[0], 5, 10)
        await cost.of("purgeable", deliveries.PURGEABLE.replace("FOR NO KEY UPDATE OF e", ""), 0)
        await connection.execute("BEGIN")
        try:
            await cost.of("purge", deliveries.PURGE, made[0], HOUR_MS, 20)
            await cost.of("clear", deliveries._CLEAR, made[0], 20)
            span = list(range(number // 2, number // 2 + 20))
            await cost.of("replay", deliveries._REPLAY, made[0], span, [None] * 20, ["dead", "delivered"], 0)
        finally:
            await connection.execute("ROLLBACK")
        return cost.pages

    return await store._write(measure)


async def test_statements_read_indexes(storage_config: StorageConfig) -> None:
    async with open_store(storage_config, decimals={}) as store:
        made = await load(store, 10_000)
        found = await turn_costs(store, made, 10_000) | await list_costs(store, made, 10_000)
    assert all(pages < 4 * PAGES for pages in found.values()), found
    assert sum(found.values()) > 300  # they do read something


async def test_an_empty_queue_is_planned_for_a_full_one(storage_config: StorageConfig) -> None:
    """Statements are planned once for a connection, when a queue is mostly empty."""
    async with open_store(storage_config, decimals={}) as store:
        made = [(await endpoint(store)).id for _ in range(3)]
        found = await turn_costs(store, made, 10)
    assert set(found) >= {"lock", "next", "pick", "settle", "let go"}


@pytest.mark.proof
async def test_statements_read_no_more_pages_of_a_million_deliveries(
    storage_config: StorageConfig, postgres_run
) -> None:
    pages: dict[int, dict[str, int]] = {}
    for number in (10_000, 1_000_000):
        url = await trio.to_thread.run_sync(postgres_run.create)
        try:
            config = replace(storage_config, database_url=url, statement_timeout_s=120.0, write_deadline_s=300.0)
            async with open_store(config, decimals={}) as store:
                made = await load(store, number)
                pages[number] = await turn_costs(store, made, number) | await list_costs(store, made, number)
        finally:
            await trio.to_thread.run_sync(postgres_run.drop, url)
    print(pages)
    for name, read in pages[1_000_000].items():
        assert read <= 1.5 * pages[10_000][name] + 50, (name, pages)
