"""Requests and replies as ASGI has them, for everything that is not the listener's own carrier."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from fluxora.http.exchange import Reply
from fluxora.http.replies import headers_of
from fluxora.http.request_head import RequestHead, origin_form

PROCEED = "proceed"
"""In the scope's state: to be awaited before the body, for clients that hold it back until they are told to go on."""

Message = dict[str, Any]
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def head_of(scope: Scope) -> RequestHead:
    """The head of a request, or of a handshake that the server has found to be one."""
    headers = tuple((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"])
    target = scope["raw_path"].decode("latin-1")
    length = next((value for name, value in headers if name == "content-length"), "")
    socket = scope["type"] == "websocket"
    return RequestHead(
        method="GET" if socket else scope["method"],
        raw_path=origin_form(target).partition("?")[0],
        query_string=scope["query_string"].decode("latin-1"),
        headers=headers,
        content_length=int(length) if length.isdigit() else 0,
        chunked=any(name == "transfer-encoding" for name, _ in headers),
        persistent=scope["http_version"] != "1.0" and not any(map(_is_close, headers)),
        upgrade=socket,
        handshaken=socket,
    )


def peer_of(scope: Scope) -> str:
    """The other side's address without port; "" where the server does not know it."""
    return (scope.get("client") or ("",))[0]


def has_connections(scope: Scope) -> bool:
    """True where one request has the connection to itself and may end it: in HTTP/1."""
    return str(scope["http_version"]).startswith("1")


def headers_for(scope: Scope, reply: Reply, request_id: str, *, close: bool) -> list[tuple[str, str]]:
    """All headers of a reply. Other servers send the date themselves, and nothing is said of connections in HTTP/2."""
    headers = headers_of(reply, request_id, close=close and has_connections(scope))
    return headers if PROCEED in scope.get("state", {}) else [pair for pair in headers if pair[0] != "date"]


def encoded(headers: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    """Header pairs as ASGI has them."""
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]


def _is_close(header: tuple[str, str]) -> bool:
    """The option "close" of a connection header."""
    name, value = header
    return name == "connection" and "close" in {option.strip() for option in value.lower().split(",")}
