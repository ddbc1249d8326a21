"""Followers of the log with clients that are none of ours, who note what they are told and go on wherever they may.

A follower's next connection is of another transport as often as not, and begins behind what the one before has told.
"""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from random import Random
from typing import Literal
from urllib.parse import urlsplit

import httpx
import msgspec
import trio
from httpx_sse import aconnect_sse
from promises import ALL, Break, Log, Selector, Session, Told, broadcast_print, judge, located, told
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection, wrap_client_stream

Transport = Literal["websocket", "sse", "rest"]
DEADLINE_S = 60.0  # for one answer of a server that does what it can on a busy machine
ENDLESS = 1 << 60
BUSY = 503  # the database did not answer in time
AGAIN_S = 0.2
SLOW = 4001
CUT, FINISHED = "cut off", "finished"  # of who was too slow, and of who knows that there is no more
SMALL = 2_048  # bytes that the kernel keeps for a slow reader
LOOK_EVERY = 200  # events between two looks at what REST shows
_GONE = (httpx.TransportError, OSError, ConnectionClosed, ConnectionRejected, trio.BrokenResourceError)


class _Page(msgspec.Struct, rename="camel"):
    events: list[Told]
    has_more: bool
    next_after: str
    position: str


_page = msgspec.json.Decoder(_Page).decode


class Place:
    """Where the server is, while it is there. What goes wrong with a connection must be due to its going."""

    def __init__(self, tasks: trio.Nursery) -> None:
        self.tasks = tasks
        self._url: str | None = None
        self._moved = trio.Event()
        self.finished = trio.Event()  # nothing is written any more
        self.quiet = 0  # the position that everybody is to reach then

    def is_at(self, url: str) -> None:
        self._move(url)

    def is_gone(self) -> None:
        """Before it goes."""
        self._move(None)

    def _move(self, url: str | None) -> None:
        self._url = url
        self._has_moved()

    def _has_moved(self) -> None:
        self._moved.set()
        self._moved = trio.Event()

    def is_still(self, url: str) -> bool:
        return self._url == url

    async def cancel_as_it_goes(self, url: str, scope: trio.CancelScope) -> None:
        while self.is_still(url):
            await self._moved.wait()
        scope.cancel()

    async def url(self) -> str:
        """Wait until it is there."""
        while self._url is None:
            await self._moved.wait()
        return self._url


@asynccontextmanager
async def websocket(
    place: Place, url: str, *, protocol: str | None = None, room: int | None = None
) -> AsyncIterator[WebSocketConnection]:
    """A connection of trio-websocket that ends without a word; `room`: bytes that the kernel receives ahead.

    What reads it lives elsewhere, so that an error of the caller stays what it is.

    Raises:
        ConnectionError: the server went before it had answered, of which that client does not hear.
    """
    where = urlsplit(url)
    sock = trio.socket.socket()
    if room is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    nursery: trio.Nursery = await place.tasks.start(_nursery)
    try:
        await sock.connect((where.hostname, where.port))
        with trio.move_on_after(DEADLINE_S) as scope:
            nursery.start_soon(place.cancel_as_it_goes, url, scope)
            opened = await wrap_client_stream(
                nursery,
                trio.SocketStream(sock),
                where.netloc,
                "/ws/streams",
                subprotocols=None if protocol is None else [protocol],
            )
        if scope.cancelled_caught:
            raise ConnectionError("the handshake had no answer")
        yield opened
    finally:
        nursery.cancel_scope.cancel()
        sock.close()


async def _nursery(*, task_status: trio.TaskStatus[trio.Nursery]) -> None:
    async with trio.open_nursery() as nursery:
        task_status.started(nursery)
        await trio.sleep_forever()  # its owner cancels it


