"""GET /api/events and /api/streams/{id}/events: the durable log in position order."""

from __future__ import annotations

from collections.abc import Sequence

from fluxora.errors import NotFound
from fluxora.http.backend import Backend
from fluxora.http.exchange import Reply, Request
from fluxora.http.fields import STREAM_ID
from fluxora.http.models import AllEvents, StreamEvents
from fluxora.http.reading import read_query
from fluxora.http.replies import raw_json_reply
from fluxora.protocol.messages import LogEvent, encode_event
from fluxora.storage.records import EventQuery

PAGE_BYTES = 1 << 22  # of payloads in one answer: ordinary ones are of a kilobyte, and there may be 1,000 of them


async def all_events(request: Request, backend: Backend) -> Reply:
    """The log behind `after`, filtered.

    Raises:
        BadRequest: a parameter is wrong.
        StorageUnavailable: the database cannot answer.
    """
    wanted = read_query(AllEvents, request.query)
    position = await backend.store.position()
    query = EventQuery(
        after=wanted.after,
        limit=wanted.limit + 1,
        stream_id=wanted.stream_id,
        event=wanted.event,
        contract_id=wanted.contract_id,
        ledger_from=wanted.ledger_from,
        ledger_to=wanted.ledger_to,
        most_bytes=PAGE_BYTES,
    )
    return _page(query, await backend.store.events(query), position)


async def stream_events(request: Request, backend: Backend) -> Reply:
    """The log of one stream behind `after`. A stream that a rollback took away keeps its log.

    Raises:
        BadRequest: a parameter is wrong.
        NotFound: the log never spoke of such a stream.
        StorageUnavailable: the database cannot answer.
    """
    wanted = read_query(StreamEvents, request.query)
    stream_id = request.params["id"]
    if not STREAM_ID.fullmatch(stream_id):
        raise NotFound("There is no such stream")
    position = await backend.store.position()
    query = EventQuery(after=wanted.after, limit=wanted.limit + 1, stream_id=stream_id, most_bytes=PAGE_BYTES)
    found = await backend.store.events(query)
    if not found and not await is_known(stream_id, backend):
        raise NotFound("There is no such stream")
    return _page(query, found, position)


async def is_known(stream_id: str, backend: Backend) -> bool:
    """Whether the log ever spoke of such a stream; `stream_id` is one by its form.

    Raises:
        StorageUnavailable: the database cannot answer.
    """
    if await backend.store.stream(stream_id) is not None:
        return True
    return bool(await backend.store.events(EventQuery(after=0, limit=1, stream_id=stream_id)))


def _page(query: EventQuery, found: Sequence[LogEvent], position: int) -> Reply:
    """`position` was read before the events, so a page without more is complete up to it; payloads go out as stored.

    The last event of what is full only says that there is more.
    """
    full = query.is_full(found)
    page = found[:-1] if full else found
    body = b'{"events":[%b],"hasMore":%b,"nextAfter":"%d","position":"%d"}' % (
        b",".join(map(encode_event, page)),
        b"true" if full else b"false",
        page[-1].position if page else query.after,
        position,
    )
    return raw_json_reply(body)
