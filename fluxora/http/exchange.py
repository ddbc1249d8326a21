"""One request and its reply as plain values: all that a handler sees, whatever carries them.

Carriers (the listener itself, Quart-Trio over Hypercorn) turn bytes into a `Request`, have it answered, and turn the
`Reply` into bytes. Handlers know neither sockets nor frameworks, so the same handler serves over any carrier and can be
called from a test.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from fluxora.actors.audience import SubscriberProtocol
from fluxora.http.access import Principal
from fluxora.protocol.sockets import ALL, Selector

if TYPE_CHECKING:
    from fluxora.http.backend import Backend


ANONYMOUS = Principal.anonymous()
Headers = tuple[tuple[str, str], ...]


class Request(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a client asked for. Header names are lower case; query pairs are decoded and in the client's order.

    `params` are the parts of the path that the route names, decoded. `client` is the client's address without port, as
    far as trusted proxies tell it. `upgrade`: it asks to go on as a WebSocket, and its carrier can do that;
    `handshaken`: that carrier is another server, which makes the handshake.
    """

    method: str
    params: Mapping[str, str] = {}
    query: tuple[tuple[str, str], ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    client: str = ""
    principal: Principal = ANONYMOUS
    request_id: str
    upgrade: bool = False
    handshaken: bool = False

    def header(self, name: str) -> str | None:
        """The header's value, a repeated one joined with commas (RFC 9110 5.3); None if absent. `name` lower case."""
        return joined(self.headers, name)


class Opening(msgspec.Struct, frozen=True, gc=False):
    """What a connection goes on as, a WebSocket or an event stream ("sse"): to whom it was granted, at which address.

    Whether an event stream goes out in chunks ("sse_chunked") is up to its carrier.
    `selector` is what an event stream follows, behind position `after` (None: from now on).
    """

    protocol: SubscriberProtocol
    principal: Principal
    client: str
    selector: Selector = ALL
    after: int | None = None


class Reply(msgspec.Struct, frozen=True, gc=False):
    """What goes back. Header names are lower case; content-length, date and connection are the carrier's business.

    `chunks` is a body that is made while it is sent, in place of `body`; only routes that say `streams` may have it.
    `opens` says what the connection goes on as behind the head; only routes that say `opens` may have it.
    """

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    chunks: AsyncGenerator[bytes, None] | None = None
    opens: Opening | None = None


Pending = Callable[[], Awaitable[Reply]]
"""The rest of an answer that has to wait for something."""
Handler = Callable[[Request, "Backend"], Reply | Pending]
"""Answers without waiting for anything, or says what is still to be waited for."""


Guard = Callable[[Headers, str, "Backend"], None]
"""Judges a request by its headers and its client's address."""


def waits(handler: Callable[[Request, Backend], Awaitable[Reply]]) -> Handler:
    """A handler all of which may wait."""

    def begin(request: Request, backend: Backend) -> Pending:
        return partial(handler, request, backend)

    return begin


class ClientLeft(Exception):
    """The client ended the connection before its request was whole: there is nobody to answer."""


def joined(headers: tuple[tuple[str, str], ...], name: str) -> str | None:
    """The values of one header joined with commas, None where it is absent."""
    values = [value for key, value in headers if key == name]
    return ", ".join(values) if values else None
