"""GET /api/events and /api/streams/{id}/events: the durable log in position order."""

from __future__ import annotations

from collections.abc import Sequence

from fluxora.errors import NotFound
from fluxora.http.backend import Backend
from fluxora.http.exchange import Reply, Request
from fluxora.http.query import MAX_POSITION, STREAM_ID, Query
from fluxora.http.replies import raw_json_reply
from fluxora.protocol.messages import LogEvent, encode_event
from fluxora.storage.records import EventQuery

EVENT_NAMES = ("stream.created", "stream.updated", "stream.cancelled", "stream.reverted", "contract.updated")
MAX_LEDGER = 2**32 - 1
_PAGE_PARAMETERS = frozenset({"after", "limit"})
_LOG_PARAMETERS = _PAGE_PARAMETERS | {"streamId", "event", "contractId", "ledgerFrom", "ledgerTo"}


async def all_events(request: Request, backend: Backend) -> Reply:
    """The log behind `after`, filtered.

    Raises:
        BadRequest: a parameter is wrong.
        StorageUnavailable: the database cannot answer.
    """
    query = Query(request.query, _LOG_PARAMETERS)
    after = query.integer("after", 0, MAX_POSITION) or 0
    limit = query.limit(default=100, high=1000)
    ledger_from = query.integer("ledgerFrom", 0, MAX_LEDGER)
    ledger_to = query.integer("ledgerTo", 0, MAX_LEDGER)
    if ledger_from is not None and ledger_to is not None and ledger_from > ledger_to:
        query.problems.add("ledgerTo", "OUT_OF_RANGE", "ledgerTo is below ledgerFrom")
    wanted = EventQuery(
        after=after,
        limit=limit + 1,
        stream_id=query.stream("streamId"),
        event=query.choice("event", EVENT_NAMES),
        contract_id=query.contract("contractId"),
        ledger_from=ledger_from,
        ledger_to=ledger_to,
    )
    query.check()
    position = await backend.store.position()
    return _page(await backend.store.events(wanted), after, limit, position)


async def stream_events(request: Request, backend: Backend) -> Reply:
    """The log of one stream behind `after`. A stream that a rollback took away keeps its log.

    Raises:
        BadRequest: a parameter is wrong.
        NotFound: the log never spoke of such a stream.
        StorageUnavailable: the database cannot answer.
    """
    query = Query(request.query, _PAGE_PARAMETERS)
    after = query.integer("after", 0, MAX_POSITION) or 0
    limit = query.limit(default=100, high=1000)
    query.check()
    stream_id = request.params["id"]
    if not STREAM_ID.fullmatch(stream_id):
        raise NotFound("There is no such stream")
    position = await backend.store.position()
    found = await backend.store.events(EventQuery(after=after, limit=limit + 1, stream_id=stream_id))
    if not found and not await _is_known(stream_id, backend):
        raise NotFound("There is no such stream")
    return _page(found, after, limit, position)


async def _is_known(stream_id: str, backend: Backend) -> bool:
    if await backend.store.stream(stream_id) is not None:
        return True
    return bool(await backend.store.events(EventQuery(after=0, limit=1, stream_id=stream_id)))


def _page(found: Sequence[LogEvent], after: int, limit: int, position: int) -> Reply:
    """`position` was read before the events, so a page without more is complete up to it; payloads go out as stored."""
    page = found[:limit]
    next_after = page[-1].position if page else after
    body = b'{"events":[%b],"hasMore":%b,"nextAfter":"%d","position":"%d"}' % (
        b",".join(encode_event(event) for event in page),
        b"true" if len(found) > limit else b"false",
        next_after,
        position,
    )
    return raw_json_reply(body)
