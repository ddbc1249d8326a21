"""One WebSocket: what its client sends, how it is answered, and why it ends.

It has no task of its own (outlet.py). Bytes come from the lobby, its clock is the listener's watch, and events come
from the hub; each is dealt with there and then.

The frames of clients are read by wsproto; ours are the same bytes for every client, made once (protocol/frames.py).
"""

from __future__ import annotations

import math
from collections import deque
from functools import partial

import trio
from wsproto.connection import SERVER, ConnectionState
from wsproto.connection import Connection as Frames
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage

from fluxora import logs
from fluxora.actors.audience import DropReason, SubscriberProtocol
from fluxora.actors.hub import ResumeLost
from fluxora.http.connection import LINGER_S, Connection
from fluxora.http.exchange import Opening
from fluxora.http.outlet import ABNORMAL, Outlet, gone
from fluxora.http.sockets import Sockets
from fluxora.protocol import frames, sockets
from fluxora.protocol.close_codes import (
    HEARTBEAT_LOST,
    POLICY,
    RESUME_LOST,
    SLOW_CONSUMER,
    TOKEN_ENDED,
    TOO_BIG,
    CloseCode,
)
from fluxora.protocol.sockets import ALL

WINDOW_S = 10.0
MOST_SUBSCRIPTIONS = 256
MOST_MESSAGES: dict[SubscriberProtocol, int] = {"v2": 30, "broadcast": 10}  # in any WINDOW_S
MOST_FRAMES = 2_000  # in a WINDOW_S, control frames and parts of messages among them: more is no use but an attack
MOST_BYTES = 65_536  # of one message; a longer one is not read to its end
_log = logs.get("http")
_NO_STATUS = 1005
_PING = frames.ping()
_EMPTY_CLOSE = frames.close(1000)


