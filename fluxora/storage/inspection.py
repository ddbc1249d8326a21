"""What an operator should know of the database before relying on it."""

from __future__ import annotations

import msgspec

from fluxora.storage.migrate import migrations
from fluxora.storage.pool import Connection

OLDEST_VERSION = 14

_FACTS = """
SELECT current_setting('server_version_num')::int / 10000 AS version,
       current_setting('server_version') AS version_text,
       (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS clock_ms,
       pg_is_in_recovery() AS standby,
       has_schema_privilege(current_schema(), 'CREATE') AS may_create,
       current_setting('max_connections')::int AS max_connections,
       (SELECT count(*) FROM pg_stat_activity)::int AS connections,
       current_setting('synchronous_commit') AS synchronous_commit,
       current_setting('fsync') AS fsync,
       pg_database_size(current_database()) AS bytes,
       to_regclass('schema_migrations') IS NOT NULL AS migrated
"""


class DatabaseFacts(msgspec.Struct, frozen=True, kw_only=True):
    """`clock_ms` is the server's Unix time. `behind`: migrations to be applied; `ahead`: applied, and unknown here.

    `durable`: a commit that is answered survives a crash of the server.
    """

    version: int
    version_text: str
    clock_ms: int
    standby: bool
    may_create: bool
    max_connections: int
    connections: int
    durable: bool
    bytes: int
    behind: list[str]
    ahead: list[str]


async def inspect(connection: Connection) -> DatabaseFacts:
    """On the bridge's thread."""
    row = await connection.fetchrow(_FACTS)
    applied = set()
    if row["migrated"]:
        applied = {found["name"] for found in await connection.fetch("SELECT name FROM schema_migrations")}
    known = [migration.name for migration in migrations()]
    return DatabaseFacts(
        version=row["version"],
        version_text=row["version_text"],
        clock_ms=row["clock_ms"],
        standby=row["standby"],
        may_create=row["may_create"],
        max_connections=row["max_connections"],
        connections=row["connections"],
        durable=row["fsync"] == "on" and row["synchronous_commit"] != "off",
        bytes=row["bytes"],
        behind=[name for name in known if name not in applied],
        ahead=sorted(applied - set(known)),
    )
