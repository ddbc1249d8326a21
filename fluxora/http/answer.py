"""From a request head to a finished reply: routing, access, limits, deadlines, error mapping, one log line.

Every carrier makes an `Answer` for each request and asks it twice at most: `at_once`, which never waits and serves what
memory can, and `in_time`, which may wait for the body and the database. Both come to the same reply.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qsl

import msgspec
import trio
from structlog.contextvars import bind_contextvars

from fluxora import logs, tracing
from fluxora.errors import (
    BadRequest,
    NotAcceptable,
    RequestError,
    RequestTimeout,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from fluxora.http.access import Principal, authorize
from fluxora.http.backend import Backend
from fluxora.http.exchange import ANONYMOUS, ClientLeft, Pending, Reply, Request, joined
from fluxora.http.limits import Grant
from fluxora.http.negotiation import accepts
from fluxora.http.replies import error_reply, is_expected, request_id_from
from fluxora.http.request_head import RequestHead
from fluxora.http.routes import TABLE, Match

MAX_QUERY_FIELDS = 100
TOKEN_PARAMETER = "token"  # noqa: S105 (a name, not a secret)
_CLIENT_CLOSED = 499  # logged where the client left before its answer; never sent

_log = logs.get("http")


class Answer:
    """One request on its way to its reply. Raises nothing but cancellation: every failure becomes a reply."""

    __slots__ = ("_backend", "_client", "_grant", "_head", "_match", "_pending", "_span", "_started", "request_id")

    def __init__(self, backend: Backend, head: RequestHead, peer: str) -> None:
        self._backend = backend
        self._head = head
        self._match: Match | None = None
        self._pending: Pending | None = None
        self._grant: Grant | None = None
        self._span: tracing.Span | None = None
        self._started = time.perf_counter()
        self._client = peer
        if backend.config.trusted_proxies:
            self._client = backend.addresses.of(peer, joined(head.headers, "x-forwarded-for"))
        self.request_id = request_id_from(head.headers)

    def at_once(self, body: bytes | None = b"") -> Reply | None:
        """The reply, where nothing has to be waited for; else None, and `in_time` goes on from here.

        `body` is the whole body, None where that is not here.
        """
        try:
            reply = self._at_once(body)
        except Exception as error:  # noqa: BLE001 (the one place where failures become replies; defects are logged)
            reply = self._failed(error)
        return None if reply is None else self._finished(reply)

    @property
    def needs_framework(self) -> bool:
        """The route, known after `at_once`, sends its body while it is made."""
        return self._match is not None and self._match.route.streams

    def _at_once(self, body: bytes | None) -> Reply | None:
        head, backend = self._head, self._backend
        if head.method == "OPTIONS" and (preflight := backend.cors.preflight("OPTIONS", head.headers)) is not None:
            return preflight
        match = self._match = TABLE.match(head.method, head.raw_path, backend)
        if body is None or match.route.streams:
            return None
        principal = self._known_principal(match)
        if principal is None:
            return None
        self._admit(match, principal)
        return self._begun(match, principal, body)

    def _begun(self, match: Match, principal: Principal, body: bytes) -> Reply | None:
        """The route's reply, or None with what it waits for kept."""
        result = match.route.handler(self._made(match, principal, body), self._backend)
        if isinstance(result, Reply):
            return result
        self._pending = result
        return None

    async def in_time(self, read_body: Callable[[], Awaitable[bytes]]) -> Reply:
        """The reply, after whatever it has to wait for. `at_once` was asked before and said None.

        `read_body` returns the whole body, bounded by the carrier (PayloadTooLarge); it is called once at most, after
        the caller is known and admitted, so that a body is never awaited in vain.

        Raises:
            ClientLeft: from `read_body`.
        """
        assert self._match is not None
        bind_contextvars(request_id=self.request_id)  # of this task, until its next request
        reply: Reply | None = None
        with self._traced():
            try:
                try:
                    reply = await self._served(self._match, read_body)
                except ClientLeft:
                    raise
                except Exception as error:  # noqa: BLE001 (as above)
                    reply = self._failed(error)
            finally:  # a client that left cancels the handler; its request is logged all the same
                if reply is None:
                    self._note(_CLIENT_CLOSED)
            return self._finished(reply)

    async def _served(self, match: Match, read_body: Callable[[], Awaitable[bytes]]) -> Reply:
        timeout_s = self._backend.config.request_timeout_s
        if self._pending is None:
            principal = self._known_principal(match)
            if principal is None:
                principal = await self._verified_principal(match)
            self._admit(match, principal)
            with trio.move_on_after(timeout_s) as reading:
                body = await read_body()
            if reading.cancelled_caught:
                raise RequestTimeout("The request body did not arrive in time")
            reply = self._begun(match, principal, body)
            if reply is not None:
                return reply
        assert self._pending is not None
        with trio.move_on_after(timeout_s):
            return await self._pending()
        raise Unavailable("The request could not be served in time")

    def _made(self, match: Match, principal: Principal, body: bytes) -> Request:
        head = self._head
        return Request(
            method=head.method,
            params=match.params,
            query=_query(head.query_string) if head.query_string else (),
            headers=head.headers,
            body=body,
            client=self._client,
            principal=principal,
            request_id=self.request_id,
            upgrade=head.upgrade,
            handshaken=head.handshaken,
        )

    # -- who, and how much -----------------------------------------------------------------------------------------

    def _known_principal(self, match: Match) -> Principal | None:
        """Who asks; None where that takes a slow hash. Routes outside of access control look at no credential."""
        if not match.route.access.identifies:
            return ANONYMOUS
        access = self._backend.access
        try:
            return access.at_once(self._credentials(match))
        except Unauthorized:
            self._count_failure()
            raise

    async def _verified_principal(self, match: Match) -> Principal:
        """As above, by the slow hash; those who fail too often are not let near it."""
        self._hold_back(self._backend.limiter.may_try(self._client))
        try:
            return await self._backend.access.principal(self._credentials(match))
        except Unauthorized:
            self._count_failure()
            raise

    def _credentials(self, match: Match) -> tuple[tuple[str, str], ...]:
        """Headers that may hold a credential; for a WebSocket the token of its query among them."""
        head = self._head
        if not match.route.access.socket or not head.query_string:
            return head.headers
        tokens = [value for name, value in _query(head.query_string) if name == TOKEN_PARAMETER]
        return (*head.headers, *(("authorization", f"Bearer {token}") for token in tokens))

    def _count_failure(self) -> None:
        self._hold_back(self._backend.limiter.take_failure(self._client))

    def _hold_back(self, grant: Grant | None) -> None:
        """Raise where a limit says no; what it says goes on the answer either way."""
        if grant is None:
            return
        self._grant = grant
        if not grant.allowed:
            raise TooManyRequests(f"Over the rate limit; try again in {grant.retry_after_s} s")

    def _admit(self, match: Match, principal: Principal) -> None:
        """Raise unless the caller may do this, and now."""
        access, backend = match.route.access, self._backend
        if access.kind is not None:
            self._hold_back(backend.limiter.take(principal, self._client, access.kind))
        if access.scope is not None:
            closed = backend.access.required and (access.socket or access.kind == "write")
            anonymous_ok = access.anonymous_ok and not closed
            authorize(principal, access.scope, anonymous_ok=anonymous_ok)
        if match.route.guard is not None:
            match.route.guard(self._head.headers, self._client, backend)
        media_type = match.route.media_type
        accept = joined(self._head.headers, "accept")
        if accept is not None and media_type != "*/*" and not accepts(accept, media_type):
            raise NotAcceptable(f"Only {media_type} can be had here")

    # -- the end ---------------------------------------------------------------------------------------------------

    def _failed(self, error: Exception) -> Reply:
        if not is_expected(error):
            _log.exception(
                "http.request_failed",
                method=self._head.method,
                route=self._pattern,
                request_id=self.request_id,
                **({"trace_id": trace_id} if (trace_id := self._traced().trace_id) else {}),
            )
        return error_reply(error, self.request_id)

    def _finished(self, reply: Reply) -> Reply:
        """The reply with what the caller's limits and origin add; counted and logged."""
        self._note(reply.status)
        added = () if self._grant is None else self._grant.headers
        if self._backend.config.cors_origins and reply.status != 204:  # a preflight has said it all
            added = (*added, *self._backend.cors.headers(joined(self._head.headers, "origin")))
        if reply.chunks is not None and self._span is not None and self._span.mark is not None:
            reply = msgspec.structs.replace(reply, chunks=tracing.carried(reply.chunks, self._span))
        if not added:
            return reply
        return msgspec.structs.replace(reply, headers=(*reply.headers, *added))

    def _note(self, status: int) -> None:
        seconds = time.perf_counter() - self._started
        method, pattern = self._head.method, self._pattern
        self._backend.metrics.served(method, pattern, status, seconds)
        trace_id = "" if tracing.tracer is None else self._told(status)
        self._backend.access_log.served(method, pattern, status, seconds, self.request_id, trace_id=trace_id)

    def _traced(self) -> tracing.Span:
        """The request's span, as of when it came."""
        if self._span is None:
            tracer, head = tracing.tracer, self._head
            self._span = (
                tracing.NOTHING
                if tracer is None
                else tracer.request(
                    head.method,
                    None if self._match is None else self._match.route.pattern,
                    head.raw_path,
                    head.headers,
                    age_s=time.perf_counter() - self._started,
                )
            )
        return self._span

    def _told(self, status: int) -> str:
        """End the span, with the status of the answer; the trace's id."""
        span = self._traced()
        if status == _CLIENT_CLOSED:
            span.note({"fluxora.request_id": self.request_id})
            span.fail("client_left")
        else:
            span.note({"fluxora.request_id": self.request_id, "http.response.status_code": status})
            if status >= 500:
                span.fail(str(status))
        span.end()
        return span.trace_id

    @property
    def _pattern(self) -> str:
        """The route's pattern, not the path: log fields and labels stay few."""
        return "unmatched" if self._match is None else self._match.route.pattern


def opens(head: RequestHead, backend: Backend) -> bool:
    """Whether a connection may go on as something else behind the answer, which the framework does not carry."""
    if head.upgrade:
        return True
    try:
        return TABLE.match(head.method, head.raw_path, backend).route.opens
    except RequestError:  # it gets its answer from whoever carries it
        return False


def _query(query_string: str) -> tuple[tuple[str, str], ...]:
    if "%" not in query_string and "+" not in query_string and query_string.count("&") < MAX_QUERY_FIELDS:
        # As below, where there is nothing to decode.
        parts = (part.partition("=") for part in query_string.split("&") if part)
        return tuple((name, value) for name, _, value in parts)
    try:
        return tuple(parse_qsl(query_string, keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS, errors="strict"))
    except ValueError as error:  # too many fields, or escapes that are no UTF-8
        raise BadRequest("The query string cannot be read") from error
