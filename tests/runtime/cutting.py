"""A relay in front of a server, which cuts connections where it is told to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio


class Relay:
    """Passes connections on to `port`; each is cut when so many bytes of the server's have passed (None: never)."""

    def __init__(self, port: int, budget: Callable[[], int | None]) -> None:
        self.target = port
        self.url = ""
        self.connections = 0
        self.cuts = 0
        self._budget = budget

    async def _pass_on(self, client: trio.SocketStream) -> None:
        self.connections += 1
        left = self._budget()
        try:
            server = await trio.open_tcp_stream("127.0.0.1", self.target)
        except OSError:
            await trio.aclose_forcefully(client)
            return
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._there, client, server, nursery.cancel_scope)
                await self._back(server, client, left)
                nursery.cancel_scope.cancel()
        finally:
            await trio.aclose_forcefully(client)
            await trio.aclose_forcefully(server)

    async def _back(self, server: trio.SocketStream, client: trio.SocketStream, left: int | None) -> None:
        try:
            async for data in server:
                if left is not None and len(data) >= left:
                    await client.send_all(data[:left])
                    self.cuts += 1
                    return
                left = None if left is None else left - len(data)
                await client.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    async def _there(self, client: trio.SocketStream, server: trio.SocketStream, scope: trio.CancelScope) -> None:
        try:
            async for data in client:
                await server.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()


@asynccontextmanager
async def relay(port: int, budget: Callable[[], int | None]) -> AsyncIterator[Relay]:
    made = Relay(port, budget)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, made._pass_on, 0)
        made.url = f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}/ws/streams"
        yield made
        nursery.cancel_scope.cancel()