class WebSocket(Outlet):
    """Made when the handshake has been answered. A client of v2 `follows` a thing also while it catches up with it."""

    __slots__ = (
        "_awaits_pong",
        "_binary",
        "_frames",
        "_frames_since",
        "_frames_taken",
        "_next_ping",
        "_resuming",
        "_size",
        "_taken",
        "_text",
    )

    def __init__(self, connection: Connection, opening: Opening, shared: Sockets) -> None:
        super().__init__(connection, opening, shared)
        self._frames = Frames(SERVER)
        self._frames_since = -math.inf
        self._frames_taken = 0
        self._taken: deque[float] = deque(maxlen=MOST_MESSAGES[opening.protocol])  # when, of the last messages
        self._text, self._size, self._binary = "", 0, False  # the message that is being received
        self._awaits_pong = False
        self._next_ping = 0.0
        self._resuming: set[trio.CancelScope] = set()
        shared.add(self)
        shared.hub.join(self)
        if self.protocol == "broadcast":
            shared.hub.subscribe(self, ALL)
        self._wait(trio.current_time())

    # -- what the client sends -------------------------------------------------------------------------------------

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

    def _may_go_on(self) -> bool:
        """Count a frame; False where they are too many."""
        now = trio.current_time()
        if now - self._frames_since >= WINDOW_S:
            self._frames_since, self._frames_taken = now, 0
        self._frames_taken += 1
        return self._frames_taken <= MOST_FRAMES

    def _take(self, part: TextMessage | BytesMessage) -> None:
        """Take a message, or a part of one. Of what is too long only the size is kept."""
        data = part.data
        if isinstance(data, str):
            self._size += len(data) if data.isascii() else len(data.encode())
            self._text = self._text + data if self._size <= sockets.MAX_MESSAGE_BYTES else ""
        else:
            self._size += len(data)
            self._binary = True
        most = MOST_BYTES if self.protocol == "v2" else sockets.MAX_MESSAGE_BYTES
        if self._size > most:
            self.end(TOO_BIG)
        elif part.message_finished:
            text, size, binary = self._text, self._size, self._binary
            self._text, self._size, self._binary = "", 0, False
            self._answer(text, size, binary=binary)

    def _answer(self, text: str, size: int, *, binary: bool) -> None:
        self._shared.messages += 1
        now, taken = trio.current_time(), self._taken
        over = len(taken) == taken.maxlen and now - taken[0] < WINDOW_S
        if self.protocol != "v2":
            taken.append(now)
            if over:
                self.end(POLICY)
            return
        try:
            if not over:
                taken.append(now)
            self._do(self._understood(text, size, over=over, binary=binary))
        except sockets.MessageError as error:
            self._shared.errors[error.code] += 1
            self._tell(sockets.error(error.code, error.message, error.ref))

    def _understood(
        self, text: str, size: int, *, over: bool, binary: bool
    ) -> sockets.Subscribe | sockets.Unsubscribe | sockets.Ping:
        """The message; raises MessageError where it is refused, for the first reason that there is."""
        if over:
            most = self._taken.maxlen
            raise sockets.MessageError(
                "RATE_LIMIT_EXCEEDED", f"At most {most} messages may be sent in {WINDOW_S:.0f} s"
            )
        if binary:
            raise sockets.MessageError("BINARY_NOT_SUPPORTED", "Messages are JSON in text frames")
        if size > sockets.MAX_MESSAGE_BYTES:
            most = sockets.MAX_MESSAGE_BYTES
            raise sockets.MessageError("PAYLOAD_TOO_LARGE", f"A message may have at most {most} bytes")
        return sockets.parse(text.encode())

    def _do(self, message: sockets.Subscribe | sockets.Unsubscribe | sockets.Ping) -> None:
        if isinstance(message, sockets.Ping):
            self._tell(sockets.pong(message.ref))
        elif isinstance(message, sockets.Unsubscribe):
            self.follows.discard(message.selector)
            self._acknowledge(message.ref, self._shared.hub.unsubscribe(self, message.selector))
        else:
            self._subscribe(message)

    def _subscribe(self, wanted: sockets.Subscribe) -> None:
        """Follow what is wanted. The acknowledgement is on its way before anything else can be committed."""
        full = wanted.selector not in self.follows and len(self.follows) >= MOST_SUBSCRIPTIONS
        if full or len(self._resuming) >= MOST_SUBSCRIPTIONS:
            raise sockets.MessageError(
                "SUBSCRIPTION_LIMIT", f"A connection may have at most {MOST_SUBSCRIPTIONS} subscriptions", wanted.ref
            )
        if wanted.after is None:
            self.follows.add(wanted.selector)
            self._acknowledge(wanted.ref, self._shared.hub.subscribe(self, wanted.selector))
            return
        scope = trio.CancelScope()
        self._resuming.add(scope)
        self._shared.attend(self.connection, partial(self._resume, wanted, wanted.after, scope))

    async def _resume(self, wanted: sockets.Subscribe, after: int, scope: trio.CancelScope) -> bool:
        """Tell what was missed, then what comes; where that cannot be had whole, say so and do not begin."""
        begins = wanted.selector not in self.follows
        self.follows.add(wanted.selector)
        try:
            with scope:
                position = await self._shared.hub.resume(self, wanted.selector, after)
                if position is not None:
                    self.follows.add(wanted.selector)  # as another one that failed may have left it
                    self._acknowledge(wanted.ref, position, recovered=True)
        except ResumeLost as error:
            if begins:
                self.follows.discard(wanted.selector)
            self._tell(sockets.reset(error.position, error.reason))
        except Exception:  # noqa: BLE001 (a defect, logged; whoever may have missed something must not go on as if not)
            _log.exception("websocket.resume_failed", connectionId=self.connection_id)
            self.end(RESUME_LOST)
        finally:
            self._resuming.discard(scope)
        return True

    def _acknowledge(self, ref: str | None, position: int, *, recovered: bool = False) -> None:
        if ref is not None:
            self._tell(sockets.ack(ref, position, recovered=recovered))

    # -- what it is told -------------------------------------------------------------------------------------------

    def drop(self, _reason: DropReason) -> None:
        """It does not take what it is offered: end it, where it can still be told."""
        if self.connection.is_open:
            self.end(SLOW_CONSUMER)
        elif not self._closing:
            self._closing = ABNORMAL
            self._forget()
            self._shared.attend(self.connection, gone)

    def _tell(self, message: bytes) -> None:
        self._send(frames.text(message))

    # -- the clock -------------------------------------------------------------------------------------------------

    def beat(self, now: float) -> None:
        """`due` of the connection has passed: look at the token's end, at the last ping, and send the next.

        While something is queued no ping could arrive, so none is sent, and whether the peer reads shows in the queue.
        """
        expires_at = self.principal.expires_at
        if self._closing:
            self.connection.due = math.inf
        elif expires_at is not None and self._shared.clock() >= expires_at:
            self.end(TOKEN_ENDED)
        elif now < self._next_ping or self.connection.offered_bytes:
            self._wait(now)
        elif self._awaits_pong:
            self.end(HEARTBEAT_LOST)
        else:
            self._awaits_pong = True
            self._send(_PING)
            self._next_ping = now + self._shared.ping_s
            self._wait(now)

    def _wait(self, now: float) -> None:
        """Set when `beat` is called next."""
        if self._next_ping <= now:
            self._next_ping = now + self._shared.ping_s
        expires_at, due = self.principal.expires_at, self._next_ping
        if expires_at is not None:
            due = min(due, now + max(0.0, expires_at - self._shared.clock()))
        self.connection.due = due

    # -- the end ---------------------------------------------------------------------------------------------------

    def end(self, why: CloseCode) -> bool:
        """Send the close frame behind all that is queued, and end; False where it is ending already."""
        return self._end_with(why.code, frames.close(why.code, why.reason))

    def _close(self, event: CloseConnection) -> None:
        """The client closes, or has sent what is no WebSocket frame."""
        code = int(event.code)
        if self._frames.state is ConnectionState.REMOTE_CLOSING:
            self._end_with(code, _EMPTY_CLOSE if code == _NO_STATUS else frames.close(code))
        else:
            self._end_with(code, frames.close(code, (event.reason or "")[:100]))

    def _end_with(self, code: int, frame: bytes) -> bool:
        if self._closing:
            return False
        self._closing = code
        self._forget()
        connection = self.connection
        connection.due = math.inf
        self._shared.silence(connection)
        connection.offer_last(frame)
        patience_s = LINGER_S if code == HEARTBEAT_LOST.code else self._shared.flush_s
        self._shared.attend(connection, partial(self._finish, patience_s))
        return True

    def _forget(self) -> None:
        """Nothing is told to it any more, and nothing is read for it."""
        super()._forget()
        for scope in self._resuming:
            scope.cancel(reason="the socket is ending")
