"""From a request head to a finished reply: routing, deadlines, error mapping, common headers, one log line. Any carrier
calls `answer` and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qsl, unquote

import msgspec
import trio
from structlog.contextvars import bound_contextvars

from fluxora import logs
from fluxora.errors import BadRequest, RequestTimeout, Unavailable
from fluxora.http.backend import Backend
from fluxora.http.exchange import Reply, Request, joined
from fluxora.http.replies import error_reply, finished, is_expected, request_id_from
from fluxora.http.routes import TABLE, Match

MAX_QUERY_FIELDS = 100
_CLIENT_CLOSED = 499  # logged where the client left before its answer; never sent

_log = logs.get("http")


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """A request line and its headers. `raw_path` and `query_string` as they came; header names lower case."""

    method: str
    raw_path: str
    query_string: str
    headers: tuple[tuple[str, str], ...]
    client: str


async def answer(backend: Backend, head: Head, read_body: Callable[[], Awaitable[bytes]]) -> Reply:
    """Serve one request. Never raises but for cancellation: every failure becomes a reply.

    `read_body` returns the whole body, bounded by the carrier (PayloadTooLarge); it is called once, after the route is
    known, so that a body is never awaited for a path that does not exist.
    """
    started = time.perf_counter()
    request_id = request_id_from(joined(head.headers, "x-request-id"))
    with bound_contextvars(request_id=request_id):
        match: Match | None = None
        status = _CLIENT_CLOSED
        try:
            try:
                match = TABLE.match(head.method, head.raw_path, backend)
                reply = await _served(backend, head, match, read_body, request_id)
            except Exception as error:  # noqa: BLE001 (the one place where failures become replies; defects are logged)
                if not is_expected(error):
                    _log.exception("http.request_failed", method=head.method, route=_pattern(match))
                reply = error_reply(error, request_id)
            status = reply.status
        finally:  # a client that left cancels the handler; its request is logged all the same
            _log.info(
                "http.request_served",
                method=head.method,
                route=_pattern(match),
                status=status,
                duration_ms=round((time.perf_counter() - started) * 1000, 3),
            )
        return finished(reply, request_id)


async def _served(
    backend: Backend, head: Head, match: Match, read_body: Callable[[], Awaitable[bytes]], request_id: str
) -> Reply:
    timeout_s = backend.config.request_timeout_s
    with trio.move_on_after(timeout_s) as reading:
        body = await read_body()
    if reading.cancelled_caught:
        raise RequestTimeout("The request body did not arrive in time")
    request = Request(
        method=head.method,
        path=unquote(head.raw_path),
        params=match.params,
        query=_query(head.query_string),
        headers=head.headers,
        body=body,
        client=head.client,
        request_id=request_id,
    )
    with trio.move_on_after(timeout_s):
        return await match.route.handler(request, backend)
    raise Unavailable("The request could not be served in time")


def _query(query_string: str) -> tuple[tuple[str, str], ...]:
    if not query_string:
        return ()
    try:
        return tuple(parse_qsl(query_string, keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS, errors="strict"))
    except ValueError as error:  # too many fields, or escapes that are no UTF-8
        raise BadRequest("The query string cannot be read") from error


def _pattern(match: Match | None) -> str:
    """The route's pattern, not the path: log fields stay few."""
    return "unmatched" if match is None else match.route.pattern
