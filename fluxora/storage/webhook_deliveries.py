"""Deliveries as operators see them: lists, attempts, sending again, their end. Runs on the bridge's thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from fluxora.protocol.messages import LogEvent
from fluxora.protocol.signing import delivery_id as id_of
from fluxora.protocol.signing import parse_delivery_id
from fluxora.storage import admin_log, reads
from fluxora.storage import webhook_tallies as tallies
from fluxora.storage.admin_log import NOW_MS
from fluxora.storage.doorbell import CHANNEL
from fluxora.storage.pool import Connection
from fluxora.storage.records import EventQuery
from fluxora.storage.rewind import REVERTED
from fluxora.storage.webhook_endpoints import remove
from fluxora.storage.webhook_outbox import Filter
from fluxora.storage.webhook_records import (
    Attempt,
    Delivery,
    DeliveryDetail,
    DeliveryQuery,
    DeliveryStatus,
    Replayed,
    ReplayScope,
    Span,
)

REPLAYED_AT_ONCE: Final = 1_000  # log rows that one call looks through
READ_AT_ONCE: Final = 100  # of them in memory: payloads may be large
ATTEMPTS_SHOWN: Final = 1_000
STATUSES: Final[tuple[DeliveryStatus, ...]] = ("pending", "delivered", "dead")
AGAIN: Final[dict[ReplayScope, list[DeliveryStatus]]] = {"failed": ["dead"], "all": ["dead", "delivered"]}

_DELIVERY = (
    "d.endpoint_id, d.position, v.event_id, v.event, v.stream_id, d.status, d.attempts, d.at_ms, d.due_ms, "
    "d.created_ms, d.last_status, d.last_error"
)
_LOCK = (
    "SELECT id, events, stream_ids, addresses, ordered, purged_position FROM webhook_endpoints "
    "WHERE id = $1 AND NOT deleted"
)

_ONE = f"""
SELECT {_DELIVERY} FROM webhook_deliveries d JOIN events v ON v.position = d.position
JOIN webhook_endpoints e ON e.id = d.endpoint_id AND NOT e.deleted
WHERE d.endpoint_id = $1 AND d.position = $2
"""  # noqa: S608 (names of our own columns)

_PLACE = """
SELECT d.endpoint_id, d.position, v.event_id, d.at_ms
FROM webhook_deliveries d JOIN events v ON v.position = d.position WHERE d.endpoint_id = $1 AND d.position = $2
"""

_ATTEMPTS = """
SELECT row_number() OVER (ORDER BY id) AS number, at_ms, status, error, latency_ms, response
FROM webhook_attempts WHERE endpoint_id = $1 AND position = $2 ORDER BY id DESC LIMIT $3
"""

_REDELIVER = f"""
UPDATE webhook_deliveries SET status = 'pending', held = false, attempts = 0, due_ms = {NOW_MS},
    at_ms = CASE WHEN status = 'pending' THEN at_ms ELSE {NOW_MS} END
