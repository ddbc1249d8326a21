"""What clients ask for. Every list is read from an index in its own order; functions run on the bridge's thread."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec

from fluxora.protocol.chain import LedgerHeader
from fluxora.protocol.messages import LogEvent, StreamRecord
from fluxora.protocol.streams import unpack_state
from fluxora.storage.pool import Connection
from fluxora.storage.records import EntryWant, EventQuery, IngestState, Listed, Listing, LogHead, StreamQuery

HEADERS_KEPT = 4096
MAX_POSITION = 2**63 - 1
_FILTERS = ("sender", "recipient", "contract_id")
STATUSES = ("active", "paused", "completed", "cancelled")

_STREAM = (
    "SELECT id, origin, epoch, contract_id, decimals, state, position, created_position, ledger, created_ms, "
    "updated_ms FROM streams"
)
_EVENT = (
    "SELECT position, event_id, event, action, stream_id, ledger, tx_hash, contract_id, timestamp_ms, payload "
    "FROM events"
)

# Payloads that are stored apart are looked at one after the other, and none is sent that is not wanted.
_WEIGHED = (
    "SELECT * FROM (SELECT page.*, sum(octet_length(payload::text)) OVER "
    "(ORDER BY position ROWS BETWEEN UNBOUNDED PRECEDING AND 2 PRECEDING) AS before FROM ({page}) AS page) AS weighed "
    "WHERE before IS NULL OR before < ${most} ORDER BY position"
)


async def position(connection: Connection) -> int:
    """The position of the newest committed log row; 0 while there is none."""
    found: int = await connection.fetchval("SELECT position FROM log_head")
    return found


async def head(connection: Connection) -> LogHead:
    """Where the log ends, and in which network epoch."""
    row = await connection.fetchrow("SELECT position, epoch FROM log_head, ingest_cursor")
    return LogHead(row["position"], row["epoch"])


async def ping(connection: Connection) -> None:
    """Ask the least that there is to ask."""
    await connection.fetchval("SELECT 1")


async def stream(connection: Connection, stream_id: str) -> StreamRecord | None:
    """One stream of any epoch."""
    row = await connection.fetchrow(f"{_STREAM} WHERE id = $1", stream_id)
    return None if row is None else _record(row)


async def streams(connection: Connection, query: StreamQuery) -> list[StreamRecord]:
    """A page of streams in creation order."""
    text, values = stream_page(query)
    return [_record(row) for row in await connection.fetch(text, *values)]


async def page(connection: Connection, query: StreamQuery) -> tuple[int, list[StreamRecord]]:
    """As `streams`, with the position of the log that the page shows: both are of one snapshot."""
    text, values = stream_page(query)
    order = "DESC" if query.descending else "ASC"
    rows = await connection.fetch(
        f"SELECT h.position AS head, page.* FROM log_head h LEFT JOIN ({text}) AS page ON true "  # noqa: S608 (no value in it)
        f"ORDER BY page.created_position {order}",
        *values,
    )
    return rows[0]["head"], [] if rows[0]["id"] is None else [_record(row) for row in rows]


async def streams_of(connection: Connection, stream_ids: Sequence[str]) -> dict[str, StreamRecord]:
    """Those of the streams that exist, by id."""
    return {row["id"]: _record(row) for row in await connection.fetch(f"{_STREAM} WHERE id = ANY($1)", stream_ids)}


async def listings(connection: Connection, queries: Sequence[StreamQuery]) -> list[Listing]:
    """Which streams each page has; the queries are of one shape, and all pages of one snapshot."""
    head = 0
    found: list[list[Listed]] = [[] for _ in queries]
    for row in await connection.fetch(listing(queries[0]), *listing_values(queries)):
        head = row["head"]
        if row["id"] is not None:
            found[row["nth"] - 1].append(Listed(row["id"], row["position"], row["created_position"]))
    return [Listing(head, page) for page in found]


@lru_cache(maxsize=1024)  # by shape: the values are no part of it
def _listing(shape: StreamQuery) -> str:
    columns = [name for name in _FILTERS if getattr(shape, name) is not None]
    conditions = ["NOT parked", *(f"{name} = q.{name}" for name in columns)]
    conditions.append(f"created_position {'<' if shape.descending else '>'} q.after")
    direction = "DESC" if shape.descending else "ASC"
    scan = _scans(
        "SELECT id, position, created_position FROM streams",
        conditions,
        shape,
        f"ORDER BY created_position {direction} LIMIT {shape.limit:d}",  # a literal, for the planner
    )
    arrays = "".join(f", ${at}::text[]" for at in range(2, 2 + len(columns)))
    return (
        "SELECT q.nth, s.id, s.position, s.created_position, h.position AS head "  # noqa: S608 (no value in it)
        f"FROM log_head h CROSS JOIN unnest($1::bigint[]{arrays}) WITH ORDINALITY "
        f"AS q({', '.join(('after', *columns, 'nth'))}) LEFT JOIN LATERAL ({scan}) AS s ON true "
        f"ORDER BY q.nth, s.created_position {direction}"
    )


def listing(query: StreamQuery) -> str:
    """The SQL of any number of pages of the query's shape: each is a scan of its own, as in `stream_page`."""
    shown = {name: None if getattr(query, name) is None else "" for name in _FILTERS}
    return _listing(msgspec.structs.replace(query, after=None, **shown))


