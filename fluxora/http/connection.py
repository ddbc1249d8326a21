"""The one stream under every protocol of the port.

Rules
- Bytes never interleave: whoever awaits `send_all` queues behind frames that were offered, and a frame that cannot be
  written at once queues behind whoever is sending.
- `offer` never awaits and its buffer is bounded in bytes: a reader that stalls is told from a reader that is slow.
- Every wait ends: a peer that takes no byte for `write_timeout_s` is cut off, even under a shield of the caller.
- After a send that failed or was cancelled half-way the stream is broken, for the peer has an unknown part of it.
"""

from __future__ import annotations

import math
import os
import socket
import struct
from typing import TYPE_CHECKING, Protocol

import trio

from fluxora.http.backlog import Backlog

if TYPE_CHECKING:
    from fluxora.http.event_stream import EventStream
    from fluxora.http.line import Work
    from fluxora.http.websocket import WebSocket

MAX_OFFERED_BYTES = 1 << 20
WRITE_TIMEOUT_S = 30.0
LINGER_S = 1.0
_LINGER_BYTES = 1 << 20
_RESET = struct.pack("ii", 1, 0)  # close with a reset, and throw away what is not sent
_SLICE = 1 << 16  # sent under one deadline, so that a slow but steady reader may take a large reply


class Keeper(Protocol):
    """Whoever has the connections: it reads what they receive, and has tasks for them."""

    def attend(self, connection: Connection, work: Work) -> None:
        """Begin work for a connection, which ends with it unless the work says that it goes on."""
        ...

    def silence(self, connection: Connection) -> None:
        """Read nothing of it any more: what it still receives is for its last task."""
        ...


