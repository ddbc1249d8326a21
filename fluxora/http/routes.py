"""The routing table: every path that is served, in one place.

A pattern's `{name}` matches one non-empty path segment. HEAD is served wherever GET is. A route whose `open` says no
does not exist for that backend: it answers 404 to every method, so that it cannot be probed for.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import unquote

import msgspec

from fluxora.errors import NotFound
from fluxora.http import events, health, index, ingest, streams
from fluxora.http.backend import Backend
from fluxora.http.exchange import Handler
from fluxora.http.replies import method_not_allowed


def _always(_backend: Backend) -> bool:
    return True


class Route(msgspec.Struct, frozen=True):
    """One line of the table."""

    method: str
    pattern: str
    handler: Handler
    open: Callable[[Backend], bool] = _always


class Match(msgspec.Struct, frozen=True):
    """The route that a path chose, and the parts of the path that it names."""

    route: Route
    params: dict[str, str]


ROUTES: tuple[Route, ...] = (
    Route("GET", "/", index.index),
    Route("GET", "/health", health.health),
    Route("GET", "/health/live", health.live),
    Route("GET", "/health/ready", health.ready),
    Route("GET", "/api/streams", streams.list_streams),
    Route("GET", "/api/streams/{id}", streams.one_stream),
    Route("GET", "/api/streams/{id}/events", events.stream_events),
    Route("GET", "/api/events", events.all_events),
    Route("POST", "/internal/indexer/contract-events", ingest.contract_events, ingest.is_open),
)


class Table:
    """Routes arranged for look-up: literal paths by dictionary, patterns by the number of their segments."""

    def __init__(self, routes: tuple[Route, ...]) -> None:
        self._literal: dict[str, list[Route]] = {}
        self._literal_segments: dict[tuple[str, ...], list[Route]] = {}  # for paths with escapes
        self._patterns: dict[int, list[tuple[tuple[str, ...], list[Route]]]] = {}
        for route in routes:
            segments = tuple(route.pattern.split("/"))
            if "{" not in route.pattern:
                self._literal.setdefault(route.pattern, []).append(route)
                self._literal_segments[segments] = self._literal[route.pattern]
                continue
            known = self._patterns.setdefault(len(segments), [])
            for other, same in known:
                if other == segments:
                    same.append(route)
                    break
            else:
                known.append((segments, [route]))

    def match(self, method: str, raw_path: str, backend: Backend) -> Match:
        """The route for a method and a path as it came (percent-encoded, without its query).

        Raises:
            NotFound: no such path here.
            MethodNotAllowed: the path is served, but not with this method.
        """
        routes, params = self._look_up(raw_path)
        routes = [route for route in routes if route.open(backend)]
        if not routes:
            raise NotFound("There is nothing at this path")
        wanted = "GET" if method == "HEAD" else method
        for route in routes:
            if route.method == wanted:
                return Match(route, params)
        allowed = {route.method for route in routes}
        raise method_not_allowed(sorted(allowed | ({"HEAD"} if "GET" in allowed else set())))

    def _look_up(self, raw_path: str) -> tuple[list[Route], dict[str, str]]:
        if routes := self._literal.get(raw_path):
            return routes, {}
        parts = tuple(unquote(part) for part in raw_path.split("/"))
        if routes := self._literal_segments.get(parts):
            return routes, {}
        for segments, routes in self._patterns.get(len(parts), ()):
            params: dict[str, str] = {}
            for segment, part in zip(segments, parts, strict=True):
                if segment.startswith("{") and part:
                    params[segment[1:-1]] = part
                elif segment != part:
                    break
            else:
                return routes, params
        return [], {}


TABLE = Table(ROUTES)
