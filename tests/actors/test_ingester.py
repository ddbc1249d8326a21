"""The ingester over a real node of a local network: what it asks for, what it hands down, and what it refuses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio
import trio.testing
from structlog.testing import capture_logs

from fluxora.actors.ingester import Ingester
from fluxora.actors.parcel import Parcel, Rewind
from fluxora.actors.progress import Progress
from fluxora.actors.sources.rotation import RetryPolicy
from fluxora.actors.sources.stellar_rpc import StellarRpcSource
from fluxora.config import SourceConfig
from fluxora.localnet import Network, Script, open_localnet
from fluxora.protocol.chain import LedgerBatch, LedgerHeader

PATIENCE_S = 20
FIRST = 100
FAST = RetryPolicy(attempts=3, base_s=0.002, cap_s=0.01, budget_s=5.0)


@dataclass
class Downstream:
    """The pipeline's place: takes batches, one at a time."""

    inbox: trio.MemoryReceiveChannel[Parcel]
    rewind: Rewind
    progress: Progress
    taken: list[LedgerBatch] = field(default_factory=list)

    async def take(self) -> LedgerBatch:
        with trio.fail_after(PATIENCE_S):
            self.taken.append((await self.inbox.receive()).batch)
        return self.taken[-1]

    async def through(self, ledger: int) -> list[LedgerBatch]:
        """Batches up to the one that completes `ledger`."""
        found = [await self.take()]
        while (found[-1].complete_through or 0) < ledger:
            found.append(await self.take())
        return found


@asynccontextmanager
async def network(ledgers: int, **options: Any) -> AsyncIterator[Network]:
    """Its ledgers are FIRST to FIRST + `ledgers`, the last one the tip."""
    async with open_localnet(seed=5, first_ledger=FIRST, script=Script(5, streams_per_ledger=1), **options) as net:
        await net.close_ledgers(ledgers)
        assert net.chain.latest.sequence == FIRST + ledgers
        yield net


@asynccontextmanager
async def ingesting(
    net: Network,
    *,
    done: int | None = None,
    headers: Sequence[LedgerHeader] = (),
    epoch: int = 1,
    **settings: Any,
) -> AsyncIterator[Downstream]:
    config = SourceConfig(
        kind="rpc",
        rpc_urls=(net.url,),
        network_passphrase=net.chain.passphrase,
        request_timeout_s=5.0,
        **{"header_every": 1, "poll_interval_s": 0.005, "page_limit": 7, **settings},
    )
    outbox, inbox = trio.open_memory_channel[Parcel](0)
    down = Downstream(inbox, Rewind(), Progress())
    async with trio.open_nursery() as nursery:
        with_source = StellarRpcSource(config, [one.contract_id for one in net.contracts], policy=FAST)
        ingester = Ingester(
            outbox,
            source=with_source,
            config=config,
            progress=down.progress,
            rewind=down.rewind,
            complete_through=done,
            headers=list(headers),
            epoch=epoch,
        )
        await nursery.start(ingester.run)
        try:
            yield down
        finally:
            nursery.cancel_scope.cancel()
            with_source.close()


def header(net: Network, sequence: int) -> LedgerHeader:
    ledger = net.chain.ledger(sequence)
    assert ledger is not None
    return LedgerHeader(sequence, ledger.hash.hex(), None, ledger.closed_at)


def of_chain(net: Network, first: int, last: int) -> list[str]:
    """Ids of the events that the chain holds."""
    return [
        f"{one.sequence << 32 | (at >> 44) << 12 | at >> 32 & 4095:019d}-{at & 0xFFFFFFFF:010d}"
        for one in net.chain.ledgers(first, last)
        for at in one.events().positions
    ]


def ids(batches: Sequence[LedgerBatch]) -> list[str]:
    return [one.id for batch in batches for one in batch.events]


def sequences(batches: Sequence[LedgerBatch]) -> list[list[int]]:
    return [[one.sequence for one in batch.headers] for batch in batches if batch.headers]


