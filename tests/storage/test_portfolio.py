from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import asyncpg
import pytest
import trio
from scripted import ACCOUNTS, CONTRACT, DECIMALS, OTHER_CONTRACT, batch, close_time, created, event, execute
from test_reads import explain

from fluxora.config import StorageConfig
from fluxora.protocol.messages import STATUS_NAMES
from fluxora.protocol.streams import StreamState, StreamStatus, pack_state
from fluxora.protocol.treasury import Holding, Totals
from fluxora.storage import portfolio, reads
from fluxora.storage.pool import Connection
from fluxora.storage.store import Portfolio, Store, StreamQuery, open_store

AS_OF = close_time(500)
HUB, PARTNER = ACCOUNTS[0], ACCOUNTS[1]


@pytest.fixture
async def store(storage_config: StorageConfig) -> AsyncIterator[Store]:
    async with open_store(storage_config, decimals=DECIMALS) as opened:
        yield opened


async def append(store: Store, *batches: Any) -> None:
    lease = await store.try_lease()
    assert lease is not None
    await store.append(batches, lease=lease.number)
    await lease.aclose()


async def fill(store: Store) -> None:
    """Streams of two contracts that the hub sends and receives, of every status, and some of others."""
    events = []
    for number in range(40):
        contract = CONTRACT if number % 3 else OTHER_CONTRACT
        parties = {"sender": HUB, "recipient": ACCOUNTS[1 + number % 4]}
        if number % 4 == 3:
            parties = {"sender": parties["recipient"], "recipient": HUB if number % 8 == 7 else ACCOUNTS[5]}
        ledger = 100 + number
        events.append(created(ledger, 0, number, contract_id=contract, **parties, deposit_amount=str(10**9 + number)))
        if number % 5 == 1:
            events.append(event(ledger, 1, "paused", contract_id=contract, stream_id=number, reason="Operational"))
        if number % 5 == 2:
            events.append(event(ledger, 1, "cancelled", contract_id=contract, stream_id=number))
        if number % 5 == 3:
            events.append(event(ledger, 1, "completed", contract_id=contract, stream_id=number))
    await append(store, batch(events, 150))


async def total(store: Store, side: str, contract: str) -> Totals:
    """Added up from a plain list of everything."""
    totals = Totals()
    for one in await store.streams(StreamQuery(limit=1000)):
        if getattr(one.state, side) == HUB and one.contract_id == contract:
            totals.add(one, AS_OF)
    return totals


async def answered(store: Store, address: str = HUB, as_of: int = AS_OF) -> Portfolio:
    found = await store.portfolio(address, as_of)
    assert found is not None
    return found


@pytest.mark.parametrize("rows", [1, 3, 200])
async def test_pages_of_any_size_add_up_to_the_whole(store: Store, monkeypatch, rows: int) -> None:
    monkeypatch.setattr(portfolio, "PAGE_ROWS", rows)
    await fill(store)
    found = await answered(store)
    assert found.position == await store.position()
    assert [holding.contract_id for holding in found.holdings] == sorted([CONTRACT, OTHER_CONTRACT])
    for holding in found.holdings:
        assert holding.contract_id is not None
        assert holding.as_sender == await total(store, "sender", holding.contract_id)
        assert holding.as_recipient == await total(store, "recipient", holding.contract_id)
        assert sum(holding.as_sender.streams) > 0
    assert sum(sum(holding.as_recipient.streams) for holding in found.holdings) > 0
    counts = [sum(h.as_sender.streams[n] for h in found.holdings) for n in range(4)]
    assert all(counts), dict(zip(STATUS_NAMES, counts, strict=True))


async def test_an_address_without_streams_holds_nothing(store: Store) -> None:
    await fill(store)
    assert (await answered(store, ACCOUNTS[7])).holdings == []


async def test_streams_of_an_earlier_epoch_do_not_count(store: Store) -> None:
    await fill(store)
    await append(store, batch([created(7, 0, 1)], 10, new_epoch=True))
    (holding,) = (await answered(store)).holdings
    assert holding.contract_id == CONTRACT
    assert (holding.as_sender.streams, holding.as_recipient.streams) == ([1, 0, 0, 0], [0, 0, 0, 0])


async def test_all_pages_are_of_one_moment(store: Store, storage_config: StorageConfig, monkeypatch) -> None:
    """Between two pages every stream loses its sender, in a transaction of somebody else."""
    url = storage_config.database_url
    assert url is not None
    await fill(store)
    before = await answered(store)
    pages = 0
    read = reads.streams

    async def interrupted(connection: Connection, wanted: StreamQuery) -> Any:
        nonlocal pages
        pages += 1
        if pages == 2:
            other = await asyncpg.connect(url)
            await other.execute("UPDATE streams SET sender = recipient; UPDATE log_head SET position = 999")
            await other.close()
        return await read(connection, wanted)

    monkeypatch.setattr(reads, "streams", interrupted)
    monkeypatch.setattr(portfolio, "PAGE_ROWS", 5)
    assert await answered(store) == before
    assert (await answered(store)) != before


async def test_what_does_not_fit_into_the_budget_is_said_so_and_frees_its_connection(
    storage_config: StorageConfig, monkeypatch
) -> None:
    monkeypatch.setattr(portfolio, "BUDGET_S", 0.0)
    async with open_store(replace(storage_config, pool_size=1), decimals=DECIMALS) as store:
        await fill(store)
        assert await store.portfolio(HUB, AS_OF) is None
        assert await store.portfolio(ACCOUNTS[7], AS_OF) is not None  # nothing to add up takes no time
        assert await store.position() > 0


