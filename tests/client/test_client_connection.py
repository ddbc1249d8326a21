"""A client's connections, against a server that is played: how each end is taken, and what is said of it."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trustme
from trio_websocket import ConnectionClosed, WebSocketRequest, serve_websocket

from fluxora.client import connection, following
from fluxora.client.connection import follow
from fluxora.client.following import Following, Update
from fluxora.errors import FollowRefused, FollowReset
from fluxora.protocol import sockets
from fluxora.protocol.close_codes import CLOSE_CODES, RESUME_LOST
from fluxora.protocol.messages import LogEvent
from fluxora.protocol.sockets import ALL

DEADLINE_S = 10.0
Script = Callable[["Played", WebSocketRequest], Awaitable[None]]


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    for module, name in ((following, "FIRST_DELAY_S"), (following, "MOST_DELAY_S"), (following, "PAUSE_S")):
        monkeypatch.setattr(module, name, 0.01)


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """How long it would have waited between its connections; it does not."""
    asked: list[float] = []
    sleep = trio.sleep

    async def noted(seconds: float) -> None:
        if seconds != connection.PING_EVERY_S:
            asked.append(seconds)
            seconds = 0
        await sleep(seconds)

    monkeypatch.setattr(trio, "sleep", noted)
    return asked


def update(position: int) -> str:
    event = LogEvent(position, f"id-{position}", "stream.updated", "withdrew", "stream-1", 7, None, None, 0, b"{}")
    return sockets.stream_update(event).decode()


class Played:
    """Its connections each go as the next of `scripts` says; `asked` is what each wanted to go on behind."""

    def __init__(self, scripts: list[Script]) -> None:
        self.port = 0
        self.asked: list[str | None] = []
        self.headers: list[dict[bytes, bytes]] = []
        self._scripts = iter(scripts)

    async def serve(self, request: WebSocketRequest) -> None:
        self.headers.append(dict(request.headers))
        await next(self._scripts)(self, request)

    async def accept(self, request: WebSocketRequest):
        socket = await request.accept(subprotocol="fluxora.v2")
        message = json.loads(await socket.get_message())
        assert (message["type"], message["streamId"]) == ("subscribe", "*")
        self.asked.append(message.get("after"))
        return socket, message["ref"]


@asynccontextmanager
async def played(*scripts: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Played]:
    server = Played(list(scripts))
    async with trio.open_nursery() as nursery:
        started = await nursery.start(partial(serve_websocket, server.serve, "127.0.0.1", 0, tls))
        server.port = started.port
        yield server
        nursery.cancel_scope.cancel()


def telling(*positions: int, close: int | None = None, reason: str = "") -> Script:
    """Acknowledge, tell, and close; without a code, break off instead."""

    async def script(server: Played, request: WebSocketRequest) -> None:
        socket, ref = await server.accept(request)
        await socket.send_message(sockets.ack(ref, positions[0] - 1 if positions else 0, recovered=True).decode())
        for position in positions:
            await socket.send_message(update(position))
        if close is None:
            await trio.aclose_forcefully(socket._stream)
        else:
            await socket.aclose(close, reason)

    return script


async def following_it(
    server: Played, count: int, *, headers=(), url: str | None = None
) -> tuple[list[int], list[str]]:
    """Follow until `count` events were had."""
    had: list[int] = []
    said: list[str] = []
    tell, told = trio.open_memory_channel[Update](0)
    url = url or f"ws://127.0.0.1:{server.port}/ws/streams"
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(follow, url, Following([ALL], 0), headers=headers, tell=tell, say=said.append))
            async for one in told:
                had.append(one.position)
                if len(had) == count:
                    nursery.cancel_scope.cancel()
    return had, said


@pytest.mark.parametrize("code", [close.code for close in CLOSE_CODES if close.code < 4003] + [1000, 1011, 1012, 4999])
async def test_it_comes_back_behind_what_it_had(code):
    async with played(telling(1, 2, close=code, reason="so it is"), telling(3)) as server:
        had, said = await following_it(server, 3)
    assert had == [1, 2, 3]
    assert server.asked == ["0", "2"]
    assert any(f"so it is ({code})" in line and "connecting again in" in line for line in said)


async def test_it_comes_back_when_the_connection_breaks():
    async with played(telling(1), telling(2)) as server:
        had, said = await following_it(server, 2)
    assert (had, server.asked) == ([1, 2], ["0", "1"])
    assert any("The connection broke" in line for line in said)


async def test_too_many_messages_are_followed_by_a_pause(monkeypatch, waits):
    monkeypatch.setattr(following, "PAUSE_S", 7.0)
    async with played(telling(1, close=1008), telling(2)) as server:
        had, _ = await following_it(server, 2)
    assert had == [1, 2]
    assert max(waits) >= 7.0


@pytest.mark.parametrize(("code", "told"), [(4401, "new token"), (4403, "operator")])
async def test_it_ends_where_coming_back_is_no_use(code, told):
    reason = next(close.reason for close in CLOSE_CODES if close.code == code)
    async with played(telling(1, close=code, reason=reason)) as server:
        with pytest.RaisesGroup(pytest.RaisesExc(FollowRefused, match=told)):
            await following_it(server, 2)


async def test_a_close_that_asks_for_rest_ends_it_with_where_it_was():
    async with played(telling(1, 2, close=RESUME_LOST.code, reason=RESUME_LOST.reason)) as server:
        with pytest.RaisesGroup(pytest.RaisesExc(FollowReset, check=lambda e: (e.after, e.position) == (2, None))):
            await following_it(server, 3)


async def test_a_reset_ends_it_with_where_to_go_on():
    async def script(server: Played, request: WebSocketRequest) -> None:
        socket, _ = await server.accept(request)
        await socket.send_message(sockets.reset(90, "Too far").decode())
        await ended(socket)

    async with played(telling(1, close=1001), script) as server:
        with pytest.RaisesGroup(pytest.RaisesExc(FollowReset, check=lambda e: (e.after, e.position) == (1, "90"))):
            await following_it(server, 2)


async def ended(socket) -> None:
    with pytest.raises(ConnectionClosed):
        await socket.get_message()


async def test_a_connection_that_was_of_use_is_no_failure(monkeypatch, waits):
    """Though it was cut before the subscription stood, which a long history may be each time."""
    monkeypatch.setattr(following, "FIRST_DELAY_S", 1.0)
    monkeypatch.setattr(following, "MOST_DELAY_S", 100.0)

    def cut_at(position: int) -> Script:
        async def script(server: Played, request: WebSocketRequest) -> None:
            socket, _ = await server.accept(request)
            await socket.send_message(update(position))
            await socket.aclose(1001)

        return script

    async with played(*map(cut_at, range(1, 6)), telling(6)) as server:
        had, _ = await following_it(server, 6)
    assert had == [1, 2, 3, 4, 5, 6]
    assert max(waits) <= 1.0


def refusing(status: int, *headers: tuple[bytes, bytes], body: bytes = b"") -> Script:
    async def script(server: Played, request: WebSocketRequest) -> None:
        await request.reject(status, extra_headers=list(headers), body=body)

    return script


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_what_passes_is_waited_out(status):
    body = b'{"error": "X", "message": "So it is"}'
    async with played(refusing(status, body=body), telling(1)) as server:
        had, said = await following_it(server, 1)
    assert had == [1]
    assert f"answers {status}: So it is; connecting again" in said[0]


@pytest.mark.parametrize(("given", "least"), [(b"60", 60.0), (b"0", 0.0), (b"soon", 0.0), (b"9" * 40, 0.0)])
async def test_it_waits_as_long_as_it_is_asked_to(waits, given, least):
    async with played(refusing(503, (b"Retry-After", given)), telling(1)) as server:
        assert (await following_it(server, 1))[0] == [1]
    assert least <= max(waits) <= least + 1


@pytest.mark.parametrize(
    ("status", "told"), [(401, "needs a credential"), (403, "does not allow"), (404, "URL of a Fluxora"), (301, "URL")]
)
@pytest.mark.parametrize("body", [b"", b"<html>", b'{"message": 5}', b"\xff", b'{"message": "Because"}'])
async def test_what_does_not_pass_ends_it(status, told, body):
    async with played(refusing(status, body=body)) as server:
        with pytest.RaisesGroup(pytest.RaisesExc(FollowRefused, match=f"{status}.*{told}")):
            await following_it(server, 1)


async def test_the_credential_goes_with_each_handshake():
    async with played(telling(1), telling(2)) as server:
        await following_it(server, 2, headers=[("x-api-key", "fxk_secret")])
    assert [headers[b"x-api-key"] for headers in server.headers] == [b"fxk_secret"] * 2


async def test_a_server_that_is_silent_is_left(monkeypatch):
    """It accepts and then takes nothing off the connection, as one does that has lost its power."""
    monkeypatch.setattr(connection, "PING_EVERY_S", 0.05)
    monkeypatch.setattr(connection, "PONG_S", 0.05)

    async def silent(server: Played, request: WebSocketRequest) -> None:
        socket, ref = await server.accept(request)
        await socket.send_message(sockets.ack(ref, 0, recovered=True).decode())
        socket._wsproto.receive_data = lambda _data: None
        await trio.sleep_forever()

    async with played(silent, telling(1)) as server:
        had, said = await following_it(server, 1)
    assert had == [1]
    assert any("broke" in line for line in said)


async def test_no_server_is_waited_for():
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    said: list[str] = []
    enough = trio.CancelScope()

    def say(text: str) -> None:
        said.append(text)
        if len(said) == 3:
            enough.cancel()

    tell, _told = trio.open_memory_channel[Update](0)
    with trio.fail_after(DEADLINE_S), enough:
        await follow(f"ws://127.0.0.1:{port}/ws", Following([ALL]), headers=(), tell=tell, say=say)
    assert said[2].startswith(f"Cannot connect to 127.0.0.1:{port}: Connection refused; connecting again in")


@pytest.mark.parametrize("trusted", [True, False])
async def test_tls(monkeypatch, tmp_path, *, trusted):
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    bundle = tmp_path / "ca.pem"
    (authority if trusted else trustme.CA()).cert_pem.write_to_path(str(bundle))
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    async with played(telling(1), telling(2), tls=context) as server:
        url = f"wss://localhost:{server.port}/ws/streams"
        if trusted:
            assert (await following_it(server, 2, url=url))[0] == [1, 2]
        else:
            with pytest.RaisesGroup(pytest.RaisesExc(FollowRefused, match="certificate")):
                await following_it(server, 1, url=url)


async def test_a_name_that_the_certificate_does_not_have_is_refused(monkeypatch, tmp_path):
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("elsewhere.example").configure_cert(context)
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(bundle))
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    async with played(telling(1), tls=context) as server:
        with pytest.RaisesGroup(pytest.RaisesExc(FollowRefused, match="certificate")):
            await following_it(server, 1, url=f"wss://localhost:{server.port}/ws/streams")
