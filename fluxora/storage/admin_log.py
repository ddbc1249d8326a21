"""The admin log: what operators, and Fluxora itself, have done, written in the transaction that does it.

It is kept for as long as the configuration says (`purge`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from fluxora.storage.pool import Connection
from fluxora.storage.webhook_records import AdminEntry

ITSELF: Final = "fluxora"
"""The actor where nobody asked for it."""

NOW_MS: Final = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"

# An id is drawn before its commit, so one that is lower may appear later than one that was read: the lock lets them
# appear in their order, and a reader that goes on behind the last one misses nothing.
_ADD = f"""
WITH turn AS MATERIALIZED (SELECT pg_advisory_xact_lock(hashtext('fluxora admin_log')))
INSERT INTO admin_log (at_ms, actor, action, subject, detail)
SELECT {NOW_MS}, $1, $2, $3, $4::json FROM turn
"""  # noqa: S608 (no value in it)

# Entries are in the order of their times, so that the oldest ones are all that need be looked at.
_PURGE = f"""
DELETE FROM admin_log WHERE id IN (
    SELECT id FROM (SELECT id, at_ms FROM admin_log ORDER BY id LIMIT $2) AS oldest WHERE at_ms < {NOW_MS} - $1
)
"""  # noqa: S608 (no value in it)

_decode = msgspec.json.Decoder(dict[str, str]).decode


async def add(connection: Connection, actor: str, action: str, subject: str, detail: Mapping[str, object]) -> None:
    """One entry. It names no secret: the caller sees to that."""
    shown = {name: _text(value) for name, value in detail.items()}
    await connection.execute(_ADD, actor, action, subject, msgspec.json.encode(shown).decode())


async def entries(connection: Connection, after: int, limit: int) -> list[AdminEntry]:
    """Entries behind the one with the id `after`, oldest first."""
    rows = await connection.fetch(
        "SELECT id, at_ms, actor, action, subject, detail FROM admin_log WHERE id > $1 ORDER BY id LIMIT $2",
        after,
        limit,
    )
    return [
        AdminEntry(row["id"], row["at_ms"], row["actor"], row["action"], row["subject"], _decode(row["detail"]))
        for row in rows
    ]


async def purge(connection: Connection, age_ms: int, limit: int) -> int:
    """Delete up to `limit` entries that are older than `age_ms`; the number of them."""
    done: str = await connection.execute(_PURGE, age_ms, limit)
    return int(done.removeprefix("DELETE "))


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return str(value)
