"""GET /api/streams and /api/streams/{id}: what each stream is worth at any second."""

from __future__ import annotations

import msgspec

from fluxora.errors import DecodeError, NotFound
from fluxora.http.backend import Backend
from fluxora.http.exchange import Reply, Request
from fluxora.http.query import MAX_UNIX_S, STREAM_ID, Query
from fluxora.http.replies import json_reply
from fluxora.protocol import cursors, messages
from fluxora.storage.records import StatusName, StreamQuery

STATUSES: tuple[StatusName, ...] = ("active", "paused", "completed", "cancelled")
_LIST_PARAMETERS = frozenset({"status", "sender", "recipient", "contractId", "limit", "cursor", "order", "asOf"})


class _Page(msgspec.Struct, rename="camel"):
    streams: list[messages.StreamView]
    has_more: bool
    next_cursor: str | None
    position: str


async def list_streams(request: Request, backend: Backend) -> Reply:
    """Streams in the order of their creation; amounts at `asOf` (now where absent).

    `position` is read before the page, so that every event up to it is in what the page shows.

    Raises:
        BadRequest: a parameter is wrong, or the cursor belongs to other filters.
        StorageUnavailable: the database cannot answer.
    """
    query = Query(request.query, _LIST_PARAMETERS)
    status = query.choice("status", STATUSES)
    sender = query.address("sender")
    recipient = query.address("recipient")
    contract_id = query.contract("contractId")
    order = query.choice("order", ("asc", "desc")) or "asc"
    limit = query.limit(default=20, high=100)
    as_of = _as_of(query, backend)
    filters = {
        "status": status,
        "sender": sender,
        "recipient": recipient,
        "contractId": contract_id,
        "order": order,
    }
    after = _cursor(query, filters)
    query.check()

    position = await backend.store.position()
    records = await backend.store.streams(
        StreamQuery(
            status=status,
            sender=sender,
            recipient=recipient,
            contract_id=contract_id,
            after=after,
            descending=order == "desc",
            limit=limit + 1,
        )
    )
    page = records[:limit]
    has_more = len(records) > limit
    return json_reply(
        _Page(
            streams=[messages.view(record, as_of) for record in page],
            has_more=has_more,
            next_cursor=cursors.encode(page[-1].created_position, filters) if has_more else None,
            position=str(position),
        )
    )


async def one_stream(request: Request, backend: Backend) -> Reply:
    """One stream at `asOf`. Its ETag is the state's version and the second that the amounts are for.

    Raises:
        BadRequest: a parameter is wrong.
        NotFound: no such stream.
        StorageUnavailable: the database cannot answer.
    """
    query = Query(request.query, {"asOf"})
    as_of = _as_of(query, backend)
    query.check()
    stream_id = request.params["id"]
    # An id of another form is never looked up: what is no text for PostgreSQL (a NUL) ends here.
    record = await backend.store.stream(stream_id) if STREAM_ID.fullmatch(stream_id) else None
    if record is None:
        raise NotFound("There is no such stream")
    etag = f'W/"{record.position}-{as_of}"'
    headers = (("etag", etag),)
    if _matches(request.header("if-none-match"), etag):
        return Reply(304, headers)
    return json_reply(messages.view(record, as_of), headers=headers)


def _as_of(query: Query, backend: Backend) -> int:
    given = query.integer("asOf", 0, MAX_UNIX_S)
    return int(backend.clock()) if given is None else given


def _cursor(query: Query, filters: dict[str, str | None]) -> int | None:
    cursor = query.text("cursor")
    if cursor is None:
        return None
    try:
        return cursors.decode(cursor, filters)
    except DecodeError as error:
        query.problems.add("cursor", "INVALID_CURSOR", str(error))
        return None


def _matches(if_none_match: str | None, etag: str) -> bool:
    """Weak comparison (RFC 9110 8.8.3.2): the W/ prefix does not count."""
    if if_none_match is None:
        return False
    candidates = {part.strip().removeprefix("W/") for part in if_none_match.split(",")}
    return "*" in candidates or etag.removeprefix("W/") in candidates
