"""The handshake of /ws/streams: who gets a 101, and how everyone else is refused, before anything is upgraded."""

from __future__ import annotations

import json
import math
from ipaddress import ip_network

import jwt
import pytest
import structlog
import trio
from front import DEADLINE_S, OURS, read_to_end
from socket_client import ACCEPT, BROADCAST, KEY, connect, frame, handshake, head_of

from fluxora.actors.hub import Hub
from fluxora.config import AccessConfig, LimitConfig
from fluxora.http.replies import SECURITY_HEADERS
from fluxora.protocol.api_keys import make

SECRET = "a shared secret of more than 32 bytes"
READER_KEY, READER_ENTRY = make("reader", ["streams:read"], entropy=bytes(range(48)))
WRITER_KEY, WRITER_ENTRY = make("writer", ["streams:write"], entropy=bytes(range(1, 49)))
ACCESS = AccessConfig(api_keys=(READER_ENTRY, WRITER_ENTRY), jwt_secret=SECRET)


def token(scope: str = "streams:read", exp: float = 4_000_000_000) -> str:
    return jwt.encode({"exp": exp, "sub": "bob", "scope": scope}, SECRET, algorithm="HS256")


@pytest.fixture(params=["direct", "framework", "hosted"])
def carrier(request):
    """The listener, which makes the handshake whatever carries other requests, and another server."""
    return request.param


@pytest.fixture
async def server(start):
    return await start(hub=Hub(None, None))


async def refused(server, status: int, code: str, path: str = "/ws/streams", **headers) -> dict[str, str]:
    """Ask and be refused in the one shape; the headers of the answer."""
    open_before = server.backend.sockets.count
    async with await server.connect() as stream:
        await stream.send_all(handshake(path, **headers))  # and stays: to Hypercorn who ends their side is gone
        received = b""
        with trio.fail_after(DEADLINE_S):
            while not received.endswith(b"}"):
                received += await stream.receive_some()
    given, answered = head_of(received)
    body = received.partition(b"\r\n\r\n")[2]
    assert len(body) == int(answered["content-length"])
    error = json.loads(body)
    assert (given, error["error"]) == (status, code)
    assert error["requestId"] == answered["x-request-id"]
    for name, value in SECURITY_HEADERS:
        assert answered[name] == value
    assert server.backend.sockets.count == open_before
    return answered


@OURS
async def test_a_handshake_is_answered_as_rfc_6455_says(server):
    async with await connect(server, x_request_id="mine") as client:
        assert client.headers["upgrade"] == "websocket"
        assert client.headers["connection"] == "upgrade"
        assert client.headers["sec-websocket-accept"] == ACCEPT
        assert client.headers["x-request-id"] == "mine"
        assert "sec-websocket-protocol" not in client.headers
        assert "content-length" not in client.headers
        for name, value in SECURITY_HEADERS:
            assert client.headers[name] == value
        assert await client.ask({"type": "ping"}) == {"type": "pong"}


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ("fluxora.v2", "fluxora.v2"),
        (BROADCAST, BROADCAST),
        (f"nothing.v9, {BROADCAST}, fluxora.v2", BROADCAST),
        ("nothing.v9", None),
        ("", None),
    ],
)
async def test_the_first_protocol_that_is_spoken_here_is_chosen(server, offered, chosen):
    async with await connect(server, sec_websocket_protocol=offered) as client:
        assert client.headers.get("sec-websocket-protocol") == chosen
        (socket,) = server.backend.sockets._open
        assert socket.protocol == ("broadcast" if chosen == BROADCAST else "v2")


@OURS
async def test_no_compression_is_agreed_on(server):
    async with await connect(server, sec_websocket_extensions="permessage-deflate; client_max_window_bits") as client:
        assert "sec-websocket-extensions" not in client.headers


@OURS
async def test_frames_may_come_together_with_the_handshake(server):
    async with await server.connect() as stream:
        await stream.send_all(handshake() + frame(1, b'{"type":"ping"}') + frame(8, b"\x03\xe8"))
        received = await read_to_end(stream)
    assert received.partition(b"\r\n\r\n")[2] == b'\x81\x0f{"type":"pong"}' + b"\x88\x02\x03\xe8"


