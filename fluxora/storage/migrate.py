"""Migrations: numbered SQL files, applied once each, in order, forward only.

Each file runs in a transaction of its own together with its row in `schema_migrations`, under an advisory lock, so any
number of replicas may start at once: one applies, the others wait and find it done. What was applied must still be what
the files say (sha256); a database that is ahead of the program is refused as well.
"""

from __future__ import annotations

import hashlib
import re
from importlib import resources
from typing import Protocol

import asyncpg
import msgspec

from fluxora import logs
from fluxora.config import StorageConfig
from fluxora.errors import ConfigError, MigrationMismatch
from fluxora.storage.pool import Connection, connect, is_unavailable, unavailable

LOCK_KEY = 0x666C75786D6967  # "fluxmig"
LOCK_WAIT_MS = 60_000  # another replica may be migrating just now
_FILE = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")

log = logs.get("migrate")


class Migrated(Protocol):
    """What can be migrated: an open Store."""

    async def migrate(self) -> list[int]:
        """See `migrate`."""
        ...


class Migration(msgspec.Struct, frozen=True):
    """One numbered file."""

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """Hex sha256 of its text."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations() -> list[Migration]:
    """The files that come with the program, ascending."""
    found = []
    for file in resources.files("fluxora.storage.sql").iterdir():
        match = _FILE.fullmatch(file.name)
        if match is not None:
            found.append(Migration(int(match[1]), file.name, file.read_text(encoding="utf-8")))
    return sorted(found, key=lambda migration: migration.version)


async def apply(url: str, config: StorageConfig, files: list[Migration]) -> list[int]:
    """On the bridge's thread: bring the database up to `files`; the versions applied now, ascending.

    Raises:
        MigrationMismatch: an applied file was changed or is missing, or the database is newer than the files.
        ConfigError: the database or the user does not exist, or the password is wrong.
        StorageUnavailable: PostgreSQL cannot answer now.
    """
    try:
        connection = await connect(url, config)
    except Exception as error:
        cause = error.__cause__
        if isinstance(cause, asyncpg.InvalidAuthorizationSpecificationError | asyncpg.InvalidCatalogNameError):
            raise ConfigError(f"DATABASE_URL: {cause}") from error
        raise
    try:
        # No bound while a table of millions of rows is being indexed.
        await connection.execute(f"SET statement_timeout = 0; SET lock_timeout = {LOCK_WAIT_MS}", timeout=10)
        await connection.execute("SELECT pg_advisory_lock($1)", LOCK_KEY, timeout=LOCK_WAIT_MS / 1000 + 1)
        return await _apply_missing(connection, files)
    except Exception as error:
        if is_unavailable(error):
            raise unavailable(error) from error
        raise
    finally:
        connection.terminate()  # and with it the lock


async def _apply_missing(connection: Connection, files: list[Migration]) -> list[int]:
    await connection.execute(
        "CREATE TABLE IF NOT EXISTS schema_migrations (version integer PRIMARY KEY, name text NOT NULL, "
        "checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
    )
    rows = await connection.fetch("SELECT version, name, checksum FROM schema_migrations ORDER BY version")
    applied = {row["version"]: row for row in rows}
    known = {migration.version: migration for migration in files}
    for version, row in applied.items():
        if version > max(known, default=0):
            raise MigrationMismatch(f"the database is at {row['name']}, newer than this program; run a newer one")
        if version not in known:
            raise MigrationMismatch(f"{row['name']} was applied to the database and is missing from this program")
        if known[version].checksum != row["checksum"]:
            raise MigrationMismatch(f"{row['name']} differs from what was applied to the database")
    done = []
    for migration in files:
        if migration.version in applied:
            continue
        if migration.version < max(applied, default=0):
            raise MigrationMismatch(
                f"{migration.name} comes before {max(applied)}, which is applied; migrations go forward only"
            )
        async with connection.transaction():
            await connection.execute(migration.sql, timeout=None)
            await connection.execute(
                "INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, $2, $3)",
                migration.version,
                migration.name,
                migration.checksum,
            )
        log.info("migrate.applied", migration=migration.name)
        done.append(migration.version)
    return done


async def migrate(store: Migrated) -> list[int]:
    """Bring an open store's schema up to this program; the versions applied now. Raises what `apply` raises."""
    return await store.migrate()
