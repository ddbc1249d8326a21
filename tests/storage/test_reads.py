from __future__ import annotations

import json
import random
import statistics
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import trio
from scripted import ACCOUNTS, CONTRACT, DECIMALS, OTHER_CONTRACT, batch, created, event, execute, query, withdrew

from fluxora.config import StorageConfig
from fluxora.errors import StorageUnavailable
from fluxora.protocol.messages import LogEvent, StreamRecord
from fluxora.storage import reads
from fluxora.storage.pool import Connection
from fluxora.storage.store import EventQuery, Store, StreamQuery, open_store

STATUSES = ("active", "paused", "completed", "cancelled")


async def fill(store: Store, seed: int = 1) -> None:
    """A history with two forks and late events, over two contracts."""
    rng = random.Random(seed)
    lease = await store.try_lease()
    assert lease is not None
    for ledger in range(100, 160):
        contract = rng.choice([CONTRACT, OTHER_CONTRACT])
        stream = rng.randrange(20)
        parties = {"sender": rng.choice(ACCOUNTS[:3]), "recipient": rng.choice(ACCOUNTS[3:5])}
        events = [
            created(ledger, 0, stream, contract_id=contract, **parties),
            withdrew(ledger, 1, stream, contract_id=contract),
        ]
        topic = rng.choice(["paused", "cancelled", "gl_pause"])
        fields: dict[str, Any] = {"paused": True} if topic == "gl_pause" else {"stream_id": rng.randrange(20)}
        events.append(event(ledger, 2, topic, contract_id=contract, **fields))
        rollback = ledger - rng.randrange(2, 9) if ledger in (120, 140) else None
        await store.append([batch(events, ledger, rollback_to=rollback)], lease=lease.number)
        if ledger % 25 == 0:
            await store.append([batch([withdrew(ledger - 10, 9, stream, contract_id=contract)])], lease=lease.number)
    await lease.aclose()


async def test_stream_pages_equal_a_plain_filter_of_everything(storage_config: StorageConfig) -> None:
    async with open_store(storage_config, decimals=DECIMALS) as store:
        await fill(store)
        everything = await store.streams(StreamQuery(limit=1000))
        assert len(everything) > 20
        assert [one.created_position for one in everything] == sorted(one.created_position for one in everything)
        assert {one.id: one for one in everything} == {
            one.id: one for one in [await store.stream(one.id) for one in everything] if one is not None
        }
        for status, sender, recipient, contract in product(
            [None, "active", "cancelled"], [None, *ACCOUNTS[:2]], [None, ACCOUNTS[3]], [None, CONTRACT]
        ):
            query_ = StreamQuery(status=status, sender=sender, recipient=recipient, contract_id=contract, limit=3)
            wanted = [one for one in everything if matches(one, query_)]
            assert await pages(store, query_) == wanted
            assert await pages(store, StreamQuery(**as_dict(query_) | {"descending": True})) == wanted[::-1]


def as_dict(query_: StreamQuery) -> dict[str, Any]:
    return {name: getattr(query_, name) for name in query_.__struct_fields__}


def matches(record: StreamRecord, query_: StreamQuery) -> bool:
    state = record.state
    return all(
        wanted is None or wanted == have
        for wanted, have in [
            (query_.status, STATUSES[state.status]),
            (query_.sender, state.sender),
            (query_.recipient, state.recipient),
            (query_.contract_id, record.contract_id),
        ]
    )


async def pages(store: Store, query_: StreamQuery) -> list[StreamRecord]:
    found: list[StreamRecord] = []
    after = None
    while page := await store.streams(StreamQuery(**as_dict(query_) | {"after": after})):
        found += page
        after = page[-1].created_position
    return found


async def test_event_pages_equal_a_plain_filter_of_everything(storage_config: StorageConfig) -> None:
    async with open_store(storage_config, decimals=DECIMALS) as store:
        await fill(store)
        everything = await store.events(EventQuery(limit=10_000))
        assert len(everything) == await store.position()
        stream = everything[0].stream_id
        for name, stream_id, contract, low, high in product(
            [None, "stream.updated", "stream.reverted", "contract.updated"],
            [None, stream],
            [None, OTHER_CONTRACT],
            [None, 95, 118, 158],
            [None, 90, 118, 125, 999],
        ):
            query_ = EventQuery(
                event=name, stream_id=stream_id, contract_id=contract, ledger_from=low, ledger_to=high, limit=4
            )
            found: list[LogEvent] = []
            while page := await store.events(replace_after(query_, found[-1].position if found else 0)):
                assert len(page) <= 4
                found += page
            assert found == [
                one
                for one in everything
                if (name is None or one.event == name)
                and (stream_id is None or one.stream_id == stream_id)
                and (contract is None or one.contract_id == contract)
                and (low is None or (one.ledger is not None and one.ledger >= low))
                and (high is None or (one.ledger is not None and one.ledger <= high))
            ], query_


