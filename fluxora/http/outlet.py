"""What a connection is when its answer does not end: a WebSocket or a stream of Server-Sent Events, told by the hub.

An outlet has no task of its own. Whoever carries its line hands it what comes and calls it when something is due; for
the listener's own connections those are the lobby and the watch, and what it is offered goes straight to the kernel.
Only what has to be waited for gets a task: a history that is resumed, a queue that is not taken at once, and the end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

import trio

from fluxora import logs
from fluxora.http.limits import site_of
from fluxora.http.replies import new_request_id
from fluxora.protocol.close_codes import RESUME_LOST

if TYPE_CHECKING:
    from fluxora.actors.audience import DropReason, SubscriberProtocol
    from fluxora.http.exchange import Opening
    from fluxora.http.line import Line
    from fluxora.http.sockets import Sockets
    from fluxora.protocol.close_codes import CloseCode
    from fluxora.protocol.sockets import Selector

ABNORMAL = 1006  # ended without a word; never sent
_log = logs.get("http")


class Outlet(ABC):
    """A subscriber of the hub. `client` is the address it came from, `follows` what it has subscribed to.

    `_closing` is the close code of its end, 0 before: for a stream of events, which has none on the wire, too.
    """

    __slots__ = (
        "_attended",
        "_closing",
        "_flushing",
        "_shared",
        "client",
        "connection_id",
        "follows",
        "line",
        "principal",
        "protocol",
    )

    def __init__(self, line: Line, opening: Opening, shared: Sockets) -> None:
        self.line = line
        self.connection_id = new_request_id()
        self.protocol: SubscriberProtocol = opening.protocol
        self.principal = opening.principal
        self.client = opening.client
        self.follows: set[Selector] = set()
        self._shared = shared
        self._flushing: trio.Event | None = None  # while a task sends what is queued; set when that has ended
        self._closing = 0
        self._attended: trio.CancelScope | None = None  # what the hub has begun for it

    @property
    def caller(self) -> str:
        """Its principal, or for nobody's the site it came from: as requests are counted."""
        return site_of(self.client) if self.principal.is_anonymous else self.principal.id

    @property
    def taken(self) -> int:
        """Grows with whatever had to wait and has gone."""
        return self.line.taken

    @property
    def ending(self) -> bool:
        """True once it has been told to end, or has asked to: nothing is taken from it or sent to it any more."""
        return self._closing != 0

    @abstractmethod
    def beat(self, now: float) -> None:
        """`due` of the line has passed (`now`: trio's clock): do what is due, and set it anew."""

    @abstractmethod
    def end(self, why: CloseCode) -> bool:
        """End behind all that is queued; False where it is ending already."""

    @abstractmethod
    def drop(self, reason: DropReason) -> None:
        """It does not take what it is offered, or is gone: let go of it."""

    def offer(self, data: bytes) -> bool:
        """Write what is whole now or queue it; False, and nothing taken, where the client is too slow or gone."""
        line = self.line
        if self._closing or not line.offer(data):
            return False
        if not line.at_once and line.offered_bytes:
            self._begin_to_flush()
        return True

    async def drained(self) -> bool:
        """Wait until everything that was offered is written; False if the client is gone, or takes nothing any more.

        Who waits here may be cancelled when the outlet ends, and what is half sent then must not be: so another sends.
        """
        if self.line.is_open and self.line.offered_bytes:
            await self._begin_to_flush().wait()
        else:
            await trio.lowlevel.checkpoint()
        return self.line.is_open and not self._closing

    def attend(self, work: Callable[[], Awaitable[None]]) -> None:
        """Begin work of the hub's, one at a time, in a task that ends when the outlet does."""
        self.line.attend(partial(self._attend, work))

    async def _attend(self, work: Callable[[], Awaitable[None]]) -> bool:
        try:
            with trio.CancelScope() as self._attended:
                if not self._closing:
                    await work()
        except Exception:  # noqa: BLE001 (a defect, logged; whoever may have missed something must not go on as if not)
            _log.exception("http.outlet_failed", connectionId=self.connection_id)
            self.end(RESUME_LOST)
        return True

    def left(self, code: int = ABNORMAL) -> None:
        """The line is gone. `code`: of the close frame that the client sent, where another server has read it."""
        self._closing = self._closing or code
        self._forget()
        self._shared.discard(self, self._closing)

    def _forget(self) -> None:
        """Nothing is told to it any more, and nothing is read for it."""
        self._shared.hub.leave(self)
        if self._attended is not None:
            self._attended.cancel(reason="the outlet is ending")

    def _send(self, data: bytes) -> None:
        if not self.offer(data) and not self._closing:
            self.drop("slow")

    def _begin_to_flush(self) -> trio.Event:
        """Have what is queued sent, by a task that only the end of the line cuts short; set when it has ended."""
        if self._flushing is None:
            self._flushing = trio.Event()
            self.line.attend(partial(self._flush, self._flushing))
        return self._flushing

    async def _flush(self, done: trio.Event) -> bool:
        """Send what is queued; a client that takes nothing for the write timeout breaks the line."""
        try:
            await self.line.flush()
        finally:
            self._flushing = None
            done.set()
        return True

    async def _finish(self, patience_s: float) -> bool:
        """Have the last bytes sent, for a bounded time, and let the client close first."""
        with trio.move_on_after(patience_s):
            await self.line.flush()
            await self.line.aclose()
        return False


async def gone() -> bool:
    """Work that says that the line cannot go on."""
    return False
