"""Where connections rest between requests: without a task, without a timer, without a system call.

One selector has all of them. One task waits for it (a selector can itself be waited for) and hands each connection that
has received something to `arrive`, which serves it there and then where it can, and gives it a task where it must wait.
A task for every connection would cost each request more than the request.
"""

from __future__ import annotations

import selectors
from collections.abc import Callable

import trio

from fluxora.http.connection import Connection

AT_A_TIME = 64  # connections served between two turns of the event loop: a few milliseconds


class Lobby:
    """`arrive` is called for each resting connection that can be read. It may `leave`, and may not raise."""

    def __init__(self, arrive: Callable[[Connection], None]) -> None:
        self._arrive = arrive
        self._selector = selectors.DefaultSelector()
        self._resting: set[Connection] = set()
        self._closed = False

    def rest(self, connection: Connection) -> bool:
        """Take in a connection that waits for its next request; False once the lobby has closed."""
        if self._closed:
            return False
        self._selector.register(connection.socket.fileno(), selectors.EVENT_READ, connection)
        self._resting.add(connection)
        return True

    def leave(self, connection: Connection) -> None:
        """Let a connection go: to a task, or to its end (before it is closed)."""
        if connection in self._resting and not self._closed:
            self._resting.discard(connection)
            self._selector.unregister(connection.socket.fileno())

    def __contains__(self, connection: Connection) -> bool:
        """True for a connection that rests here."""
        return connection in self._resting

    async def run(self) -> None:
        """Until cancelled; then the selector is closed and nobody can rest here any more."""
        try:
            while True:
                await trio.lowlevel.wait_readable(self._selector.fileno())
                for nth, (key, _) in enumerate(self._selector.select(0), 1):
                    if key.data in self._resting:  # one before it may have sent it away
                        self._arrive(key.data)
                    if nth % AT_A_TIME == 0:
                        await trio.lowlevel.checkpoint()
        finally:
            self._closed = True
            self._selector.close()
