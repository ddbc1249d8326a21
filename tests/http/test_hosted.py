"""The application under another server, where that differs from our own: HTTP/2, ends, and clients that stop reading.

What is the same on both is tested for both in test_websocket.py, test_live_events.py, test_upgrade.py and test_sse.py.
"""

from __future__ import annotations

import json
from collections import deque
from contextlib import asynccontextmanager

import h2.config
import h2.connection
import h2.events
import h2.settings
import httpx
import pytest
import trio
import trio.testing
from front import DEADLINE_S, read_to_end
from socket_client import frame
from spoken import NEW
from structlog.testing import capture_logs
from wsproto.connection import CLIENT, Connection
from wsproto.events import CloseConnection, TextMessage

from fluxora.actors.hub import Hub
from fluxora.http.app import create_app

JSON = {"content-type": "application/json"}
HANDSHAKE = [("sec-websocket-version", "13"), ("origin", "https://a.example")]


@pytest.fixture
def carrier():
    return "hosted"


@pytest.fixture
async def server(start):
    return await start(hub=Hub(None, None))


@asynccontextmanager
async def http2(server):
    """A client that speaks HTTP/2 without being asked to (RFC 9113 3.3)."""
    url = f"http://127.0.0.1:{server.port}"
    async with httpx.AsyncClient(base_url=url, http1=False, http2=True, timeout=DEADLINE_S) as client:
        yield client


async def parts(*given):
    """A body whose length nobody is told."""
    for part in given:
        yield part


async def until(condition):
    with trio.fail_after(DEADLINE_S):
        while not condition():
            await trio.lowlevel.checkpoint()


# -- requests ----------------------------------------------------------------------------------------------------------


async def test_bodies_of_unknown_length_are_read_in_http_2(start, store, writes):
    server = await start(store=store, writes=writes)
    text = json.dumps(NEW).encode()
    async with http2(server) as client:
        made = await client.post("/api/streams", content=parts(text[:20], text[20:]), headers=JSON)
        assert (made.status_code, made.http_version) == (201, "HTTP/2")
        assert not {"connection", "transfer-encoding"} & set(made.headers)
        assert (await client.post("/api/streams", content=parts(b" "), headers=JSON)).json()["error"] == "INVALID_JSON"
        shown = await client.get(f"/api/streams/{made.json()['id']}", params={"asOf": made.json()["asOf"]})
        assert shown.json() == made.json()


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [("/api/streams", JSON, 413), ("/nowhere", {}, 404), ("/health", {}, 405), ("/", {"x-api-key": "guess"}, 405)],
)
async def test_an_answer_before_the_end_of_its_request_hurts_nobody_in_http_2(server, path, headers, status):
    async with http2(server) as client, http2(server) as other:
        for _ in range(2):
            answer = await client.post(path, content=parts(*[b" " * 60_000] * 20), headers=headers)
            assert (answer.status_code, answer.json()["requestId"]) == (status, answer.headers["x-request-id"])
        assert (await other.get("/health/live")).status_code == 200


@pytest.mark.parametrize(
    "sent", [b"GET %b HTTP/1.0\r\n\r\n", b"GET %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"]
)
@pytest.mark.parametrize("path", [b"/health/live", b"/nowhere", b"/ws/streams", b"/api/events/stream?after=x"])
async def test_who_asks_for_the_end_of_the_connection_gets_it(server, sent, path):
    async with await server.connect() as stream:
        await stream.send_all(sent % path)
        received = await read_to_end(stream)
    assert received.lower().count(b"\r\ndate: ") == 1


async def test_an_event_stream_is_one_of_many_in_http_2(server):
    async with http2(server) as client, client.stream("GET", "/api/events/stream") as answer:
        assert (answer.http_version, answer.headers["content-type"]) == ("HTTP/2", "text/event-stream")
        lines = answer.aiter_lines()
        assert [await anext(lines), await anext(lines)] == ["retry: 3000", "id: 0"]
        assert (await client.get("/health/live")).status_code == 200
        assert server.backend.sockets.streams == 1
        server.backend.sockets.drain()
        assert [line async for line in lines] == [""]
    assert server.backend.sockets.streams_ended == {1001: 1}


async def test_an_event_stream_ends_with_its_client_in_http_2(server):
    async with await server.connect() as transport:
        stream = Stream(transport)
        assert await stream.open("GET", "/api/events/stream") == 200
        assert server.backend.sockets.streams == 1
        stream.http.reset_stream(1)
        await stream.flush()
        await until(lambda: not server.backend.sockets.streams)
        assert server.backend.hub.status.subscribers == 0


