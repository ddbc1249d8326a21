"""The outbox: what is recorded and what is to be sent of it are one transaction. Runs on the bridge's thread.

Called behind the log's rows and under the lock of its head, by whatever records: there is never an event without its
deliveries, nor a delivery without its event. Which endpoint gets what is decided here, in memory, from the events at
hand; parties are read from payloads by the program, not by PostgreSQL, which cannot read every text that JSON can hold.
Dispatchers are rung at the commit, where there is something for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from fluxora import logs
from fluxora.protocol.messages import LogEvent
from fluxora.protocol.sockets import Concerned, concerned
from fluxora.storage.admin_log import NOW_MS
from fluxora.storage.pool import Connection
from fluxora.storage.rewind import REVERTED

_log = logs.get("outbox")
AT_ONCE: Final = 10_000  # rows of one INSERT, and comparisons between two chances for other work of the thread

_ENDPOINTS = f"""
SELECT id, events, stream_ids, addresses, ordered, {NOW_MS} AS now_ms
FROM webhook_endpoints WHERE enabled AND NOT deleted ORDER BY id
"""  # noqa: S608 (no value in it)

_ADD = """
WITH added AS (
    INSERT INTO webhook_deliveries (endpoint_id, position, at_ms, due_ms, created_ms, queue)
    SELECT ($1::text[])[nth], position, $5, $5, $5, queue
    FROM unnest($2::integer[], $3::bigint[], $4::text[]) AS v(nth, position, queue)
    RETURNING endpoint_id
), tally AS (
    INSERT INTO webhook_tallies (endpoint_id, pending, dead)
    SELECT endpoint_id, count(*), 0 FROM added GROUP BY endpoint_id
)
SELECT pg_notify('fluxora_log', '')
"""

# Endpoints that were told of an event are told that it was taken back, whatever else they filter by.
_ADD_REVERTED = """
WITH added AS (
    INSERT INTO webhook_deliveries (endpoint_id, position, at_ms, due_ms, created_ms, queue)
    SELECT DISTINCT d.endpoint_id, e.position, $4::bigint, $4::bigint, $4::bigint,
        CASE WHEN d.endpoint_id = ANY($3) THEN e.stream_id END
    FROM unnest($1::bigint[]) AS undone(position)
    JOIN events u ON u.position = undone.position
    JOIN events e ON e.position = u.reverted_by
    CROSS JOIN unnest($2::text[]) AS told(id)
    JOIN webhook_deliveries d ON d.endpoint_id = told.id AND d.position = undone.position
    ON CONFLICT DO NOTHING
    RETURNING endpoint_id
), tally AS (
    INSERT INTO webhook_tallies (endpoint_id, pending, dead)
    SELECT endpoint_id, count(*), 0 FROM added GROUP BY endpoint_id
)
SELECT pg_notify('fluxora_log', '')
"""


class Filter:
    """What one endpoint takes. Filters that are not empty must all hold."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self.id: str = row["id"]
        self.ordered: bool = row["ordered"]
        self._events = frozenset(row["events"])
        self._streams = frozenset(row["stream_ids"])
        self.addresses = frozenset(row["addresses"])

    @property
    def narrow(self) -> bool:
        """True where it may take an event and not the row that takes it back."""
        return bool(self._streams or self.addresses) and (not self._events or REVERTED in self._events)

    def takes(self, event: LogEvent, parties: Mapping[int, Concerned]) -> bool:
        """True where the endpoint gets the event; `parties` by position, of every event where addresses count."""
        if self._events and event.event not in self._events:
            return False
        if self._streams and event.stream_id not in self._streams:
            return False
        if not self.addresses:
            return True
        named = parties[event.position]
        return not self.addresses.isdisjoint((named.sender, named.recipient, named.old_sender, named.old_recipient))

    def queue(self, event: LogEvent) -> str | None:
        """The queue that the event's delivery joins: its stream, where the endpoint keeps their order."""
        return event.stream_id if self.ordered else None

    @staticmethod
    def parties(filters: Iterable[Filter], events: Iterable[LogEvent]) -> dict[int, Concerned]:
        """What `takes` asks for: whom each event names, where any of the filters wants to know."""
        if not any(each.addresses for each in filters):
            return {}
        return {event.position: concerned(event) for event in events}


async def record(connection: Connection, events: Sequence[LogEvent], undone: Sequence[int]) -> None:
    """Insert the deliveries of events that were just written; `undone` are positions that they have taken back."""
    rows = await connection.fetch(_ENDPOINTS)
    if not rows:  # the last one was disabled by its failures
        await connection.execute("UPDATE log_head SET webhooks = false")
        return
    filters = [Filter(row) for row in rows]
    ids = [each.id for each in filters]
    now_ms: int = rows[0]["now_ms"]
    for first in range(0, len(events), AT_ONCE // len(filters) + 1):
        some = events[first : first + AT_ONCE // len(filters) + 1]
        await _add(connection, ids, filters, some, now_ms)
        await asyncio.sleep(0)
    narrow = [each.id for each in filters if each.narrow]
    if undone and narrow:
        ordered = [each.id for each in filters if each.ordered]
        await connection.execute(_ADD_REVERTED, undone, narrow, ordered, now_ms)


async def _add(
    connection: Connection, ids: list[str], filters: list[Filter], events: Sequence[LogEvent], now_ms: int
) -> None:
    nths: list[int] = []
    positions: list[int] = []
    queues: list[str | None] = []
    parties = Filter.parties(filters, events)
    for nth, each in enumerate(filters, 1):
        taken = [event for event in events if each.takes(event, parties)]
        nths += [nth] * len(taken)
        positions += [event.position for event in taken]
        queues += [each.queue(event) for event in taken]
    if positions:
        await connection.execute(_ADD, ids, nths, positions, queues, now_ms)
        _log.debug("outbox.deliveries_added", deliveries=len(positions), first=min(positions), last=max(positions))