class Follower:
    """Follows one thing through many connections.

    `stays` draws after how many events it leaves. With `stall` it has little room, and reads no more now and then until
    that has returned. `roams`: it begins anywhere that anyone has ever learned of, which is in `learned`.
    """

    def __init__(
        self,
        place: Place,
        selector: Selector,
        rng: Random,
        *,
        transports: tuple[Transport, ...] = ("websocket", "sse", "rest"),
        stays: Callable[[Random], int],
        learned: list[int],
        stall: Callable[[], Awaitable[None]] | None = None,
        roams: bool = False,
    ) -> None:
        self.selector = selector
        self.sessions: list[Session] = []
        self._place = place
        self._rng = rng
        self._transports = transports
        self._stays = stays
        self._learned = learned
        self._stall = stall
        self._roams = roams

    async def follow(self) -> None:
        """Until nothing is written any more; the last connection goes on until an acknowledgement that says so."""
        by = {"websocket": self._by_websocket, "sse": self._by_sse, "rest": self._by_rest}
        while not self._place.finished.is_set():
            transport = self._rng.choice(self._transports)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cut_short, nursery.cancel_scope)
                await self._one(transport, by[transport], self._stays(self._rng))
                nursery.cancel_scope.cancel()
        while True:  # a replica may know of the last events a moment later than the log holds them
            await self._one("websocket", self._by_websocket, -1)
            last = self.sessions[-1]
            if last.end == FINISHED and (last.reached or 0) >= self._place.quiet:
                return

    async def _cut_short(self, scope: trio.CancelScope) -> None:
        await self._place.finished.wait()
        scope.cancel()

    async def _one(self, transport: Transport, run: Callable[[str, Session, int], Awaitable[str]], most: int) -> None:
        url = await self._place.url()
        session = Session(transport, self._begin())
        self.sessions.append(session)
        try:
            session.end = await run(url, session, most)
        except _GONE as error:
            session.end = type(error).__name__
            if self._place.is_still(url):
                if transport != "sse":
                    raise
                session.end = CUT  # by which an event stream says that it was too slow
        if session.reached is not None:
            self._learned.append(session.reached)

    def _begin(self) -> int | None:
        if self._roams and self._learned:
            return self._rng.choice(self._learned)
        return self.sessions[-1].reached if self.sessions else self._rng.choice((None, 0))

    @property
    def stalls(self) -> bool:
        return self._stall is not None

    # -- the transports --------------------------------------------------------------------------------------------

    async def _by_websocket(self, url: str, session: Session, most: int) -> str:
        """Told `most` events, or all up to the acknowledgement (-1)."""
        async with (
            websocket(self._place, url, room=SMALL if self._stall else None) as opened,
            talking(url) as client,
        ):
            wanted = {"type": "subscribe", self.selector.name: self.selector.value, "ref": "r"}
            if session.after is not None:
                wanted["after"] = str(session.after)
            await opened.send_message(json.dumps(wanted))
            try:
                while len(session.told) != most:
                    message = told(await opened.get_message())
                    if message.type == "ack":
                        session.mark(int(message.position))
                        if most < 0:
                            return FINISHED
                    elif message.type == "stream_update":
                        await self._told(session, client, message)
                    else:
                        assert message.type.startswith("service."), message
            except ConnectionClosed as closed:
                code = closed.reason.code if closed.reason is not None else 1006
                if code == SLOW:
                    return CUT
                assert not self._place.is_still(url), f"closed with {code} in the middle of a server's life"
                return str(code)
        return "left"

    async def _by_sse(self, url: str, session: Session, most: int) -> str:
        query = {} if self.selector == ALL else {self.selector.name: self.selector.value}
        headers = {}
        if session.after is not None:
            if self._rng.random() < 0.5:
                headers["Last-Event-ID"] = str(session.after)
            else:
                query["after"] = str(session.after)
        room = SMALL if self._stall else None
        async with (
            talking(url, for_ever=True, room=room) as client,
            talking(url) as rest,
            aconnect_sse(client, "GET", "/api/events/stream", params=query, headers=headers) as source,
            aclosing(source.aiter_sse()) as messages,
        ):
            if source.response.status_code == BUSY:
                await trio.sleep(AGAIN_S)
                return "busy"
            assert source.response.status_code == 200
            async for message in messages:
                assert message.event != "reset", message.data
                if message.retry is not None:
                    session.mark(int(message.id))
                elif message.data and not message.event.startswith("service."):
                    event = told(message.data)
                    assert (event.position, event.event) == (message.id, message.event)
                    await self._told(session, rest, event)
                    if len(session.told) == most:
                        return "left"
        assert not self._place.is_still(url), "ended in the middle of a server's life"
        return "ended"

    async def _by_rest(self, url: str, session: Session, most: int) -> str:
        """Page by page, of any size, to the end of the log or until it has `most`."""
        query = {} if self.selector == ALL else {self.selector.name: self.selector.value}
        after = session.after or 0
        session.after = after
        async with talking(url) as client:
            while True:
                limit = self._rng.choice((1, 7, 100, 1000))
                before = session.told[-1] if session.told else 0
                page = _page((await asked(client, "/api/events", after=after, limit=limit, **query)).content)
                session.looks.append((before, int(page.position)))
                for event in page.events:
                    session.tell(int(event.position), event.looks_like)
                after = int(page.next_after)
                if not page.has_more:
                    session.mark(int(page.position))
                    if self.selector == ALL and page.events:
                        session.lists.append(after)
                    return FINISHED
                if len(session.told) >= most:
                    return "left"

    async def _told(self, session: Session, client: httpx.AsyncClient, message: Told) -> None:
        session.tell(int(message.position), message.looks_like)
        if self._rng.random() < 1 / LOOK_EVERY:
            await look(session, client)
        if self._stall is not None and self._rng.random() < 1 / LOOK_EVERY:
            await self._stall()

    # -- the judge -------------------------------------------------------------------------------------------------

    def judge(self, log: Log) -> list[Break]:
        """What it was promised and not given, of all that the log holds."""
        return judge(log, self.selector, self.sessions, continuous=not self._roams)


