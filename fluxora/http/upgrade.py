"""GET /ws/streams: the handshake after which a connection is a WebSocket (RFC 6455 section 4.2).

It is a route like any other, so whoever may not connect is refused in the one error shape before anything is upgraded.
The reply to who may is a 101; what carried the request then opens the socket. No extension is agreed on: to compress
each message for each of many readers would cost more than to send it.
"""

from __future__ import annotations

import re

from wsproto.utilities import generate_accept_token

from fluxora.actors.audience import SubscriberProtocol
from fluxora.errors import BadRequest, Forbidden, TooManyRequests, Unavailable, UpgradeRequired
from fluxora.http.backend import Backend
from fluxora.http.exchange import Headers, Opening, Reply, Request
from fluxora.http.replies import RETRY_AFTER_S

VERSION = "13"
SUBPROTOCOLS: dict[str, SubscriberProtocol] = {"fluxora.v2": "v2", "fluxora.broadcast.v1": "broadcast"}
_KEY = re.compile(r"[A-Za-z0-9+/]{21}[AQgw]==")  # 16 bytes in base64
_REQUIRED = (("upgrade", "websocket"), ("connection", "upgrade"), ("sec-websocket-version", VERSION))
_CLIENT_RETRY_S = 10


def upgrade(request: Request, backend: Backend) -> Reply:
    """The 101 that opens a WebSocket. Where another server makes the handshake, it says 101 with headers of its own.

    Raises:
        UpgradeRequired: no WebSocket is asked for, or another version of it.
        BadRequest: the handshake's key is none.
        Forbidden: a web page of another origin asks.
        TooManyRequests: this address has as many sockets as it may have.
        Unavailable: so has the server, or it is stopping.
    """
    headers = () if request.handshaken else _shaken(request)
    if not backend.cors.may_connect(request.header("origin"), request.header("host")):
        raise Forbidden("Pages of this origin may not connect; the operator names those that may")
    if backend.stopping.is_set():
        raise Unavailable("The service is shutting down")
    admit(request.client, backend)
    offered = [name.strip(" \t") for name in (request.header("sec-websocket-protocol") or "").split(",")]
    chosen = next((name for name in offered if name in SUBPROTOCOLS), None)
    if chosen is not None:
        headers = (*headers, ("sec-websocket-protocol", chosen))
    opening = Opening(
        protocol="v2" if chosen is None else SUBPROTOCOLS[chosen], principal=request.principal, client=request.client
    )
    return Reply(101, headers, opens=opening)


def _shaken(request: Request) -> Headers:
    """The headers that answer a handshake.

    Raises:
        UpgradeRequired, BadRequest: as above.
    """
    if not request.upgrade:
        raise UpgradeRequired("This path speaks WebSocket: connect with a WebSocket client", headers=_REQUIRED)
    if request.header("sec-websocket-version") != VERSION:
        raise UpgradeRequired(f"Only version {VERSION} of WebSocket is spoken here", headers=_REQUIRED)
    key = request.header("sec-websocket-key")
    if key is None or not _KEY.fullmatch(key):
        message = "16 random bytes in base64 are needed"
        raise BadRequest("The headers are not valid", details=[("Sec-WebSocket-Key", "INVALID_FORMAT", message)])
    accepted = generate_accept_token(key.encode("ascii")).decode("ascii")
    return ("upgrade", "websocket"), ("connection", "upgrade"), ("sec-websocket-accept", accepted)


def admit(client: str, backend: Backend) -> None:
    """Let one more connection stay open for what is live: a WebSocket, or an event stream.

    Raises:
        TooManyRequests: this address has as many as it may have.
        Unavailable: so has the server.
    """
    config, sockets = backend.config, backend.sockets
    if sockets.count_of(client) >= config.max_websockets_per_client:
        raise TooManyRequests(
            f"This address has {config.max_websockets_per_client} live connections open, and may not have more",
            headers=(("retry-after", str(_CLIENT_RETRY_S)),),
        )
    if sockets.count + sockets.streams >= config.max_websockets:
        raise Unavailable("Too many live connections are open", headers=(("retry-after", str(RETRY_AFTER_S)),))
