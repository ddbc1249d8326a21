"""Endpoints: whom to tell of what, and the secrets to sign with. Functions run on the bridge's thread.

What an endpoint gets is changed under the lock of the log's head, so that each event is recorded either wholly before
the change or wholly after it: `created_position` is exact.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from fluxora.errors import TooManyEndpoints
from fluxora.protocol.signing import Secret
from fluxora.storage import admin_log
from fluxora.storage.admin_log import ITSELF, NOW_MS
from fluxora.storage.doorbell import CHANNEL
from fluxora.storage.pool import Connection
from fluxora.storage.webhook_records import (
    DEFAULT_ENDPOINT,
    DeliveryTarget,
    Endpoint,
    EndpointChanges,
    NewEndpoint,
)

DEFAULT_GRACE_MS: Final = 24 * 3_600_000

_COLUMNS = (
    "id, url, description, events, stream_ids, addresses, ordered, rate_limit, max_in_flight, enabled, "
    "disabled_reason, created_ms, updated_ms, created_position, failing_since_ms, last_success_ms, "
    f"CASE WHEN previous_until_ms > {NOW_MS} THEN previous_until_ms END AS secret_rotates_until_ms"
)
_LOCK_HEAD = "SELECT position FROM log_head FOR UPDATE"
_COUNT = "SELECT count(*) FROM webhook_endpoints WHERE NOT deleted AND id <> $1"
_LOCK = f"SELECT {_COLUMNS} FROM webhook_endpoints WHERE id = $1 AND NOT deleted FOR NO KEY UPDATE"  # noqa: S608 (names of our own columns)

_INSERT = f"""
INSERT INTO webhook_endpoints (id, url, description, events, stream_ids, addresses, ordered, rate_limit, max_in_flight,
    enabled, disabled_reason, created_ms, updated_ms, created_position, secret)
SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, CASE WHEN NOT $10 THEN 'operator' END, now_ms, now_ms, $11, $12
FROM (SELECT {NOW_MS} AS now_ms) AS clock
RETURNING {_COLUMNS}
"""  # noqa: S608 (names of our own columns)

# What is enabled anew has not failed yet. What stays disabled keeps its reason.
_UPDATE = f"""
UPDATE webhook_endpoints SET url = $2, description = $3, events = $4, stream_ids = $5, addresses = $6, ordered = $7,
    rate_limit = $8, max_in_flight = $9, enabled = $10,
    disabled_reason = CASE WHEN $10 THEN NULL ELSE coalesce(disabled_reason, 'operator') END,
    failing_since_ms = CASE WHEN $10 AND NOT enabled THEN NULL ELSE failing_since_ms END,
    updated_ms = {NOW_MS}
WHERE id = $1 RETURNING {_COLUMNS}
"""  # noqa: S608 (names of our own columns)

_ROTATE = f"""
UPDATE webhook_endpoints SET secret = $2, previous_secret = secret, previous_until_ms = {NOW_MS} + $3,
    updated_ms = {NOW_MS}