@pytest.mark.parametrize("most_bytes", [1, 3_000, 10_000_000])
async def test_a_page_of_events_ends_one_behind_what_fills_it(storage_config: StorageConfig, most_bytes: int) -> None:
    async with open_store(storage_config, decimals=DECIMALS) as store:
        await fill(store)
        for ledgers in ({}, {"ledger_from": 95, "ledger_to": 125}):
            everything = await store.events(EventQuery(limit=10_000, **ledgers))
            query_ = EventQuery(limit=9, most_bytes=most_bytes, **ledgers)
            found: list[LogEvent] = []
            full = True
            while full:
                page = await store.events(replace_after(query_, found[-1].position if found else 0))
                assert page == everything[len(found) :][: len(page)]
                assert sum(len(one.payload) for one in page[:-2]) < most_bytes
                full = query_.is_full(page)
                assert full == (len(page) == 9 or sum(len(one.payload) for one in page[:-1]) >= most_bytes)
                found += page[:-1] if full else page
            assert found == everything


def replace_after(query_: EventQuery, after: int) -> EventQuery:
    return EventQuery(**{name: getattr(query_, name) for name in query_.__struct_fields__} | {"after": after})


async def test_missing_things_are_none_and_empty(storage_config: StorageConfig) -> None:
    async with open_store(storage_config, decimals=DECIMALS) as store:
        assert await store.stream("stream-none") is None
        assert await store.streams(StreamQuery(sender=ACCOUNTS[0])) == []
        assert await store.events(EventQuery(ledger_from=1, ledger_to=5)) == []
        assert await store.position() == 0
        assert 0 < await store.ping() < storage_config.read_deadline_s


async def test_terminated_backends_cost_nothing_but_a_reconnect(storage_config: StorageConfig) -> None:
    assert storage_config.database_url is not None
    async with open_store(storage_config, decimals=DECIMALS) as store:
        await store.position()
        await query(
            storage_config.database_url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid() AND backend_type = 'client backend'",
        )
        failures = 0
        for _ in range(5):
            try:
                await store.position()
            except StorageUnavailable:  # the first may still see the old connection go
                failures += 1
        assert failures <= 1


async def test_cancelled_read_frees_its_connection(storage_config: StorageConfig) -> None:
    async def nap(connection: Connection) -> None:
        await connection.execute("SELECT pg_sleep(60)")

    config = replace(storage_config, pool_size=1, read_deadline_s=5.0)
    async with open_store(config, decimals=DECIMALS) as store:
        with trio.move_on_after(0.2):
            await store._read(nap)
        with trio.fail_after(3):
            assert await store.position() == 0
        assert config.database_url is not None
        rows = await query(
            config.database_url,
            "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active' "
            "AND datname = current_database()",
        )
        assert rows == []  # the server stopped as well


# Synthetic rows made by the server itself: enough for the planner to see a large, skewed table.
_STREAMS = """
INSERT INTO streams SELECT 's' || n, 'chain', 1, CASE WHEN n % 10 = 0 THEN 'C2' ELSE 'C1' END, n, 7,
  CASE WHEN n % 1000 = 0 THEN 'paused' WHEN n % 3 = 0 THEN 'cancelled' WHEN n % 7 = 0 THEN 'completed'
  ELSE 'active' END,
  'linear', CASE WHEN n % 5 = 0 THEN 'whale' ELSE 'G' || n % 2000 END, 'R' || n % 3000, 1, 1, 0, 0, 0, 0,
  n, n, n / 100, 0, 0, '', false, '\\x80' FROM generate_series(1, {rows}) n
"""
_EVENTS = """
INSERT INTO events SELECT n, '1-' || lpad(n::text, 19, '0'), 1, n / 20, 'ab',
  CASE WHEN n % 10 = 0 THEN 'C2' ELSE 'C1' END,
  's' || 1 + n % ({rows} / 5), CASE WHEN n % 20000 = 0 THEN 'stream.reverted' WHEN n % 40 = 0 THEN 'stream.cancelled'
  WHEN n % 4 = 0 THEN 'stream.created' ELSE 'stream.updated' END, 'x', 0, NULL, '{{"a": 1}}', '\\x00'
FROM generate_series(1, {rows}) n
"""


async def load(url: str, streams: int, events: int) -> None:
    await execute(
        url,
        [
            _STREAMS.format(rows=streams),
            _EVENTS.format(rows=events),
            f"INSERT INTO log_runs VALUES (1, {events}, 0, {events // 20})",
            f"UPDATE log_head SET position = {events}",
            "VACUUM ANALYZE streams",
            "VACUUM ANALYZE events",
        ],
    )


