"""Every stream of one address, added up as its rows come; runs on the bridge's thread.

One snapshot is read page by page from the indexes that the lists use, so neither the number of rows in memory nor the
time between two turns of the loop grows with the portfolio.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
from msgspec.structs import replace

from fluxora.protocol.messages import StreamRecord
from fluxora.protocol.treasury import Holding, Treasury
from fluxora.storage import reads
from fluxora.storage.pool import Connection
from fluxora.storage.records import StreamQuery

PAGE_ROWS = 200  # a few milliseconds of work, then the loop is free for others
BUDGET_S = 7.0  # for the reading itself
DEADLINE_S = 10.0  # for the whole answer, the wait for its turn and for a connection included
MAX_AT_A_TIME = 2  # of the pool's connections; the rest stay free for reads that take a moment


class Portfolio(msgspec.Struct, frozen=True):
    """Everything that an address has in streams, as of one `position` of the log."""

    position: int
    holdings: list[Holding]


async def portfolio(connection: Connection, address: str, as_of: int) -> Portfolio | None:
    """The totals of `address` at `as_of` (Unix seconds); None where it has too many streams to add up in `BUDGET_S`."""
    ends = time.monotonic() + BUDGET_S
    treasury = Treasury(as_of)
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        position = await reads.position(connection)  # the first statement takes the snapshot
        for query, add in (
            (StreamQuery(sender=address, limit=PAGE_ROWS), treasury.add_sent),
            (StreamQuery(recipient=address, limit=PAGE_ROWS), treasury.add_received),
        ):
            if not await _added(connection, query, add, ends):
                return None
    return Portfolio(position, treasury.holdings())


async def _added(connection: Connection, query: StreamQuery, add: Callable[[StreamRecord], None], ends: float) -> bool:
    """Add every stream of the query; False if time ran out before the last."""
    page = await reads.streams(connection, query)
    while page:
        for record in page:
            add(record)
        if time.monotonic() >= ends:
            return False
        page = await reads.streams(connection, replace(query, after=page[-1].created_position))
    return True
