"""Turns against a model that knows what may be claimed: caps, rates, order, fencing, take-over, outcomes once."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from random import Random

import pytest
import trio
from claim_model import WORKERS, World
from hooked import (
    HOUR_MS,
    Faults,
    check_tables,
    claim,
    create,
    endpoint,
    enlisted,
    opened,
    pass_time,
    positions,
    quiet,
    record,
    result,
    rows,
    settle,
)
from scripted import execute, query

from fluxora.config import StorageConfig
from fluxora.errors import StorageUnavailable
from fluxora.storage.store import Store, open_store
from fluxora.storage.webhook_records import Due, EndpointChanges, Result

LONG = os.environ.get("FLUXORA_PROOF") == "long"
STEPS = 5_000 if LONG else 150


async def test_avoided_endpoints_and_half_open_ones(storage_config: StorageConfig) -> None:
    async with opened(storage_config) as (store, _):
        sick, well = await endpoint(store), await endpoint(store)
        await record(store, 3)
        await enlisted(store, "w", "other")
        turn = await claim(store, avoid=[sick.id])
        assert {due.endpoint_id for due in turn.deliveries} == {well.id}
        assert turn.next_due_ms is None
        turn = await claim(store, single=[sick.id])
        assert [due.endpoint_id for due in turn.deliveries] == [sick.id]
        assert turn.next_due_ms is None
        assert positions(await claim(store, single=[sick.id])) == []
        assert len(positions(await claim(store, "other", single=[sick.id]))) == 1  # it has a breaker of its own


async def test_no_endpoint_takes_all_of_a_workers_capacity(storage_config: StorageConfig) -> None:
    async with opened(storage_config) as (store, _):
        first = await endpoint(store, max_in_flight=1_000)
        await record(store, 100)
        second = await endpoint(store, max_in_flight=1_000)
        await store.register([create() for _ in range(100)])
        late = await endpoint(store)
        await enlisted(store, "w")
        held: Counter[str] = Counter()
        for _ in range(20):
            turn = await claim(store, room=32 - held.total())
            held.update(due.endpoint_id for due in turn.deliveries)
        assert held.total() < 32  # there is always some left
        assert min(held[first.id], held[second.id]) >= 8
        await store.register([create()])
        turn = await claim(store, room=32 - held.total())
        assert late.id in {due.endpoint_id for due in turn.deliveries}


async def test_a_failing_delivery_holds_back_its_stream_alone(storage_config: StorageConfig) -> None:
    async with opened(storage_config) as (store, _):
        await endpoint(store, ordered=True)
        await record(store, 2, changes=2)  # stream 0: 1, 3, 5; stream 1: 2, 4, 6
        await enlisted(store, "w")
        turn = await claim(store)
        assert positions(turn) == [1, 2]
        assert [due.ordered for due in turn.deliveries] == [True, True]
        first, second = turn.deliveries
        done = await store.webhooks.turn("w", [result(first, "retry", delay_ms=HOUR_MS), result(second)], 9, [], [])
        assert positions(done) == [4]
        done = await store.webhooks.turn("w", [result(*done.deliveries)], 9, [], [])
        assert positions(done) == [6]
        await settle(store, result(*done.deliveries))
        assert positions(await claim(store)) == []
        await pass_time(store)
        (again,) = (await claim(store)).deliveries
        done = await store.webhooks.turn("w", [result(again, "dead")], 9, [], [])  # holds nothing back any more
        assert positions(done) == [3]
        await check_tables(store.url)


async def test_a_long_queue_is_put_aside_piece_by_piece(storage_config: StorageConfig) -> None:
    async with opened(storage_config) as (store, _):
        await endpoint(store, ordered=True)
        await record(store, 1, changes=300)
        await store.register([create("late")])
        await enlisted(store, "w")
        (first,) = (await claim(store, room=9)).deliveries
        seen: list[str | None] = []
        for _ in range(10):
            turn = await claim(store, room=8)
            seen += [due.event.stream_id for due in turn.deliveries]
            if turn.next_due_ms is None:
                break
            assert turn.next_due_ms == 0
        assert seen == ["stream-late"]
        done = await store.webhooks.turn("w", [result(first)], 9, [], [])
        assert positions(done) == [2]


async def test_turns_of_several_workers_against_the_model(storage_config: StorageConfig) -> None:
    random = Random(11)
    async with opened(storage_config) as (store, _):
        kinds = [{"ordered": True}, {"max_in_flight": 3}, {"ordered": True, "max_in_flight": 2}, {}]
        world = World(store, random, [await endpoint(store, **kind) for kind in kinds])
        await enlisted(store, *WORKERS)
        for _ in range(STEPS):
            match random.randrange(10):
                case 0:
                    await world.record()
                case 1:
                    await world.let_time_pass()
                case 2:
                    await world.kill()
                case _:
                    await world.turn(random.choice(WORKERS))
            if random.random() < 0.1:
                await check_tables(store.url)
        await world.finish()
        found = await rows(store)
        assert {key: row["status"] for key, row in found.items()} == world.ended
        assert {key: row["attempts"] for key, row in found.items()} == dict(world.attempts)
        assert len(found) > STEPS // 10
        await check_tables(store.url)


async def test_workers_at_once_keep_caps_order_and_count(storage_config: StorageConfig) -> None:
    """Several processes' worth of workers, none waiting for another; a claim in doubt counts for neither side."""
    random = Random(12)
    streams, changes = (40, 40) if LONG else (8, 12)
    async with opened(storage_config) as (store, _), open_store(storage_config, decimals={}) as other:
        ordered = await endpoint(store, ordered=True, max_in_flight=5)
        plain = await endpoint(store, max_in_flight=7)
        await record(store, streams, changes)
        stream_of = {row["position"]: row["stream_id"] for row in await query(store.url, "SELECT * FROM events")}
        open_: set[tuple[str, int]] = set()  # claimed, and no result is under way
        left = {(id_, at) for id_ in (ordered.id, plain.id) for at in stream_of}
        delivered: Counter[str] = Counter()

        async def work(name: str, at: Store) -> None:
            await enlisted(at, name)
            mine: list[Due] = []
            results: list[Result] = []
            while left:
                turn = await at.webhooks.turn(name, results, 6 - len(mine), [], [])
                assert turn.settled == len(results)
                results = []
                for due in turn.deliveries:
                    key = (due.endpoint_id, due.event.position)
                    assert key not in open_
                    open_.add(key)
                    assert key in left
                    if due.endpoint_id == ordered.id:
                        before = [p for id_, p in left if id_ == ordered.id and p < key[1]]
                        assert all(stream_of[p] != due.event.stream_id for p in before), key
                for id_, cap in ((ordered.id, 5), (plain.id, 7)):
                    assert sum(key[0] == id_ for key in open_) <= cap
                mine += turn.deliveries
                for due in random.sample(mine, (len(mine) + 1) // 2):
                    mine.remove(due)
                    key = (due.endpoint_id, due.event.position)
                    open_.discard(key)
                    if random.random() < 0.8:
                        left.discard(key)
                        delivered[due.id] += 1
                        results.append(result(due))
                    else:
                        results.append(result(due, "retry"))
                if not turn.deliveries and not results:
                    await trio.sleep(0.005)  # another one has what is left
            if results:
                await at.webhooks.turn(name, results, 0, [], [])

        with trio.fail_after(600 if LONG else 60):
            async with trio.open_nursery() as nursery:
                for number in range(4):
                    nursery.start_soon(work, f"w{number}", store if number % 2 else other)
        assert set(delivered.values()) == {1}
        assert {row["status"] for row in (await rows(store)).values()} == {"delivered"}
        assert len(delivered) == 2 * len(stream_of)
        await check_tables(store.url)


async def test_an_endpoint_that_is_locked_is_passed_over(storage_config: StorageConfig) -> None:
    async with opened(storage_config) as (store, _):
        busy, free = await endpoint(store), await endpoint(store)
        await record(store, 2)
        await enlisted(store, "w")
        locked, over = trio.Event(), trio.Event()

        async def hold() -> None:
            async def unit(connection) -> None:
                async with connection.transaction():
                    await connection.execute("SELECT FROM webhook_endpoints WHERE id = $1 FOR NO KEY UPDATE", busy.id)
                    trio.from_thread.run_sync(locked.set, trio_token=token)
                    while not over.is_set():
                        await asyncio.sleep(0.01)

            token = trio.lowlevel.current_trio_token()
            await store._write(unit)

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(hold)
                await locked.wait()
                turn = await claim(store)
                over.set()
        assert {due.endpoint_id for due in turn.deliveries} == {free.id}
        assert turn.next_due_ms is not None
        assert 0 < turn.next_due_ms <= 100


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("outcome", ["retry", "gone"])
async def test_a_turn_that_is_cut_at_any_statement_is_whole_or_nothing(
    storage_config: StorageConfig, monkeypatch: pytest.MonkeyPatch, after: bool, outcome: str
) -> None:
    async with opened(storage_config) as (store, _):
        made = await endpoint(store, ordered=True, rate_limit=10_000)
        await record(store, 2, changes=100)
        with monkeypatch.context() as patch:
            faults = Faults(patch)
            cuts = [""]
            at = 1
            for step in range(60):
                await enlisted(store, f"w{step}", f"dead{step}")
                await execute(store.url, [f"UPDATE webhook_workers SET alive_until_ms = 0 WHERE id = 'dead{step}'"])
                first, second = (await claim(store, f"w{step}")).deliveries
                before = await rows(store)
                faults.arm(at, after=after)
                try:
                    await store.webhooks.turn(f"w{step}", [result(first), result(second, outcome)], 9, [], [])
                except StorageUnavailable:
                    cuts.append(faults.statements[at - 1])
                    whole = after and cuts[-1] == "COMMIT"
                    at += 1
                else:
                    whole = True
                    at = len(faults.statements)  # it had one less this time: its last one is next
                faults.arm(None)
                await quiet(store.url)
                now = await rows(store)
                changed = {at for (_, at), row in now.items() if row["attempts"] != before[made.id, at]["attempts"]}
                assert changed == ({first.event.position, second.event.position} if whole else set()), cuts
                claims = await query(store.url, "SELECT position FROM webhook_claims")
                assert whole == (first.event.position not in {row["position"] for row in claims})
                await check_tables(store.url)
                await store.webhooks.retire(f"w{step}")
                await store.webhooks.update(made.id, EndpointChanges(enabled=True), "test")
                if cuts[-1] == "COMMIT":
                    break
            assert cuts[-1] == "COMMIT", cuts
            assert len(cuts) > 8