WHERE endpoint_id = $1 AND position = $2
"""  # noqa: S608 (no value in it)

# Under the endpoint's lock nobody else changes what a delivery's status is.
_REPLAY = f"""
WITH clock AS MATERIALIZED (SELECT {NOW_MS} AS now_ms), asked AS (
    SELECT * FROM unnest($2::bigint[], $3::text[]) AS v(position, queue)
), again AS (
    UPDATE webhook_deliveries d SET status = 'pending', held = false, attempts = 0, queue = asked.queue,
        at_ms = clock.now_ms, due_ms = clock.now_ms
    FROM clock, asked JOIN webhook_deliveries o ON o.endpoint_id = $1 AND o.position = asked.position
    WHERE d.endpoint_id = $1 AND d.position = asked.position AND o.status = ANY($4)
    RETURNING o.status AS was
), missed AS (
    INSERT INTO webhook_deliveries (endpoint_id, position, at_ms, due_ms, created_ms, queue)
    SELECT $1, position, now_ms, now_ms, now_ms, queue FROM asked, clock ON CONFLICT DO NOTHING RETURNING position
), counted AS (
    SELECT (SELECT count(*) FROM again) + (SELECT count(*) FROM missed) AS pending,
        (SELECT count(*) FROM again WHERE was = 'dead') AS dead,
        (SELECT count(*) FROM missed WHERE position <= $5) AS uncertain
), tally AS (
    INSERT INTO webhook_tallies (endpoint_id, pending, dead) SELECT $1, pending, -dead FROM counted WHERE pending > 0
)
SELECT pending, uncertain FROM counted
"""  # noqa: S608 (no value in it)

TOLD: Final = """
SELECT e.position FROM unnest($2::bigint[], $3::text[]) AS e(position, stream_id)
WHERE EXISTS (SELECT FROM webhook_deliveries d WHERE d.endpoint_id = $1 AND d.position = e.position) OR EXISTS (
    SELECT FROM events u JOIN webhook_deliveries d ON d.endpoint_id = $1 AND d.position = u.position
    WHERE u.stream_id = e.stream_id AND u.position < e.position AND u.reverted_by = e.position
)
"""

# The oldest of each is looked up, for asking whether there is an old one may read them all.
PURGEABLE: Final = f"""
SELECT e.id, e.deleted FROM webhook_endpoints e
WHERE e.deleted OR {NOW_MS} - $1 > least(
    (SELECT d.at_ms FROM webhook_deliveries d WHERE d.endpoint_id = e.id AND d.status = 'delivered'
     ORDER BY d.at_ms, d.position LIMIT 1),
    (SELECT d.at_ms FROM webhook_deliveries d WHERE d.endpoint_id = e.id AND d.status = 'dead'
     ORDER BY d.at_ms, d.position LIMIT 1)
)
ORDER BY e.id FOR NO KEY UPDATE OF e
"""  # noqa: S608 (no value in it)

PURGE: Final = f"""
WITH old AS (
    (SELECT position FROM webhook_deliveries WHERE endpoint_id = $1 AND status = 'delivered' AND at_ms < {NOW_MS} - $2
     ORDER BY at_ms, position LIMIT $3)
    UNION ALL
    (SELECT position FROM webhook_deliveries WHERE endpoint_id = $1 AND status = 'dead' AND at_ms < {NOW_MS} - $2
     ORDER BY at_ms, position LIMIT $3)
    LIMIT $3
), attempt AS (
    DELETE FROM webhook_attempts a USING old WHERE a.endpoint_id = $1 AND a.position = old.position
), gone AS (
    DELETE FROM webhook_deliveries d USING old WHERE d.endpoint_id = $1 AND d.position = old.position
    RETURNING d.position, d.status
), tally AS (
    INSERT INTO webhook_tallies (endpoint_id, pending, dead)
    SELECT $1, 0, -count(*) FROM gone WHERE status = 'dead' HAVING count(*) > 0
), known AS (
    UPDATE webhook_endpoints SET purged_position = arrived.last
    FROM (SELECT max(position) AS last FROM gone WHERE status = 'delivered') AS arrived
    WHERE id = $1 AND arrived.last > purged_position
)
SELECT count(*) FROM gone
"""  # noqa: S608 (no value in it)

_CLEAR = """
WITH old AS (
    SELECT position FROM webhook_deliveries WHERE endpoint_id = $1 ORDER BY position LIMIT $2
), attempt AS (
    DELETE FROM webhook_attempts a USING old WHERE a.endpoint_id = $1 AND a.position = old.position
), gone AS (
    DELETE FROM webhook_deliveries d USING old WHERE d.endpoint_id = $1 AND d.position = old.position RETURNING 1
)
SELECT count(*) FROM gone
"""


async def deliveries(connection: Connection, query: DeliveryQuery) -> list[Delivery]:
    """A page of deliveries, newest first."""
    text, values = delivery_page(query)
    if query.before is not None:
        place = await _look_up(connection, _PLACE, query.before)
        if place is None:
            return []
        values += [place["at_ms"], place["position"], place["endpoint_id"]]
    return [_delivery(row) for row in await connection.fetch(text, *values)]


def delivery_page(query: DeliveryQuery) -> tuple[str, list[Any]]:
    """The page's SQL, and its values but for the place to go on behind (time, position and endpoint, in that order).

    A merge of one ordered scan for each endpoint and status, so that it reads no more than it shows of each.
    """
    values: list[Any] = [list(STATUSES) if query.status is None else [query.status], query.limit]
    conditions = ["d.endpoint_id = e.id", "d.status = s.status"]
    whose = ""
    if query.endpoint_id is not None:
        values.append(query.endpoint_id)
        whose = f"AND e.id = ${len(values)}"
    if query.before is not None:
        at, position, endpoint = (f"${len(values) + nth}" for nth in (1, 2, 3))
        conditions.append(f"(d.at_ms, d.position) <= ({at}, {position})")  # which the index can look for
        conditions.append(f"(d.at_ms, d.position, d.endpoint_id) < ({at}, {position}, {endpoint})")
    order = "ORDER BY d.at_ms DESC, d.position DESC, d.endpoint_id DESC LIMIT $2"
    text = f"""
        SELECT {_DELIVERY} FROM (
            SELECT d.* FROM webhook_endpoints e CROSS JOIN unnest($1::text[]) AS s(status) CROSS JOIN LATERAL (
                SELECT * FROM webhook_deliveries d WHERE {" AND ".join(conditions)}
                ORDER BY d.at_ms DESC, d.position DESC LIMIT $2
            ) AS d WHERE NOT e.deleted {whose} {order}
        ) AS d JOIN events v ON v.position = d.position {order}
    """  # noqa: S608 (no value in it)
    return text, values


async def delivery(connection: Connection, delivery_id: str) -> DeliveryDetail | None:
    """One delivery with its newest attempts, oldest first."""
    row = await _look_up(connection, _ONE, delivery_id)
    if row is None:
        return None
    attempts = await connection.fetch(_ATTEMPTS, row["endpoint_id"], row["position"], ATTEMPTS_SHOWN)
    return DeliveryDetail(_delivery(row), [Attempt(*each.values()) for each in reversed(attempts)])


async def redeliver(connection: Connection, delivery_id: str, actor: str) -> Delivery | None:
    """Make one pending, due at once, with all of its attempts before it."""
    asked = parse_delivery_id(delivery_id)
    if asked is None:
        return None
    async with connection.transaction():
        await connection.execute(f"{_LOCK} FOR NO KEY UPDATE", asked[0])
        row = await _look_up(connection, _ONE, delivery_id)
        if row is None:
            return None
        await connection.execute(_REDELIVER, *asked)
        was: DeliveryStatus = row["status"]
        if was != "pending":
            await connection.execute(tallies.ADD, asked[0], 1, -1 if was == "dead" else 0)
        await admin_log.add(connection, actor, "webhook.redelivered", delivery_id, {"was": was})
        await connection.execute("SELECT pg_notify($1, '')", CHANNEL)
        row = await connection.fetchrow(_ONE, *asked)
    return _delivery(row)


async def replay(connection: Connection, endpoint_id: str, span: Span, actor: str) -> Replayed | None:
    """Make one piece of the log pending for an endpoint, as far as it matches."""
    async with connection.transaction():
        endpoint = await connection.fetchrow(f"{_LOCK} FOR NO KEY UPDATE", endpoint_id)
        if endpoint is None:
            return None
        head = await reads.position(connection)
        last = head if span.until is None else min(span.until, head)
        again = _Again(connection, Filter(endpoint), AGAIN[span.only], endpoint["purged_position"])
        through, looked = span.after, 0
        while through < last and looked < REPLAYED_AT_ONCE:
            limit = min(READ_AT_ONCE, REPLAYED_AT_ONCE - looked)
            page = await reads.events(connection, EventQuery(after=through, limit=limit))
            events = [event for event in page if event.position <= last]
            await again.send(events)
            looked += len(page)
            through = events[-1].position if len(events) == limit else last
        detail = {"after": span.after, "through": through, "only": span.only, "count": again.count}
        await admin_log.add(connection, actor, "webhook.replayed", endpoint_id, detail)
        await connection.execute("SELECT pg_notify($1, '')", CHANNEL)
    return Replayed(again.count, again.uncertain, through, has_more=through < last)


class _Again:
    """What of the log is made pending for one endpoint, under its lock.

    `count` deliveries so far; `uncertain` of them had no row, and lie up to `purged`, where such may be what arrived.
    """

    def __init__(self, connection: Connection, wanted: Filter, statuses: list[DeliveryStatus], purged: int) -> None:
        self._connection = connection
        self._wanted = wanted
        self._statuses = statuses
        self._purged = purged
        self.count = 0
        self.uncertain = 0

    async def send(self, events: Sequence[LogEvent]) -> None:
        """Those that match, and then those that take back what the endpoint was told of, these now included."""
        parties = Filter.parties([self._wanted], events)
        taken = [event for event in events if self._wanted.takes(event, parties)]
        await self._pending(taken)
        if self._wanted.narrow:
            matched = {event.position for event in taken}
            others = [event for event in events if event.event == REVERTED and event.position not in matched]
            told = await self._told([event for event in others if event.stream_id is not None])
            await self._pending([event for event in others if event.position in told])

    async def _pending(self, events: Sequence[LogEvent]) -> None:
        if events:
            positions, queues = [event.position for event in events], [self._wanted.queue(event) for event in events]
            row = await self._connection.fetchrow(
                _REPLAY, self._wanted.id, positions, queues, self._statuses, self._purged
            )
            self.count += row["pending"]
            self.uncertain += row["uncertain"]

    async def _told(self, retractions: Sequence[LogEvent]) -> set[int]:
        """The positions of those that the endpoint has a delivery of, or of an event that they take back."""
        if not retractions:
            return set()
        positions = [event.position for event in retractions]
        streams = [event.stream_id for event in retractions]
        rows = await self._connection.fetch(TOLD, self._wanted.id, positions, streams)
        return {row["position"] for row in rows}


async def purge(connection: Connection, age_ms: int, limit: int) -> int:
    """Delete up to `limit` deliveries that are finished for longer than `age_ms`, or whose endpoint was deleted."""
    purged = 0
    async with connection.transaction():
        for row in await connection.fetch(PURGEABLE, age_ms):
            if purged >= limit:
                break
            left = limit - purged
            if row["deleted"]:
                count = await _clear(connection, row["id"], left)
            else:
                count = await connection.fetchval(PURGE, row["id"], age_ms, left)
            purged += count
    return purged


async def clear(connection: Connection, endpoint_id: str, limit: int) -> int:
    """Delete up to `limit` deliveries of an endpoint that was deleted, and with the last ones the endpoint itself."""
    async with connection.transaction():
        found = await connection.fetchrow(
            "SELECT FROM webhook_endpoints WHERE id = $1 AND deleted FOR NO KEY UPDATE", endpoint_id
        )
        return 0 if found is None else await _clear(connection, endpoint_id, limit)


async def _clear(connection: Connection, endpoint_id: str, limit: int) -> int:
    count: int = await connection.fetchval(_CLEAR, endpoint_id, limit)
    if count < limit:
        await remove(connection, endpoint_id)
    return count


async def _look_up(connection: Connection, text: str, delivery_id: str) -> Any | None:
    """The row that `text` finds by endpoint and position, where it is of the event that the id names."""
    asked = parse_delivery_id(delivery_id)
    row = None if asked is None else await connection.fetchrow(text, *asked)
    if row is None or delivery_id != id_of(row["endpoint_id"], row["position"], row["event_id"]):
        return None
    return row


def _delivery(row: Any) -> Delivery:
    pending = row["status"] == "pending"
    return Delivery(
        endpoint_id=row["endpoint_id"],
        position=row["position"],
        event_id=row["event_id"],
        event=row["event"],
        stream_id=row["stream_id"],
        status=row["status"],
        attempts=row["attempts"],
        due_ms=row["due_ms"] if pending else None,
        created_ms=row["created_ms"],
        finished_ms=None if pending else row["at_ms"],
        last_status=row["last_status"],
        last_error=row["last_error"],
    )