async def test_from_the_oldest_ledger_to_the_tip_and_on() -> None:
    async with network(20) as net, ingesting(net) as down:
        batches = await down.through(FIRST + 20)
        assert ids(batches) == of_chain(net, FIRST, FIRST + 20)
        assert sequences(batches[:1]) == [list(range(FIRST, FIRST + 21))], "the headers come before the events"
        assert sequences(batches[1:]) == []
        marks = [batch.complete_through for batch in batches[1:]]
        assert marks == sorted(marks)  # type: ignore[type-var]
        assert {batch.generation for batch in batches} == {0}
        assert {batch.tip for batch in batches[1:]} == {FIRST + 20}
        for _ in range(3):
            net.close_ledger_nowait()
        grown = await down.through(FIRST + 23)
        assert ids(grown) == of_chain(net, FIRST + 21, FIRST + 23)
        looks = sequences(grown)
        assert looks[-1] == list(range(FIRST + 20, FIRST + 24)), "with a second look at the last one"
        assert all(look == [FIRST + 20] for look in looks[:-1]), "and at rest"
        assert (down.progress.tip, down.progress.halted) == (FIRST + 23, None)


async def test_it_goes_on_after_what_is_recorded() -> None:
    """Headers run ahead of events: those that are stored already are looked at again."""
    async with network(20) as net:
        stored = [header(net, n) for n in range(FIRST, FIRST + 13)]
        async with ingesting(net, done=FIRST + 9, headers=stored) as down:
            batches = await down.through(FIRST + 20)
            assert ids(batches) == of_chain(net, FIRST + 10, FIRST + 20)
            assert sequences(batches) == [list(range(FIRST + 10, FIRST + 21))]


async def test_the_configured_start_is_that_of_the_first_epoch_only() -> None:
    async with network(20) as net:
        async with ingesting(net, start_ledger=FIRST + 15) as down:
            assert ids(await down.through(FIRST + 20)) == of_chain(net, FIRST + 15, FIRST + 20)
        async with ingesting(net, start_ledger=FIRST + 15, epoch=2) as down:
            assert ids(await down.through(FIRST + 20)) == of_chain(net, FIRST, FIRST + 20)


async def test_a_header_now_and_then_with_the_one_before() -> None:
    """Where not every header is fetched: the round's last, once enough ledgers have gone by."""
    async with network(20) as net, ingesting(net, header_every=8) as down:
        assert sequences(await down.through(FIRST + 20)) == [[FIRST + 20]]
        for _ in range(7):
            net.close_ledger_nowait()
        assert sequences(await down.through(FIRST + 27)) == []
        net.close_ledger_nowait()
        assert sequences(await down.through(FIRST + 28)) == [[FIRST + 20, FIRST + 28]]


async def test_pruned_history_halts_it_until_a_node_has_it() -> None:
    async with network(20) as net:
        net.faults.prune_before = FIRST + 12
        async with ingesting(net, done=FIRST + 9) as down:
            with trio.fail_after(PATIENCE_S):
                while down.progress.halted is None:
                    await trio.sleep(0.001)
            assert down.progress.halted == "history_pruned"
            assert down.inbox.statistics().tasks_waiting_send == 0, "nothing is skipped"
            net.faults.prune_before = None
            assert ids(await down.through(FIRST + 20)) == of_chain(net, FIRST + 10, FIRST + 20)
            await net.close_ledger()
            await down.through(FIRST + 21)
            assert down.progress.halted is None


async def test_before_it_halts_what_the_node_still_has_is_checked() -> None:
    """The history may be another one altogether, and then nothing is lost."""
    async with network(20) as net:
        net.faults.prune_before = FIRST + 12
        async with ingesting(net, done=FIRST + 9, headers=[header(net, n) for n in range(FIRST, FIRST + 15)]) as down:
            assert sequences([await down.take()]) == [[FIRST + 14]]
            down.rewind.back_to(None, complete_through=None)
            batches = await down.through(FIRST + 20)
            assert ids(batches) == of_chain(net, FIRST + 12, FIRST + 20)


async def test_a_pruned_anchor_does_not_hold_it_up() -> None:
    """The node has just what is missing, and not the ledger before it, whose header would be looked at again."""
    async with network(20) as net:
        stored = [header(net, n) for n in range(FIRST, FIRST + 10)]
        net.faults.prune_before = FIRST + 10
        async with ingesting(net, done=FIRST + 9, headers=stored) as down:
            batches = await down.through(FIRST + 20)
            assert ids(batches) == of_chain(net, FIRST + 10, FIRST + 20)
            assert sequences(batches) == [list(range(FIRST + 10, FIRST + 21))]


async def test_missing_headers_are_waited_for() -> None:
    async with network(20) as net:
        net.faults.gap(FIRST + 12, FIRST + 13)
        async with ingesting(net, done=FIRST + 9) as down:
            with capture_logs() as lines, trio.fail_after(PATIENCE_S):
                while not any(line["event"] == "ingester.source_failed" for line in lines):
                    await trio.sleep(0.001)
            assert down.taken == []
            net.faults.clear()
            assert ids(await down.through(FIRST + 20)) == of_chain(net, FIRST + 10, FIRST + 20)


