"""Pushed events through the real pipeline, and what a caller is told when it cannot take them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest
import trio
import trio.testing
from chain_events import digest, event, ids

from fluxora.actors.dedup import Deduplicator
from fluxora.actors.guard import Guard
from fluxora.actors.parcel import Parcel, Rewind
from fluxora.actors.progress import Progress
from fluxora.actors.recorder import Recorder
from fluxora.actors.sources.push import PushOutcome, PushSource
from fluxora.errors import LeaseLost, StorageUnavailable
from fluxora.protocol.chain import KnownChain
from fluxora.protocol.contract import ContractEvent
from fluxora.storage.store import EventQuery, Store


@pytest.fixture
async def push(store: Store, lease: int, nursery: trio.Nursery) -> AsyncIterator[PushSource]:
    source, progress = PushSource(), Progress()
    to_guard, guard_inbox = trio.open_memory_channel[Parcel](4)
    to_dedup, dedup_inbox = trio.open_memory_channel[Parcel](4)
    to_recorder, recorder_inbox = trio.open_memory_channel[Parcel](4)
    guard = Guard(guard_inbox, to_dedup, chain=KnownChain(), rewind=Rewind(), progress=progress, probe=None)
    recorder = Recorder(
        recorder_inbox,
        store=store,
        lease=lease,
        progress=progress,
        publish=lambda _: None,
        events_per_transaction=100,
    )
    for actor in (recorder, Deduplicator(dedup_inbox, to_recorder, epoch=1), guard):
        await nursery.start(actor.run)
    source.open(to_guard)
    yield source
    source.close()


async def submit(push: PushSource, events: Sequence[ContractEvent], branch: str = "") -> PushOutcome:
    with trio.fail_after(20):
        return await push.submit(events, {one.ledger: digest(one.ledger, branch) for one in events})


async def test_what_is_answered_is_recorded(push: PushSource, store: Store) -> None:
    """In chain order, whatever the order it came in."""
    events = [event(7), event(5, 1), event(5), event(6)]
    outcome = await submit(push, events)
    assert outcome == PushOutcome(ids([event(5), event(5, 1), event(6), event(7)]), [], 4)
    recorded = await store.events(EventQuery())
    assert [one.event_id for one in recorded] == [f"1-{id_}" for id_ in outcome.inserted]
    state = await store.ingest_state()
    assert [(one.sequence, one.hash, one.closed_at) for one in state.headers] == [
        (n, digest(n), event(n).closed_at) for n in (5, 6, 7)
    ]
    assert state.complete_through is None, "a push does not say that a ledger is complete"


async def test_again_is_harmless(push: PushSource) -> None:
    await submit(push, [event(5), event(6)])
    again = await submit(push, [event(6), event(7)])
    assert again == PushOutcome(ids([event(7)]), ids([event(6)]), 3)


async def test_another_hash_takes_back_that_ledger_and_all_above(push: PushSource, store: Store) -> None:
    await submit(push, [event(5), event(6), event(7), event(7, 1)])
    outcome = await submit(push, [event(6, 5)], branch="b")
    assert (outcome.inserted, outcome.rolled_back, outcome.rolled_back_from) == (ids([event(6, 5)]), 3, 6)
    assert outcome.position == await store.position()
    taken_back_may_come_again = await submit(push, [event(7)], branch="b")
    assert taken_back_may_come_again.inserted == ids([event(7)])
    assert taken_back_may_come_again.rolled_back_from is None


async def test_a_replica_that_does_not_ingest_says_so(store: Store) -> None:
    with pytest.raises(StorageUnavailable):
        await PushSource().submit([event(5)], {5: digest(5)})
    source = PushSource()
    to_guard, _inbox = trio.open_memory_channel[Parcel](4)
    source.open(to_guard)
    source.close()
    source.close()  # harmless
    with pytest.raises(StorageUnavailable):
        await source.submit([event(5)], {5: digest(5)})


@pytest.mark.parametrize("room", [0, 1])
async def test_a_pipeline_that_goes_down_refuses_what_it_has_not_answered(room: int) -> None:
    """Whether it still waits for its turn or was taken already."""
    source = PushSource()
    to_guard, _inbox = trio.open_memory_channel[Parcel](room)
    source.open(to_guard)
    with trio.fail_after(20), pytest.RaisesGroup(StorageUnavailable):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.submit, [event(5)], {5: digest(5)})
            await trio.testing.wait_all_tasks_blocked()
            source.close()


@pytest.mark.parametrize("room", [0, 1])
async def test_the_wait_has_an_end(room: int, autojump_clock: trio.testing.MockClock) -> None:
    source = PushSource(deadline_s=7)
    to_guard, _inbox = trio.open_memory_channel[Parcel](room)
    source.open(to_guard)
    began = trio.current_time()
    with pytest.raises(StorageUnavailable):
        await source.submit([event(5)], {5: digest(5)})
    assert trio.current_time() - began == pytest.approx(7)
    assert not source._outstanding


async def test_a_lost_lease_is_told_as_unavailable() -> None:
    """It is not the caller's business which replica ingests; sending again is right either way."""
    source = PushSource()
    to_guard, inbox = trio.open_memory_channel[Parcel](1)
    source.open(to_guard)
    with trio.fail_after(20), pytest.RaisesGroup(StorageUnavailable):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.submit, [event(5)], {5: digest(5)})
            parcel = await inbox.receive()
            assert parcel.receipt is not None
            parcel.receipt.fail(LeaseLost("gone"))
