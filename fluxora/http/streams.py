"""GET /api/streams and /api/streams/{id}: what each stream is worth at any second.

Both are read through the cache (actors/stream_cache.py), and what that has is answered at once.
"""

from __future__ import annotations

from functools import partial

from fluxora.actors.stream_cache import Page, Shown
from fluxora.errors import NotFound
from fluxora.http.backend import Backend
from fluxora.http.entity_tags import is_named
from fluxora.http.exchange import Pending, Reply, Request
from fluxora.http.fields import STREAM_ID
from fluxora.http.models import ListStreams, OneStream
from fluxora.http.reading import read_query
from fluxora.http.replies import raw_json_reply
from fluxora.storage.records import StreamQuery


def list_streams(request: Request, backend: Backend) -> Reply | Pending:
    """Streams in the order of their creation; amounts at `asOf` (now where absent).

    Every event up to `position` is in what the page shows.

    Raises:
        BadRequest: a parameter is wrong, or the cursor belongs to other filters.
        StorageUnavailable: the database cannot answer.
    """
    wanted = read_query(ListStreams, request.query)
    query = wanted.stored()
    page = backend.cache.page_at_once(query)
    return partial(_read_page, query, wanted, backend) if page is None else _page(page, wanted, backend)


async def _read_page(query: StreamQuery, wanted: ListStreams, backend: Backend) -> Reply:
    return _page(await backend.cache.page(query), wanted, backend)


def one_stream(request: Request, backend: Backend) -> Reply | Pending:
    """One stream at `asOf`. Its ETag is the state's version and the second that the amounts are for.

    Raises:
        BadRequest: a parameter is wrong.
        NotFound: no such stream.
        StorageUnavailable: the database cannot answer.
    """
    wanted = read_query(OneStream, request.query)
    stream_id = request.params["id"]
    shown = backend.cache.at_once(stream_id)
    if shown is not None:
        return _stream(request, shown, wanted, backend)
    # An id of another form is never looked up: what is no text for PostgreSQL (a NUL) ends here.
    if not STREAM_ID.fullmatch(stream_id):
        raise NotFound("There is no such stream")
    return partial(_read_stream, request, stream_id, wanted, backend)


async def _read_stream(request: Request, stream_id: str, wanted: OneStream, backend: Backend) -> Reply:
    shown = await backend.cache.stream(stream_id)
    if shown is None:
        raise NotFound("There is no such stream")
    return _stream(request, shown, wanted, backend)


def etag_of(shown: Shown, as_of: int) -> str:
    """Weak, for the same state and second may one day be written in other words."""
    return f'W/"{shown.record.position}-{as_of}"'


def _stream(request: Request, shown: Shown, wanted: OneStream, backend: Backend) -> Reply:
    as_of = int(backend.clock()) if wanted.as_of is None else wanted.as_of
    etag = etag_of(shown, as_of)
    headers = (("etag", etag),)
    if is_named(request.header("if-none-match"), etag):
        return Reply(304, headers)
    return raw_json_reply(shown.json(as_of), headers=headers)


def _page(page: Page, wanted: ListStreams, backend: Backend) -> Reply:
    as_of = int(backend.clock()) if wanted.as_of is None else wanted.as_of
    if not page.ending:
        cursor = b"null"
        if page.has_more:
            cursor = b'"%b"' % wanted.next_cursor(page.streams[-1].record.created_position).encode("ascii")
        more = b"true" if page.has_more else b"false"
        page.ending = b'],"hasMore":%b,"nextCursor":%b,"position":"%d"}' % (more, cursor, page.position)
    return raw_json_reply(b'{"streams":[%b%b' % (page.json(as_of), page.ending))