def talking(url: str, *, for_ever: bool = False, room: int | None = None) -> httpx.AsyncClient:
    """A client of a server; `for_ever`: an answer may pause (a quiet log is told of by comments, which do not show)."""
    return httpx.AsyncClient(
        base_url=url,
        timeout=httpx.Timeout(DEADLINE_S, read=None if for_ever else DEADLINE_S),
        transport=httpx.AsyncHTTPTransport(
            verify=False,  # to read the certificates of the world would take longer than most conversations
            socket_options=None if room is None else [(socket.SOL_SOCKET, socket.SO_RCVBUF, room)],
        ),
    )


async def asked(client: httpx.AsyncClient, path: str, **query: str | int) -> httpx.Response:
    """An answer; while there is none to be had in time, it is asked for again."""
    with trio.fail_after(DEADLINE_S):
        while (answer := await client.get(path, params=query)).status_code == BUSY:
            await trio.sleep(AGAIN_S)
    assert answer.status_code == 200, answer.text
    return answer


async def look(session: Session, client: httpx.AsyncClient) -> None:
    """What REST shows, once something was told."""
    page = _page((await asked(client, "/api/events", after=session.told[-1], limit=1)).content)
    session.looks.append((session.told[-1], int(page.position)))


class Listener:
    """A client of the first protocol: everything from when it came, without positions, and nothing of before."""

    def __init__(self, place: Place, rng: Random, *, stays: Callable[[Random], int]) -> None:
        self.heard: list[tuple[int, list[int]]] = []  # of each connection: what REST showed then, and what was told
        self.ends: Counter[str] = Counter()
        self._place = place
        self._rng = rng
        self._stays = stays

    async def listen(self, last: Callable[[httpx.AsyncClient], Awaitable[str]]) -> None:
        """Until nothing is written any more but `last`, a stream that is registered to end with; its id is returned."""
        while not self._place.finished.is_set():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cut_short, nursery.cancel_scope)
                await self._one(self._stays(self._rng))
                nursery.cancel_scope.cancel()
        await self._one(ENDLESS, last)

    async def _cut_short(self, scope: trio.CancelScope) -> None:
        await self._place.finished.wait()
        scope.cancel()

    async def _one(self, most: int, last: Callable[[httpx.AsyncClient], Awaitable[str]] | None = None) -> None:
        url = await self._place.url()
        try:
            async with (
                websocket(self._place, url, protocol="fluxora.broadcast.v1") as opened,
                talking(url) as client,
            ):
                shown = _page((await asked(client, "/api/events", limit=1)).content)
                self.heard.append((int(shown.position), []))
                until = None if last is None else await last(client)
                await self._hear(opened, self.heard[-1][1], most, until)
        except _GONE as error:
            code = error.reason.code if isinstance(error, ConnectionClosed) and error.reason else 1006
            if code != SLOW and self._place.is_still(url):
                raise
            self.ends[str(code) if code != SLOW else CUT] += 1

    async def _hear(self, opened: WebSocketConnection, prints: list[int], most: int, until: str | None) -> None:
        while len(prints) < most:
            message = told(await opened.get_message())
            if not message.event.startswith("service."):
                payload = bytes(message.payload).decode()
                prints.append(broadcast_print(message.event, message.stream_id, message.timestamp, payload))
                if message.stream_id == until and until is not None:
                    return

    def judge(self, log: Log) -> list[Break]:
        """As of a follower, each event at the position that it must be from."""
        sessions = [located(log, prints, known=known) for known, prints in self.heard]
        return judge(log, ALL, sessions, continuous=False)
