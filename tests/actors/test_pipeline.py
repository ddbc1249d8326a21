"""The pipeline's group under its supervisor: it begins anew after any crash, and nobody waits for what is gone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from chain_events import digest, event, ids

from fluxora.actors.parcel import Parcel
from fluxora.actors.pipeline import Pipeline
from fluxora.actors.recorder import Recorder
from fluxora.actors.sources.push import PushSource
from fluxora.actors.supervisor import Group, Supervisor
from fluxora.config import Config, SourceConfig
from fluxora.errors import StorageUnavailable
from fluxora.protocol.chain import LedgerBatch
from fluxora.storage.store import Appended, EventQuery, Store

PATIENCE_S = 20


class Bench:
    def __init__(self, store: Store) -> None:
        self.published: list[Appended] = []
        self.push = PushSource()
        self.pipeline = Pipeline(
            config=Config(source=SourceConfig(kind="push")),
            store=store,
            source=None,
            push=self.push,
            entries=None,
            publish=self.published.append,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        supervisor = Supervisor("test", [Group("ingest", self.pipeline.children)], restart_delay_s=0.01)
        async with trio.open_nursery() as nursery:
            await nursery.start(supervisor.run)
            yield
            supervisor.stop()

    async def submit(self, ledger: int) -> list[str]:
        """Once the pipeline is up."""
        while self.push._inbox is None:
            await trio.sleep(0.001)
        return (await self.push.submit([event(ledger)], {ledger: digest(ledger)})).inserted


async def test_a_crash_is_told_to_who_waits_and_the_next_incarnation_takes_over(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, record, crashes = Bench(store), Recorder._record, [ZeroDivisionError("injected")]

    async def crashing(self: Recorder, parcels: Sequence[Parcel]) -> None:
        if crashes:
            raise crashes.pop()
        await record(self, parcels)

    monkeypatch.setattr(Recorder, "_record", crashing)
    with trio.fail_after(PATIENCE_S):  # less than a caller's own deadline
        async with bench.running():
            with pytest.raises(StorageUnavailable):
                await bench.submit(5)
            assert await bench.submit(5) == ids([event(5)])
            assert await bench.submit(6) == ids([event(6)])
    assert [one.position for one in await store.events(EventQuery())] == [1, 2]
    assert [one.position for appended in bench.published for one in appended.events] == [1, 2]


async def test_it_can_be_stopped_and_run_again(store: Store) -> None:
    bench = Bench(store)
    answers: list[list[str]] = []

    async def submit(ledger: int) -> None:
        answers.append(await bench.submit(ledger))

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as callers:
            async with bench.running():
                assert await bench.submit(5) == ids([event(5)])
                assert bench.pipeline.progress.leading
            assert not bench.pipeline.progress.leading
            with pytest.raises(StorageUnavailable):
                await bench.push.submit([event(6)], {6: digest(6)})
            async with bench.running():  # as another run would
                callers.start_soon(submit, 6)
                while not answers:
                    await trio.sleep(0.001)
    assert answers == [ids([event(6)])]


async def test_a_commit_rings_for_the_corrector(store: Store, lease: int) -> None:
    bench = Bench(store)
    bell = bench.pipeline._wanted
    bench.pipeline._committed(await store.append([LedgerBatch()], lease=lease))
    assert not bell.is_set(), "nothing new to ask about"
    bench.pipeline._committed(await store.append([LedgerBatch(events=(event(3),))], lease=lease))
    assert bell.is_set()
    assert not bench.pipeline._wanted.is_set(), "a fresh one for the next"
