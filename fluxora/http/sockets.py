"""All WebSockets and event streams of one process: who they are, how many, and what they share.

What one of them does is in session.py and event_stream.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from fluxora import logs
from fluxora.http.limits import site_of
from fluxora.protocol.close_codes import DISCONNECTED, GOING_AWAY, CloseCode

if TYPE_CHECKING:
    from fluxora.actors.hub import Hub
    from fluxora.http.outlet import Outlet

OF_EVENTS = ("sse", "sse_chunked")
_log = logs.get("http")


class Sockets:
    """The open ones. `ping_s` lies between two pings of a WebSocket, `comment_s` between two comments of an event
    stream; `flush_s` is the time for what is queued at an end.

    `clock` returns Unix seconds. What carries them differs: the listener, or another server that the application is
    served by.
    """

    def __init__(
        self, hub: Hub, *, ping_s: float, comment_s: float, flush_s: float, clock: Callable[[], float]
    ) -> None:
        self.hub = hub
        self.ping_s = ping_s
        self.comment_s = comment_s
        self.flush_s = flush_s
        self.clock = clock
        self.closed: Counter[int] = Counter()
        self.streams_ended: Counter[int] = Counter()  # event streams, by the close code that a WebSocket would have had
        self.errors: Counter[str] = Counter()
        self.messages = 0
        self._open: set[Outlet] = set()
        self._streams = 0
        self._of_site: Counter[str] = Counter()

    @property
    def count(self) -> int:
        """How many WebSockets are open."""
        return len(self._open) - self._streams

    @property
    def streams(self) -> int:
        """How many event streams are open."""
        return self._streams

    @property
    def queued(self) -> tuple[int, int]:
        """How many have bytes waiting that the kernel did not take, and how many bytes all of them."""
        waiting = [size for outlet in self._open if (size := outlet.line.offered_bytes)]
        return len(waiting), sum(waiting)

    def count_of(self, client: str) -> int:
        """How many of both are open from one address (of IPv6: from its /64)."""
        return self._of_site[site_of(client)]

    def add(self, socket: Outlet) -> None:
        """Count one in, and say so."""
        self._open.add(socket)
        self._of_site[site_of(socket.client)] += 1
        of_events = socket.protocol in OF_EVENTS
        self._streams += of_events
        _log.info(
            "event_stream.connected" if of_events else "websocket.connected",
            connectionId=socket.connection_id,
            principal=socket.principal.id,
            protocol=socket.protocol,
            total=self.streams if of_events else self.count,
        )

    def discard(self, socket: Outlet, code: int) -> None:
        """Count one out that ended with a close code (1006: without one), and say so."""
        if socket not in self._open:
            return
        self._open.discard(socket)
        where = site_of(socket.client)
        self._of_site[where] -= 1
        if not self._of_site[where]:
            del self._of_site[where]  # or addresses would pile up
        if socket.protocol in OF_EVENTS:
            self._streams -= 1
            self.streams_ended[code] += 1
            _log.info("event_stream.disconnected", connectionId=socket.connection_id, code=code, total=self.streams)
        else:
            self.closed[code] += 1
            _log.info("websocket.disconnected", connectionId=socket.connection_id, code=code, total=self.count)

    def drain(self) -> None:
        """Tell everyone that the server goes away."""
        self._end(tuple(self._open), GOING_AWAY)

    def disconnect(self, wanted: Callable[[Outlet], bool]) -> int:
        """End those that an operator wants to be gone; how many."""
        return self._end([socket for socket in self._open if wanted(socket)], DISCONNECTED)

    def _end(self, sockets: Iterable[Outlet], why: CloseCode) -> int:
        ended = 0
        for socket in sockets:
            ended += socket.end(why)
        return ended