async def test_after_a_rewind_it_goes_on_from_where_history_holds() -> None:
    async with network(20) as net, ingesting(net) as down:
        while (await down.take()).complete_through is None:
            pass
        down.rewind.back_to(FIRST + 8, complete_through=FIRST + 5)
        stale = [await down.take()]  # it was being handed over
        while stale[-1].generation == 0:
            stale.append(await down.take())
        fresh = [stale.pop(), *(await down.through(FIRST + 20))]
        assert len(stale) <= 1
        assert {batch.generation for batch in fresh} == {1}
        assert ids(fresh) == of_chain(net, FIRST + 6, FIRST + 20)
        assert sequences(fresh) == [list(range(FIRST + 6, FIRST + 21))]


async def test_headers_of_a_history_that_is_void_do_not_stand_for_the_new_one() -> None:
    async with network(20) as net, ingesting(net, header_every=8) as down:
        assert sequences(await down.through(FIRST + 20)) == [[FIRST + 20]]
        down.rewind.back_to(FIRST + 8, complete_through=FIRST + 8)
        assert sequences(await down.through(FIRST + 20)) == [[FIRST + 20]]


async def test_a_rewind_ends_the_wait_at_the_tip() -> None:
    async with network(5) as net, ingesting(net, poll_interval_s=3_600, header_every=64) as down:
        await down.through(FIRST + 5)
        await trio.testing.wait_all_tasks_blocked(0.01)
        down.rewind.back_to(FIRST + 2, complete_through=FIRST + 2)
        assert ids(await down.through(FIRST + 5)) == of_chain(net, FIRST + 3, FIRST + 5)


async def test_a_node_behind_is_waited_for_and_its_history_checked() -> None:
    async with network(20) as net:
        stored = [header(net, n) for n in range(FIRST, FIRST + 21)]
        net.faults.lag = 6
        async with ingesting(net, done=FIRST + 20, headers=stored) as down:
            behind = await down.take()
            assert (sequences([behind]), behind.events, behind.complete_through) == ([[FIRST + 14]], (), None)
            assert down.progress.reorgs == 0


async def test_a_node_far_behind_without_a_ledger_in_common_serves_a_new_history() -> None:
    async with network(20) as net:
        old = [LedgerHeader(n, "ab" * 32, None, 0) for n in (9_000, 9_010)]
        async with ingesting(net, done=9_010, headers=old) as down:
            reset = await down.take()
            assert (reset.new_epoch, reset.generation, reset.headers, reset.events) == (True, 1, (), ())
            assert (down.progress.reorgs, down.progress.reorg_detected) == (1, True)
            batches = await down.through(FIRST + 20)
            assert not any(batch.new_epoch for batch in batches)
            assert ids(batches) == of_chain(net, FIRST, FIRST + 20)


async def test_a_node_a_little_behind_without_a_ledger_in_common_is_waited_for() -> None:
    async with network(20) as net:
        old = [LedgerHeader(FIRST + 500, "ab" * 32, None, 0)]
        async with ingesting(net, done=FIRST + 500, headers=old) as down:
            with capture_logs() as lines, trio.fail_after(PATIENCE_S):
                while not any(line["event"] == "ingester.node_behind" for line in lines):
                    await trio.sleep(0.001)
            assert down.rewind.generation == 0
            assert down.taken == []


async def test_at_rest_the_tip_is_looked_at_again_for_a_fork_of_the_same_height() -> None:
    async with network(20) as net, ingesting(net) as down:
        await down.through(FIRST + 20)
        before = net.chain.latest.hash.hex()
        look = await down.take()
        assert [(one.sequence, one.hash) for one in look.headers] == [(FIRST + 20, before)]
        await net.fork(3, repeat=True)  # at once, so that the tip is never lower
        while (look := await down.take()).headers[0].hash == before:
            pass
        assert [(one.sequence, one.hash) for one in look.headers] == [(FIRST + 20, net.chain.latest.hash.hex())]


async def test_a_failing_node_is_waited_out() -> None:
    async with network(20) as net:
        net.faults.status(500, times=0)
        async with ingesting(net) as down:
            with capture_logs() as lines, trio.fail_after(PATIENCE_S):
                while not any(line["event"] == "ingester.source_failed" for line in lines):
                    await trio.sleep(0.001)
            net.faults.clear()
            assert ids(await down.through(FIRST + 20)) == of_chain(net, FIRST, FIRST + 20)
