"""While replicas are replaced one after the other, old ones work on the new schema: each migration leaves them theirs.

What a version reads and writes is there after the next one's migration, as it was: each column with its type, each key.
What comes to a table that it writes asks nothing of it, and nothing keeps it from writing while a large table is worked
through. Held by what PostgreSQL says of the schema before and after, for every migration.
"""

from __future__ import annotations

import pytest
from scripted import query

from fluxora.config import StorageConfig
from fluxora.storage import migrate
from fluxora.storage.bridge import open_bridge
from fluxora.storage.migrate import Migration

# Everything that an INSERT or UPDATE of the old version could meet on its own tables.
_COLUMNS = """
SELECT c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attgenerated::text,
    coalesce(pg_get_expr(d.adbin, d.adrelid), '')
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
"""
_CONSTRAINTS = """
SELECT c.relname::text, o.conname::text, pg_get_constraintdef(o.oid)
FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid
WHERE c.relnamespace = 'public'::regnamespace AND o.contype <> 'n' -- NOT NULL is told by its column
"""
_INDEXES = "SELECT tablename::text, indexname::text, indexdef FROM pg_indexes WHERE schemaname = 'public'"
_TRIGGERS = """
SELECT c.relname::text, t.tgname::text, pg_get_triggerdef(t.oid)
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid WHERE NOT t.tgisinternal
"""


class Schema:
    """What PostgreSQL says of it; each entry begins with its table's name."""

    def __init__(self, columns: set, constraints: set, indexes: set, triggers: set) -> None:
        self.columns = columns
        self.constraints = constraints
        self.indexes = indexes
        self.triggers = triggers
        self.tables = {column[0] for column in columns}


def faults(before: Schema, after: Schema) -> list[str]:
    """Why the version of `before` could not go on with `after`; empty where it can."""
    old = before.tables
    found = [f"a column is gone or another: {column}" for column in sorted(before.columns - after.columns)]
    found += [f"a constraint is gone: {one}" for one in sorted(before.constraints - after.constraints)]
    found += [f"an index is gone: {one}" for one in sorted(before.indexes - after.indexes)]
    for column in sorted(after.columns - before.columns):
        table, name, _type, must, generated, default = column
        if table in old and must and not (generated or default) and (table, name) not in _names(before.columns):
            found.append(f"an old INSERT does not fill it: {column}")
    for kind, ours, theirs in (
        ("constraint", before.constraints, after.constraints),
        ("index, built while writers wait", before.indexes, after.indexes),
        ("trigger", before.triggers, after.triggers),
    ):
        found += [f"a new {kind} on an old table: {one}" for one in sorted(theirs - ours) if one[0] in old]
    return found


def _names(columns: set) -> set:
    return {(column[0], column[1]) for column in columns}


async def schema_of(url: str) -> Schema:
    found = [{tuple(row) for row in await query(url, sql)} for sql in (_COLUMNS, _CONSTRAINTS, _INDEXES, _TRIGGERS)]
    return Schema(*found)


async def migrated(url: str, files: list[Migration]) -> Schema:
    async with open_bridge() as bridge:
        await bridge.run(migrate.apply, url, StorageConfig(database_url=url), files)
    return await schema_of(url)


@pytest.mark.parametrize("number", range(2, len(migrate.migrations()) + 1))
async def test_the_version_before_goes_on(postgres_run, number: int) -> None:
    files = migrate.migrations()
    url = postgres_run.create("template0")
    try:
        before = await migrated(url, files[: number - 1])
        after = await migrated(url, files[:number])
    finally:
        postgres_run.drop(url)
    assert before.tables
    assert faults(before, after) == []


@pytest.mark.parametrize(
    ("sql", "fault"),
    [
        ("ALTER TABLE streams DROP COLUMN recipient", "a column is gone or another: ('streams', 'recipient'"),
        (
            "ALTER TABLE streams RENAME COLUMN recipient TO payee",
            "a column is gone or another: ('streams', 'recipient'",
        ),
        ("ALTER TABLE log_head ALTER COLUMN position TYPE numeric", "a column is gone or another: ('log_head'"),
        ("ALTER TABLE events ADD COLUMN extra int NOT NULL", "an old INSERT does not fill it: ('events', 'extra'"),
        ("ALTER TABLE events ADD CONSTRAINT few CHECK (position < 9)", "a new constraint on an old table: ('events'"),
        ("CREATE INDEX late ON events (position, ledger)", "a new index, built while writers wait on an old table"),
        ("DROP INDEX streams_of_sender", "an index is gone: ('streams', 'streams_of_sender'"),
        ("DROP TABLE idempotency_keys", "a column is gone or another: ('idempotency_keys'"),
        (
            """CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
            CREATE TRIGGER eats BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION f()""",
            "a new trigger on an old table: ('events', 'eats'",
        ),
    ],
)
async def test_what_would_stop_it_is_seen(postgres_run, sql: str, fault: str) -> None:
    url = postgres_run.create()
    files = migrate.migrations()
    try:
        before = await schema_of(url)
        after = await migrated(url, [*files, Migration(len(files) + 1, "9999_next.sql", sql)])
    finally:
        postgres_run.drop(url)
    assert any(one.startswith(fault) for one in faults(before, after))
