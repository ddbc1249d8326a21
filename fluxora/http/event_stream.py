"""One stream of Server-Sent Events: an answer that goes on for as long as its client listens.

It is a subscriber of the hub as a WebSocket is, with one subscription that is made when the answer begins. Nothing is
heard from its client. The connection ends with the stream, and the client comes back by itself with the id of the last
event that it has; so a slow one is cut off without a word, and has lost nothing.
"""

from __future__ import annotations

import math
from functools import partial

import trio

from fluxora import logs
from fluxora.actors.audience import DropReason
from fluxora.actors.hub import ResumeLost
from fluxora.http.exchange import Opening
from fluxora.http.line import Line
from fluxora.http.outlet import Outlet, gone
from fluxora.http.sockets import Sockets
from fluxora.protocol import sockets
from fluxora.protocol.close_codes import POLICY, RESUME_LOST, SLOW_CONSUMER, TOKEN_ENDED, CloseCode

MOST_BYTES = 65_536  # from a client that has nothing more to say; a pipelined request is not answered
_log = logs.get("http")


class EventStream(Outlet):
    """Made when the head of the answer is on its way. Everything behind `opening.after` comes, or what is new.

    Its protocol says whether its body goes out in chunks.
    """

    __slots__ = ("_heard", "_next_comment", "_resuming", "_selector")

    def __init__(self, line: Line, opening: Opening, shared: Sockets) -> None:
        super().__init__(line, opening, shared)
        self._selector = opening.selector
        self._heard = 0  # bytes
        self._resuming = trio.CancelScope()
        self.follows.add(self._selector)
        shared.add(self)
        shared.hub.join(self)
        now = trio.current_time()
        self._next_comment = now + shared.comment_s
        self._wait(now)
        if opening.after is None:
            self._tell(sockets.sse_opening(shared.hub.subscribe(self, self._selector)))
        else:
            self._tell(sockets.sse_opening(opening.after))
            line.attend(partial(self._resume, opening.after))

    async def _resume(self, after: int) -> bool:
        """Tell what was missed, then what comes; where that cannot be had whole, say so and end."""
        try:
            with self._resuming:
                await self._shared.hub.resume(self, self._selector, after)
        except ResumeLost as error:
            self._end_with(RESUME_LOST, sockets.sse_reset(error.position, error.reason))
        except Exception:  # noqa: BLE001 (a defect, logged; whoever may have missed something must not go on as if not)
            _log.exception("event_stream.resume_failed", connectionId=self.connection_id)
            self.end(RESUME_LOST)
        return True

    def received(self, data: bytes) -> None:
        """Nothing that it says is for us, and much of it ends the connection."""
        self._heard += len(data)
        if self._heard > MOST_BYTES:
            self.end(POLICY)

    def beat(self, now: float) -> None:
        """Look at the token's end; send the comment that keeps proxies from ending what is quiet.

        While something is queued it would arrive no earlier than that, so none is sent.
        """
        expires_at = self.principal.expires_at
        if self._closing:
            self.line.due = math.inf
            return
        if expires_at is not None and self._shared.clock() >= expires_at:
            self.end(TOKEN_ENDED)
            return
        if now >= self._next_comment:
            self._next_comment = now + self._shared.comment_s
            if not self.line.offered_bytes:
                self._tell(sockets.SSE_COMMENT)
        if not self._closing:
            self._wait(now)

    def _tell(self, data: bytes) -> None:
        self._send(self._framed(data))

    def _framed(self, data: bytes) -> bytes:
        return sockets.chunk(data) if self.protocol == "sse_chunked" else data

    def _wait(self, now: float) -> None:
        """Set when `beat` is called next."""
        expires_at, due = self.principal.expires_at, self._next_comment
        if expires_at is not None:
            due = min(due, now + max(0.0, expires_at - self._shared.clock()))
        self.line.due = due

    # -- the end ---------------------------------------------------------------------------------------------------

    def drop(self, _reason: DropReason) -> None:
        """It does not take what it is offered: cut it off. What it has not read yet it asks for when it comes back."""
        if not self._closing:
            self._begin_to_end(SLOW_CONSUMER)
            self.line.attend(gone)

    def end(self, why: CloseCode) -> bool:
        """End the answer behind all that is queued; False where it is ending already. The client is not told why."""
        return self._end_with(why, b"")

    def _end_with(self, why: CloseCode, last: bytes) -> bool:
        if self._closing:
            return False
        self._begin_to_end(why)
        framed = self._framed(last) if last else b""
        if self.protocol == "sse_chunked":
            framed += sockets.LAST_CHUNK
        if framed:
            self.line.offer_last(framed)
        self.line.attend(partial(self._finish, self._shared.flush_s))
        return True

    def _begin_to_end(self, why: CloseCode) -> None:
        self._closing = why.code
        self._forget()
        self.line.due = math.inf
        self.line.silence()

    def _forget(self) -> None:
        super()._forget()
        self._resuming.cancel(reason="the stream is ending")
