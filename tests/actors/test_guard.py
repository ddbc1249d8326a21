"""The guard's judgement over a node that is played by a dictionary of hashes; channels and trio are real."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from fluxora.actors.guard import Guard, Probe
from fluxora.actors.parcel import Parcel, Receipt, Rewind
from fluxora.actors.progress import Progress
from fluxora.errors import ChainDiverged, HistoryLost, SourceError, SourceUnavailable, StorageUnavailable
from fluxora.protocol.chain import KnownChain, LedgerBatch, LedgerHeader


def digest(branch: str, sequence: int) -> str:
    return (branch.encode().hex() + f"{sequence:08x}").rjust(64, "0")


def headers(branch: str, first: int, last: int, *, forked_from: tuple[str, int] | None = None) -> list[LedgerHeader]:
    """A run of linked headers; with `forked_from` (branch, ledger) the first one's parent lies on that branch."""
    found = []
    for sequence in range(first, last + 1):
        before = forked_from[0] if forked_from and sequence - 1 <= forked_from[1] else branch
        found.append(
            LedgerHeader(sequence, digest(branch, sequence), digest(before, sequence - 1), 1000 + 5 * sequence)
        )
    return found


@dataclass
class Node:
    """What the node would show: its hash of each ledger; what is missing is pruned."""

    hashes: dict[int, str]
    asked: list[int] = field(default_factory=list)

    async def __call__(self, sequence: int) -> str | None:
        self.asked.append(sequence)
        return self.hashes.get(sequence)


async def judge(chain: KnownChain, node: Probe | None, batches: list[LedgerBatch]) -> tuple[list[LedgerBatch], Rewind]:
    to_guard, inbox = trio.open_memory_channel[Parcel](100)
    outbox, out = trio.open_memory_channel[Parcel](100)
    rewind, progress = Rewind(), Progress()
    guard = Guard(inbox, outbox, chain=chain, rewind=rewind, progress=progress, probe=node)
    for batch in batches:
        to_guard.send_nowait(Parcel(batch))
    to_guard.close()
    await guard.run()
    return [parcel.batch async for parcel in out], rewind


async def test_headers_that_fit_pass_and_are_remembered() -> None:
    chain = KnownChain(headers("a", 1, 3))
    batch = LedgerBatch(headers=tuple(headers("a", 3, 6)))
    assert (await judge(chain, Node({}), [batch]))[0] == [batch]
    assert chain.newest == 6


@given(
    known=st.sets(st.integers(2, 300), min_size=1, max_size=60),
    fork=st.integers(1, 300),
    pruned_below=st.integers(1, 300),
)
async def test_a_fork_goes_back_to_the_newest_ledger_that_both_have(
    known: set[int], fork: int, pruned_below: int
) -> None:
    """Ledgers up to `fork` are common; the node shows branch b above, and nothing below `pruned_below`."""
    top = 301
    chain = KnownChain(
        [header for header in headers("a", 1, top) if header.sequence in known or header.sequence == top]
    )
    node = Node({n: digest("a" if n <= fork else "b", n) for n in range(pruned_below, top + 1)})
    parent = digest("a" if top - 1 <= fork else "b", top - 1)
    seen = LedgerBatch(headers=(LedgerHeader(top, digest("b", top), parent, 0),))
    [out], rewind = await judge(chain, node, [seen])
    common = [n for n in known if n <= fork and n >= pruned_below]
    expected = max(common, default=None)
    assert out.rollback_to == expected
    assert out.new_epoch == (expected is None)
    assert (rewind.generation, rewind.to) == (1, expected)
    assert {out.existing_hash, out.incoming_hash} & {digest("b", top), digest("b", top - 1)}
    assert chain.newest == max((n for n in known if expected is not None and n <= expected), default=None)
    assert len(node.asked) <= 8, "bisection"


async def test_parcels_fetched_before_a_rewind_are_dropped_and_their_senders_told() -> None:
    to_guard, inbox = trio.open_memory_channel[Parcel](10)
    outbox, out = trio.open_memory_channel[Parcel](10)
    rewind = Rewind()
    guard = Guard(
        inbox, outbox, chain=KnownChain(headers("a", 1, 9)), rewind=rewind, progress=Progress(), probe=Node({})
    )
    receipt = Receipt()
    fork = LedgerBatch(headers=tuple(headers("b", 9, 9)))
    to_guard.send_nowait(Parcel(fork))
    to_guard.send_nowait(Parcel(LedgerBatch(complete_through=12), receipt))
    to_guard.send_nowait(Parcel(LedgerBatch(complete_through=3, generation=1)))
    to_guard.close()
    await guard.run()
    passed = [parcel.batch async for parcel in out]
    assert [batch.complete_through for batch in passed] == [None, 3]
    with pytest.raises(StorageUnavailable):
        await receipt.wait()


async def test_a_parent_link_that_contradicts_what_is_stored_is_a_fork() -> None:
    chain = KnownChain(headers("a", 1, 9))
    node = Node({n: digest("a" if n <= 7 else "b", n) for n in range(1, 20)})
    [out], _ = await judge(chain, node, [LedgerBatch(headers=tuple(headers("b", 10, 12)))])
    assert out.rollback_to == 7
    assert out.existing_hash == digest("a", 9)
    assert out.incoming_hash == digest("b", 9)


