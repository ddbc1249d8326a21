"""How many deliveries wait and how many were given up, without counting them. Functions run on the bridge's thread.

Whoever changes what a delivery's status is adds what changed to `webhook_tallies`, in the same transaction. The sum is
exact in every snapshot, and nobody waits for anybody, as they would for one row that all update.
"""

from __future__ import annotations

from typing import Final

from fluxora.storage.admin_log import NOW_MS
from fluxora.storage.pool import Connection
from fluxora.storage.webhook_records import Backlog

JOINED_FROM: Final = 256  # rows from which on they are joined into one for each endpoint
JOINED_AT_ONCE: Final = 20_000  # as many as a fraction of a read's deadline is enough for, however many there are

ADD: Final = "INSERT INTO webhook_tallies (endpoint_id, pending, dead) VALUES ($1, $2, $3)"

_MANY = "SELECT count(*) = $1 FROM (SELECT FROM webhook_tallies LIMIT $1) AS first"

_JOIN = """
WITH taken AS (
    DELETE FROM webhook_tallies
    WHERE ctid = ANY(ARRAY(SELECT ctid FROM webhook_tallies LIMIT $1 FOR UPDATE SKIP LOCKED))
    RETURNING endpoint_id, pending, dead
)
INSERT INTO webhook_tallies (endpoint_id, pending, dead)
SELECT endpoint_id, sum(pending), sum(dead) FROM taken GROUP BY endpoint_id
"""

OLDEST: Final = """
SELECT min(first.at_ms) FROM webhook_endpoints e CROSS JOIN LATERAL (
    SELECT d.at_ms FROM webhook_deliveries d WHERE d.endpoint_id = e.id AND d.status = 'pending'
    ORDER BY d.at_ms, d.position LIMIT 1
) AS first
WHERE e.enabled AND NOT e.deleted
"""

_BACKLOG = f"""
SELECT coalesce(sum(t.pending) FILTER (WHERE e.enabled), 0)::bigint AS pending,
    coalesce(sum(t.dead), 0)::bigint AS dead, {NOW_MS} - ({OLDEST}) AS oldest
FROM webhook_tallies t JOIN webhook_endpoints e ON e.id = t.endpoint_id AND NOT e.deleted
"""  # noqa: S608 (no value in it)


async def backlog(connection: Connection) -> Backlog:
    """What waits at enabled endpoints, the age of the oldest, and the dead letters of all."""
    if await connection.fetchval(_MANY, JOINED_FROM):
        await connection.execute(_JOIN, JOINED_AT_ONCE)  # before they are counted: a count that fails leaves them fewer
    row = await connection.fetchrow(_BACKLOG)
    oldest = row["oldest"]
    return Backlog(row["pending"], None if oldest is None else max(0, oldest), row["dead"])
