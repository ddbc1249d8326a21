"""What a WebSocket client says and is told, whatever carries it: messages, their limits, and why it ends.

It has no task of its own (outlet.py). Messages come one by one, whole or with their size alone, events come from the
hub; each is dealt with there and then. What it sends are frames, which are the same bytes for every client
(protocol/frames.py). A line that another server carries takes them apart again.
"""

from __future__ import annotations

import math
from collections import deque
from functools import partial

import msgspec
import trio

from fluxora import logs
from fluxora.actors.audience import DropReason, SubscriberProtocol
from fluxora.actors.catch_up import CatchUp
from fluxora.actors.hub import ResumeLost
from fluxora.http.connection import LINGER_S
from fluxora.http.exchange import Opening
from fluxora.http.line import Line
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
MOST_BYTES: dict[SubscriberProtocol, int] = {"v2": 65_536, "broadcast": sockets.MAX_MESSAGE_BYTES}  # of one message
MOST_FRAMES = 2_000  # in a WINDOW_S, control frames and parts of messages among them: more is no use but an attack
_log = logs.get("http")


class _Resuming(msgspec.Struct, frozen=True):
    """A subscription that catches up, or waits to, and how it is acknowledged then."""

    asked: CatchUp
    ref: str | None
    recovered: bool


class Session(Outlet):
    """Made when the handshake has been answered. A client of v2 `follows` a thing also while it catches up with it.

    As it stands it leaves the heartbeat to whoever carries the line.
    """

    __slots__ = ("_counted", "_counted_since", "_next_beat", "_resumed", "_resuming", "_times")

    def __init__(self, line: Line, opening: Opening, shared: Sockets) -> None:
        super().__init__(line, opening, shared)
        self._counted_since = -math.inf
        self._counted = 0
        self._times: deque[float] = deque(maxlen=MOST_MESSAGES[opening.protocol])  # of the last messages
        self._next_beat = 0.0
        self._resuming: deque[_Resuming] = deque()  # the first is under way, or about to be
        self._resumed: trio.CancelScope | None = None
        shared.add(self)
        shared.hub.join(self)
        if self.protocol == "broadcast":
            shared.hub.subscribe(self, ALL)
        self._wait(trio.current_time())

    # -- what the client sends -------------------------------------------------------------------------------------

    def heard(self, text: str, size: int, *, binary: bool = False) -> None:
        """Take a message of `size` bytes; `text` may be left out where it is too long, or binary."""
        if self._closing:
            return
        if not self._may_go_on():
            self.end(POLICY)
        elif size > MOST_BYTES[self.protocol]:
            self.end(TOO_BIG)
        else:
            self._answer(text, size, binary=binary)

    def _may_go_on(self) -> bool:
        """Count a frame, or a message where frames are not seen; False where they are too many."""
        now = trio.current_time()
        if now - self._counted_since >= WINDOW_S:
            self._counted_since, self._counted = now, 0
        self._counted += 1
        return self._counted <= MOST_FRAMES

    def _answer(self, text: str, size: int, *, binary: bool) -> None:
        self._shared.messages += 1
        now, times = trio.current_time(), self._times
        over = len(times) == times.maxlen and now - times[0] < WINDOW_S
        if self.protocol != "v2":
            times.append(now)
            if over:
                self.end(POLICY)
            return
        try:
            if not over:
                times.append(now)
            self._do(self._understood(text, size, over=over, binary=binary))
        except sockets.MessageError as error:
            self._shared.errors[error.code] += 1
            self._tell(sockets.error(error.code, error.message, error.ref))

    def _understood(
        self, text: str, size: int, *, over: bool, binary: bool
    ) -> sockets.Subscribe | sockets.Unsubscribe | sockets.Ping:
        """The message; raises MessageError where it is refused, for the first reason that there is."""
        if over:
            most = self._times.maxlen
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
            self._give_up()
        else:
            self._subscribe(message)

    def _subscribe(self, wanted: sockets.Subscribe) -> None:
        """Follow what is wanted. The acknowledgement is on its way before anything else can be committed.

        Where what is live comes late, it comes behind that: its position must not be above what was told.
        """
        hub, selector = self._shared.hub, wanted.selector
        full = selector not in self.follows and len(self.follows) >= MOST_SUBSCRIPTIONS
        if full or len(self._resuming) >= MOST_SUBSCRIPTIONS:
            raise sockets.MessageError(
                "SUBSCRIPTION_LIMIT", f"A connection may have at most {MOST_SUBSCRIPTIONS} subscriptions", wanted.ref
            )
        if hub.remembered(self) >= MOST_SUBSCRIPTIONS:
            raise sockets.MessageError(
                "SUBSCRIPTION_LIMIT",
                f"{MOST_SUBSCRIPTIONS} subscriptions have ended while history is told; wait until it has been",
                wanted.ref,
            )
        if wanted.after is None and not hub.is_behind(self):
            self.follows.add(selector)
            self._acknowledge(wanted.ref, hub.subscribe(self, selector))
            return
        asked = hub.ask(self, selector, hub.head if wanted.after is None else wanted.after)
        if asked is not None:
            self.follows.add(selector)
            self._resuming.append(_Resuming(asked, wanted.ref, wanted.after is not None))
            if len(self._resuming) == 1:
                self.line.attend(self._resume_all)

    def _give_up(self) -> None:
        """Let go of what the client does not want any more."""
        if not self._resuming:
            return
        first = self._resuming.popleft()
        self._resuming = deque((first, *(one for one in self._resuming if not one.asked.given_up)))
        if first.asked.given_up and self._resumed is not None:
            self._resumed.cancel(reason="it is not wanted any more")

    async def _resume_all(self) -> bool:
        """Tell what was missed, one subscription after the other: one task, however many wait."""
        while self._resuming and not self._closing:
            one = self._resuming[0]
            try:
                with trio.CancelScope() as self._resumed:
                    await self._resume(one)
            finally:
                self._resumed = None
                self._resuming.popleft()
            selector = one.asked.selector
            others = {other.asked.selector for other in self._resuming}
            if selector not in others and not self._shared.hub.follows(self, selector):
                self.follows.discard(selector)
        self._resuming.clear()
        return True

    async def _resume(self, one: _Resuming) -> None:
        """Tell what was missed, then what comes; where that cannot be had whole, say so and do not begin."""
        try:
            position = await self._shared.hub.catch_up(one.asked)
            if position is not None:
                self._acknowledge(one.ref, position, recovered=one.recovered)
        except ResumeLost as error:
            if not one.asked.given_up:
                self._tell(sockets.reset(error.position, error.reason))
        except Exception:  # noqa: BLE001 (a defect, logged; whoever may have missed something must not go on as if not)
            _log.exception("websocket.resume_failed", connectionId=self.connection_id)
            self.end(RESUME_LOST)

    def _acknowledge(self, ref: str | None, position: int, *, recovered: bool = False) -> None:
        if ref is not None:
            self._tell(sockets.ack(ref, position, recovered=recovered))

    # -- what it is told -------------------------------------------------------------------------------------------

    def drop(self, _reason: DropReason) -> None:
        """It does not take what it is offered: end it, where it can still be told."""
        if self.line.is_open:
            self.end(SLOW_CONSUMER)
        elif not self._closing:
            self._closing = ABNORMAL
            self._forget()
            self.line.attend(gone)

    def _tell(self, message: bytes) -> None:
        self._send(frames.text(message))

    # -- the clock -------------------------------------------------------------------------------------------------

    def beat(self, now: float) -> None:
        """`due` of the line has passed: look at the token's end, and whether the client is still there."""
        expires_at = self.principal.expires_at
        if self._closing:
            self.line.due = math.inf
        elif expires_at is not None and self._shared.clock() >= expires_at:
            self.end(TOKEN_ENDED)
        elif now < self._next_beat or self._is_alive():
            if not self._closing:
                self._wait(now)
        else:
            self.end(HEARTBEAT_LOST)

    def _is_alive(self) -> bool:
        """Asked at every interval between two pings."""
        return True

    def _wait(self, now: float) -> None:
        """Set when `beat` is called next."""
        if self._next_beat <= now:
            self._next_beat = now + self._shared.ping_s
        expires_at, due = self.principal.expires_at, self._next_beat
        if expires_at is not None:
            due = min(due, now + max(0.0, expires_at - self._shared.clock()))
        self.line.due = due

    # -- the end ---------------------------------------------------------------------------------------------------

    def end(self, why: CloseCode) -> bool:
        """Send the close frame behind all that is queued, and end; False where it is ending already."""
        return self._end_with(why.code, frames.close(why.code, why.reason))

    def _end_with(self, code: int, frame: bytes) -> bool:
        if self._closing:
            return False
        self._closing = code
        self._forget()
        line = self.line
        line.due = math.inf
        line.silence()
        line.offer_last(frame)
        line.attend(partial(self._finish, LINGER_S if code == HEARTBEAT_LOST.code else self._shared.flush_s))
        return True

    def _forget(self) -> None:
        """Nothing is told to it any more, and nothing is read for it."""
        super()._forget()
        if self._resumed is not None:
            self._resumed.cancel(reason="the socket is ending")
