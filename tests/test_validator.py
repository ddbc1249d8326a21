"""The judge of the promises: what was kept passes, and every way of breaking one is seen and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from promises import ALL, REVERTED, Break, Log, Row, Selector, Session, broadcast_print, judge, located, time_text

ANNA, BEN = Selector("sender", "anna"), Selector("recipient", "ben")
S1 = Selector("streamId", "s1")
SELECTORS = [
    ALL,
    S1,
    Selector("streamId", "s2"),
    ANNA,
    BEN,
    Selector("recipient", "cleo"),
    Selector("sender", "nobody"),
]


def row(
    position: int, event_id: str, stream_id: str | None = "s1", reverted_by: int | None = None, **payload: Any
) -> Row:
    event = REVERTED if "reverts" in payload else "stream.updated"
    return Row(position, event_id, stream_id, event, "x", 7, 1_000_000 + position, reverted_by, json.dumps(payload))


def log_of(*rows: Row, transactions: tuple[tuple[int, int, int], ...] = ()) -> Log:
    log = Log(transactions)
    for one in rows:
        log.add(one)
    log.check()
    return log


ROWS = (
    row(1, "a", sender="anna", recipient="ben"),
    row(2, "b", "s2", sender="anna", recipient="cleo"),
    row(3, "c", None, change={"paused": True}),
    row(4, "d", reverted_by=7, sender="anna", recipient="cleo", change={"oldRecipient": "ben"}),
    row(5, "e", reverted_by=7, sender="anna", recipient="cleo"),
    row(6, "f", "s2", reverted_by=8, sender="anna", recipient="ben", change={"oldRecipient": "cleo"}),
    row(7, "r1", reverts=["d", "e"], stream={"sender": "anna", "recipient": "ben"}),
    row(8, "r2", "s2", reverts=["f"], stream=None),
    row(9, "d", sender="anna", recipient="ben"),
    row(10, "g", "s2", sender="anna", recipient="cleo"),
    row(11, "h", sender="anna", recipient="ben"),
    row(12, "i", sender="anna", recipient="ben"),
)
TRANSACTIONS = ((1, 1, 1), (2, 5, 4), (6, 6, 1), (7, 8, 2), (9, 12, 4))
LOG = log_of(*ROWS, transactions=TRANSACTIONS)


def told(selector: Selector, after: int, end: int, *, log: Log = LOG) -> Session:
    """A session of which every promise was kept, with a mark at its beginning, in its middle and at its end."""
    session = Session("websocket", after)
    session.mark(after)
    middle = (after + end) // 2
    for position in log.matching(selector, after, middle):
        session.tell(position, log.prints[position - 1])
    session.mark(middle)
    for position in log.matching(selector, middle, end):
        session.tell(position, log.prints[position - 1])
    session.mark(end)
    return session


def kinds(breaks: list[Break]) -> set[str]:
    return {one.kind for one in breaks}


# -- what is followed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selector", "wanted"),
    [
        (ALL, list(range(1, 13))),
        (S1, [1, 4, 5, 7, 9, 11, 12]),
        (Selector("streamId", "s2"), [2, 6, 8, 10]),
        (ANNA, [1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
        (BEN, [1, 4, 6, 7, 8, 9, 11, 12]),
        (Selector("recipient", "cleo"), [2, 4, 5, 6, 7, 8, 10]),
        (Selector("recipient", "anna"), []),
    ],
)
def test_whoever_was_told_of_an_event_is_told_that_it_was_taken_back(selector: Selector, wanted: list[int]) -> None:
    assert LOG.faults == []
    assert LOG.matching(selector, 0, 12) == wanted
    assert [position for position in range(1, 13) if LOG.concerns(selector, position)] == wanted


# -- the log -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "transactions", "fault"),
    [
        ((row(1, "a"), row(3, "b")), (), "position 3 follows on 1"),
        ((row(1, "a"), row(2, "a")), (), "stands already"),
        ((row(1, "a"), row(2, "r", reverts=["a"])), (), "names other events"),
        ((row(1, "a", reverted_by=2), row(2, "r", reverts=[])), (), "names other events"),
        ((row(1, "a", reverted_by=2), row(2, "r", reverts=["a", "a"])), (), "names other events"),
        ((row(1, "a", reverted_by=2), row(2, "b")), (), "does not say so"),
        ((row(1, "r", reverts=["a"]),), (), "which does not stand"),
        ((row(1, "a"), row(2, "b")), ((1, 1, 1),), "the last transaction ends at 1"),
        ((row(1, "a"), row(2, "b"), row(3, "c")), ((1, 3, 2), (2, 2, 1)), "a transaction of 2 rows"),
        ((row(1, "a"), row(2, "b")), ((1, 1, 1), (1, 2, 2)), "a transaction of 2 rows"),
    ],
)
def test_a_log_that_is_none_is_refused(rows: tuple[Row, ...], transactions: tuple[Any, ...], fault: str) -> None:
    assert any(fault in one for one in log_of(*rows, transactions=transactions).faults)


def test_an_id_may_come_again_once_it_was_taken_back() -> None:
    assert LOG.live["d"] == 9
    assert LOG.undone == 3


# -- sessions ----------------------------------------------------------------------------------------------------------


@given(st.sampled_from(SELECTORS), st.lists(st.integers(0, 12), min_size=2, max_size=6).map(sorted))
def test_what_was_kept_passes(selector: Selector, stops: list[int]) -> None:
    sessions = [told(selector, after, end) for after, end in pairwise(stops)]
    assert judge(LOG, selector, sessions) == []


def test_a_session_that_began_with_what_was_new_is_promised_what_lies_above_its_first_mark() -> None:
    kept = replace(told(ALL, 4, 10), after=None)
    assert judge(LOG, ALL, [kept]) == []
    assert kinds(judge(LOG, ALL, [without(kept, 0)])) == {"lost", "bookmark"}
    assert judge(LOG, ALL, [Session("websocket", None)]) == []


def without(session: Session, at: int) -> Session:
    """One event is left out."""
    return replace(
        session,
        told=[one for nth, one in enumerate(session.told) if nth != at],
        prints=[one for nth, one in enumerate(session.prints) if nth != at],
        marks=[(count - (count > at), position) for count, position in session.marks],
    )


def again(session: Session, at: int) -> Session:
    """One event comes twice."""
    return replace(
        session,
        told=[*session.told[: at + 1], *session.told[at:]],
        prints=[*session.prints[: at + 1], *session.prints[at:]],
        marks=[(count + (count > at), position) for count, position in session.marks],
    )


def swapped(session: Session, at: int) -> Session:
    """Two events that follow on each other come the other way round."""
    positions, prints = list(session.told), list(session.prints)
    positions[at : at + 2] = reversed(positions[at : at + 2])
    prints[at : at + 2] = reversed(prints[at : at + 2])
    return replace(session, told=positions, prints=prints)


def altered(session: Session, at: int) -> Session:
    """One event is told in another form."""
    return replace(session, prints=[one ^ (nth == at) for nth, one in enumerate(session.prints)])


def another(session: Session, at: int) -> Session:
    """One event is told under another position."""
    return replace(session, told=[99 if nth == at else one for nth, one in enumerate(session.told)])


@pytest.mark.parametrize(
    ("broken", "kind"),
    [(without, "lost"), (again, "doubled"), (swapped, "reordered"), (altered, "altered"), (another, "altered")],
)
@given(data=st.data())
def test_every_break_of_one_event_is_seen(
    broken: Callable[[Session, int], Session], kind: str, data: st.DataObject
) -> None:
    selector = data.draw(st.sampled_from([ALL, S1, ANNA, BEN]))
    after, end = data.draw(st.tuples(st.integers(0, 4), st.integers(9, 12)))
    kept = replace(told(selector, after, end), marks=[])
    at = data.draw(st.integers(0, len(kept.told) - 2))  # what is left out at the end may still come
    assert kind in kinds(judge(LOG, selector, [broken(kept, at)]))


@given(st.integers(0, 5), st.integers(6, 12), st.data())
def test_a_lost_event_is_seen_by_the_mark_behind_it_though_nothing_follows(
    after: int, end: int, data: st.DataObject
) -> None:
    kept = told(ALL, after, end)
    at = data.draw(st.integers(0, len(kept.told) - 1))
    assert "bookmark" in kinds(judge(LOG, ALL, [without(kept, at)]))


@pytest.mark.parametrize("mark", [(2, 3), (1, 2), (4, 5), (4, 12)])
def test_a_mark_at_another_place_is_seen(mark: tuple[int, int]) -> None:
    kept = told(ALL, 0, 4)
    assert kinds(judge(LOG, ALL, [replace(kept, marks=[mark])])) == {"bookmark"}


def test_what_was_not_asked_for_is_seen() -> None:
    assert kinds(judge(LOG, S1, [told(ALL, 0, 2)])) == {"uncalled"}


def test_what_was_known_before_the_beginning_is_doubled() -> None:
    assert "doubled" in kinds(judge(LOG, ALL, [replace(told(ALL, 2, 6), after=3)]))


@pytest.mark.parametrize(("stops", "kind"), [((0, 4, 5, 9), "seam"), ((0, 5, 4, 9), "seam")])
def test_a_gap_and_an_overlap_between_two_sessions_are_seen(stops: tuple[int, int, int, int], kind: str) -> None:
    sessions = [told(ALL, *stops[:2]), told(ALL, *stops[2:])]
    assert kinds(judge(LOG, ALL, sessions)) == {kind}
    assert judge(LOG, ALL, sessions, continuous=False) == []


@pytest.mark.parametrize(
    ("looks", "lists", "seen"),
    [
        ([(1, 1), (2, 5), (5, 5), (6, 6), (8, 8), (1, 12)], [0, 1, 5, 12], False),
        ([(2, 3)], [], True),  # REST shows a part of it
        ([(2, 1)], [], True),  # told, and REST shows nothing of it
        ([(9, 8)], [], True),
        ([], [3], True),
        ([], [7], True),
    ],
)
def test_a_split_transaction_is_seen(looks: list[tuple[int, int]], lists: list[int], seen: bool) -> None:
    session = replace(told(ALL, 0, 12), looks=looks, lists=lists)
    assert kinds(judge(LOG, ALL, [session])) == ({"split"} if seen else set())


# -- the first protocol ------------------------------------------------------------------------------------------------


def broadcasts(positions: list[int]) -> list[int]:
    shown = [ROWS[at - 1] for at in positions]
    return [broadcast_print(one.event, one.stream_id, time_text(one.timestamp_ms), one.payload) for one in shown]


@pytest.mark.parametrize(
    ("positions", "known", "wanted"),
    [
        ([3, 4, 5, 6], 2, set()),
        ([3, 4, 5, 6], 4, set()),  # it began before REST was asked
        ([], 5, set()),
        ([4, 5, 6], 2, {"lost"}),
        ([3, 4, 6], 2, {"lost"}),
        ([3, 4, 4, 5], 2, {"doubled"}),
        ([3, 5, 4, 6], 2, {"reordered"}),
    ],
)
def test_positions_are_found_where_they_are_not_told(positions: list[int], known: int, wanted: set[str]) -> None:
    session = located(LOG, broadcasts(positions), known=known)
    assert session.told == positions
    assert kinds(judge(LOG, ALL, [session])) == wanted


def test_what_is_in_no_log_is_seen_though_it_has_no_position() -> None:
    assert "altered" in kinds(judge(LOG, ALL, [located(LOG, [*broadcasts([1, 2]), 42], known=0)]))
