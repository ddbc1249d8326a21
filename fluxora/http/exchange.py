"""One request and its reply as plain values: all that a handler sees, whatever carries them.

Carriers (Quart-Trio today) turn bytes into a `Request`, call `answer`, and turn the `Reply` into bytes. Handlers know
neither sockets nor frameworks, so the same handler serves over any carrier and can be called from a test.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import msgspec

from fluxora.http.backend import Backend


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asked for. Header names are lower case; query pairs are decoded and in the client's order.

    `path` is decoded, `params` are the parts of it that the route names. `client` is the peer's address without port.
    """

    method: str
    path: str
    params: Mapping[str, str] = {}
    query: tuple[tuple[str, str], ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    client: str = ""
    request_id: str

    def header(self, name: str) -> str | None:
        """The header's value, a repeated one joined with commas (RFC 9110 5.3); None if absent. `name` lower case."""
        return joined(self.headers, name)


class Reply(msgspec.Struct, frozen=True):
    """What goes back. Header names are lower case; content-length, date and connection are the carrier's business."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


Handler = Callable[[Request, Backend], Awaitable[Reply]]


def joined(headers: tuple[tuple[str, str], ...], name: str) -> str | None:
    """The values of one header joined with commas, None where it is absent."""
    values = [value for key, value in headers if key == name]
    return ", ".join(values) if values else None
