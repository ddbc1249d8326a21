"""Readers of everything whose kernel takes only so much ahead of them, over each of the live transports."""

from __future__ import annotations

import json
import socket

import h11
import trio
from front import DEADLINE_S, Server
from socket_client import Client, handshake, head_of
from wsproto.events import CloseConnection, TextMessage

ROOM = 2_048  # bytes that the kernel of such a reader takes
EVENTS = "/api/events/stream"


class OverWebSocket:
    """A reader of v2."""

    code = 4001

    def __init__(self, client: Client) -> None:
        self._client = client

    @classmethod
    async def open(cls, server: Server, after: int | None = None, *, room: int = ROOM) -> OverWebSocket:
        stream = await _connected(server, room)
        await stream.send_all(handshake())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await stream.receive_some(1)
        reader = cls(Client(stream, head_of(head)[1], b""))
        wanted = {"type": "subscribe", "streamId": "*", "ref": "r"}
        await reader._client.send(wanted if after is None else {**wanted, "after": str(after)})
        if after is None:
            assert (await reader._client.message())["position"] == "0"
        return reader

    async def read(self, count: int) -> list[int]:
        found = []
        while len(found) < count:
            message = await self._client.message()
            if message["type"] == "stream_update":
                found.append(int(message["position"]))
        return found

    async def read_to_the_end(self, code: int = 4001) -> list[int]:
        """All that is there, and behind it the reason why there is no more."""
        found = []
        while isinstance(event := await self._client.event(), TextMessage):
            found.append(int(json.loads(event.data)["position"]))
        assert isinstance(event, CloseConnection)
        assert event.code == code
        return found

    async def close(self) -> None:
        await trio.aclose_forcefully(self._client.stream)

    @staticmethod
    def ended(server: Server) -> dict[int, int]:
        return server.backend.sockets.closed


class OverEvents:
    """A reader of Server-Sent Events, read by h11."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        self._text = b""

    @classmethod
    async def open(cls, server: Server, after: int | None = None, *, room: int = ROOM) -> OverEvents:
        reader = cls(await _connected(server, room))
        headers = [("host", "x"), *([] if after is None else [("last-event-id", str(after))])]
        request = h11.Request(method="GET", target=EVENTS, headers=headers)
        await reader._stream.send_all(reader._http.send(request) + reader._http.send(h11.EndOfMessage()))
        assert await reader._block() == {"retry": "3000", "id": str(after or 0)}
        return reader

    async def _block(self) -> dict[str, str] | None:
        """The lines of the next event; None where the stream was cut off."""
        while b"\n\n" not in self._text:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError:
                return None  # in the middle of the body: it has no end
            if event is h11.NEED_DATA:
                with trio.fail_after(DEADLINE_S):
                    self._http.receive_data(await self._stream.receive_some(65_536))
            elif isinstance(event, h11.Data):
                self._text += event.data
            else:
                assert isinstance(event, h11.Response)
                assert event.status_code == 200
        block, _, self._text = self._text.partition(b"\n\n")
        return dict(line.split(": ", 1) for line in block.decode().split("\n"))

    async def read(self, count: int) -> list[int]:
        blocks = [await self._block() for _ in range(count)]
        return [int(block["id"]) for block in blocks if block is not None]

    async def read_to_the_end(self) -> list[int]:
        """All that is there."""
        found = []
        while (block := await self._block()) is not None:
            found.append(int(block["id"]))
        return found

    async def close(self) -> None:
        await trio.aclose_forcefully(self._stream)

    @staticmethod
    def ended(server: Server) -> dict[int, int]:
        return server.backend.sockets.streams_ended


async def _connected(server: Server, room: int) -> trio.SocketStream:
    """A connection whose receiving end has little room, from before it is made."""
    sock = trio.socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    await sock.connect(("127.0.0.1", server.port))
    return trio.SocketStream(sock)