async def test_large_ones_leave_connections_to_the_rest(storage_config: StorageConfig, monkeypatch) -> None:
    """With every portfolio stuck, a pool of three still answers what is quick."""
    config = replace(storage_config, pool_size=portfolio.MAX_AT_A_TIME + 1)
    stuck = 0

    async def sticky(connection: Connection, address: str, as_of: int) -> None:
        nonlocal stuck
        stuck += 1
        await connection.execute("SELECT pg_sleep(60)")

    monkeypatch.setattr(portfolio, "portfolio", sticky)
    async with open_store(config, decimals=DECIMALS) as store, trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(store.portfolio, HUB, AS_OF)
        with trio.fail_after(5):
            while stuck < portfolio.MAX_AT_A_TIME:
                await store.ping()
        for _ in range(20):
            await store.ping()
        assert stuck == portfolio.MAX_AT_A_TIME
        nursery.cancel_scope.cancel()


# A hub that every stream belongs to, once as sender or once as recipient, in a table that is not much larger.
_HUB_ROWS = """
INSERT INTO streams SELECT 'stream-hub-' || n, 'chain', 1, CASE WHEN n % 10 = 0 THEN '{other}' ELSE '{contract}' END,
  n, 7, CASE n % 4 WHEN 0 THEN 'active' WHEN 1 THEN 'paused' WHEN 2 THEN 'completed' ELSE 'cancelled' END, 'linear',
  CASE WHEN n % 2 = 0 THEN '{hub}' ELSE '{partner}' END, CASE WHEN n % 2 = 0 THEN '{partner}' ELSE '{hub}' END,
  1, 1, 0, 0, 0, 0, n, n, n / 100, 0, 0, '', false,
  CASE n % 4 {states} END
FROM generate_series(1, {rows}) n
"""


def hub_state(status: StreamStatus) -> StreamState:
    return StreamState(
        sender=HUB,
        recipient=PARTNER,
        deposit_amount=10**12,
        rate_per_second=10**6,
        start_time=AS_OF - 1000,
        cliff_time=AS_OF - 1000,
        end_time=AS_OF + 10**6,
        checkpointed_at=AS_OF - 1000,
        status=status,
        cancelled_at=AS_OF - 10 if status is StreamStatus.CANCELLED else None,
    )


async def load_hub(url: str, rows: int) -> None:
    states = " ".join(f"WHEN {s.value} THEN '\\x{pack_state(hub_state(s)).hex()}'::bytea" for s in StreamStatus)
    text = _HUB_ROWS.format(rows=rows, hub=HUB, partner=PARTNER, contract=CONTRACT, other=OTHER_CONTRACT, states=states)
    await execute(url, [text, f"UPDATE log_head SET position = {rows}", "VACUUM ANALYZE streams"])


async def test_a_hub_is_read_by_index_scans(storage_config: StorageConfig) -> None:
    """Also where the server plans once for every address, and where the hub has half of the table."""

    async def check(connection: Connection, mode: str) -> None:
        async with connection.transaction():
            await connection.execute(f"SET LOCAL plan_cache_mode = {mode}")
            for side, after in (("sender", None), ("sender", 9000), ("recipient", None), ("recipient", 9000)):
                wanted = StreamQuery(**{side: HUB}, after=after, limit=portfolio.PAGE_ROWS)
                nodes = await explain(connection, *reads.stream_page(wanted))
                scans = [node for node in nodes if "Relation Name" in node]
                assert {node["Node Type"] for node in scans} == {"Index Scan"}
                assert {node["Index Name"] for node in scans} == {f"streams_of_{side}"}
                assert not any(node["Node Type"] == "Sort" for node in nodes), (side, after, mode)

    config = replace(storage_config, read_deadline_s=60.0)
    assert config.database_url is not None
    async with open_store(config, decimals=DECIMALS) as store:
        await load_hub(config.database_url, 20_000)
        for mode in ("force_custom_plan", "force_generic_plan"):
            await store._read(check, mode)


@pytest.mark.proof
async def test_a_hub_of_a_hundred_thousand_streams_is_added_up_in_its_budget(storage_config: StorageConfig) -> None:
    assert storage_config.database_url is not None
    async with open_store(storage_config, decimals=DECIMALS) as store:
        await load_hub(storage_config.database_url, 100_000)
        started = time.perf_counter()
        found = await answered(store)
        print(f"100,000 streams added up in {time.perf_counter() - started:.2f} s")
        assert sum(sum(h.as_sender.streams) + sum(h.as_recipient.streams) for h in found.holdings) == 100_000
        check_sums(found.holdings)


def check_sums(holdings: list[Holding]) -> None:
    """By hand: at 0.1 tokens a second, 1,000 seconds have been streamed, 990 of a cancelled stream."""
    for holding in holdings:
        for totals in (holding.as_sender, holding.as_recipient):
            active, paused, completed, cancelled = totals.streams
            assert totals.deposited == sum(totals.streams) * 10**12
            assert totals.streamed == (active + paused) * 10**9 + completed * 10**12 + cancelled * 990 * 10**6
            assert totals.remaining == (active + paused) * (10**12 - 10**9)
            assert totals.rate == (active + paused) * 10**6