WHERE id = $1 AND NOT deleted RETURNING {_COLUMNS}
"""  # noqa: S608 (names of our own columns)

_MARK_HEAD = """
UPDATE log_head SET webhooks = EXISTS (SELECT FROM webhook_endpoints WHERE enabled AND NOT deleted)
"""

# Each statement sees what the one before it has done.
_CLEAR = (
    "DELETE FROM webhook_claims WHERE endpoint_id = $1",
    "DELETE FROM webhook_attempts WHERE endpoint_id = $1",
    "DELETE FROM webhook_deliveries WHERE endpoint_id = $1",
    "DELETE FROM webhook_tallies WHERE endpoint_id = $1",
    "DELETE FROM webhook_endpoints WHERE id = $1",
)


async def create(connection: Connection, new: NewEndpoint, secret: Secret, actor: str, most: int) -> Endpoint:
    """Register an endpoint under a new id. The lock of the log's head keeps others from doing so at the same time.

    Raises:
        TooManyEndpoints: there are `most` already.
    """
    async with connection.transaction():
        position: int = await connection.fetchval(_LOCK_HEAD)
        if await connection.fetchval(_COUNT, DEFAULT_ENDPOINT) >= most:
            raise TooManyEndpoints(
                f"There are {most:,} webhook endpoints, as many as may be: delete one that nobody needs, or raise "
                "FLUXORA_WEBHOOK_MAX_ENDPOINTS"
            )
        made = await _insert(connection, _new_id(), new, secret, position)
        await admin_log.add(connection, actor, "webhook.created", made.id, _stated(msgspec.structs.asdict(new)))
    return made


async def endpoints(connection: Connection) -> list[Endpoint]:
    """All of them, in the order of their creation."""
    rows = await connection.fetch(
        f"SELECT {_COLUMNS} FROM webhook_endpoints WHERE NOT deleted ORDER BY created_position, created_ms, id"  # noqa: S608 (names of our own columns)
    )
    return [_endpoint(row) for row in rows]


async def endpoint(connection: Connection, endpoint_id: str) -> Endpoint | None:
    """One of them."""
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM webhook_endpoints WHERE id = $1 AND NOT deleted",  # noqa: S608 (names of our own columns)
        endpoint_id,
    )
    return None if row is None else _endpoint(row)


async def target(connection: Connection, endpoint_id: str) -> DeliveryTarget | None:
    """Where one's deliveries go, and the active secrets."""
    row = await connection.fetchrow(
        f"SELECT url, secret, previous_secret, previous_until_ms, {NOW_MS} AS now_ms FROM webhook_endpoints "  # noqa: S608 (no value in it)
        "WHERE id = $1 AND NOT deleted",
        endpoint_id,
    )
    return None if row is None else DeliveryTarget(row["url"], active_secrets(row, row["now_ms"]))


async def update(connection: Connection, endpoint_id: str, changes: EndpointChanges, actor: str) -> Endpoint | None:
    """Change one, for what is recorded from then on."""
    given = {name: value for name, value in msgspec.structs.asdict(changes).items() if value is not None}
    async with connection.transaction():
        await connection.execute(_LOCK_HEAD)
        row = await connection.fetchrow(_LOCK, endpoint_id)
        if row is None:
            return None
        changed = await _update(connection, _endpoint(row), given)
        await admin_log.add(connection, actor, "webhook.updated", endpoint_id, given)
    return changed


async def delete(connection: Connection, endpoint_id: str, actor: str) -> bool:
    """Hide one from everybody; `webhook_deliveries.purge` takes its rows away."""
    async with connection.transaction():
        await connection.execute(_LOCK_HEAD)
        row = await connection.fetchrow(_LOCK, endpoint_id)
        if row is None:
            return False
        await connection.execute("UPDATE webhook_endpoints SET deleted = true WHERE id = $1", endpoint_id)
        await connection.execute("DELETE FROM webhook_claims WHERE endpoint_id = $1", endpoint_id)
        await connection.execute(_MARK_HEAD)
        await admin_log.add(connection, actor, "webhook.deleted", endpoint_id, {"url": row["url"]})
    return True


async def rotate(
    connection: Connection, endpoint_id: str, secret: Secret, grace_ms: int, actor: str
) -> Endpoint | None:
    """Sign with another secret, and for a while with the one before as well."""
    async with connection.transaction():
        row = await connection.fetchrow(_ROTATE, endpoint_id, secret.reveal(), grace_ms)
        if row is None:
            return None
        await admin_log.add(connection, actor, "webhook.rotated", endpoint_id, {"grace_ms": grace_ms})
    return _endpoint(row)


