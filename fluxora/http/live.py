"""GET /api/events/stream and /api/streams/{id}/stream: the log as it grows, as Server-Sent Events.

They are routes like any other, so whoever may not listen is refused in the one error shape. The reply to who may is a
head, behind which what carried the request opens the stream (event_stream.py). The connection ends with it. It goes out
in chunks, each event one, made once for all listeners: some clients (of Python's requests) hold back what comes without
until a buffer is full. Who speaks HTTP/1.0, as many proxies do, or asks for the connection's end gets none.
"""

from __future__ import annotations

from typing import TypeVar

from fluxora.errors import BadRequest, NotFound, Unavailable
from fluxora.http.backend import Backend
from fluxora.http.events import is_known
from fluxora.http.exchange import Headers, Opening, Reply, Request, joined
from fluxora.http.fields import MAX_POSITION, STREAM_ID, Invalid, integer_text
from fluxora.http.models import FollowAll, FollowOne
from fluxora.http.reading import read_query
from fluxora.http.upgrade import admit
from fluxora.protocol.sockets import Selector

MEDIA_TYPE = "text/event-stream"
HEADERS: Headers = (
    ("content-type", MEDIA_TYPE),
    ("cache-control", "no-store, no-transform"),  # what compresses it may hold events back
    ("x-accel-buffering", "no"),
)
_LAST_ID = "Last-Event-ID"
_position = integer_text(0, MAX_POSITION)

M = TypeVar("M", FollowAll, FollowOne)


def in_one_piece(headers: Headers, _client: str, _backend: Backend) -> None:
    """A guard: what carries bodies in chunks carries no answers without an end.

    Raises:
        BadRequest: there is such a body.
    """
    if joined(headers, "transfer-encoding") is not None:
        raise BadRequest("A request for a live stream has no body")


async def follow_all(request: Request, backend: Backend) -> Reply:
    """The log of one stream, of the streams of one address, or all of it. A stream may be followed before it is there.

    Raises:
        BadRequest: a parameter or Last-Event-ID is wrong.
        TooManyRequests: this address has as many live connections as it may have.
        Unavailable: so has the server, or it is stopping.
    """
    wanted, after = _asked(FollowAll, request)
    return _opening(request, backend, wanted.selector, after)


async def follow_one(request: Request, backend: Backend) -> Reply:
    """The log of one stream, of which the log has spoken.

    Raises:
        BadRequest, TooManyRequests, Unavailable: as above.
        NotFound: the log never spoke of such a stream.
        StorageUnavailable: the database cannot answer.
    """
    _, after = _asked(FollowOne, request)
    stream_id = request.params["id"]
    if not STREAM_ID.fullmatch(stream_id) or not await is_known(stream_id, backend):
        raise NotFound("There is no such stream")
    return _opening(request, backend, Selector("stream", stream_id), after)


def _asked(model: type[M], request: Request) -> tuple[M, int | None]:
    """The query, and the position to go on behind: a client that comes back says it in the header, which counts."""
    wrong: list[tuple[str, str, str]] = []
    wanted = last = None
    try:
        wanted = read_query(model, request.query)
    except BadRequest as error:
        wrong += error.details or ()
    if given := request.header(_LAST_ID.lower()):
        try:
            last = _position(given)
        except Invalid as error:
            wrong.append((_LAST_ID, error.code, str(error)))
    if wanted is None or wrong:
        raise BadRequest("The request is not valid", details=wrong)
    return wanted, wanted.after if last is None else last


def _opening(request: Request, backend: Backend, selector: Selector, after: int | None) -> Reply:
    """The reply that opens the stream; nothing may be waited for between this and that."""
    if backend.stopping.is_set():
        raise Unavailable("The service is shutting down")
    admit(request.client, backend)
    opening = Opening(
        protocol="sse", principal=request.principal, client=request.client, selector=selector, after=after
    )
    return Reply(200, HEADERS, opens=opening)