# -- WebSockets in HTTP/2 (RFC 8441) -----------------------------------------------------------------------------------


class Stream:
    """One stream of a connection of HTTP/2; by an extended CONNECT it is one of frames."""

    def __init__(self, transport):
        self.transport = transport
        self.http = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.frames = Connection(CLIENT)
        self.headers = {}
        self._events = deque()

    async def open(self, method, path, *more):
        """Ask for it: the status of the answer."""
        self.http.initiate_connection()
        await self.flush()
        while not self.http.remote_settings.enable_connect_protocol:
            await self._receive()
        head = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "x"), *more]
        self.http.send_headers(1, head, end_stream=method == "GET")
        await self.flush()
        while not self.headers:
            await self._receive()
        return int(self.headers[":status"])

    async def handshake(self, path):
        return await self.open("CONNECT", path, (":protocol", "websocket"), *HANDSHAKE)

    async def send(self, message):
        self.http.send_data(1, self.frames.send(TextMessage(json.dumps(message))))
        await self.flush()

    async def event(self):
        while not self._events:
            await self._receive()
        return self._events.popleft()

    async def _receive(self):
        with trio.fail_after(DEADLINE_S):
            data = await self.transport.receive_some()
        assert data
        for event in self.http.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                self.headers = dict(event.headers)
            elif isinstance(event, h2.events.DataReceived) and self.headers[":status"] == "200":
                self.frames.receive_data(event.data)
                self._events += self.frames.events()
        await self.flush()

    async def flush(self):
        await self.transport.send_all(self.http.data_to_send())


async def test_a_websocket_may_be_a_stream_of_http_2(server):
    async with await server.connect() as transport:
        tunnel = Stream(transport)
        assert await tunnel.handshake("/ws/streams") == 200
        assert not {"connection", "upgrade", "sec-websocket-accept"} & set(tunnel.headers)
        await tunnel.send({"type": "subscribe", "streamId": "*", "ref": "r"})
        assert json.loads((await tunnel.event()).data)["type"] == "ack"
        server.backend.stopping.set()
        closed = await tunnel.event()
        assert isinstance(closed, CloseConnection)
        assert (closed.code, closed.reason) == (1001, "server going away")


async def test_a_late_answer_to_a_close_hurts_nobody_in_http_2(server, monkeypatch):
    monkeypatch.setattr("fluxora.http.hosted_line.LINGER_S", 0.01)
    async with await server.connect() as transport, http2(server) as other:
        tunnel = Stream(transport)
        assert await tunnel.handshake("/ws/streams") == 200
        assert server.backend.sockets.disconnect(lambda _: True) == 1
        closed = await tunnel.event()
        await until(lambda: not server.backend.sockets.count)
        await trio.testing.wait_all_tasks_blocked(0.01)
        tunnel.http.send_data(1, tunnel.frames.send(closed.response()))
        await tunnel.flush()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert (await other.get("/health/live")).status_code == 200


@pytest.mark.parametrize("path", ["/health/live", "/api/events/stream", "/api/export/events.ndjson", "/nowhere"])
async def test_no_other_path_answers_a_handshake(server, path):
    async with await server.connect() as transport:
        assert await Stream(transport).handshake(path) == 404
    assert server.backend.sockets.count == 0


async def test_an_origin_is_refused_before_the_tunnel_is_there(start):
    server = await start(hub=Hub(None, None), cors_origins=("https://b.example",))
    async with await server.connect() as transport:
        assert await Stream(transport).handshake("/ws/streams") == 403


# -- servers that hold on ----------------------------------------------------------------------------------------------


class Asgi:
    """A server that takes the first `takes` messages of the application, and then no more."""

    def __init__(self, app, takes, *, extensions=()):
        self.scope = {
            "type": "websocket",
            "http_version": "1.1",
            "raw_path": b"/ws/streams",
            "path": "/ws/streams",
            "query_string": b"",
            "headers": [(b"sec-websocket-protocol", b"fluxora.broadcast.v1")],
            "extensions": {name: {} for name in extensions},
        }
        self.taken = []
        self.fails = None
        self._app = app
        self._takes = takes
        self._to_app, self._inbox = trio.open_memory_channel(10)
        self._to_app.send_nowait({"type": "websocket.connect"})

    async def run(self):
        await self._app(self.scope, self._inbox.receive, self._take)

    async def _take(self, message):
        if self.fails is not None:
            raise self.fails
        if len(self.taken) == self._takes:
            await trio.sleep_forever()
        self.taken.append(message)

    def hear(self, **message):
        self._to_app.send_nowait(message)


