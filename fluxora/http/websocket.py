"""A WebSocket on a connection of the listener's own: its frames, its pings, and its close (RFC 6455).

What the messages mean is the session's business (session.py). The frames of clients are read by wsproto; ours are the
same bytes for every client, made once (protocol/frames.py). Bytes come from the lobby, its clock is the listener's
watch.
"""

from __future__ import annotations

from wsproto.connection import SERVER, ConnectionState
from wsproto.connection import Connection as Frames
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage

from fluxora.http.exchange import Opening
from fluxora.http.line import Line
from fluxora.http.session import MOST_BYTES, Session
from fluxora.http.sockets import Sockets
from fluxora.protocol import frames, sockets
from fluxora.protocol.close_codes import POLICY, TOO_BIG

_NO_STATUS = 1005
_PING = frames.ping()
_EMPTY_CLOSE = frames.close(1000)


class WebSocket(Session):
    """A session that is handed bytes, and looks after its heartbeat itself."""

    __slots__ = ("_awaits_pong", "_binary", "_frames", "_size", "_text")

    def __init__(self, line: Line, opening: Opening, shared: Sockets) -> None:
        super().__init__(line, opening, shared)
        self._frames = Frames(SERVER)
        self._text, self._size, self._binary = "", 0, False  # the message that is being received
        self._awaits_pong = False

    def received(self, data: bytes) -> None:
        """Take in bytes, as they came."""
        self._frames.receive_data(data)
        for event in self._frames.events():
            if self._closing:
                return
            if not self._may_go_on():
                self.end(POLICY)
            elif isinstance(event, TextMessage | BytesMessage):
                self._take(event)
            elif isinstance(event, Ping):
                self._send(frames.pong(bytes(event.payload)))
            elif isinstance(event, Pong):
                self._awaits_pong = False
            elif isinstance(event, CloseConnection):
                self._close(event)

    def _take(self, part: TextMessage | BytesMessage) -> None:
        """Take a message, or a part of one. Of what is too long only the size is kept, and not all of it is read."""
        data = part.data
        if isinstance(data, str):
            self._size += len(data) if data.isascii() else len(data.encode())
            self._text = self._text + data if self._size <= sockets.MAX_MESSAGE_BYTES else ""
        else:
            self._size += len(data)
            self._binary = True
        if self._size > MOST_BYTES[self.protocol]:
            self.end(TOO_BIG)
        elif part.message_finished:
            text, size, binary = self._text, self._size, self._binary
            self._text, self._size, self._binary = "", 0, False
            self._answer(text, size, binary=binary)

    def _is_alive(self) -> bool:
        """Whether the last ping was answered; the next one is on its way.

        While something is queued no ping could arrive, so none is sent, and whether the peer reads shows in the queue.
        """
        if self.line.offered_bytes:
            return True
        if self._awaits_pong:
            return False
        self._awaits_pong = True
        self._send(_PING)
        return True

    def _close(self, event: CloseConnection) -> None:
        """The client closes, or has sent what is no WebSocket frame."""
        code = int(event.code)
        if self._frames.state is ConnectionState.REMOTE_CLOSING:
            self._end_with(code, _EMPTY_CLOSE if code == _NO_STATUS else frames.close(code))
        else:
            self._end_with(code, frames.close(code, (event.reason or "")[:100]))
