"""Who wrote the log: PostgreSQL notes it beside each append, and it is held to the fence between holders of the lease.

Each process of the program has a name, which its connections bring with them as a setting of a database's own; the
program knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

NAME = "proof.name"
WATCH_WRITERS = (
    "CREATE TABLE leases (number bigint, name text)",
    "CREATE TABLE appends (first bigint, last bigint, chain boolean, lease bigint, name text)",
    f"""
    CREATE FUNCTION note_lease() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO leases VALUES (NEW.lease, current_setting('{NAME}', true));
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER note_lease AFTER UPDATE OF lease ON log_head
    FOR EACH ROW WHEN (NEW.lease <> OLD.lease) EXECUTE FUNCTION note_lease()
    """,
    f"""
    CREATE FUNCTION note_append() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO appends SELECT min(position), max(position), bool_or(raw IS NOT NULL OR event = 'stream.reverted'),
            (SELECT lease FROM log_head), current_setting('{NAME}', true)
        FROM added HAVING count(*) > 0;
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER note_append AFTER INSERT ON events REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION note_append()
    """,
)


class Asked(Protocol):
    """Whatever can ask PostgreSQL: tests/runtime/truth.py, for one."""

    async def rows(self, text: str, *args: Any) -> Sequence[Any]:
        """The rows of a query."""
        ...


class Append(NamedTuple):
    """Rows that one statement wrote: of the chain, or of API writes. `lease` was the newest number then."""

    first: int
    last: int
    chain: bool
    lease: int
    name: str


def named(url: str, name: str) -> str:
    """The URL of a database for the process of that name."""
    return f"{url}{'&' if '?' in url else '?'}{NAME}={name}"


async def newest_writer(books: Asked) -> int:
    """The greatest lease under which anything of the chain was recorded; 0 where nothing was."""
    return int((await books.rows("SELECT coalesce(max(lease), 0) FROM appends WHERE chain"))[0][0])


async def judge_writers(books: Asked) -> dict[str, int]:
    """There never were two writers of the chain: the figures."""
    leases = {row["number"]: row["name"] for row in await books.rows("SELECT number, name FROM leases")}
    rows = await books.rows("SELECT first, last, chain, lease, name FROM appends ORDER BY first")
    appends = [Append(*row) for row in rows]
    breaks = fence_breaks(leases, appends)
    assert not breaks, "\n".join(breaks[:20])
    chain = [append for append in appends if append.chain]
    return {
        "leases": len(leases),
        "wrote": len({append.lease for append in chain}),
        "appends": len(chain),
        "api appends": len(appends) - len(chain),
        "api writers": len({append.name for append in appends if not append.chain}),
    }


def fence_breaks(leases: dict[int, str], appends: Sequence[Append]) -> list[str]:
    """Whatever of the chain was not written by the holder of the newest lease; `appends` in the order of the log."""
    breaks = []
    newest = 0
    for append in appends:
        if append.lease < newest:
            breaks.append(f"{append.first} was written under lease {append.lease}, behind {newest}")
        newest = max(newest, append.lease)
        if append.chain and leases.get(append.lease) != append.name:
            holder = leases.get(append.lease)
            breaks.append(f"{append.first} was written by {append.name} while {holder} held lease {append.lease}")
    return breaks
