"""A WebSocket client of the tests, frame by frame: wsproto's client side on a TCP stream, and the handshake by hand.

What is beyond a client that behaves (raw bytes, bits that must not be set) is written with `frame`.
"""

from __future__ import annotations

import json
import struct
from base64 import b64encode
from collections import deque
from hashlib import sha1
from typing import Any, Self

import trio
from front import DEADLINE_S, Server
from wsproto.connection import CLIENT, Connection
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage

KEY = b64encode(bytes(range(16))).decode()
ACCEPT = b64encode(sha1(f"{KEY}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()).decode()
BROADCAST = "fluxora.broadcast.v1"


def handshake(path: str = "/ws/streams", **headers: str | None) -> bytes:
    """The request that asks for a WebSocket; `headers` (_ for -) replace and add, None leaves one out."""
    given = {
        "host": "x",
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": KEY,
    }
    given.update({name.replace("_", "-"): value for name, value in headers.items()})
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items() if value is not None)
    return f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode()


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bytes | None = b"abcd") -> bytes:
    """A frame as RFC 6455 5.2 draws it; `mask` None leaves it unmasked."""
    head = bytes([(fin << 7) | (rsv << 4) | opcode])
    size, masked = len(payload), 0 if mask is None else 0x80
    if size < 126:
        head += bytes([masked | size])
    elif size < 65_536:
        head += bytes([masked | 126]) + struct.pack("!H", size)
    else:
        head += bytes([masked | 127]) + struct.pack("!Q", size)
    if mask is None:
        return head + payload
    return head + mask + bytes(octet ^ mask[nth % 4] for nth, octet in enumerate(payload))


def head_of(received: bytes) -> tuple[int, dict[str, str]]:
    """Status and headers of a response."""
    status, *lines = received.partition(b"\r\n\r\n")[0].decode().split("\r\n")
    return int(status.split(" ")[1]), dict(line.split(": ", 1) for line in lines)


class Client:
    """An open WebSocket; `headers` are those of the 101."""

    def __init__(self, stream: trio.SocketStream, headers: dict[str, str], rest: bytes) -> None:
        self.stream = stream
        self.headers = headers
        self.frames = Connection(CLIENT)
        self._events: deque[Event] = deque()
        if rest:
            self._take(rest)

    async def send(self, message: Any) -> None:
        """A text message: an object as JSON, text as it is."""
        text = message if isinstance(message, str) else json.dumps(message)
        await self.stream.send_all(self.frames.send(TextMessage(data=text)))

    async def raw(self, *parts: bytes) -> None:
        await self.stream.send_all(b"".join(parts))

    async def event(self) -> Event:
        """The next event: a message (whole), a ping, a pong, a close; None in its place at the end of the stream."""
        with trio.fail_after(DEADLINE_S):
            while not self._events:
                data = await self.stream.receive_some(65_536)
                assert data, "the connection ended"
                self._take(data)
        return self._events.popleft()

    async def message(self) -> dict[str, Any]:
        """The next text message, which must come before anything else."""
        event = await self.event()
        assert isinstance(event, TextMessage), event
        return json.loads(event.data)

    async def messages(self, count: int) -> list[dict[str, Any]]:
        return [await self.message() for _ in range(count)]

    async def closed(self) -> int:
        """The code of the close frame, which must come next and be the last; answers it, and sees the stream end."""
        event = await self.event()
        assert isinstance(event, CloseConnection), event
        with trio.fail_after(DEADLINE_S):
            await self.stream.send_all(self.frames.send(event.response()))
            assert await self.stream.receive_some(1) == b""
        await self.stream.aclose()
        return int(event.code)

    async def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a message and read its answer."""
        await self.send(message)
        return await self.message()

    def _take(self, data: bytes) -> None:
        self.frames.receive_data(data)
        text = ""
        for event in self.frames.events():
            if isinstance(event, TextMessage):
                self._parts = getattr(self, "_parts", "") + event.data
                if event.message_finished:
                    text, self._parts = self._parts, ""
                    self._events.append(TextMessage(data=text))
            else:
                assert isinstance(event, BytesMessage | Ping | Pong | CloseConnection)
                self._events.append(event)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await trio.aclose_forcefully(self.stream)


async def connect(server: Server, path: str = "/ws/streams", **headers: str | None) -> Client:
    """Open a WebSocket."""
    stream = await server.connect()
    await stream.send_all(handshake(path, **headers))
    received = b""
    with trio.fail_after(DEADLINE_S):
        while b"\r\n\r\n" not in received:
            data = await stream.receive_some(65_536)
            assert data, received
            received += data
    status, answered = head_of(received)
    assert status == 101, received
    return Client(stream, answered, received.partition(b"\r\n\r\n")[2])
