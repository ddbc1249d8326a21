"""Processes that send webhooks, by what they say of themselves. Functions run on the bridge's thread.

One row a process, renewed in time, stands for all that it has claimed. A process whose row was not renewed is dead to
the others: whoever notices first removes the row and the claims, and what comes from it afterwards is not taken.
"""

from __future__ import annotations

from typing import Final

import msgspec

from fluxora.storage.admin_log import NOW_MS
from fluxora.storage.doorbell import CHANNEL
from fluxora.storage.pool import Connection

_ENLIST = f"""
INSERT INTO webhook_workers (id, alive_until_ms) VALUES ($1, {NOW_MS} + $2)
ON CONFLICT (id) DO UPDATE SET alive_until_ms = EXCLUDED.alive_until_ms
"""  # noqa: S608 (no value in it)

_RENEW = f"UPDATE webhook_workers SET alive_until_ms = {NOW_MS} + $2 WHERE id = $1"  # noqa: S608 (no value in it)

# The lock keeps the row from those who would remove it, and lets it be renewed.
_WATCH = """
WITH clock AS MATERIALIZED (SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now_us)
SELECT clock.now_us, w.alive_until_ms,
    EXISTS (SELECT FROM webhook_workers o WHERE o.alive_until_ms <= clock.now_us / 1000 AND o.id <> $1) AS deaths,
    (SELECT min(o.alive_until_ms) FROM webhook_workers o
     WHERE o.id <> $1 AND EXISTS (SELECT FROM webhook_claims c WHERE c.worker = o.id)) AS others_until_ms
FROM webhook_workers w, clock WHERE w.id = $1 FOR KEY SHARE OF w
"""

# One that is in the middle of a turn is alive, whatever its row says.
_BURY = """
DELETE FROM webhook_workers WHERE id IN (
    SELECT id FROM webhook_workers WHERE alive_until_ms <= $1 AND id <> $2 FOR UPDATE SKIP LOCKED
) RETURNING id
"""

_RELEASE: Final = "DELETE FROM webhook_claims WHERE worker = ANY($1)"


class Watch(msgspec.Struct, frozen=True):
    """The moment of a turn, Unix microseconds, and who else is there.

    `expired`: the worker's own row is overdue, so that it may be removed at any moment. `others_until_ms`: when the
    first of the other workers that have claims would be dead, were it not to renew.
    """

    now_us: int
    expired: bool
    deaths: bool
    others_until_ms: int | None

    @property
    def now_ms(self) -> int:
        """The same moment in Unix milliseconds."""
        return self.now_us // 1000


async def enlist(connection: Connection, worker: str, life_ms: int) -> None:
    """Begin to send as `worker`."""
    await connection.execute(_ENLIST, worker, life_ms)


async def renew(connection: Connection, worker: str, life_ms: int) -> bool:
    """Live on; False where the row was removed."""
    done: str = await connection.execute(_RENEW, worker, life_ms)
    return done == "UPDATE 1"


async def retire(connection: Connection, worker: str) -> None:
    """Remove the worker and its claims, and have the others look."""
    async with connection.transaction():
        await connection.execute("DELETE FROM webhook_workers WHERE id = $1", worker)
        await connection.execute(_RELEASE, [worker])
        await connection.execute("SELECT pg_notify($1, '')", CHANNEL)


async def watch(connection: Connection, worker: str) -> Watch | None:
    """Keep the worker's row from being removed until the transaction ends; None where it was removed."""
    row = await connection.fetchrow(_WATCH, worker)
    if row is None:
        return None
    expired = row["alive_until_ms"] <= row["now_us"] // 1000
    return Watch(row["now_us"], expired, row["deaths"], row["others_until_ms"])


async def bury(connection: Connection, worker: str, now_ms: int) -> int:
    """Remove other workers that are dead, with their claims; the number of them.

    The claims are looked for after the rows are removed: nothing can be claimed in their names any more.
    """
    dead = [row["id"] for row in await connection.fetch(_BURY, now_ms, worker)]
    if dead:
        await connection.execute(_RELEASE, dead)
    return len(dead)
