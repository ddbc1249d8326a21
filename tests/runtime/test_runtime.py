"""The runtime as embedders use it: start, follow, ask, stop, start again."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio
from in_process import config
from truth import Books, assert_in_order, caught_up, judge
from waiting import eventually

import fluxora
from fluxora.localnet import Network, Script, account, open_localnet
from fluxora.protocol.messages import LogEvent
from fluxora.runtime import Runtime

OpenBooks = Callable[[str], Awaitable[Books]]
SEED = 41
STOP_S = 5.0


async def collect(rt: fluxora.Runtime, seen: list[LogEvent], after: int = 0) -> None:
    async with aclosing(rt.events(after)) as batches:
        async for batch in batches:
            seen += batch


async def test_a_follower_gets_everything_in_order_from_wherever_it_begins(
    postgres_url: str, books_of: OpenBooks
) -> None:
    books = await books_of(postgres_url)
    async with open_localnet(seed=SEED, script=Script(SEED, streams_per_ledger=3)) as net:
        await net.close_ledgers(20)
        async with fluxora.open_runtime(config(net, postgres_url)) as rt, trio.open_nursery() as nursery:
            from_start: list[LogEvent] = []
            from_middle: list[LogEvent] = []
            nursery.start_soon(collect, rt, from_start)
            await caught_up(books, net)
            middle = await books.position() // 2
            nursery.start_soon(collect, rt, from_middle, middle)
            for _ in range(20):
                await net.close_ledger()
            await net.fork(3)
            await net.close_ledgers(2)
            await caught_up(books, net)
            head = await books.position()
            await eventually(lambda: len(from_start) == head, "the first follower has it all")
            await eventually(lambda: len(from_middle) == head - middle, "the second follower has its half")
            nursery.cancel_scope.cancel()
        await judge(books, net, corrected=False)
        assert_in_order([event.position for event in from_start])
        assert from_middle == from_start[middle:]
        rows = await books.rows("SELECT event_id, payload::text FROM events ORDER BY position")
        assert [(event.event_id, event.payload.decode()) for event in from_start] == [tuple(row) for row in rows]


async def test_a_stream_is_worth_what_the_contract_would_pay(postgres_url: str, books_of: OpenBooks) -> None:
    books = await books_of(postgres_url)
    async with open_localnet(seed=SEED) as net, fluxora.open_runtime(config(net, postgres_url)) as rt:
        start = net.contract.now
        alice, bob = (account(SEED, name) for name in ("alice", "bob"))
        number = net.contract.create(
            alice, bob, deposit=1_000 * 10**7, rate=10**7, start=start, cliff=start, end=start + 1_000
        )
        await net.close_ledger()
        await caught_up(books, net)
        stream_id = f"stream-{net.contract.contract_id[:12].lower()}-{number}"
        for at, worth in ((start - 5, "0.0000000"), (start + 250, "250.0000000"), (start + 5_000, "1000.0000000")):
            view = await rt.stream(stream_id, as_of=at)
            assert view is not None
            assert (view.sender, view.recipient, view.as_of) == (alice, bob, at)
            assert view.streamed_amount == worth
            async with httpx.AsyncClient() as client:
                shown = (await client.get(f"{rt.url}/api/streams/{stream_id}", params={"asOf": at})).json()
            assert shown["streamedAmount"] == worth
        assert (await rt.stream(stream_id)) is not None
        assert await rt.stream("stream-of-nobody-1") is None


async def test_a_second_start_goes_on_where_the_first_stopped(postgres_url: str, books_of: OpenBooks) -> None:
    books = await books_of(postgres_url)
    async with open_localnet(seed=SEED, script=Script(SEED, streams_per_ledger=3)) as net:
        for _ in range(3):
            before = await books.rows("SELECT position, event_id FROM events ORDER BY position")
            await net.close_ledgers(30)
            async with fluxora.open_runtime(config(net, postgres_url)) as rt:
                await caught_up(books, net)
                await eventually(partial(reported, rt, net), "/health knows of the last commit")
                stopping = time.monotonic()
            assert time.monotonic() - stopping < STOP_S
            after = await books.rows("SELECT position, event_id FROM events ORDER BY position")
            assert after[: len(before)] == before
            assert len(after) > len(before)
        await judge(books, net, corrected=False)


async def test_leaving_in_the_middle_of_ingest_is_quick_and_loses_nothing(
    postgres_url: str, books_of: OpenBooks
) -> None:
    books = await books_of(postgres_url)
    async with open_localnet(seed=SEED, script=Script(SEED, streams_per_ledger=5)) as net:
        await net.close_ledgers(100)
        for part in (1, 100, 300):
            async with fluxora.open_runtime(config(net, postgres_url)):
                await eventually(partial(grown, books, part), "ingest is under way")
                stopping = time.monotonic()
            assert time.monotonic() - stopping < STOP_S
        async with fluxora.open_runtime(config(net, postgres_url)):
            await caught_up(books, net)
        await judge(books, net, corrected=False)


async def reported(rt: Runtime, net: Network) -> bool:
    return rt.health().indexer.last_ledger == net.chain.latest.sequence


async def grown(books: Books, least: int) -> bool:
    return await books.position() >= least


async def test_an_error_of_the_embedder_comes_out_as_it_is(postgres_url: str) -> None:
    async with open_localnet(seed=SEED) as net:
        with pytest.raises(ZeroDivisionError):  # not in a group of the nursery's
            await fail_inside(config(net, postgres_url))


async def fail_inside(settings: fluxora.Config) -> None:
    async with fluxora.open_runtime(settings):
        _ = 1 // 0


async def test_stop_ends_the_block(postgres_url: str) -> None:
    async with open_localnet(seed=SEED) as net:
        async with fluxora.open_runtime(config(net, postgres_url)) as rt:
            rt.stop()
            await trio.Event().wait()  # the end of the runtime cancels it
        with pytest.raises(httpx.ConnectError):
            async with httpx.AsyncClient() as client:
                await client.get(rt.url)


async def test_a_database_that_is_not_there_is_told_at_once(postgres_url: str, tmp_path: Path) -> None:
    nowhere = postgres_url.partition("?")[0] + f"?host={tmp_path}"
    async with open_localnet(seed=SEED) as net:
        with pytest.raises(fluxora.errors.StorageUnavailable):
            async with fluxora.open_runtime(config(net, nowhere)):
                pytest.fail("it must not start")