def listing_values(queries: Sequence[StreamQuery]) -> list[Any]:
    """The values of `listing`: one array for the places to go on behind, and one for each filter."""
    first = queries[0]
    nowhere = MAX_POSITION if first.descending else 0
    columns = [name for name in _FILTERS if getattr(first, name) is not None]
    return [
        [nowhere if query.after is None else query.after for query in queries],
        *([getattr(query, name) for query in queries] for name in columns),
    ]


def stream_page(query: StreamQuery) -> tuple[str, list[Any]]:
    """The page's SQL and values.

    Addresses are indexed with the status before the position. Without a status the page is a merge of one ordered scan
    for each status, so that it stays as cheap as with one.
    """
    values: list[Any] = []
    conditions = ["NOT parked"]
    for column in _FILTERS:
        value = getattr(query, column)
        if value is not None:
            values.append(value)
            conditions.append(f"{column} = ${len(values)}")
    if query.after is not None:
        values.append(query.after)
        conditions.append(f"created_position {'<' if query.descending else '>'} ${len(values)}")
    values.append(query.limit)
    order = f"ORDER BY created_position {'DESC' if query.descending else 'ASC'} LIMIT ${len(values)}"
    return _scans(_STREAM, conditions, query, order), values


def _scans(select: str, conditions: list[str], query: StreamQuery, order: str) -> str:
    """One ordered scan, or a merge of one for each status."""
    addressed = any(getattr(query, name) is not None for name in _FILTERS)
    wanted = (query.status,) if query.status is not None else STATUSES if addressed else (None,)
    scans = []
    for status in wanted:
        # A literal, so that the planner knows how many have it; it comes from a closed set.
        also = [] if status is None else [f"status = '{STATUSES[STATUSES.index(status)]}'"]
        scans.append(f"{select} WHERE {' AND '.join(conditions + also)} {order}")
    if len(scans) == 1:
        return scans[0]
    return f"SELECT * FROM (({') UNION ALL ('.join(scans)})) AS merged {order}"  # noqa: S608 (no value in it)


async def events(connection: Connection, query: EventQuery) -> list[LogEvent]:
    """A page of the log in position order."""
    if query.ledger_from is None and query.ledger_to is None:
        return await _page_of_events(connection, query, query.after, None)
    found: list[LogEvent] = []
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        for first, last in await _position_ranges(connection, query):
            found += await _page_of_events(connection, _left_of(query, found), max(query.after, first - 1), last)
            if query.is_full(found):
                break
    return found


def _left_of(query: EventQuery, found: Sequence[LogEvent]) -> EventQuery:
    """What of a page is still to be found: where it is as large as it may be, one that says that there is more."""
    limit, most_bytes = query.limit - len(found), query.most_bytes
    if most_bytes is not None:
        most_bytes -= sum(len(event.payload) for event in found)
        if most_bytes <= 0:
            limit, most_bytes = 1, None
    return msgspec.structs.replace(query, limit=limit, most_bytes=most_bytes)


async def _page_of_events(connection: Connection, query: EventQuery, after: int, last: int | None) -> list[LogEvent]:
    text, values = event_page(query, after, last)
    if query.most_bytes is not None:
        values.append(query.most_bytes)
        text = _WEIGHED.format(page=text, most=len(values))
    return [log_event(row) for row in await connection.fetch(text, *values)]


def event_page(query: EventQuery, after: int, last: int | None) -> tuple[str, list[Any]]:
    """The SQL and values of a page of the positions above `after` and up to `last`; the limit comes last."""
    values: list[Any] = [after]
    conditions = ["position > $1"]
    if last is not None:
        values.append(last)
        conditions.append("position <= $2")
    for condition, value in (
        ("stream_id =", query.stream_id),
        ("event =", query.event),
        ("contract_id =", query.contract_id),
        ("ledger >=", query.ledger_from),
        ("ledger <=", query.ledger_to),
    ):
        if value is not None:
            values.append(value)
            conditions.append(f"{condition} ${len(values)}")
    values.append(query.limit)
    return f"{_EVENT} WHERE {' AND '.join(conditions)} ORDER BY position LIMIT ${len(values)}", values


