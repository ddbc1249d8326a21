"""The corrector over a real node and a real database: what events leave in doubt, the ledger entry tells."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import asyncpg
import pytest
import trio

from fluxora.actors.corrector import Corrector
from fluxora.actors.guard import Guard
from fluxora.actors.parcel import Parcel, Rewind
from fluxora.actors.progress import Progress
from fluxora.actors.recorder import Recorder
from fluxora.actors.sources.rotation import RetryPolicy
from fluxora.actors.sources.stellar_rpc import StellarRpcSource
from fluxora.config import SourceConfig, StorageConfig
from fluxora.errors import LeaseLost
from fluxora.localnet import Network, account, open_localnet
from fluxora.protocol.chain import KnownChain, LedgerBatch
from fluxora.protocol.messages import StreamRecord, stream_id
from fluxora.protocol.streams import StreamKind
from fluxora.storage.bridge import open_bridge
from fluxora.storage.store import Appended, EventQuery, Store

PATIENCE_S = 20
ALICE, BOB = account(5, "alice"), account(5, "bob")
FAST = RetryPolicy(attempts=3, base_s=0.002, cap_s=0.01, budget_s=5.0)


class Bench:
    """A contract with a stream whose kind no event tells, a store that follows it on demand, and the corrector."""

    def __init__(self, net: Network, store: Store, source: StellarRpcSource, lease: int, url: str) -> None:
        self.net, self.store, self.source, self.lease, self.url = net, store, source, lease, url
        self.progress, self.rewind = Progress(), Rewind()
        self.wanted = trio.Event()
        self.contract = net.contract
        now = net.chain.next_closed_at
        # With a cliff, and a deposit that pays all: the events of a linear stream and of one that slopes are alike.
        terms: dict[str, Any] = {"deposit": 10_000, "rate": 1, "start": now, "cliff": now + 10, "end": now + 10_000}
        terms["kind"] = StreamKind.CLIFF_SLOPE
        self.number = self.contract.create(ALICE, BOB, **terms)
        self.id = stream_id(self.contract.contract_id, self.number, 1)

    async def follow(self) -> Appended:
        """Record what the chain has and the store does not."""
        first, last = (self.progress.complete_through or 1) + 1, self.net.chain.latest.sequence
        events = []
        async with aclosing(self.source.events(first, last)) as pages:
            async for page in pages:
                events += page.events
        appended = await self.store.append([LedgerBatch(events=tuple(events), complete_through=last)], lease=self.lease)
        self.progress.recorded(last, 0.0)
        self.wanted.set()
        self.wanted = trio.Event()
        return appended

    async def stream(self) -> StreamRecord:
        record = await self.store.stream(self.id)
        assert record is not None
        return record

    async def wants(self) -> int:
        """Those that are postponed included."""

        async def ask() -> int:
            connection = await asyncpg.connect(self.url)
            try:
                return int(await connection.fetchval("SELECT count(*) FROM entry_wants"))
            finally:
                await connection.close()

        async with open_bridge() as bridge:
            return await bridge.run(ask)

    async def corrections(self) -> list[int | None]:
        """The ledgers of what was recorded from entries."""
        return [one.ledger for one in await self.store.events(EventQuery(limit=1000)) if one.action == "corrected"]

    @asynccontextmanager
    async def correcting(self, *, lease: int | None = None) -> AsyncIterator[None]:
        to_guard, guard_inbox = trio.open_memory_channel[Parcel](4)
        to_recorder, inbox = trio.open_memory_channel[Parcel](4)
        corrector = Corrector(
            to_guard,
            source=self.source,
            store=self.store,
            progress=self.progress,
            rewind=self.rewind,
            reads_per_minute=12_000,
            wanted=lambda: self.wanted,
        )
        guard = Guard(
            guard_inbox, to_recorder, chain=KnownChain(), rewind=self.rewind, progress=self.progress, probe=None
        )
        recorder = Recorder(
            inbox,
            store=self.store,
            lease=lease or self.lease,
            progress=self.progress,
            publish=lambda _: None,
            events_per_transaction=100,
        )
        async with trio.open_nursery() as nursery:
            for actor in (recorder, guard, corrector):
                await nursery.start(actor.run)
            yield
            nursery.cancel_scope.cancel()

    async def until_settled(self) -> None:
        with trio.fail_after(PATIENCE_S):
            while await self.wants():
                await trio.sleep(0.005)


@pytest.fixture
async def bench(store: Store, lease: int, storage_config: StorageConfig) -> AsyncIterator[Bench]:
    async with open_localnet(seed=5) as net:
        config = SourceConfig(kind="rpc", rpc_urls=(net.url,), network_passphrase=net.chain.passphrase)
        source = StellarRpcSource(config, [net.contract.contract_id], policy=FAST)
        assert storage_config.database_url is not None
        yield Bench(net, store, source, lease, storage_config.database_url)
        source.close()


async def test_what_events_leave_open_is_read_and_recorded(bench: Bench) -> None:
    created = await bench.net.close_ledger()
    await bench.follow()
    assert (await bench.stream()).state.kind == StreamKind.LINEAR, "the likelier reading"
    async with bench.correcting():
        await bench.until_settled()
    state = (await bench.stream()).state
    assert (state.kind, state.kind_known) == (StreamKind.CLIFF_SLOPE, True)
    assert await bench.corrections() == [created.sequence]


async def test_a_change_that_is_not_recorded_yet_is_not_taken_from_the_entry(bench: Bench) -> None:
    """The entry is ahead of the log: what never changes is taken, the rest once the log has caught up."""
    created = await bench.net.close_ledger()
    await bench.follow()
    bench.net.chain.advance(100)
    bench.contract.withdraw(bench.number)
    withdrawn = await bench.net.close_ledger()
    asked: list[Any] = []
    postpone = bench.store.postpone_wants

    async def postponed(wants: Any, until: int) -> None:
        await postpone(wants, until)
        asked.extend(wants)

    bench.store.postpone_wants = postponed  # type: ignore[method-assign] # only listened to
    async with bench.correcting():
        with trio.fail_after(PATIENCE_S):
            while not asked:
                await trio.sleep(0.001)
        state = (await bench.stream()).state
        assert (state.withdrawn_amount, state.kind) == (0, StreamKind.CLIFF_SLOPE)
        assert set(await bench.corrections()) <= {created.sequence}
        assert await bench.wants() == 1
        await bench.follow()
        await bench.until_settled()
    state = (await bench.stream()).state
    assert state.withdrawn_amount == bench.contract.model_streams()[bench.number]["withdrawn_amount"] > 0
    assert set(await bench.corrections()) <= {created.sequence, withdrawn.sequence}


async def test_a_node_that_is_behind_cannot_say_that_there_is_none(bench: Bench) -> None:
    await bench.net.close_ledgers(3)
    await bench.follow()
    bench.net.faults.lag = 3  # it does not know of the stream yet
    answers: list[int] = []
    entries = bench.source.entries

    async def listened(keys: Any) -> Any:
        answer = await entries(keys)
        answers.append(len(answer[0]))
        return answer

    bench.source.entries = listened  # type: ignore[method-assign] # only listened to
    async with bench.correcting():
        with trio.fail_after(PATIENCE_S):
            while len(answers) < 2:
                await trio.sleep(0.001)
        assert answers[:2] == [0, 0]
        assert await bench.wants() == 1
        bench.net.faults.clear()
        await bench.until_settled()
    assert (await bench.stream()).state.kind == StreamKind.CLIFF_SLOPE


async def test_what_was_read_of_a_history_that_is_taken_back_is_read_again(bench: Bench) -> None:
    await bench.net.close_ledger()
    await bench.follow()
    answers: list[int] = []
    entries = bench.source.entries

    async def overtaken(keys: Any) -> Any:
        answer = await entries(keys)
        answers.append(len(answer[0]))
        if len(answers) == 1:
            bench.rewind.back_to(bench.progress.complete_through, complete_through=bench.progress.complete_through)
        return answer

    bench.source.entries = overtaken  # type: ignore[method-assign] # only overtaken
    async with bench.correcting():
        await bench.until_settled()
    assert answers == [1, 1]
    assert len(await bench.corrections()) == 1


async def test_an_entry_that_is_gone_is_no_longer_asked_for(bench: Bench) -> None:
    await bench.net.close_ledger()
    await bench.follow()
    bench.net.chain.reset(first_ledger=bench.net.chain.latest.sequence + 5)  # no entries, and as new as the log
    async with bench.correcting():
        await bench.until_settled()
    assert await bench.corrections() == []


async def test_a_failing_node_is_tried_again(bench: Bench) -> None:
    await bench.net.close_ledger()
    await bench.follow()
    bench.net.faults.status(500, times=6, methods=("getLedgerEntries",))
    async with bench.correcting():
        await bench.until_settled()
    assert (await bench.stream()).state.kind == StreamKind.CLIFF_SLOPE


async def test_a_want_stays_until_its_correction_is_durable(bench: Bench) -> None:
    await bench.net.close_ledger()
    await bench.follow()
    newer = await bench.store.try_lease()
    assert newer is not None
    with trio.fail_after(PATIENCE_S), pytest.raises(ExceptionGroup) as caught:
        async with bench.correcting():
            await trio.sleep_forever()
    assert caught.value.split(LeaseLost)[1] is None
    assert await bench.wants() == 1
    assert await bench.corrections() == []
    await newer.aclose()


async def test_a_ring_is_enough_to_look(bench: Bench) -> None:
    async with bench.correcting():
        await trio.lowlevel.checkpoint()
        await bench.net.close_ledger()
        await bench.follow()
        await bench.until_settled()
    assert (await bench.stream()).state.kind == StreamKind.CLIFF_SLOPE


async def test_nothing_is_read_while_a_rollback_is_under_way(bench: Bench) -> None:
    await bench.net.close_ledger()
    await bench.follow()
    bench.progress.fork_found(1)
    listed: list[int] = []
    entry_wants = bench.store.entry_wants

    async def listened(limit: int) -> Any:
        wants = await entry_wants(limit)
        listed.append(len(wants))
        return wants

    bench.store.entry_wants = listened  # type: ignore[method-assign] # only listened to
    async with bench.correcting():
        with trio.fail_after(PATIENCE_S):
            while len(listed) < 3:
                await trio.sleep(0.001)
        assert await bench.corrections() == []
        assert await bench.wants() == 1
        bench.progress.taken_back(2**31)
        await bench.until_settled()
    assert (await bench.stream()).state.kind == StreamKind.CLIFF_SLOPE