async def test_a_pushed_fork_is_undone_in_the_batch_that_brings_the_new_branch() -> None:
    chain = KnownChain(headers("a", 1, 9))
    batch = LedgerBatch(headers=(LedgerHeader(8, digest("b", 8), None, 0), LedgerHeader(11, digest("b", 11), None, 0)))
    [out], rewind = await judge(chain, None, [batch])
    assert out.rollback_to == 7
    assert out.headers == batch.headers
    assert rewind.generation == 0
    assert (chain.hash_of(7), chain.hash_of(8), chain.hash_of(9)) == (digest("a", 7), digest("b", 8), None)


async def test_a_new_epoch_forgets_the_old_network() -> None:
    chain = KnownChain(headers("a", 1, 9))
    batches = [LedgerBatch(new_epoch=True), LedgerBatch(headers=tuple(headers("b", 3, 5)))]
    passed, rewind = await judge(chain, Node({}), batches)
    assert passed == batches
    assert rewind.generation == 0
    assert chain.below(100) == [3, 4, 5]


async def test_events_that_were_void_with_a_fork_are_fetched_again() -> None:
    """Headers are known up to 9, events up to 3; what came of 4 and 5 before the fork at 8 was seen still holds."""
    to_guard, inbox = trio.open_memory_channel[Parcel](100)
    outbox, out = trio.open_memory_channel[Parcel](100)
    rewind, node = Rewind(), Node({n: digest("a", n) for n in range(1, 8)} | {n: digest("b", n) for n in (8, 9, 10)})
    guard = Guard(
        inbox,
        outbox,
        chain=KnownChain(headers("a", 1, 9)),
        rewind=rewind,
        progress=Progress(),
        probe=node,
        complete_through=3,
    )
    for batch in (
        LedgerBatch(complete_through=5),
        LedgerBatch(headers=tuple(headers("b", 8, 10, forked_from=("a", 7)))),
        LedgerBatch(complete_through=10),  # on its way behind the headers
    ):
        to_guard.send_nowait(Parcel(batch))
    to_guard.close()
    await guard.run()
    passed = [parcel.batch async for parcel in out]
    assert [batch.rollback_to for batch in passed] == [None, 7]
    assert (rewind.to, rewind.complete_through) == (7, 5)


async def test_a_fork_right_after_a_new_epoch_fetches_all_of_it_again() -> None:
    """Nothing of the new network has been let through yet, however far the old one had come."""
    to_guard, inbox = trio.open_memory_channel[Parcel](100)
    outbox, _out = trio.open_memory_channel[Parcel](100)
    rewind, node = Rewind(), Node({n: digest("b" if n < 4 else "c", n) for n in range(1, 7)})
    chain = KnownChain(headers("a", 1, 9))
    guard = Guard(inbox, outbox, chain=chain, rewind=rewind, progress=Progress(), probe=node, complete_through=9)
    for batch in (
        LedgerBatch(new_epoch=True),
        LedgerBatch(headers=tuple(headers("b", 1, 5))),
        LedgerBatch(headers=tuple(headers("c", 5, 6))),
    ):
        to_guard.send_nowait(Parcel(batch))
    to_guard.close()
    await guard.run()
    assert (rewind.to, rewind.complete_through) == (3, None)


@pytest.mark.parametrize(
    "failure",
    [
        SourceUnavailable("throttled", "wait", retry_after_s=7),
        ChainDiverged("wrong_network", "every endpoint serves another network"),
        HistoryLost("history_pruned", "gone"),
    ],
)
async def test_a_node_that_cannot_answer_is_asked_until_it_can(
    failure: SourceError, autojump_clock: trio.testing.MockClock
) -> None:
    """Whatever is wrong with it: the guard ending would be a crash, and there is no safe way on without an answer."""
    node = Node({n: digest("a" if n <= 7 else "b", n) for n in range(1, 20)})
    failures = [failure] * 5

    async def probe(sequence: int) -> str | None:
        if failures:
            raise failures.pop()
        return await node(sequence)

    began = trio.current_time()
    [out], _ = await judge(KnownChain(headers("a", 1, 9)), probe, [LedgerBatch(headers=tuple(headers("b", 9, 9)))])
    assert out.rollback_to == 7
    assert trio.current_time() - began == pytest.approx(5 * (failure.retry_after_s or 1))


async def test_a_fork_is_told_from_the_first_ledger_that_is_taken_back() -> None:
    to_guard, inbox = trio.open_memory_channel[Parcel](1)
    outbox, _out = trio.open_memory_channel[Parcel](1)
    node, progress = Node({n: digest("a" if n <= 3 else "b", n) for n in range(1, 20)}), Progress()
    guard = Guard(inbox, outbox, chain=KnownChain(headers("a", 1, 9)), rewind=Rewind(), progress=progress, probe=node)
    to_guard.send_nowait(Parcel(LedgerBatch(headers=tuple(headers("b", 9, 9)))))
    to_guard.close()
    await guard.run()
    assert (progress.reorg_from, progress.reorgs) == (4, 1)
