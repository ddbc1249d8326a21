"""The routing table: every path that is served, in one place, with who may ask and how it is documented.

A pattern's `{name}` matches one non-empty path segment. HEAD is served wherever GET is. A route whose `open` says no
does not exist for that backend: it answers 404 to every method, so that it cannot be probed for.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Literal
from urllib.parse import unquote

import msgspec

from fluxora.errors import NotFound
from fluxora.http import (
    admin,
    docs,
    events,
    exports,
    health,
    index,
    ingest,
    live,
    live_page,
    metrics,
    openapi,
    operations,
    replies,
    streams,
    treasury,
    upgrade,
    webhook_operations,
    webhooks,
    writes,
)
from fluxora.http.backend import Backend
from fluxora.http.exchange import Guard, Handler, Reply, Request, waits
from fluxora.http.operations import Operation
from fluxora.http.replies import method_not_allowed


class Access(msgspec.Struct, frozen=True):
    """Who may ask, and which limit counts.

    `kind` names the limit (None: none). `scope` is what a credential needs, nobody too unless `anonymous_ok`.
    `identifies`: credentials are looked at, so that a wrong one is refused. `socket`: a connection that stays open,
    which FLUXORA_AUTH=required closes to nobody as it closes writes; its token may stand in the query, since a browser
    cannot set headers there.
    """

    kind: Literal["read", "write"] | None = None
    scope: str | None = None
    anonymous_ok: bool = True
    identifies: bool = True
    socket: bool = False


EXEMPT = Access(identifies=False)  # health and metrics must answer whoever asks however often; ingest has its own token
PUBLIC = Access("read")
READ = Access("read", "streams:read")
WRITE = Access("write", "streams:write")
SOCKET = Access("read", "streams:read", socket=True)
ADMIN = Access("read", "admin", anonymous_ok=False)
ADMIN_WRITE = Access("write", "admin", anonymous_ok=False)


def _always(_backend: Backend) -> bool:
    return True


class Route(msgspec.Struct, frozen=True):
    """One line of the table.

    `guard` raises where the caller may not go on; it is asked before the request's body is received.
    `streams`: the body is made while it is sent, which the framework carries. `opens`: the connection goes on as
    something else, which the framework does not carry. `media_type` is that of its success.
    """

    method: str
    pattern: str
    handler: Handler
    access: Access
    operation: Operation | None = None
    open: Callable[[Backend], bool] = _always
    guard: Guard | None = None
    streams: bool = False
    opens: bool = False
    media_type: str = "application/json"


class Match(msgspec.Struct, frozen=True, gc=False):
    """The route that a path chose, and the parts of the path that it names."""

    route: Route
    params: dict[str, str]


def _openapi(_request: Request, backend: Backend) -> Reply:
    """This table as an OpenAPI 3.1 document."""
    return replies.raw_json_reply(document(backend.version))


@lru_cache(maxsize=4)
def document(version: str) -> bytes:
    """The document that /openapi.json serves, on one line."""
    return openapi.document(ROUTES, version)


def _of_webhooks() -> tuple[Route, ...]:
    """The routes of webhooks and of the admin log: for the scope admin alone, and only where somebody can have it."""
    endpoint = "/api/admin/webhooks/endpoints/{id}"
    delivery = "/api/admin/webhooks/deliveries/{id}"
    said = webhook_operations
    return tuple(
        Route(method, pattern, handler, ADMIN if method == "GET" else ADMIN_WRITE, operation, open=admin.is_open)
        for method, pattern, handler, operation in (
            ("GET", "/api/admin/webhooks/endpoints", webhooks.list_endpoints, said.LIST_ENDPOINTS),
            ("POST", "/api/admin/webhooks/endpoints", webhooks.create_endpoint, said.CREATE_ENDPOINT),
            ("GET", endpoint, webhooks.get_endpoint, said.GET_ENDPOINT),
            ("PATCH", endpoint, webhooks.change_endpoint, said.CHANGE_ENDPOINT),
            ("DELETE", endpoint, webhooks.delete_endpoint, said.DELETE_ENDPOINT),
            ("POST", f"{endpoint}/rotate", webhooks.rotate_secret, said.ROTATE_SECRET),
            ("POST", f"{endpoint}/test", webhooks.send_test, said.TEST_ENDPOINT),
            ("GET", f"{endpoint}/deliveries", webhooks.list_deliveries, said.LIST_DELIVERIES),
            ("POST", f"{endpoint}/replay", webhooks.replay, said.REPLAY),
            ("GET", "/api/admin/webhooks/dead-letters", webhooks.list_dead_letters, said.DEAD_LETTERS),
            ("GET", delivery, webhooks.get_delivery, said.GET_DELIVERY),
            ("POST", f"{delivery}/redeliver", webhooks.redeliver, said.REDELIVER),
            ("GET", "/api/admin/log", webhooks.admin_log, said.ADMIN_LOG),
        )
    )


_STREAM = "/api/streams/{id}"
ROUTES: tuple[Route, ...] = (
    Route("GET", "/", index.index, PUBLIC, operations.INDEX),
    Route("GET", "/health", health.health, EXEMPT, operations.HEALTH),
    Route("GET", "/health/live", health.live, EXEMPT, operations.LIVE),
    Route("GET", "/health/ready", waits(health.ready), EXEMPT, operations.READY),
    Route("GET", "/metrics", metrics.metrics, EXEMPT, operations.METRICS, media_type="text/plain"),
    Route("GET", "/openapi.json", _openapi, PUBLIC, operations.OPENAPI),
    Route("GET", "/docs", docs.page, PUBLIC, operations.DOCS, media_type="text/html"),
    Route("GET", "/docs/{file}", docs.asset, PUBLIC, media_type="*/*"),
    Route("GET", "/live", live_page.page, PUBLIC, operations.LIVE_PAGE, media_type="text/html"),
    Route("GET", "/live/{file}", live_page.asset, PUBLIC, media_type="*/*"),
    Route("GET", "/api/streams", streams.list_streams, READ, operations.LIST_STREAMS),
    Route("POST", "/api/streams", writes.create_stream, WRITE, operations.CREATE_STREAM),
    Route("GET", _STREAM, streams.one_stream, READ, operations.GET_STREAM),
    Route("PATCH", _STREAM, writes.change_status, WRITE, operations.CHANGE_STATUS),
    Route("DELETE", _STREAM, writes.cancel_stream, WRITE, operations.CANCEL_STREAM),
    Route("GET", "/api/streams/{id}/events", waits(events.stream_events), READ, operations.STREAM_EVENTS),
    Route("GET", "/api/events", waits(events.all_events), READ, operations.ALL_EVENTS),
    Route(
        "GET",
        "/api/events/stream",
        waits(live.follow_all),
        READ,
        operations.FOLLOW_EVENTS,
        guard=live.in_one_piece,
        opens=True,
        media_type=live.MEDIA_TYPE,
    ),
    Route(
        "GET",
        "/api/streams/{id}/stream",
        waits(live.follow_one),
        READ,
        operations.FOLLOW_STREAM,
        guard=live.in_one_piece,
        opens=True,
        media_type=live.MEDIA_TYPE,
    ),
    Route("GET", "/api/treasury/{address}", waits(treasury.treasury), READ, operations.TREASURY),
    Route(
        "GET",
        "/api/export/streams.csv",
        waits(exports.streams_csv),
        READ,
        operations.EXPORT_STREAMS,
        streams=True,
        media_type="text/csv",
    ),
    Route(
        "GET",
        "/api/export/events.ndjson",
        waits(exports.events_ndjson),
        READ,
        operations.EXPORT_EVENTS,
        streams=True,
        media_type="application/x-ndjson",
    ),
    Route("GET", "/ws/streams", upgrade.upgrade, SOCKET, opens=True, media_type="*/*"),
    Route("GET", "/api/admin/access", admin.access, ADMIN, operations.ADMIN_ACCESS, open=admin.is_open),
    Route(
        "POST",
        "/api/admin/ws/disconnect",
        admin.disconnect,
        ADMIN_WRITE,
        operations.ADMIN_DISCONNECT,
        open=admin.is_open,
    ),
    *_of_webhooks(),
    Route(
        "POST",
        "/internal/indexer/contract-events",
        waits(ingest.contract_events),
        EXEMPT,
        operations.INGEST,
        open=ingest.is_open,
        guard=ingest.authorize,
    ),
)


class Table:
    """Routes arranged for look-up: literal paths by dictionary, all patterns by one expression."""

    def __init__(self, routes: tuple[Route, ...]) -> None:
        self._literal: dict[str, list[Route]] = {}
        patterns: dict[str, list[Route]] = {}
        for route in routes:
            of_kind = patterns if "{" in route.pattern else self._literal
            of_kind.setdefault(route.pattern, []).append(route)
        # Each pattern is a group with a group for each of its parameters in it, so that `lastindex` is the pattern's.
        self._patterns: dict[int, tuple[tuple[str, ...], tuple[str, ...], list[Route]]] = {}
        expressions, groups = [], 1
        for pattern, same in patterns.items():
            segments = tuple(pattern.split("/"))
            names = tuple(part[1:-1] for part in segments if _is_parameter(part))
            self._patterns[groups] = (names, segments, same)
            groups += 1 + len(names)
            expressions.append("/".join("([^/]+)" if _is_parameter(part) else re.escape(part) for part in segments))
        self._expression = re.compile("|".join(f"({expression})" for expression in expressions))

    def match(self, method: str, raw_path: str, backend: Backend) -> Match:
        """The route for a method and a path as it came (percent-encoded, without its query).

        Raises:
            NotFound: no such path here.
            MethodNotAllowed: the path is served, but not with this method.
        """
        routes, params = self._look_up(raw_path)
        wanted = "GET" if method == "HEAD" else method
        for route in routes:
            if route.method == wanted and route.open(backend):
                return Match(route, params)
        allowed = {route.method for route in routes if route.open(backend)}
        if not allowed:
            raise NotFound("There is nothing at this path")
        raise method_not_allowed(sorted(allowed | ({"HEAD"} if "GET" in allowed else set())))

    def _look_up(self, raw_path: str) -> tuple[list[Route], dict[str, str]]:
        if routes := self._literal.get(raw_path):
            return routes, {}
        if "%" in raw_path:
            return self._look_up_escaped(raw_path)
        match = self._expression.fullmatch(raw_path)
        if match is None or match.lastindex is None:
            return [], {}
        at = match.lastindex
        names, _, routes = self._patterns[at]
        return routes, {name: match[at + nth] for nth, name in enumerate(names, 1)}

    def _look_up_escaped(self, raw_path: str) -> tuple[list[Route], dict[str, str]]:
        """Segment by segment, for an escaped slash separates nothing (RFC 3986 2.2)."""
        if raw_path.count("/") > MOST_SLASHES:
            return [], {}
        parts = [unquote(part) for part in raw_path.split("/")]
        for pattern, routes in self._literal.items():
            if pattern.split("/") == parts:
                return routes, {}
        for _, segments, routes in self._patterns.values():
            if len(segments) == len(parts) and all(
                part if _is_parameter(segment) else segment == part
                for segment, part in zip(segments, parts, strict=True)
            ):
                pairs = zip(segments, parts, strict=True)
                return routes, {segment[1:-1]: part for segment, part in pairs if _is_parameter(segment)}
        return [], {}


def _is_parameter(segment: str) -> bool:
    return segment.startswith("{")


MOST_SLASHES = max(route.pattern.count("/") for route in ROUTES)
TABLE = Table(ROUTES)
