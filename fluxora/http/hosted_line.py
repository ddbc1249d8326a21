"""The line of an outlet on a request that another server carries (ASGI): what is offered goes out as messages.

It is bounded in bytes as a connection of our own is, and sends as one does: whoever flushes, one at a time. A server
may hold on to a message for as long as its client reads nothing, and not let go of it even when it is cancelled. Then
the line has ended and nobody tells its outlet anything more; but it is counted until the server lets go.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial

import trio

from fluxora.http.asgi import Message, Send
from fluxora.http.connection import LINGER_S, MAX_OFFERED_BYTES
from fluxora.http.line import Work, attended
from fluxora.http.outlet import Outlet


class HostedLine:
    """`first` is sent before anything else, `last` (None: nothing) at the end; `messages` makes ASGI messages of bytes.

    Made, and handed to its outlet, before anything is waited for; `carry` then is its life. `taken` counts the messages
    that the server has let go of. `peer_has_left`: the server has said so.
    """

    def __init__(
        self,
        send: Send,
        *,
        first: Message,
        messages: Callable[[bytes], Iterable[Message]],
        last: Message | None = None,
        write_timeout_s: float,
    ) -> None:
        self.due = math.inf
        self._send = send
        self._waiting: deque[Message | bytes] = deque([first])
        self._messages = messages
        self._last = last
        self._write_timeout_s = write_timeout_s
        self.taken = 0
        self._offered = 0
        self._sending = trio.Lock()
        self._over = trio.Event()
        self.peer_has_left = False
        self._nursery: trio.Nursery | None = None
        self._early: list[Work] = []

    async def carry(self, outlet: Outlet, read: Work) -> None:
        """Be the nursery and the clock of an outlet, beside `read`, until it has ended."""
        try:
            async with trio.open_nursery() as self._nursery:
                first: list[Work] = [self._begin, read, partial(self._watch, outlet)]
                for work in first + self._early:
                    self.attend(work)
                await self._over.wait()  # a connection that ends is one of its reasons
                self._nursery.cancel_scope.cancel(reason="the line has ended")
            if self._last is not None and not self.peer_has_left:
                with trio.move_on_after(LINGER_S):
                    # Here, where nobody reads any more: servers tell of an end that is under way, and it must not be
                    # cut by that.
                    await self._send(self._last)
        finally:
            self._over.set()
            outlet.left()

    async def _begin(self) -> bool:
        await self.flush()
        return True

    async def _watch(self, outlet: Outlet) -> bool:
        while True:
            await trio.sleep_until(self.due)  # which only a beat puts off
            outlet.beat(trio.current_time())

    def peer_left(self) -> None:
        """The server says that the client has gone, or has closed."""
        self.peer_has_left = True
        self._over.set()

    # -- what the outlet asks for ----------------------------------------------------------------------------------

    @property
    def at_once(self) -> bool:
        """Never: everything is queued first."""
        return False

    @property
    def offered_bytes(self) -> int:
        """What was offered and is not on its way yet, and the piece that is."""
        return self._offered

    @property
    def is_open(self) -> bool:
        """False once the client has left or the line has ended."""
        return not self._over.is_set()

    def offer(self, data: bytes) -> bool:
        """Queue whole frames; False, and nothing taken, if the peer is gone or too slow."""
        if self._over.is_set() or (self._offered and self._offered + len(data) > MAX_OFFERED_BYTES):
            return False
        self.offer_last(data)
        return True

    def offer_last(self, data: bytes) -> None:
        """Queue what is said before the end, even where the queue is full."""
        self._waiting.append(data)
        self._offered += len(data)

    async def flush(self) -> None:
        """Send what was offered; a server that does not take a piece of it for the write timeout ends the line.

        Raises:
            trio.BrokenResourceError: the peer is gone, or takes nothing.
            trio.ClosedResourceError: the line has ended.
        """
        async with self._sending:
            while self._waiting:
                if self._over.is_set():
                    raise trio.ClosedResourceError("the line has ended")
                piece = self._waiting.popleft()
                try:
                    with trio.fail_after(self._write_timeout_s):
                        for message in [piece] if isinstance(piece, dict) else self._messages(piece):
                            await self._send(message)
                            self.taken += 1
                except (OSError, trio.TooSlowError, trio.BusyResourceError) as error:
                    # The last: Hypercorn ends the connection of who leaves also where it is being written to.
                    self._over.set()
                    raise trio.BrokenResourceError("the server cannot send to the client") from error
                if isinstance(piece, bytes):
                    self._offered -= len(piece)

    async def aclose(self) -> None:
        """Leave the client time to answer, where a close frame was the last word."""
        if self._last is None:
            with trio.move_on_after(LINGER_S):
                await self._over.wait()

    def attend(self, work: Work) -> None:
        """Begin work in a task of the request's; the line ends with it unless it says otherwise."""
        if self._over.is_set():
            return  # there is nothing left to be done
        if self._nursery is None:
            self._early.append(work)
        else:
            self._nursery.start_soon(attended, work, self._over.set)

    def silence(self) -> None:
        """Reading goes on, or nobody would hear that the client has left; an outlet that ends passes over the rest."""
