"""The recorder over a real database: what one commit holds, who is told of it and when, and how it ends."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import trio
from chain_events import event, header, ids

from fluxora.actors.parcel import Parcel, Receipt
from fluxora.actors.progress import Progress
from fluxora.actors.recorder import Recorder
from fluxora.errors import LeaseLost, Resync, StorageUnavailable
from fluxora.protocol.chain import LedgerBatch
from fluxora.storage.store import Appended, EventQuery, Store


class Bench:
    """A recorder whose inbox is filled before it runs; `published` is what it told, in order."""

    def __init__(self, store: Store, lease: int, limit: int = 4_000) -> None:
        self.to_recorder, inbox = trio.open_memory_channel[Parcel](100)
        self.progress = Progress()
        self.published: list[Appended] = []
        self.recorder = Recorder(
            inbox,
            store=store,
            lease=lease,
            progress=self.progress,
            publish=self.published.append,
            events_per_transaction=limit,
        )

    async def record(self, *parcels: Parcel) -> None:
        for parcel in parcels:
            self.to_recorder.send_nowait(parcel)
        self.to_recorder.close()
        await self.recorder.run()


def parcel(*ledgers: int, **fields: Any) -> Parcel:
    return Parcel(LedgerBatch(events=tuple(event(n) for n in ledgers), **fields), Receipt())


async def outcome(one: Parcel) -> Any:
    assert one.receipt is not None
    with trio.fail_after(5):
        return await one.receipt.wait()


async def test_what_waits_becomes_one_commit_up_to_the_bound(store: Store, lease: int) -> None:
    bench = Bench(store, lease, limit=3)
    parcels = [parcel(2 * n, 2 * n + 1) for n in range(1, 6)]
    await bench.record(*parcels)
    assert [len(appended.outcomes) for appended in bench.published] == [2, 2, 1]
    assert [appended.position for appended in bench.published] == [4, 8, 10]
    assert [(await outcome(one)).position for one in parcels] == [4, 4, 8, 8, 10]
    recorded = await store.events(EventQuery())
    assert [one.event_id for one in recorded] == [f"1-{event(n).id}" for n in range(2, 12)]
    assert [one for appended in bench.published for one in appended.events] == recorded


async def test_nothing_is_told_before_its_commit(
    store: Store, lease: int, storage_config: Any, postgres_run: Any
) -> None:
    bench = Bench(store, lease)
    database = storage_config.database_url.partition("?")[0].rpartition("/")[2]
    one = parcel(5)
    seen: list[int] = []

    def publish(_appended: Appended) -> None:
        assert one.receipt is not None
        seen.append(postgres_run.sql("SELECT count(*) FROM events", database)[0][0])  # another connection sees it
        with pytest.raises(trio.WouldBlock):
            settled.receive_nowait()

    told, settled = trio.open_memory_channel[None](1)

    async def wait() -> None:
        assert one.receipt is not None
        await one.receipt.wait()
        told.send_nowait(None)

    bench.recorder._publish = publish
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await bench.record(one)
    assert seen == [1]
    settled.receive_nowait()


async def test_duplicates_of_both_kinds_are_told_to_the_sender(store: Store, lease: int) -> None:
    first, again = parcel(5, 6), parcel(5, 7)
    again = Parcel(again.batch, again.receipt, ("taken out before",))
    await Bench(store, lease).record(first, again)
    found = (await outcome(again)).outcome
    assert (found.inserted, found.duplicates) == (ids([event(7)]), [event(5).id, "taken out before"])
    assert (await outcome(first)).outcome.duplicates == []


async def test_progress_is_what_is_committed(store: Store, lease: int) -> None:
    bench = Bench(store, lease)
    await bench.record(
        Parcel(LedgerBatch(headers=(header(8), header(9)))),
        parcel(9, complete_through=9),
        Parcel(LedgerBatch(headers=(header(8),))),  # a second look
    )
    progress = bench.progress
    assert (progress.complete_through, progress.ledger, progress.ledger_hash) == (9, 9, header(9).hash)
    assert progress.closed_at == header(9).closed_at
    assert progress.synced_at is not None
    bench = Bench(store, lease)
    bench.progress.resumed(9, header(9))
    bench.progress.fork_found(6)
    await bench.record(
        Parcel(LedgerBatch(rollback_to=6)),
        Parcel(LedgerBatch(headers=(header(7, "b"),))),
        Parcel(LedgerBatch(complete_through=7)),
    )
    assert (bench.progress.complete_through, bench.progress.ledger_hash) == (7, header(7, "b").hash)
    assert bench.progress.reorg_detected
    bench = Bench(store, lease)
    bench.progress.resumed(7, header(7, "b"))
    await bench.record(Parcel(LedgerBatch(new_epoch=True)))
    assert (bench.progress.complete_through, bench.progress.ledger) == (None, None)


async def test_a_lost_lease_ends_it_and_everyone_is_told(store: Store, lease: int) -> None:
    newer = await store.try_lease()
    assert newer is not None
    bench, parcels = Bench(store, lease), [parcel(5), parcel(6), Parcel(LedgerBatch(events=(event(7),)))]
    with pytest.raises(LeaseLost):
        await bench.record(*parcels)
    for one in parcels[:2]:
        with pytest.raises(LeaseLost):
            await outcome(one)
    assert bench.published == []
    assert bench.progress.synced_at is None
    assert await store.position() == 0
    await newer.aclose()


async def test_a_database_that_goes_away_is_waited_for_and_then_begun_from_the_cursor(
    store: Store, lease: int, storage_config: Any, postgres_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fluxora.actors.recorder._PROBE_INTERVAL_S", 0.01)
    database = storage_config.database_url.partition("?")[0].rpartition("/")[2]
    bench, one = Bench(store, lease), parcel(5)
    ends = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"
    sql = partial(trio.to_thread.run_sync, postgres_run.sql)
    await sql(ends)
    await sql(f"ALTER DATABASE {database} RENAME TO {database}_away")
    try:
        async with trio.open_nursery() as nursery:
            with pytest.RaisesGroup(Resync):
                async with trio.open_nursery() as inner:
                    inner.start_soon(bench.record, one)
                    assert one.receipt is not None
                    with trio.fail_after(10), pytest.raises(StorageUnavailable):
                        await one.receipt.wait()
                    await sql(f"ALTER DATABASE {database}_away RENAME TO {database}")
            nursery.cancel_scope.cancel()
    finally:
        if not await sql(f"SELECT 1 FROM pg_database WHERE datname = '{database}'"):
            await sql(f"ALTER DATABASE {database}_away RENAME TO {database}")
    assert bench.published == []
    assert await store.position() == 0
