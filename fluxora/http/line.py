"""What an outlet speaks over: a connection of the listener's own, or one that another server carries.

An outlet needs little of it: to be rid of bytes without waiting, to have them gone, an end, and now and then a task.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from fluxora import logs

Work = Callable[[], Awaitable[bool]]
"""Something that has to be waited for. It says whether the line goes on behind it."""
_log = logs.get("http")


class Line(Protocol):
    """`due` (trio's clock) is when the outlet's `beat` is called next. The outlet sets it, whoever carries it calls."""

    due: float

    @property
    def at_once(self) -> bool:
        """Nothing is queued and nobody is sending: whatever has been offered is on its way."""
        ...

    @property
    def offered_bytes(self) -> int:
        """What was offered and is not on its way yet."""
        ...

    @property
    def taken(self) -> int:
        """Grows with whatever was queued and has gone."""
        ...

    @property
    def is_open(self) -> bool:
        """False once it was closed here or broke."""
        ...

    def offer(self, data: bytes, /) -> bool:
        """Take whole frames now, without waiting; False, and nothing taken, if the peer is gone or too slow."""
        ...

    def offer_last(self, data: bytes, /) -> None:
        """Take what is said before the end, even where nothing else is taken. Nothing if the peer is gone."""
        ...

    async def flush(self) -> None:
        """Have sent what was offered. Where the peer takes nothing for the write timeout, the line breaks.

        Raises:
            trio.BrokenResourceError: the peer is gone, or takes nothing.
            trio.ClosedResourceError: closed on this side.
        """
        ...

    async def aclose(self) -> None:
        """End it so that the peer can read the last bytes, in bounded time."""
        ...

    def attend(self, work: Work) -> None:
        """Begin work in a task of its own. The line ends with work that fails, or that says so."""
        ...

    def silence(self) -> None:
        """What the peer still sends is for nobody."""
        ...


async def attended(work: Work, drop: Callable[[], None]) -> None:
    """Do the work of a line, and `drop` the line unless it goes on. Raises nothing but cancellation."""
    lasts = False
    try:
        lasts = await work()
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        _log.debug("http.peer_left")
    except* Exception:  # noqa: BLE001 (a defect, logged; it costs this connection and no other)
        _log.exception("http.connection_failed")
    finally:
        if not lasts:
            drop()