async def ensure_default(connection: Connection, url: str, secret: Secret) -> Endpoint:
    """Register the endpoint of the configuration, or bring it up to that.

    Where it was deleted, what is left of that is removed before; the caller sees to it that it is not much.
    """
    async with connection.transaction():
        position: int = await connection.fetchval(_LOCK_HEAD)
        row = await connection.fetchrow(_LOCK, DEFAULT_ENDPOINT)
        if row is None:
            await remove(connection, DEFAULT_ENDPOINT)
            made = await _insert(connection, DEFAULT_ENDPOINT, NewEndpoint(url=url), secret, position)
            await admin_log.add(connection, ITSELF, "webhook.created", made.id, {"url": url})
            return made
        found = _endpoint(row)
        if found.url != url:
            found = await _update(connection, found, {"url": url, "enabled": True})
            await admin_log.add(connection, ITSELF, "webhook.updated", found.id, {"url": url, "enabled": True})
        current: str = await connection.fetchval("SELECT secret FROM webhook_endpoints WHERE id = $1", found.id)
        if Secret(current) != secret:
            found = _endpoint(await connection.fetchrow(_ROTATE, found.id, secret.reveal(), DEFAULT_GRACE_MS))
            await admin_log.add(connection, ITSELF, "webhook.rotated", found.id, {"grace_ms": DEFAULT_GRACE_MS})
    return found


async def remove(connection: Connection, endpoint_id: str) -> None:
    """Take away what is left of one that was deleted, if anything. Within a transaction that holds its lock."""
    for statement in _CLEAR:
        await connection.execute(statement, endpoint_id)


def active_secrets(row: Mapping[str, Any], now_ms: int) -> tuple[Secret, ...]:
    """The secrets of a row that has `secret`, `previous_secret` and `previous_until_ms`; the current one first."""
    current = Secret(row["secret"])
    if row["previous_secret"] is None or row["previous_until_ms"] <= now_ms:
        return (current,)
    return current, Secret(row["previous_secret"])


async def _insert(
    connection: Connection, endpoint_id: str, new: NewEndpoint, secret: Secret, position: int
) -> Endpoint:
    row = await connection.fetchrow(
        _INSERT,
        endpoint_id,
        new.url,
        new.description,
        new.events,
        new.stream_ids,
        new.addresses,
        new.ordered,
        new.rate_limit,
        new.max_in_flight,
        new.enabled,
        position,
        secret.reveal(),
    )
    await connection.execute(_MARK_HEAD)
    await _ring(connection)
    return _endpoint(row)


async def _update(connection: Connection, old: Endpoint, given: Mapping[str, Any]) -> Endpoint:
    new = msgspec.structs.replace(old, **given)
    row = await connection.fetchrow(
        _UPDATE,
        new.id,
        new.url,
        new.description,
        new.events,
        new.stream_ids,
        new.addresses,
        new.ordered,
        new.rate_limit,
        new.max_in_flight,
        new.enabled,
    )
    await connection.execute(_MARK_HEAD)
    await _ring(connection)
    return _endpoint(row)


async def _ring(connection: Connection) -> None:
    """Have every dispatcher look, at the commit."""
    await connection.execute("SELECT pg_notify($1, '')", CHANNEL)


def _endpoint(row: Any) -> Endpoint:
    values = dict(row)
    for name in ("events", "stream_ids", "addresses"):
        values[name] = tuple(values[name])
    return Endpoint(**values)


def _stated(values: Mapping[str, Any]) -> dict[str, Any]:
    """What was said of a new endpoint, without what stands for nothing."""
    return {name: value for name, value in values.items() if value or name == "enabled"}


def _new_id() -> str:
    """`we_` and the hex digits of a UUID of version 7 (RFC 9562): later ones sort behind earlier ones."""
    octets = bytearray((time.time_ns() // 1_000_000).to_bytes(6, "big") + os.urandom(10))
    octets[6] = 0x70 | octets[6] & 0x0F
    octets[8] = 0x80 | octets[8] & 0x3F
    return f"we_{octets.hex()}"
