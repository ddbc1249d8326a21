"""Several walks over the same ledgers as one: for more contracts than one request can name."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing

from fluxora.actors.sources import Page
from fluxora.protocol.contract import ContractEvent


async def merge(walks: Sequence[AsyncGenerator[Page, None]], first: int) -> AsyncGenerator[Page, None]:
    """Yield the pages of `walks`, all over the same ledgers from `first` on, as one walk in order.

    The walk that is furthest behind goes next, and a ledger is handed over once every walk is through it. So what waits
    here is at most what the others found in the ledgers of one page.
    """
    async with AsyncExitStack() as stack:
        for walk in walks:
            await stack.enter_async_context(aclosing(walk))
        through = [first - 1] * len(walks)
        open_walks = set(range(len(walks)))
        waiting: list[ContractEvent] = []
        done = first - 1
        while open_walks:
            slowest = min(open_walks, key=through.__getitem__)
            page = await anext(walks[slowest], None)
            if page is None:
                open_walks.discard(slowest)
                continue
            waiting += page.events
            through[slowest] = page.complete_through
            if min(through) > done:
                done = min(through)
                ready = sorted((event for event in waiting if event.ledger <= done), key=lambda event: event.id)
                waiting = [event for event in waiting if event.ledger > done]
                yield Page(tuple(ready), done)
