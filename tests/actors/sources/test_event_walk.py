"""The walk over getEvents against a model of a node, for any distribution of events over ledgers and any page limit."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_node import CONTRACT, STRANGER, Answer, History, event, window_end

from fluxora.actors.sources.event_walk import EventWalk
from fluxora.actors.sources.failures import HistoryPruned, NodeRange
from fluxora.actors.sources.rpc_replies import EventsReply
from fluxora.errors import SourceUnavailable


def take(walk, history):
    answer = history.getEvents(walk.request())
    assert not isinstance(answer, Answer), answer.error
    return walk.absorb(msgspec.convert(answer, EventsReply, strict=False))


def take_or_wait(walk, history):
    try:
        return take(walk, history)
    except NodeRange as error:
        return error


# (ledger, transaction, operation, index): fee events use the first and the last transaction of a ledger
POSITIONS = st.tuples(
    st.one_of(st.integers(1, 12), st.integers(1, 12).map(lambda n: n * 9_999), st.just(25_000)),
    st.sampled_from([0, 1, 2, 1048575]),
    st.sampled_from([0, 1, 4095]),
    st.integers(0, 2),
)


@settings(max_examples=300)
@given(
    positions=st.sets(POSITIONS, max_size=40),
    limit=st.integers(1, 12),
    cap=st.none() | st.integers(1, 5),
    first=st.integers(1, 30_000),
    length=st.integers(1, 40_000),
    slack=st.integers(0, 3),
    honours_end=st.booleans(),
)
def test_walk_yields_each_event_once_in_order_with_sound_marks(  # noqa: PLR0917 - Hypothesis passes them by name
    positions, limit, cap, first, length, slack, honours_end
):
    last = first + length - 1
    events = [event(*position) for position in positions]
    history = History(events, latest=last + slack, cap=cap, honours_end=honours_end)
    expected = [e["id"] for e in history.events if first <= e["ledger"] <= last]
    walk = EventWalk([CONTRACT], first, last, limit)
    seen, steps = [], 0
    while not walk.finished:
        before = walk.complete_through
        seen += [e.id for e in take(walk, history)]
        assert before <= walk.complete_through <= last
        # every event of the ledgers below the mark has been handed over
        due = [e["id"] for e in history.events if first <= e["ledger"] <= walk.complete_through]
        assert seen[: len(due)] == due
        steps += 1
        assert steps <= len(events) + length // 9_999 + 3
    assert seen == expected
    assert walk.complete_through == last


@settings(max_examples=100)
@given(
    ledgers=st.lists(st.integers(1, 60), max_size=30),
    limit=st.integers(1, 8),
    growth=st.lists(st.integers(0, 12), min_size=1, max_size=30),
)
def test_walk_on_a_growing_chain_loses_nothing(ledgers, limit, growth):
    """The node's tip rises while the walk goes on: at the tip it waits, and continues where it was."""
    events = [event(ledger, tx=n) for n, ledger in enumerate(ledgers, 1)]
    every = History(events, latest=60).events
    walk = EventWalk([CONTRACT], 1, 60, limit)
    seen = []
    latest = 1
    heights = [*growth, 60]
    for rise in heights:
        latest = min(60, latest + rise)
        history = History([e for e in events if e["ledger"] <= latest], latest=latest)
        while not walk.finished:
            answer = take_or_wait(walk, history)
            if isinstance(answer, NodeRange):
                assert (answer.requested, answer.latest) == (latest + 1, latest)
                break
            seen += [e.id for e in answer]
    assert seen == [e["id"] for e in every]


END_OF_10 = window_end(10)


def reply(events=(), cursor=END_OF_10, latest=100, oldest=1):
    body = {"events": list(events), "latestLedger": latest, "oldestLedger": oldest, "cursor": cursor}
    return msgspec.convert(body, EventsReply, strict=False)


def test_refused_answer_moves_nothing():
    walk = EventWalk([CONTRACT], 5, 50, 10)
    walk.absorb(reply([event(7)], cursor=window_end(10)))
    request = walk.request()
    for wrong in (
        reply([event(12, contractId=STRANGER)], cursor=window_end(9)),  # back
        reply([event(12)], cursor=window_end(11)),  # an event beyond the cursor
        reply([], cursor="?"),
        reply([], cursor=window_end(10)),  # no progress
    ):
        with pytest.raises(SourceUnavailable):
            walk.absorb(wrong)
        assert walk.request() == request
        assert walk.complete_through == 10


def test_events_of_an_earlier_page_do_not_come_again():
    walk = EventWalk([CONTRACT], 5, 50, 2)
    first = walk.absorb(reply([event(6), event(7)], cursor=event(7)["id"]))
    second = walk.absorb(reply([event(6), event(7), event(8)], cursor=window_end(50)))
    assert [e.ledger for e in first + second] == [6, 7, 8]


def test_answer_of_a_node_that_no_longer_has_the_start_is_not_taken():
    walk = EventWalk([CONTRACT], 5, 50, 10)
    with pytest.raises(HistoryPruned) as caught:
        walk.absorb(reply([event(9)], cursor=window_end(50), oldest=6))
    assert (caught.value.requested, caught.value.oldest) == (5, 6)
    assert walk.complete_through == 4


def test_event_at_the_last_position_of_a_ledger_is_not_a_window_end():
    fee_refund = event(9, tx=1048575, op=0, index=0)
    walk = EventWalk([CONTRACT], 5, 50, 1)
    walk.absorb(reply([fee_refund], cursor=fee_refund["id"]))
    assert walk.complete_through == 8


def test_missing_cursor_falls_back_to_the_last_event():
    walk = EventWalk([CONTRACT], 5, 50, 10)
    walk.absorb(reply([event(9)], cursor=""))
    assert walk.request()["pagination"]["cursor"] == event(9)["id"]
    assert walk.complete_through == 8
