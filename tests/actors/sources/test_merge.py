"""Walks side by side as one: against the sorted union of what each of them found."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from itertools import pairwise

from chain_events import event, ids
from hypothesis import given
from hypothesis import strategies as st

from fluxora.actors.sources import Page
from fluxora.actors.sources.merge import merge
from fluxora.protocol.contract import ContractEvent

FIRST, LAST = 10, 16


class Walk:
    """One walk over FIRST..LAST in the given pages; counts what was asked of it."""

    def __init__(self, pages: list[Page]) -> None:
        self.pages = pages
        self.taken = 0
        self.closed = False

    async def __aiter__(self) -> AsyncGenerator[Page, None]:
        try:
            for page in self.pages:
                self.taken += 1
                yield page
        finally:
            self.closed = True


@st.composite
def walks(draw: st.DrawFn) -> list[Walk]:
    """Each event belongs to one walk; a page may be empty, end inside a ledger or span several."""
    count = draw(st.integers(1, 4))
    events = [event(ledger, index) for ledger in range(FIRST, LAST + 1) for index in range(draw(st.integers(0, 3)))]
    owners = [draw(st.integers(0, count - 1)) for _ in events]
    found = []
    for number in range(count):
        mine = [one for one, owner in zip(events, owners, strict=True) if owner == number]
        found.append(Walk(draw(pages(mine))))
    return found


@st.composite
def pages(draw: st.DrawFn, events: list[ContractEvent]) -> list[Page]:
    cuts = sorted(draw(st.lists(st.integers(0, len(events)), max_size=4)))
    made: list[Page] = []
    for start, end in pairwise([0, *cuts, len(events)]):
        rest = events[end:]
        most = rest[0].ledger - 1 if rest else LAST
        least = made[-1].complete_through if made else FIRST - 1
        through = LAST if end == len(events) and draw(st.booleans()) else draw(st.integers(least, most))
        made.append(Page(tuple(events[start:end]), through))
    if made[-1].complete_through < LAST:
        made.append(Page((), LAST))
    return made


@given(walks())
async def test_it_is_the_sorted_union_with_true_marks(walks: list[Walk]) -> None:
    expected = sorted((one for walk in walks for page in walk.pages for one in page.events), key=lambda one: one.id)
    events: list[ContractEvent] = []
    through = FIRST - 1
    async with aclosing(merge([aiter(walk) for walk in walks], FIRST)) as merged:
        async for page in merged:
            events += page.events
            assert page.complete_through > through
            through = page.complete_through
            assert ids(events) == ids(one for one in expected if one.ledger <= through)
    assert through == LAST
    assert ids(events) == ids(expected)
    assert all(walk.closed for walk in walks)


async def test_no_walk_runs_ahead() -> None:
    """The one behind is asked first, so what waits is at most a page of each of the others."""
    slow = Walk([Page((event(ledger),), ledger) for ledger in range(FIRST, LAST + 1)])
    fast = Walk([Page((event(ledger, 1),), ledger) for ledger in range(FIRST, LAST + 1)])
    async with aclosing(merge([aiter(slow), aiter(fast)], FIRST)) as merged:
        async for _ in merged:
            assert abs(slow.taken - fast.taken) <= 1


async def test_closing_it_closes_the_walks() -> None:
    both = [Walk([Page((), ledger) for ledger in range(FIRST, LAST + 1)]) for _ in range(2)]
    async with aclosing(merge([aiter(walk) for walk in both], FIRST)) as merged:
        assert (await anext(merged)).complete_through == FIRST
    assert [walk.closed for walk in both] == [True, True]
