"""For operators: who may do how much, as this process was told, and ending live connections. No secret is in it."""

from __future__ import annotations

from functools import partial

import msgspec

from fluxora.http.backend import Backend
from fluxora.http.exchange import Pending, Reply, Request
from fluxora.http.json_body import read_json
from fluxora.http.models import Disconnect, NoParameters
from fluxora.http.reading import read_body, read_query
from fluxora.http.replies import json_reply
from fluxora.protocol.sockets import Selector


class KeyInfo(msgspec.Struct):
    """One configured API key."""

    name: str
    scopes: list[str]


class Limits(msgspec.Struct, rename="camel"):
    """Requests per minute for each kind of caller."""

    enabled: bool
    anonymous_read: int
    anonymous_write: int
    key: int
    admin: int


class AccessReport(msgspec.Struct, rename="camel"):
    """What is configured, and as whom the caller was taken."""

    caller: str
    auth: str
    api_keys: list[KeyInfo]
    bearer_tokens: bool
    rate_limits: Limits
    trusted_proxies: list[str]
    cors_origins: list[str]


def is_open(backend: Backend) -> bool:
    """True once some credential can hold the scope admin; until then the route answers 404."""
    return backend.access.configured_admin


def access(request: Request, backend: Backend) -> Reply:
    """The configuration of access, for whoever holds the scope admin."""
    config = backend.config
    limits = config.limits
    return json_reply(
        AccessReport(
            caller=request.principal.id,
            auth="required" if config.access.required else "open",
            api_keys=[KeyInfo(key.name, sorted(key.scopes)) for key in config.access.api_keys],
            bearer_tokens=config.access.jwt_secret is not None,
            rate_limits=Limits(limits.enabled, limits.anonymous_read, limits.anonymous_write, limits.key, limits.admin),
            trusted_proxies=[str(network) for network in config.trusted_proxies],
            cors_origins=list(config.cors_origins),
        )
    )


class Disconnected(msgspec.Struct):
    """How many WebSockets and event streams were told to go."""

    disconnected: int


def disconnect(request: Request, backend: Backend) -> Pending:
    """Close WebSockets with 4403 and end event streams: those subscribed to one stream, of one principal, or all here.

    Raises:
        BadRequest, UnsupportedMediaType, InvalidJson: it does not say which.
    """
    read_query(NoParameters, request.query)
    wanted = read_body(Disconnect, read_json(request))
    return partial(_disconnect, wanted, request.principal.id, backend)


async def _disconnect(wanted: Disconnect, actor: str, backend: Backend) -> Reply:
    """They go first, whatever the database does. Where it cannot note that, the answer is 503; asking again notes it.

    Raises:
        StorageUnavailable: it is done, and not in the admin log.
    """
    sockets = backend.sockets
    if wanted.stream_id is not None:
        selector = Selector("stream", wanted.stream_id)
        ended = sockets.disconnect(lambda socket: selector in socket.follows)
    elif wanted.principal is not None:
        ended = sockets.disconnect(lambda socket: socket.principal.id == wanted.principal)
    else:
        ended = sockets.disconnect(lambda _socket: True)
    whose = wanted.stream_id or wanted.principal or "all"
    await backend.store.webhooks.note(actor, "sockets.disconnected", whose, {"disconnected": ended})
    return json_reply(Disconnected(ended))
