"""What callers of all processes have spent of their rate limits lately. Functions run on the bridge's thread.

A process writes a row for each round in which its callers spent something, and reads the rows of the others that it
has not seen. Rows, and processes that say nothing, count for a minute, in which any bucket is full again; whoever is
there removes older ones. Ages are PostgreSQL's, so that the clocks of the processes do not matter.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from fluxora.storage.admin_log import NOW_MS
from fluxora.storage.pool import Connection

COUNTS_S: Final = 60
_TALLY = struct.Struct("!16sBI")

_SEEN = f"""
INSERT INTO limit_processes (id, seen_ms) VALUES ($1, {NOW_MS})
ON CONFLICT (id) DO UPDATE SET seen_ms = EXCLUDED.seen_ms
"""  # noqa: S608 (no value in it)

_CLEAN: Final = (
    f"DELETE FROM limit_rounds WHERE abs({NOW_MS} - at_ms) > $1",  # noqa: S608 (no value in it)
    f"DELETE FROM limit_processes WHERE abs({NOW_MS} - seen_ms) > $1",  # noqa: S608 (no value in it)
)

# A round whose answer was lost is written again.
_WRITE = f"""
INSERT INTO limit_rounds (process, round, at_ms, spent)
SELECT $1, round, {NOW_MS} - age_ms, spent
FROM unnest($2::bigint[], $3::bigint[], $4::bytea[]) AS v(round, age_ms, spent)
ON CONFLICT DO NOTHING
"""  # noqa: S608 (no value in it)

_READ = f"""
WITH clock AS MATERIALIZED (SELECT {NOW_MS} AS now_ms)
SELECT p.id, r.round, now_ms - r.at_ms AS age_ms, r.spent
FROM clock CROSS JOIN limit_processes p
LEFT JOIN unnest($2::text[], $3::bigint[]) AS known(process, round) ON known.process = p.id
LEFT JOIN limit_rounds r ON r.process = p.id AND r.round > coalesce(known.round, 0) AND now_ms - r.at_ms <= $4
WHERE p.id <> $1 AND now_ms - p.seen_ms <= $4 ORDER BY r.at_ms
"""  # noqa: S608 (no value in it)


class Tally(NamedTuple):
    """Tokens that a caller has spent. `caller`: its hash, 16 bytes; `policy`: the number of the limit, below 256."""

    caller: bytes
    policy: int
    tokens: int


class Round(msgspec.Struct, frozen=True):
    """What callers spent at a process up to `age_s` ago. `number` grows by one from 1 on."""

    number: int
    age_s: float
    spent: Sequence[Tally]


class Heard(msgspec.Struct, frozen=True):
    """`rounds` are those of others, oldest first; `known` has each one's newest number.

    `others`: another process is there, or was within the last minute.
    """

    others: bool
    rounds: Sequence[Round]
    known: Mapping[str, int]


async def salt(connection: Connection) -> bytes:
    """The key of the database under which callers are hashed."""
    found: bytes = await connection.fetchval("SELECT salt FROM limit_salt")
    return found


async def show(connection: Connection, process: str) -> None:
    """Be there for another minute, and remove what counts no more."""
    await connection.execute(_SEEN, process)
    for statement in _CLEAN:
        await connection.execute(statement, COUNTS_S * 1000)


async def exchange(connection: Connection, process: str, rounds: Sequence[Round], known: Mapping[str, int]) -> Heard:
    """Publish rounds of this process, and read those of the others above what is `known` of each."""
    if rounds:
        ages = [int(one.age_s * 1000) for one in rounds]
        packed = [b"".join([_TALLY.pack(*tally) for tally in one.spent]) for one in rounds]
        await connection.execute(_WRITE, process, [one.number for one in rounds], ages, packed)
    rows = await connection.fetch(_READ, process, list(known), list(known.values()), COUNTS_S * 1000)
    return Heard(
        bool(rows),
        [
            Round(row["round"], max(0, row["age_ms"]) / 1000, _unpacked(row["spent"]))
            for row in rows
            if row["round"] is not None
        ],
        _newest((row["id"], row["round"] or known.get(row["id"], 0)) for row in rows),
    )


def _unpacked(packed: bytes) -> list[Tally]:
    """The tallies of a row; none of one that has another form."""
    return [Tally(*fields) for fields in _TALLY.iter_unpack(packed)] if len(packed) % _TALLY.size == 0 else []


def _newest(numbers: Iterable[tuple[str, int]]) -> dict[str, int]:
    newest: dict[str, int] = {}
    for process, number in numbers:
        newest[process] = max(number, newest.get(process, 0))
    return newest