STREAM_QUERIES = [
    StreamQuery(status=status, sender=sender, recipient=recipient, contract_id=contract, after=after, descending=down)
    for status, sender, recipient, contract, (after, down) in product(
        [None, "active", "paused"],
        [None, "whale", "G7"],
        [None, "R9"],
        [None, "C2"],
        [(None, False), (500, False), (900, True)],
    )
]
EVENT_QUERIES = [
    EventQuery(after=after, stream_id=stream, event=name, contract_id=contract)
    for after, stream, name, contract in product(
        [0, 700], [None, "s5"], [None, "stream.updated", "stream.reverted"], [None, "C2"]
    )
]


def plans(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from plans(child)


async def explain(connection: Connection, text: str, values: list[Any]) -> list[dict[str, Any]]:
    (row,) = await connection.fetch(f"EXPLAIN (FORMAT JSON) {text}", *values)
    return list(plans(json.loads(row[0])[0]["Plan"]))


async def check_plans(store: Store) -> None:
    async def check(connection: Connection) -> None:
        for one in STREAM_QUERIES:
            nodes = await explain(connection, *reads.stream_page(one))
            kinds = {node["Node Type"] for node in nodes}
            assert kinds <= {"Limit", "Merge Append", "Index Scan", "Subquery Scan", "Append", "Sort"}, (one, kinds)
            assert "Index Scan" in kinds
            # A sort is right only where the filters leave next to nothing.
            assert all(node["Plan Rows"] < 1000 for node in nodes if node["Node Type"] == "Sort"), (one, nodes)
            together = [one] * 16
            nodes = await explain(connection, reads.listing(one), reads.listing_values(together))
            scans = {node["Node Type"] for node in nodes if node.get("Relation Name") == "streams"}
            assert scans <= {"Index Scan", "Index Only Scan"}, (one, scans)
            sorts = [node for node in nodes if node["Node Type"] == "Sort" and node["Plan Rows"] >= 5000]
            assert not sorts, (one, sorts)
        for query_ in EVENT_QUERIES:
            nodes = await explain(connection, *reads.event_page(query_, query_.after, None))
            kinds = {node["Node Type"] for node in nodes}
            assert kinds <= {"Limit", "Index Scan", "Sort"}, (query_, kinds)
            assert all(node["Plan Rows"] < 1000 for node in nodes if node["Node Type"] == "Sort"), (query_, nodes)
        nodes = await explain(connection, reads.RANGES, [10, 50, 90, 100])
        assert {n["Node Type"] for n in nodes if n.get("Relation Name") == "events"} <= {
            "Index Scan",
            "Index Only Scan",
        }

    await store._read(check)


async def test_pages_are_index_scans(storage_config: StorageConfig) -> None:
    config = replace(storage_config, read_deadline_s=60.0)
    async with open_store(config, decimals=DECIMALS) as store:
        assert config.database_url is not None
        await load(config.database_url, 20_000, 40_000)
        await check_plans(store)


@pytest.mark.proof
async def test_pages_do_not_slow_down_from_ten_thousand_to_millions_of_rows(postgres_run, tmp_path) -> None:
    medians: dict[int, dict[str, float]] = {}
    for streams, events in ((10_000, 50_000), (1_000_000, 5_000_000)):
        url = postgres_run.create()
        config = StorageConfig(database_url=url, data_dir=tmp_path, read_deadline_s=120.0, statement_timeout_s=120.0)
        try:
            await load(url, streams, events)
            async with open_store(config, decimals=DECIMALS) as store:
                await check_plans(store)
                medians[streams] = {
                    name: await store._read(median_ms, kind) for name, kind in (("streams", True), ("events", False))
                }
        finally:
            await trio.to_thread.run_sync(postgres_run.drop, url)
    print(medians)
    for name in ("streams", "events"):
        assert medians[1_000_000][name] <= 2 * medians[10_000][name] + 0.1, medians


async def median_ms(connection: Connection, of_streams: bool) -> float:
    """Median over all queries of the quickest of five runs each, as the server measures it."""
    pages_ = (
        [reads.stream_page(one) for one in STREAM_QUERIES]
        if of_streams
        else [reads.event_page(one, one.after, None) for one in EVENT_QUERIES]
    )
    times = []
    for text, values in pages_:
        runs = []
        for _ in range(5):
            (row,) = await connection.fetch(f"EXPLAIN (ANALYZE, FORMAT JSON) {text}", *values)
            runs.append(json.loads(row[0])[0]["Execution Time"])
        times.append(min(runs))
    return statistics.median(times)
