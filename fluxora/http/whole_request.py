"""An answer does not end before its request has come whole: for servers that cannot bear it, in HTTP/2.

There an answer may end while the request's body is still on its way. Hypercorn (0.18) then fails at the next part of
that body, and takes down all that it serves. HTTP/1 has no such trouble: the connection ends behind such an answer.
"""

from __future__ import annotations

import trio

from fluxora.http.asgi import Message, Receive, Send


class WholeRequest:
    """The two sides of one request; what its body still brings when the answer is complete is for nobody."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._whole = trio.Event()

    async def receive(self) -> Message:
        """As the server's."""
        message = await self._receive()
        if not message.get("more_body", False):  # the end of the body, or the client has left
            self._whole.set()
        return message

    async def send(self, message: Message) -> None:
        """As the server's, but the end waits: for as long as the client goes on sending."""
        if self._whole.is_set() or message["type"] != "http.response.body" or message.get("more_body", False):
            await self._send(message)
            return
        await self._send({**message, "more_body": True})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._drain)  # beside whoever reads already
            await self._whole.wait()
            nursery.cancel_scope.cancel(reason="the request is whole")
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _drain(self) -> None:
        while not self._whole.is_set():
            await self.receive()