class Connection(trio.abc.HalfCloseableStream):
    """A TCP stream with a synchronous, bounded way in for frames (`offer`) beside the awaitable one.

    `socket` is what Hypercorn asks for addresses, `peer` the other side's address without port. A task that serves the
    connection runs inside `scope`, which is given `LINGER_S` to end by itself once the stream is closed. Whoever
    watches over the connections cancels it when `due` (trio's clock) has passed: one comparison now and then instead of
    a timer for each request. `idle`: no byte of a request is here; `overdue`: it was cancelled for a head that is late.
    `outlet` is what the connection became by an answer that goes on, and gets all that is received from then on; the
    connection is its line, and needs a `keeper` for that.
    `taken` counts the bytes that had to wait and were written.
    `at_once`: it is open, nothing is queued and nobody is sending, so that a frame would go straight to the kernel.
    """

    def __init__(
        self,
        transport: trio.SocketStream,
        *,
        keeper: Keeper | None = None,
        max_offered_bytes: int = MAX_OFFERED_BYTES,
        write_timeout_s: float = WRITE_TIMEOUT_S,
    ) -> None:
        self.socket = transport.socket
        self._fd = transport.socket.fileno()
        self.peer = _address_of(transport.socket)
        self.scope = trio.CancelScope()
        self.due = math.inf
        self.idle = False
        self.overdue = False
        self.outlet: WebSocket | EventStream | None = None
        self._keeper = keeper
        self.at_once = True
        self._transport = transport
        self._max_offered = max_offered_bytes
        self._write_timeout_s = write_timeout_s
        self._unread = b""
        self._ended = False  # the peer sent its last byte
        self._offered = Backlog()
        self.taken = 0
        self._leaving = 0  # bytes that `send_all` has taken over and not yet written
        self._offered_any = trio.Event()
        self._sending = trio.Lock()
        self._closed = False
        self._broken = False

    @property
    def offered_bytes(self) -> int:
        """What was offered and is not written yet, and whatever else is on its way out."""
        return len(self._offered) + self._leaving

    @property
    def is_open(self) -> bool:
        """False once it was closed here or broke."""
        return not (self._closed or self._broken or self._ended)

    @property
    def is_broken(self) -> bool:
        """True once sending failed: the peer is gone, or took nothing for too long."""
        return self._broken

    def replay(self, data: bytes) -> None:
        """Put bytes back, to be received first by whoever takes the connection over."""
        self._unread = data + self._unread

    async def reply(self, data: bytes) -> None:
        """Send the whole of `data`: at once and without a timer where the kernel takes it, which it mostly does.

        Raises:
            trio.BrokenResourceError, trio.ClosedResourceError: as `send_all`.
        """
        if not self.offer(data):
            await self.send_all(data)
        elif self._offered:
            await self.send_all(b"")

    # -- what an outlet asks for ------------------------------------------------------------------------------------

    def attend(self, work: Work) -> None:
        """Begin work for the outlet in a task of its own; the connection ends with it unless it says otherwise."""
        assert self._keeper is not None
        self._keeper.attend(self, work)

    def silence(self) -> None:
        """What the peer still sends is for nobody."""
        assert self._keeper is not None
        self._keeper.silence(self)

    async def flush(self) -> None:
        """Send what was offered.

        Raises:
            trio.BrokenResourceError, trio.ClosedResourceError: as `send_all`.
        """
        await self.send_all(b"")

    # -- writing ---------------------------------------------------------------------------------------------------

    def offer_last(self, frame: bytes) -> None:
        """Write or queue what is said before the end, even where the queue is full. Nothing if the peer is gone."""
        if not self.offer(frame) and not (self._closed or self._broken):
            self._queue(frame)

    def offer(self, frame: bytes) -> bool:
        """Write `frame` now as far as the kernel takes it and queue the rest; False if the peer is gone or too slow.

        A refused frame is refused whole, so what was accepted before it stays in frame order. A queued rest goes out by
        `flush_forever` or with the next `send_all`.
        """
        if not self.at_once:  # asked first and alone: it is all that most of very many offers have to know
            return not (self._closed or self._broken) and self._enqueue(frame)
        try:
            sent = os.write(self._fd, frame)
        except BlockingIOError:
            return self._enqueue(frame)
        except OSError:
            self._break()
            return False
        if sent != len(frame):  # the beginning is out, so the rest must follow whatever the bound says
            self._queue(frame[sent:])
        return True

    def _enqueue(self, frame: bytes) -> bool:
        if self.offered_bytes + len(frame) > self._max_offered:
            return False
        self._queue(frame)
        return True

    def _queue(self, data: bytes) -> None:
        self.at_once = False
        self._offered.add(data)
        self._offered_any.set()

    def _break(self) -> None:
        self._broken = True
        self.at_once = False

    async def flush_forever(self) -> None:
        """Write what was offered, as it comes; run by whoever offers, and cancelled with it.

        Raises:
            trio.BrokenResourceError, trio.ClosedResourceError: as `send_all`.
        """
        while True:
            await self._offered_any.wait()  # ends with the owner's scope
            await self.send_all(b"")

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send everything, behind what was offered before.

        Raises:
            trio.BrokenResourceError: the peer is gone, or took nothing for the write timeout.
            trio.ClosedResourceError: closed on this side.
        """
        async with self._sending:
            self._check_open()
            self.at_once = False
            await self._send_offered()
            await self._send(data)
            await self._send_offered()  # meanwhile
            if self._offered_any.is_set():  # an unset one may have the flusher waiting on it
                self._offered_any = trio.Event()
            self.at_once = not (self._closed or self._broken)  # for who waits to send goes behind what is offered

    async def _send_offered(self) -> None:
        while self._offered:
            await self._send(self._offered.take())

    async def _send(self, data: bytes | bytearray | memoryview) -> None:
        try:
            with memoryview(data) as view:
                start = 0
                self._leaving = len(view)
                while start < len(view):
                    end = min(len(view), start + _SLICE)
                    with trio.fail_after(self._write_timeout_s):
                        while start < end:
                            sent = await self.socket.send(view[start:end])
                            start += sent
                            self._leaving -= sent
                            self.taken += sent
        except trio.TooSlowError as error:
            self._break()
            # Or the kernel would keep what the peer does not read, long after the connection is closed here.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            raise trio.BrokenResourceError("the peer reads nothing") from error
        except OSError as error:
            self._break()
            raise trio.BrokenResourceError("the peer is gone") from error
        except BaseException:
            self._break()
            raise

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this side closed the connection")
        if self._broken:
            raise trio.BrokenResourceError("an earlier send failed")

    async def wait_send_all_might_not_block(self) -> None:
        """As the transport's, behind whoever is sending."""
        async with self._sending:
            self._check_open()
            await self._transport.wait_send_all_might_not_block()

    # -- reading ---------------------------------------------------------------------------------------------------

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next bytes, b"" at the end; no deadline of its own, the protocol knows how long silence may last.

        Raises:
            trio.BrokenResourceError: the peer reset the connection.
            trio.ClosedResourceError: closed on this side, perhaps while this call waited.
        """
        if self._closed:
            raise trio.ClosedResourceError("this side closed the connection")
        if self._unread:
            await trio.lowlevel.checkpoint()
            cut = len(self._unread) if max_bytes is None else max_bytes
            data, self._unread = self._unread[:cut], self._unread[cut:]
            return data
        while True:
            # First waiting and then reading: there is seldom anything to read yet, and to find that out costs more.
            await trio.lowlevel.wait_readable(self.socket)
            try:
                return self.receive_nowait(_SLICE if max_bytes is None else max_bytes)
            except trio.WouldBlock:
                continue

    def receive_nowait(self, max_bytes: int = _SLICE) -> bytes:
        """The bytes that are here, b"" at the end; what was put back is not among them.

        Raises:
            trio.WouldBlock: there are none yet.
            trio.BrokenResourceError: the peer reset the connection.
        """
        try:
            data = os.read(self._fd, max_bytes)
        except BlockingIOError:
            raise trio.WouldBlock from None
        except OSError as error:
            self._break()
            raise trio.BrokenResourceError("the peer reset the connection") from error
        if not data:
            self._ended = True
        return data

    # -- ending ----------------------------------------------------------------------------------------------------

    async def send_eof(self) -> None:
        """End this side's bytes; the peer may go on sending."""
        async with self._sending:
            self._check_open()
            await self._transport.send_eof()

    async def aclose(self) -> None:
        """Close so that the peer can read the last answer: end our side, let it finish sending for at most 1 s, close.

        Closing with unread bytes would make the kernel reset the connection and drop an answer still on its way.
        """
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        self._closed, self.at_once = True, False
        trio.lowlevel.notify_closing(self.socket)  # whoever waits to read gets ClosedResourceError
        try:
            if not (self._broken or self._ended):
                with trio.move_on_after(LINGER_S):
                    await self._linger()
        finally:
            self.abort()
            self.scope.deadline = min(self.scope.deadline, trio.current_time() + LINGER_S)

    async def _linger(self) -> None:
        try:
            await self._transport.send_eof()
            left = _LINGER_BYTES
            while left > 0 and (data := await self._transport.receive_some(_SLICE)):
                left -= len(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            return  # the peer left first, or a sender is still stuck in front of it

    def abort(self) -> None:
        """Close at once and without a word; whoever waits on the stream gets ClosedResourceError."""
        self._closed, self.at_once = True, False
        self._offered.clear()  # the connection and what it became know each other, and so stay for a while
        self.socket.close()
        self._fd = -1  # the number may be another file's at once


def _address_of(sock: trio.socket.SocketType) -> str:
    """The peer's IP address; "" where there is none (a local socket), or where the peer has gone already."""
    try:
        name = sock.getpeername()
    except OSError:
        return ""
    return str(name[0]) if isinstance(name, tuple) else ""
