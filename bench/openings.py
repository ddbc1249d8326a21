"""How readers of live events connect, and begin to follow what they want."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from typing import Literal

OPEN_WITHIN_S = 30.0
PING, PONG = b"\x89\x00", b"\x8a\x80\0\0\0\0"
Kind = Literal["ws", "sse"]

UPGRADE = (
    b"GET /ws/streams HTTP/1.1\r\nhost: 127.0.0.1\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def opened(port: int, kind: Kind, several: Sequence[Sequence[str]]) -> list[tuple[socket.socket, tuple[str, ...]]]:
    """Connect these, and wait until each is told that it follows what it wants; nothing behind that is read yet."""
    socks = [socket.create_connection(("127.0.0.1", port), OPEN_WITHIN_S) for _ in several]
    for sock, follows in zip(socks, several, strict=True):
        where = "" if list(follows) == ["*"] else f"?streamId={follows[0]}"
        sse = f"GET /api/events/stream{where} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode()
        sock.sendall(UPGRADE if kind == "ws" else sse)
    for sock, follows in zip(socks, several, strict=True):
        head = read_until(sock, b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101 " if kind == "ws" else b"HTTP/1.1 200 "):
            raise ConnectionError(f"the server refused a reader: {head[:200]!r}")
        if kind == "sse":
            read_until(sock, b"\n\n\r\n")  # the chunk that says where the stream begins
        else:
            sock.sendall(b"".join([*map(subscription, follows[:-1]), subscription(follows[-1], ref="last")]))
    if kind == "ws":
        for sock in socks:
            if PING in read_until(sock, b'"recovered":false}'):
                sock.sendall(PONG)
    return [(sock, tuple(follows)) for sock, follows in zip(socks, several, strict=True)]


def subscription(stream_id: str, *, ref: str | None = None) -> bytes:
    """The frame that asks for a subscription; with a `ref` it is acknowledged."""
    message = {"type": "subscribe", "streamId": stream_id, **({} if ref is None else {"ref": ref})}
    payload = json.dumps(message).encode()
    assert len(payload) <= 125
    return b"\x81" + bytes((0x80 | len(payload),)) + b"\0\0\0\0" + payload  # the mask is zero


def read_until(sock: socket.socket, end: bytes) -> bytes:
    """Read up to `end` and not a byte further."""
    received = b""
    while end not in received:
        seen = sock.recv(4096, socket.MSG_PEEK)
        if not seen:
            raise ConnectionError(f"the server closed a reader that was opening, after {received[-200:]!r}")
        found = (received + seen).find(end)
        take = len(seen) if found < 0 else found + len(end) - len(received)
        received += sock.recv(take)
    return received
