"""The deduplicator against a list kept by hand: the same bounded memory, rollbacks and epochs included."""

from __future__ import annotations

import trio
from chain_events import event, header, ids
from hypothesis import example, given
from hypothesis import strategies as st

from fluxora.actors.dedup import Deduplicator
from fluxora.actors.parcel import Parcel, Receipt
from fluxora.protocol.chain import LedgerBatch

EVENTS = {(ledger, index): event(ledger, index) for ledger in range(1, 6) for index in range(2)}
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["pass", "pass", "pass", "roll back", "begin anew"]),
        st.integers(0, 5),
        st.lists(st.sampled_from(sorted(EVENTS)), max_size=6),
    ),
    max_size=12,
)


def dedup(entries: int) -> Deduplicator:
    to_dedup, inbox = trio.open_memory_channel[Parcel](1)
    outbox, out = trio.open_memory_channel[Parcel](1)
    to_dedup.close()
    out.close()
    return Deduplicator(inbox, outbox, epoch=1, entries=entries)


@given(STEPS, st.integers(1, 8))
@example([("pass", 0, [(1, 0), (2, 0), (1, 0), (2, 1)]), ("roll back", 2, [(1, 1), (1, 0)])], 3)  # a look is no use
def test_it_remembers_the_last_entries_of_the_history_that_holds(
    steps: list[tuple[str, int, list[tuple[int, int]]]], entries: int
) -> None:
    actor, epoch = dedup(entries), 1
    remembered: list[tuple[int, str, int]] = []  # epoch, id, ledger; the one used last stands last
    for what, ledger, keys in steps:
        batch = LedgerBatch(
            events=tuple(EVENTS[key] for key in keys),
            rollback_to=ledger if what == "roll back" else None,
            new_epoch=what == "begin anew",
        )
        if what == "begin anew":
            epoch += 1
        elif what == "roll back":
            remembered = [one for one in remembered if one[2] <= ledger]
        fresh, duplicates = [], []
        for one in batch.events:
            key = (epoch, one.id, one.ledger)
            (duplicates if key in remembered else fresh).append(one.id)
            remembered = [*(other for other in remembered if other != key), key][-entries:]
        sifted = actor.sift(Parcel(batch))
        assert ids(sifted.batch.events) == fresh
        assert list(sifted.duplicates) == duplicates


async def test_only_events_are_taken_out_and_the_order_is_kept() -> None:
    to_dedup, inbox = trio.open_memory_channel[Parcel](10)
    outbox, out = trio.open_memory_channel[Parcel](10)
    receipt = Receipt()
    again = LedgerBatch(
        events=(event(1), event(2)), headers=(header(2),), complete_through=2, tip=9, generation=3, incoming_hash="ab"
    )
    for parcel in (Parcel(LedgerBatch(events=(event(1),))), Parcel(again, receipt, ("seen before",))):
        to_dedup.send_nowait(parcel)
    to_dedup.close()
    await Deduplicator(inbox, outbox, epoch=1).run()
    first, second = [parcel async for parcel in out]
    assert ids(first.batch.events) == ids([event(1)])
    assert second.receipt is receipt
    assert second.duplicates == ("seen before", event(1).id)
    assert ids(second.batch.events) == ids([event(2)])
    assert (second.batch.headers, second.batch.complete_through, second.batch.tip) == ((header(2),), 2, 9)
    assert (second.batch.generation, second.batch.incoming_hash) == (3, "ab")
