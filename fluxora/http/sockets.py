"""All WebSockets of one port: who they are, how many, and what they share. What one of them does is in websocket.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

from fluxora import logs
from fluxora.errors import InvariantError
from fluxora.http.connection import Connection
from fluxora.http.limits import site_of
from fluxora.protocol.close_codes import DISCONNECTED, GOING_AWAY, CloseCode

if TYPE_CHECKING:
    from fluxora.actors.hub import Hub
    from fluxora.http.websocket import WebSocket

Work = Callable[[], Awaitable[bool]]
_log = logs.get("http")


class Sockets:
    """The open sockets. `ping_s` lies between two pings, `flush_s` is the time for what is queued at an end.

    `clock` returns Unix seconds. The front says with `serve_with` how a socket gets a task and how it stops being read;
    no socket is opened before.
    """

    def __init__(self, hub: Hub, *, ping_s: float, flush_s: float, clock: Callable[[], float]) -> None:
        self.hub = hub
        self.ping_s = ping_s
        self.flush_s = flush_s
        self.clock = clock
        self.closed: Counter[int] = Counter()
        self.errors: Counter[str] = Counter()
        self.messages = 0
        self.attend: Callable[[Connection, Work], None] = _no_front
        self.silence: Callable[[Connection], None] = _no_front
        self._open: set[WebSocket] = set()
        self._of_site: Counter[str] = Counter()

    def serve_with(self, attend: Callable[[Connection, Work], None], silence: Callable[[Connection], None]) -> None:
        """`attend` runs work for a connection, and ends the connection unless the work says that it goes on.

        `silence` takes a connection out of the lobby: what it still sends is for its last task.
        """
        self.attend = attend
        self.silence = silence

    @property
    def count(self) -> int:
        """How many are open."""
        return len(self._open)

    def count_of(self, client: str) -> int:
        """How many are open from one address (of IPv6: from its /64)."""
        return self._of_site[site_of(client)]

    def add(self, socket: WebSocket) -> None:
        """Count one in, and say so."""
        self._open.add(socket)
        self._of_site[site_of(socket.client)] += 1
        _log.info(
            "websocket.connected",
            connectionId=socket.connection_id,
            principal=socket.principal.id,
            protocol=socket.protocol,
            total=self.count,
        )

    def discard(self, socket: WebSocket, code: int) -> None:
        """Count one out that ended with a close code (1006: without one), and say so."""
        if socket not in self._open:
            return
        self._open.discard(socket)
        where = site_of(socket.client)
        self._of_site[where] -= 1
        if not self._of_site[where]:
            del self._of_site[where]  # or addresses would pile up
        self.closed[code] += 1
        _log.info("websocket.disconnected", connectionId=socket.connection_id, code=code, total=self.count)

    def drain(self) -> None:
        """Tell everyone that the server goes away."""
        self._end(tuple(self._open), GOING_AWAY)

    def disconnect(self, wanted: Callable[[WebSocket], bool]) -> int:
        """End those that an operator wants to be gone; how many."""
        return self._end([socket for socket in self._open if wanted(socket)], DISCONNECTED)

    def _end(self, sockets: Iterable[WebSocket], why: CloseCode) -> int:
        ended = 0
        for socket in sockets:
            ended += socket.end(why)
        return ended


def _no_front(*_: object) -> None:
    raise InvariantError("a socket without a front")
