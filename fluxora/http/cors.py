"""CORS: which web pages of other origins may read our answers. None may unless the operator names them.

Credentials here are headers that a page sets itself, never cookies; so `access-control-allow-credentials` is never
sent, and an answer is no different for a page that may not read it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from fluxora.http.exchange import Reply

_METHODS = "GET, HEAD, POST, PATCH, DELETE"
_REQUEST_HEADERS = "authorization, content-type, idempotency-key, if-none-match, last-event-id, x-api-key, x-request-id"
_ANSWER_HEADERS = (
    "etag, location, retry-after, ratelimit, ratelimit-policy, x-ratelimit-limit, x-ratelimit-remaining, "
    "x-ratelimit-reset, x-request-id, idempotency-replayed"
)
_MAX_AGE_S = 600
_VARY = (("vary", "origin"),)


class Cors:
    """`origins` are exact, in the form in which browsers send them; none turns CORS off."""

    def __init__(self, origins: Collection[str]) -> None:
        self._on = bool(origins)
        self._answer = {
            origin: (
                ("access-control-allow-origin", origin),
                ("access-control-expose-headers", _ANSWER_HEADERS),
                *_VARY,
            )
            for origin in origins
        }
        self._preflight = {
            origin: (
                ("access-control-allow-origin", origin),
                ("access-control-allow-methods", _METHODS),
                ("access-control-allow-headers", _REQUEST_HEADERS),
                ("access-control-max-age", str(_MAX_AGE_S)),
                *_VARY,
            )
            for origin in origins
        }

    def headers(self, origin: str | None) -> tuple[tuple[str, str], ...]:
        """What an answer to a request with that Origin carries; where CORS is on, each says that it depends on it."""
        if not self._on:
            return ()
        return _VARY if origin is None else self._answer.get(origin, _VARY)

    def may_connect(self, origin: str | None, host: str | None) -> bool:
        """Whether a page of that origin may open a WebSocket, which browsers let every page do.

        Where CORS is on, only those of the origins named and of the host asked; a client without an origin is no page.
        """
        if not self._on or origin is None or origin in self._answer:
            return True
        return host is not None and origin.partition("://")[2].lower() == host.lower()

    def preflight(self, method: str, headers: Iterable[tuple[str, str]]) -> Reply | None:
        """The answer to a browser that asks beforehand, before routes and limits; None where this is no such question.

        An origin that is not allowed is told nothing: without the headers its browser stops there. Header names are
        lower case.
        """
        if not self._on or method != "OPTIONS":
            return None
        given = dict(headers)
        origin = given.get("origin")
        if origin is None or "access-control-request-method" not in given:
            return None
        return Reply(204, self._preflight.get(origin, _VARY))