# Within a run ledgers never go down, so its rows of a range of ledgers lie between two positions.
RANGES = """
SELECT first.position AS first, last.position AS last
FROM log_runs r
CROSS JOIN LATERAL (
    SELECT position FROM events
    WHERE ledger >= greatest($2, r.first_ledger) AND position BETWEEN r.first_position AND r.last_position
    ORDER BY ledger, position LIMIT 1
) first
CROSS JOIN LATERAL (
    SELECT position FROM events
    WHERE ledger <= least($3, r.last_ledger) AND position BETWEEN r.first_position AND r.last_position
    ORDER BY ledger DESC, position DESC LIMIT 1
) last
WHERE r.last_position > $1 AND r.last_ledger >= $2 AND r.first_ledger <= $3 AND last.position > $1
  AND first.position <= last.position
ORDER BY r.first_position
LIMIT $4
"""


async def _position_ranges(connection: Connection, query: EventQuery) -> list[tuple[int, int]]:
    """Where in the log the wanted ledgers lie behind `after`: a page needs no more ranges than it has rows."""
    low = 0 if query.ledger_from is None else query.ledger_from
    high = 2**63 - 1 if query.ledger_to is None else query.ledger_to
    rows = await connection.fetch(RANGES, query.after, low, high, 1_000_000 if _filtered(query) else query.limit)
    return [(row["first"], row["last"]) for row in rows]


def _filtered(query: EventQuery) -> bool:
    return any(value is not None for value in (query.stream_id, query.event, query.contract_id))


async def ingest_state(connection: Connection) -> IngestState:
    """Where ingest stands, with the newest headers."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        head = await connection.fetchrow("SELECT position, epoch, complete_through FROM log_head, ingest_cursor")
        rows = await connection.fetch(
            "SELECT sequence, hash, previous_hash, closed_at FROM ledgers WHERE epoch = $1 "
            "ORDER BY sequence DESC LIMIT $2",
            head["epoch"],
            HEADERS_KEPT,
        )
    headers = [LedgerHeader(*row) for row in reversed(rows)]
    return IngestState(head["epoch"], head["complete_through"], headers, head["position"])


async def entry_wants(connection: Connection, now_s: int, limit: int) -> list[EntryWant]:
    """Streams whose entry is due to be read, those that wait longest first."""
    rows = await connection.fetch(
        "SELECT stream_id, contract_id, chain_stream_id::text AS chain, ledger FROM entry_wants "
        "WHERE not_before <= $1 ORDER BY not_before, ledger, stream_id LIMIT $2",
        now_s,
        limit,
    )
    return [EntryWant(row["stream_id"], row["contract_id"], int(row["chain"]), row["ledger"]) for row in rows]


async def drop_wants(connection: Connection, wants: Sequence[EntryWant]) -> None:
    """These have been answered; one that was raised again since then, by a newer ledger, stays."""
    await connection.execute(
        "DELETE FROM entry_wants AS w USING unnest($1::text[], $2::bigint[]) AS answered(id, ledger) "
        "WHERE w.stream_id = answered.id AND w.ledger = answered.ledger",
        [want.stream_id for want in wants],
        [want.ledger for want in wants],
    )


async def postpone_wants(connection: Connection, wants: Sequence[EntryWant], until_s: int) -> None:
    """Ask for these again, not before `until_s` (Unix seconds)."""
    await connection.execute(
        "UPDATE entry_wants SET not_before = $2 WHERE stream_id = ANY($1)", [want.stream_id for want in wants], until_s
    )


def _record(row: Any) -> StreamRecord:
    return StreamRecord(
        row["id"],
        row["origin"],
        row["epoch"],
        row["contract_id"],
        row["decimals"],
        unpack_state(row["state"]),
        row["position"],
        row["created_position"],
        row["ledger"],
        row["created_ms"],
        row["updated_ms"],
    )


def log_event(row: Any) -> LogEvent:
    """The event of a row that has the columns of the log."""
    return LogEvent(
        row["position"],
        row["event_id"],
        row["event"],
        row["action"],
        row["stream_id"],
        row["ledger"],
        row["tx_hash"],
        row["contract_id"],
        row["timestamp_ms"],
        row["payload"].encode(),
    )