@OURS
async def test_a_request_before_it_on_the_connection_is_no_hindrance(server):
    async with await server.connect() as stream:
        await stream.send_all(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n" + handshake() + frame(8, b"\x03\xe8"))
        received = await read_to_end(stream)
    assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"HTTP/1.1 101 Switching Protocols\r\n" in received


@OURS
@pytest.mark.parametrize(
    "headers",
    [
        {"connection": None},
        {"connection": "keep-alive"},
        {"connection": "Upgrade, close"},
        {"upgrade": None},
        {"upgrade": "h2c"},
        {"sec_websocket_version": None},
        {"sec_websocket_version": "8"},
        {"sec_websocket_version": "13, 13"},
        {"content_length": "0", "upgrade": "TLS/1.0"},
    ],
)
async def test_what_asks_for_no_websocket_is_told_how(server, headers):
    answered = await refused(server, 426, "UPGRADE_REQUIRED", **headers)
    assert answered["upgrade"] == "websocket"
    assert answered["sec-websocket-version"] == "13"


@OURS
@pytest.mark.parametrize("connection", ["Upgrade", "upgrade", "keep-alive, UPGRADE"])
@pytest.mark.parametrize("upgrade", ["websocket", "WebSocket", "h2c, websocket"])
async def test_names_of_the_handshake_are_without_case_and_may_be_among_others(server, connection, upgrade):
    async with await connect(server, connection=connection, upgrade=upgrade):
        assert server.backend.sockets.count == 1


@OURS
@pytest.mark.parametrize(
    "key", [None, "", "x", KEY[:-1], KEY + "=", KEY[:-2], "AAAAAAAAAAAAAAAAAAAAAB==", "A" * 24, f"{KEY}, {KEY}"]
)
async def test_the_key_must_be_16_bytes(server, key):
    await refused(server, 400, "VALIDATION_ERROR", sec_websocket_key=key)


async def test_other_methods_are_no_handshake(server):
    for method in ("POST", "PUT", "DELETE"):
        reply = await server.request(method, "/ws/streams")
        assert (reply.status_code, reply.headers["allow"]) == (405, "GET, HEAD")
    assert (await server.get("/ws/streams")).status_code == 426
    assert (await server.request("HEAD", "/ws/streams")).status_code == 426


@OURS
async def test_a_request_with_a_body_is_no_handshake(server):
    with_body = handshake(content_length="2") + b"{}"
    async with await server.connect() as stream:
        await stream.send_all(with_body)
        await stream.send_eof()
        assert (await read_to_end(stream)).startswith(b"HTTP/1.1 426 ")


# -- who may -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "credential",
    [
        {"authorization": "Bearer x"},
        {"authorization": "Basic YTpi"},
        {"authorization": f"Bearer {token(exp=1)}"},
        {"x_api_key": "flx_reader_x"},
        {"authorization": f"Bearer {token()}", "x_api_key": READER_KEY},
    ],
)
@pytest.mark.parametrize("required", [True, False])
async def test_a_credential_that_is_no_good_is_refused(start, credential, required):
    access = AccessConfig(api_keys=ACCESS.api_keys, jwt_secret=SECRET, required=required)
    server = await start(hub=Hub(None, None), access=access)
    answered = await refused(server, 401, "UNAUTHORIZED", **credential)
    assert answered["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("query", ["token=x", "token=", "a=b&token=x", f"token={token()}&token={token()}"])
async def test_a_token_in_the_query_that_is_no_good_is_refused(start, query):
    server = await start(hub=Hub(None, None), access=ACCESS)
    await refused(server, 401, "UNAUTHORIZED", f"/ws/streams?{query}")


async def test_credentials_open_it_where_they_are_required(start):
    access = AccessConfig(api_keys=ACCESS.api_keys, jwt_secret=SECRET, required=True)
    server = await start(hub=Hub(None, None), access=access)
    await refused(server, 401, "UNAUTHORIZED")
    with structlog.testing.capture_logs() as lines:
        for path, headers, principal in (
            ("/ws/streams", {"authorization": f"Bearer {token()}"}, "jwt:bob"),
            (f"/ws/streams?token={token()}", {}, "jwt:bob"),
            ("/ws/streams", {"x_api_key": READER_KEY}, "key:reader"),
        ):
            async with await connect(server, path, **headers):
                assert {socket.principal.id for socket in server.backend.sockets._open} >= {principal}
    assert token() not in repr(lines), "a token in the query is never logged"
    assert READER_KEY not in repr(lines)


async def test_the_scope_is_needed_by_whoever_has_a_credential(start):
    server = await start(hub=Hub(None, None), access=ACCESS)
    await refused(server, 403, "FORBIDDEN", x_api_key=WRITER_KEY)
    await refused(server, 403, "FORBIDDEN", f"/ws/streams?token={token('streams:write')}")
    async with await connect(server):
        assert server.backend.sockets.count == 1, "nobody may, unless credentials are required"


@pytest.mark.parametrize(
    ("origin", "fine"),
    [
        ("https://app.example", True),
        ("http://x", True),  # the host that is asked
        (None, True),  # no page at all
        ("https://evil.example", False),
        ("https://app.example.evil.example", False),
        ("http://app.example", False),
        ("http://x:81", False),
        ("null", False),
    ],
)
async def test_pages_of_other_origins_are_refused_where_origins_are_named(start, origin, fine):
    server = await start(hub=Hub(None, None), cors_origins=("https://app.example",))
    if fine:
        await trio.aclose_forcefully((await connect(server, origin=origin)).stream)
    else:
        await refused(server, 403, "FORBIDDEN", origin=origin)


async def test_any_page_may_connect_where_none_is_named(server):
    async with await connect(server, origin="https://anywhere.example"):
        pass


async def test_handshakes_count_as_reads(start):
    server = await start(hub=Hub(None, None), limits=LimitConfig(anonymous_read=1))
    async with await connect(server) as client:
        assert client.headers["x-ratelimit-remaining"] == "0"
        assert int((await refused(server, 429, "RATE_LIMIT_EXCEEDED"))["retry-after"]) > 0


# -- how many ----------------------------------------------------------------------------------------------------------


async def gone(server, count: int) -> None:
    """Wait until so many sockets are open and no more."""
    with trio.fail_after(DEADLINE_S):
        while server.backend.sockets.count > count:
            await trio.lowlevel.checkpoint()


async def test_one_address_may_have_so_many_and_no_more(start):
    server = await start(hub=Hub(None, None), max_websockets_per_client=2, trusted_proxies=(ip_network("127.0.0.1"),))
    async with await connect(server, x_forwarded_for="192.0.2.1"):
        second = await connect(server, x_forwarded_for="192.0.2.1")
        answered = await refused(server, 429, "RATE_LIMIT_EXCEEDED", x_forwarded_for="192.0.2.1")
        assert int(answered["retry-after"]) > 0
        async with await connect(server, x_forwarded_for="192.0.2.2"):
            assert server.backend.sockets.count == 3
        await trio.aclose_forcefully(second.stream)
        await gone(server, 1)
        async with await connect(server, x_forwarded_for="192.0.2.1"):
            pass
    await gone(server, 0)
    assert not server.backend.sockets._of_site, "nothing is kept of addresses that left"


async def test_one_site_of_ipv6_is_one_address(start):
    server = await start(hub=Hub(None, None), max_websockets_per_client=1, trusted_proxies=(ip_network("127.0.0.1"),))
    async with await connect(server, x_forwarded_for="2001:db8::1"):
        await refused(server, 429, "RATE_LIMIT_EXCEEDED", x_forwarded_for="2001:db8::2")


async def test_the_server_has_so_many_and_no_more(start):
    server = await start(hub=Hub(None, None), max_websockets=1)
    async with await connect(server):
        answered = await refused(server, 503, "SERVICE_UNAVAILABLE")
        assert int(answered["retry-after"]) > 0
        assert (await server.get("/health/live")).status_code == 200, "requests go on"
    await gone(server, 0)
    async with await connect(server):
        pass


async def test_handshakes_and_refusals_are_counted_like_other_requests(server):
    async with await connect(server):
        await refused(server, 401, "UNAUTHORIZED", "/ws/streams?token=x")
        text = (await server.get("/metrics")).text
    for status in (101, 401):
        assert (
            f'fluxora_http_request_duration_seconds_count{{method="GET",route="/ws/streams",status="{status}"}} 1.0'
            in text
        )
    assert "fluxora_websocket_connections 1.0" in text


async def test_an_open_socket_is_not_idle(start):
    server = await start(hub=Hub(None, None), keep_alive_s=0.1, read_head_timeout_s=0.1)
    async with await connect(server) as client:
        async with await server.connect() as idle:  # is ended for resting too long, after the socket was opened
            assert await read_to_end(idle) == b""
        (socket,) = server.backend.sockets._open
        assert math.isfinite(socket.line.due)
        assert await client.ask({"type": "ping"}) == {"type": "pong"}