async def test_a_client_that_takes_nothing_is_given_up_after_the_write_timeout(server, nursery, autojump_clock):
    app = create_app(server.backend)
    asgi = Asgi(app, 2)
    nursery.start_soon(asgi.run)
    await trio.testing.wait_all_tasks_blocked()
    (session,) = server.backend.sockets._open
    for _ in range(3):
        assert session.offer(frame(1, b"x" * 100, mask=None))
    began = trio.current_time()
    await trio.sleep(server.backend.config.write_timeout_s + 1)
    assert [message["type"] for message in asgi.taken] == ["websocket.accept", "websocket.send"]
    assert trio.current_time() - began < 2 * server.backend.config.write_timeout_s
    assert server.backend.sockets.closed == {1006: 1}
    assert server.backend.hub.status.subscribers == 0


async def test_a_client_that_leaves_while_something_is_sent_to_it_is_no_defect_of_ours(server, nursery):
    """Hypercorn (0.18) then ends the connection beneath what is being sent."""
    asgi = Asgi(create_app(server.backend), 1)
    nursery.start_soon(asgi.run)
    await trio.testing.wait_all_tasks_blocked()
    (session,) = server.backend.sockets._open
    asgi.fails = trio.BusyResourceError("another task is currently sending data on this SocketStream")
    with capture_logs() as logged:
        assert session.offer(frame(1, b"x", mask=None))
        await until(lambda: not server.backend.sockets.count)
    assert not [line for line in logged if line["log_level"] == "error"]


async def test_the_queue_of_a_client_is_bounded_in_bytes(server, nursery):
    asgi = Asgi(create_app(server.backend), 1)
    nursery.start_soon(asgi.run)
    await trio.testing.wait_all_tasks_blocked()
    (session,) = server.backend.sockets._open
    piece = frame(1, b"x" * 60_000, mask=None)
    count = 0
    while session.offer(piece):
        count += 1
        await trio.testing.wait_all_tasks_blocked()
    assert count == (1 << 20) // len(piece)
    assert session.line.offered_bytes == count * len(piece)


async def test_the_code_of_a_close_is_the_one_that_the_server_tells(server, nursery):
    for sent, noted in (({"code": 3000}, 3000), ({"code": None}, 1006), ({}, 1006)):
        asgi = Asgi(create_app(server.backend), 9)
        server.backend.sockets.closed.clear()
        nursery.start_soon(asgi.run)
        asgi.hear(type="websocket.disconnect", **sent)
        await until(lambda: server.backend.sockets.closed)
        assert server.backend.sockets.closed == {noted: 1}


async def test_a_server_that_refuses_in_its_own_way_is_asked_to(start):
    server = await start(hub=Hub(None, None), max_websockets=0)
    for extensions, wanted in (
        ((), ["websocket.close"]),
        (("websocket.http.response",), ["websocket.http.response.start", "websocket.http.response.body"]),
    ):
        asgi = Asgi(create_app(server.backend), 9, extensions=extensions)
        await asgi.run()
        assert [message["type"] for message in asgi.taken] == wanted
    assert (asgi.taken[0]["status"], json.loads(asgi.taken[1]["body"])["error"]) == (503, "SERVICE_UNAVAILABLE")


async def test_a_message_of_nothing_is_a_message(server, nursery):
    asgi = Asgi(create_app(server.backend), 9)
    asgi.scope["headers"] = []
    nursery.start_soon(asgi.run)
    asgi.hear(type="websocket.receive", bytes=b"", text=None)
    asgi.hear(type="websocket.receive", text="")
    await until(lambda: len(asgi.taken) == 3)
    codes = [json.loads(message["text"])["code"] for message in asgi.taken[1:]]
    assert codes == ["BINARY_NOT_SUPPORTED", "INVALID_JSON"]


async def test_a_stop_does_not_wait_for_ever_for_what_a_server_holds(start, nursery):
    server = await start(hub=Hub(None, None), drain_s=0.1)
    async with await server.connect() as stream:
        await stream.send_all(b"GET /api/events/stream HTTP/1.1\r\nhost: x\r\n\r\n")
        await until(lambda: server.backend.sockets.streams)
        app = create_app(server.backend)
        nursery.start_soon(Asgi(app, 0).run)
        await until(lambda: server.backend.sockets.count)
        server.backend.stopping.set()
        with trio.fail_after(DEADLINE_S):
            await app.stand_by()
        assert b"\r\n0\r\n\r\n" in await read_to_end(stream), "those that read have heard the end"
