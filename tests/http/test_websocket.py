"""What an open WebSocket does: messages of both protocols, frames of every kind, limits, the heartbeat, its ends."""

from __future__ import annotations

import struct

import jwt
import pytest
import structlog
import trio
import trio.testing
from front import DEADLINE_S, OURS
from socket_client import BROADCAST, connect, frame
from wsproto.events import CloseConnection, Ping, Pong, TextMessage

from fluxora.actors.hub import Hub
from fluxora.config import AccessConfig
from fluxora.protocol.api_keys import make

SECRET = "a shared secret of more than 32 bytes"
ADMIN_KEY, ADMIN_ENTRY = make("root", ["admin"], entropy=bytes(range(48)))
PING = '{"type":"ping"}'
CONTINUATION, TEXT, BINARY, CLOSE, PING_FRAME, PONG_FRAME = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA


@pytest.fixture(params=["direct", "hosted"])
def carrier(request):
    """Our own, and another server: the framework under our listener carries no WebSocket."""
    return request.param


@pytest.fixture
async def hub():
    """A hub that is told nothing: it takes subscriptions at position 0."""
    return Hub(None, None)


@pytest.fixture
async def server(start, hub):
    return await start(hub=hub)


@pytest.fixture
async def client(server):
    async with await connect(server) as opened:
        yield opened


@pytest.fixture
async def listener(server):
    """A client of broadcast.v1."""
    async with await connect(server, sec_websocket_protocol=BROADCAST) as opened:
        yield opened


def of(server):
    """The one open socket, as the server has it."""
    (socket,) = server.backend.sockets._open
    return socket


# -- messages of v2 ----------------------------------------------------------------------------------------------------


async def test_ping_is_answered(client):
    assert await client.ask({"type": "ping"}) == {"type": "pong"}
    assert await client.ask({"type": "ping", "ref": "r", "more": 1}) == {"type": "pong", "ref": "r"}


async def test_subscriptions_are_acknowledged_where_they_have_a_ref(client, server):
    ack = {"type": "ack", "ref": "a", "position": "0", "recovered": False}
    assert await client.ask({"type": "subscribe", "streamId": "stream-x-1", "ref": "a"}) == ack
    assert await client.ask({"type": "subscribe", "streamId": "*", "ref": "a"}) == ack
    assert len(of(server).follows) == 2
    assert await client.ask({"type": "unsubscribe", "streamId": "*", "ref": "a"}) == ack
    await client.send({"type": "unsubscribe", "streamId": "stream-x-1"})
    assert await client.ask({"type": "ping"}) == {"type": "pong"}, "nothing is said where there was no ref"
    assert not of(server).follows
    assert server.backend.hub.status.subscriptions == 0


@pytest.mark.parametrize(
    ("sent", "code", "ref"),
    [
        ("{", "INVALID_JSON", None),
        ("", "INVALID_JSON", None),
        ('{"type":"ping","type":"ping"}', "INVALID_JSON", None),
        ('{"type":"ping","x":NaN}', "INVALID_JSON", None),
        ("[" * 2000, "INVALID_JSON", None),
        ("[]", "INVALID_MESSAGE", None),
        ('{"ref":"r"}', "INVALID_MESSAGE", "r"),
        ('{"type":"subscribe","ref":"r"}', "INVALID_MESSAGE", "r"),
        ('{"type":"subscribe","streamId":7}', "INVALID_MESSAGE", None),
        ('{"type":"subscribe","sender":"GABC"}', "INVALID_MESSAGE", None),
        ('{"type":"subscribe","streamId":"*","after":"-1"}', "INVALID_MESSAGE", None),
        ('{"type":"subscribe","streamId":"*","after":12}', "INVALID_MESSAGE", None),
        ('{"type":"ping","ref":7}', "INVALID_MESSAGE", None),
        ('{"type":"shout","ref":"r"}', "UNKNOWN_TYPE", "r"),
        ("x" * 4_097, "PAYLOAD_TOO_LARGE", None),
        ("é" * 2_049, "PAYLOAD_TOO_LARGE", None),
        ("x" * 65_536, "PAYLOAD_TOO_LARGE", None),
    ],
)
async def test_what_cannot_be_used_is_answered_with_its_code_and_the_connection_stays(client, server, sent, code, ref):
    await client.send(sent)
    error = await client.message()
    assert (error["type"], error["code"], error.get("ref")) == ("error", code, ref)
    assert error["message"]
    assert await client.ask({"type": "ping"}) == {"type": "pong"}
    assert server.backend.sockets.errors == {code: 1}


async def test_a_message_of_4096_bytes_is_taken(client):
    text = '{"type":"ping","x":""}'
    await client.send(text.replace('""', '"' + "é" * ((4_096 - len(text)) // 2) + '"'))
    assert await client.message() == {"type": "pong"}


async def test_binary_messages_are_refused(client):
    for payload in (b"", PING.encode(), bytes(5_000)):
        await client.raw(frame(BINARY, payload))
        assert (await client.message())["code"] == "BINARY_NOT_SUPPORTED"
    assert await client.ask({"type": "ping"}) == {"type": "pong"}


async def test_a_connection_may_follow_256_things(client, server, monkeypatch):
    monkeypatch.setattr("fluxora.http.session.MOST_SUBSCRIPTIONS", 3)
    for nth in range(3):
        assert (await client.ask({"type": "subscribe", "streamId": f"s{nth}", "ref": "r"}))["type"] == "ack"
    refused = await client.ask({"type": "subscribe", "streamId": "s3", "ref": "r"})
    assert (refused["code"], refused["ref"]) == ("SUBSCRIPTION_LIMIT", "r")
    assert (await client.ask({"type": "subscribe", "streamId": "s2", "ref": "r"}))["type"] == "ack", "again"
    await client.send({"type": "unsubscribe", "streamId": "s0"})
    assert (await client.ask({"type": "subscribe", "streamId": "s3", "ref": "r"}))["type"] == "ack"
    assert server.backend.hub.status.subscriptions == 3


async def test_30_messages_may_be_sent_in_10_seconds(client, server, monkeypatch):
    later = 0.0
    now = trio.current_time
    monkeypatch.setattr("fluxora.http.session.trio.current_time", lambda: now() + later)
    for _ in range(30):
        assert await client.ask({"type": "ping"}) == {"type": "pong"}
    for _ in range(2):
        assert (await client.ask({"type": "ping"}))["code"] == "RATE_LIMIT_EXCEEDED"
    await client.raw(frame(BINARY))
    assert (await client.message())["code"] == "RATE_LIMIT_EXCEEDED"
    later = 10.0
    for _ in range(30):
        assert await client.ask({"type": "ping"}) == {"type": "pong"}
    assert (await client.ask({"type": "ping"}))["code"] == "RATE_LIMIT_EXCEEDED"


async def test_the_window_slides(client, server, monkeypatch):
    later = 0.0
    now = trio.current_time
    monkeypatch.setattr("fluxora.http.session.trio.current_time", lambda: now() + later)
    for nth in range(60):  # three in a second: each leaves the window as another one comes
        later = nth / 3 + 0.01
        assert await client.ask({"type": "ping"}) == {"type": "pong"}
    assert (await client.ask({"type": "ping"}))["code"] == "RATE_LIMIT_EXCEEDED"


# -- frames ------------------------------------------------------------------------------------------------------------


async def test_a_message_may_come_in_parts_with_control_frames_between_them(client):
    text = '{"type":"ping","ref":"é"}'.encode()
    cut = text.index("é".encode()) + 1  # in the middle of a character
    await client.raw(
        frame(TEXT, text[:cut], fin=False),
        frame(PING_FRAME, b"in between"),
        frame(CONTINUATION, text[cut:-1], fin=False),
        frame(PONG_FRAME, b"nobody asked"),
        frame(CONTINUATION, b"", fin=False),
        frame(CONTINUATION, text[-1:]),
    )
    pong = await client.event()
    assert isinstance(pong, Pong)
    assert bytes(pong.payload) == b"in between"
    assert await client.message() == {"type": "pong", "ref": "é"}


async def test_bytes_may_come_one_by_one(client):
    for octet in frame(TEXT, PING.encode()):
        await client.raw(bytes((octet,)))
    assert await client.message() == {"type": "pong"}


async def test_many_messages_may_come_at_once(client):
    await client.raw(*[frame(TEXT, b'{"type":"ping","ref":"%d"}' % nth) for nth in range(30)])
    assert [answer["ref"] for answer in await client.messages(30)] == [str(nth) for nth in range(30)]


async def test_pings_are_answered_with_what_they_carry(client):
    for payload in (b"", b"x", bytes(range(125))):
        await client.raw(frame(PING_FRAME, payload))
        pong = await client.event()
        assert isinstance(pong, Pong)
        assert bytes(pong.payload) == payload


@OURS
@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(TEXT, PING.encode(), mask=None), 1002),
        (frame(TEXT, b"x", rsv=4), 1002),
        (frame(TEXT, b"x", rsv=1), 1002),
        (frame(0x3, b"x"), 1002),
        (frame(0xB, b"x"), 1002),
        (frame(CONTINUATION, b"x"), 1002),
        (frame(TEXT, b"x", fin=False) + frame(TEXT, b"x"), 1002),
        (frame(PING_FRAME, b"x", fin=False), 1002),
        (frame(PING_FRAME, bytes(126)), 1002),
        (frame(CLOSE, b"x"), 1002),
        (frame(CLOSE, struct.pack("!H", 1005)), 1002),
        (frame(CLOSE, struct.pack("!H", 999)), 1002),
        (frame(CLOSE, struct.pack("!H", 1000) + b"\xff"), 1007),
        (frame(TEXT, b"\xff"), 1007),
        (frame(TEXT, "é".encode()[:1]), 1007),
        (frame(TEXT, b"\xed\xa0\x80"), 1007),  # half of a surrogate pair
        (frame(TEXT, b"")[:1] + b"\xff" + struct.pack("!Q", 2**62) + b"abcd" + b"x" * 65_537, 1009),  # never to end
    ],
)
async def test_what_breaks_the_protocol_ends_the_connection(client, server, sent, code):
    await client.raw(sent)
    event = await client.event()
    assert isinstance(event, CloseConnection)
    assert event.code == code
    with trio.fail_after(DEADLINE_S):
        while await client.stream.receive_some():
            pass
    await client.stream.aclose()
    await ended(server, code)


@pytest.mark.parametrize(
    "sent",
    [
        frame(TEXT, b"x" * 65_537),
        frame(TEXT, "é".encode() * 32_769),
        frame(BINARY, b"x" * 65_537),
        frame(TEXT, b"x" * 40_000, fin=False) + frame(CONTINUATION, b"x" * 30_000),
    ],
    ids=["text", "by its bytes", "binary", "in parts"],
)
async def test_what_is_far_too_long_ends_the_connection(client, server, sent):
    await client.raw(sent)
    assert await client.closed() == 1009
    await ended(server, 1009)


@OURS
async def test_a_flood_of_frames_ends_the_connection(client, server, monkeypatch):
    monkeypatch.setattr("fluxora.http.session.MOST_FRAMES", 5)
    await client.raw(*[frame(PONG_FRAME)] * 5)
    await client.raw(frame(PONG_FRAME))
    assert await client.closed() == 1008


@pytest.mark.parametrize("code", [1000, 1001, 3000, 4999])
async def test_the_client_may_close_with_a_code_and_gets_it_back(client, server, code, carrier):
    await client.raw(frame(CLOSE, struct.pack("!H", code) + b"bye"))
    event = await client.event()
    assert isinstance(event, CloseConnection)
    assert event.code == code
    with trio.fail_after(DEADLINE_S):
        assert await client.stream.receive_some() == b""
    await trio.aclose_forcefully(client.stream)
    await ended(server, code if carrier == "direct" else 1006)  # which Hypercorn says of whoever closes


async def test_the_client_may_close_without_a_code(client, server, carrier):
    await client.raw(frame(CLOSE), frame(TEXT, PING.encode()))
    assert isinstance(await client.event(), CloseConnection)
    with trio.fail_after(DEADLINE_S):
        assert await client.stream.receive_some() == b"", "what follows a close is not answered"
    await trio.aclose_forcefully(client.stream)
    await ended(server, 1005 if carrier == "direct" else 1006)


async def test_a_client_that_just_leaves_is_gone(client, server):
    await client.ask({"type": "subscribe", "streamId": "*", "ref": "r"})
    await trio.aclose_forcefully(client.stream)
    await ended(server, 1006)
    assert server.backend.hub.status.subscribers == 0
    assert server.backend.hub.status.subscriptions == 0


async def ended(server, code: int) -> None:
    """Wait until no socket is open; the last one ended with `code`."""
    with trio.fail_after(DEADLINE_S):
        while server.backend.sockets.count:
            await trio.lowlevel.checkpoint()
    assert server.backend.sockets.closed == {code: 1}
    with trio.fail_after(DEADLINE_S):
        while server.backend.metrics.connections:
            await trio.lowlevel.checkpoint()


# -- broadcast.v1 ------------------------------------------------------------------------------------------------------


async def test_broadcast_clients_are_not_answered(listener, server):
    await listener.raw(frame(TEXT, b"{"), frame(BINARY, b"x"), frame(TEXT, PING.encode()), frame(PING_FRAME, b"p"))
    pong = await listener.event()
    assert isinstance(pong, Pong), "the one frame that has an answer"
    assert server.backend.sockets.messages == 3


async def test_broadcast_clients_that_send_too_much_are_ended(listener, server):
    await listener.raw(frame(TEXT, b"x" * 4_096))
    await listener.raw(frame(TEXT, b"x" * 4_097))
    assert await listener.closed() == 1009
    await ended(server, 1009)


async def test_broadcast_clients_that_send_too_often_are_ended(listener, server):
    await listener.raw(*[frame(TEXT, b"x")] * 10, frame(PING_FRAME))
    assert isinstance(await listener.event(), Pong)
    await listener.raw(frame(BINARY, b"x"))
    assert await listener.closed() == 1008
    await ended(server, 1008)


# -- the heartbeat, and tokens -----------------------------------------------------------------------------------------


@OURS
async def test_pings_come_and_pongs_keep_the_connection(start, hub):
    server = await start(hub=hub, ws_ping_s=0.05)
    async with await connect(server) as client:
        for _ in range(4):
            ping = await client.event()
            assert isinstance(ping, Ping)
            await client.raw(frame(PONG_FRAME, bytes(ping.payload)))
        assert await client.ask({"type": "ping"}) == {"type": "pong"}


@OURS
async def test_a_client_that_answers_no_ping_is_ended(start, hub):
    server = await start(hub=hub, ws_ping_s=0.05)
    async with await connect(server) as client:
        assert isinstance(await client.event(), Ping)
        assert await client.closed() == 4002
        await ended(server, 4002)


async def test_a_token_that_ends_while_the_socket_is_open_ends_it(start, hub):
    now = 1_000_000.0
    server = await start(hub=hub, access=AccessConfig(jwt_secret=SECRET), clock=lambda: now, ws_ping_s=0.05)
    token = jwt.encode({"exp": now + 60, "sub": "bob", "scope": "streams:read"}, SECRET, algorithm="HS256")
    async with await connect(server, f"/ws/streams?token={token}") as client:
        await client.send({"type": "ping"})
        while isinstance(event := await client.event(), Ping):
            await client.raw(frame(PONG_FRAME))
        assert isinstance(event, TextMessage), "it is good so far"
        now += 60
        while isinstance(event := await client.event(), Ping):
            await client.raw(frame(PONG_FRAME))
        assert isinstance(event, CloseConnection)
        assert event.code == 4401


async def test_the_end_of_a_token_is_not_awaited_for_longer_than_it_lasts(start, hub):
    now = 1_000_000.0
    server = await start(hub=hub, access=AccessConfig(jwt_secret=SECRET), clock=lambda: now)
    token = jwt.encode({"exp": now + 7, "sub": "bob", "scope": "streams:read"}, SECRET, algorithm="HS256")
    async with await connect(server, authorization=f"Bearer {token}"):
        assert of(server).line.due <= trio.current_time() + 7


# -- ends --------------------------------------------------------------------------------------------------------------


async def test_a_stop_says_so_to_everyone(start, hub):
    server = await start(hub=hub, drain_s=5)
    clients = [await connect(server), await connect(server, sec_websocket_protocol=BROADCAST)]
    server.backend.stopping.set()
    assert [await client.closed() for client in clients] == [1001, 1001]
    with trio.fail_after(DEADLINE_S):
        while server.backend.metrics.connections:
            await trio.lowlevel.checkpoint()


@OURS
async def test_a_stop_does_not_wait_for_a_client_that_does_not_read(start, hub, nursery):
    server = await start(hub=hub, drain_s=0.2)
    async with await connect(server) as client:
        await fill(of(server))
        server.backend.stopping.set()
        with trio.fail_after(DEADLINE_S):
            while server.backend.sockets.count:
                await trio.lowlevel.checkpoint()
        del client


async def fill(socket) -> None:
    """Offer until it takes no more: the kernel's buffers are full, and so is its queue, to the last hundred bytes."""
    for size in (60_000, 100):
        part = frame(TEXT, b"x" * size, mask=None)
        while socket.offer(part):
            while socket.offer(part):
                pass
            await trio.testing.wait_all_tasks_blocked(0.01)


async def test_a_client_that_does_not_read_is_told_why_it_ends(client, server):
    socket = of(server)
    await client.ask({"type": "subscribe", "streamId": "*", "ref": "r"})
    await fill(socket)
    assert 1 << 20 >= socket.line.offered_bytes > (1 << 20) - 60_100
    socket.drop("slow")
    assert server.backend.hub.status.subscribers == 0
    event = await client.event()
    while isinstance(event, TextMessage):
        event = await client.event()
    assert isinstance(event, CloseConnection)
    assert event.code == 4001
    await trio.aclose_forcefully(client.stream)
    await ended(server, 4001)


@OURS
async def test_a_client_that_never_reads_again_is_cut_off(start, hub):
    server = await start(hub=hub, write_timeout_s=0.1)
    async with await connect(server):
        socket = of(server)
        await fill(socket)
        socket.drop("slow")
        await ended(server, 4001)


async def test_an_answer_that_finds_no_room_ends_it_too(client, server):
    socket = of(server)
    for _ in range(29):  # once is enough, unless the kernel finds more room meanwhile
        await fill(socket)
        await client.raw(frame(TEXT, b'{"type":"ping","ref":"%s"}' % (b"x" * 64)))
        await trio.testing.wait_all_tasks_blocked(0.01)
        if socket.ending:
            break
    event = await client.event()
    while isinstance(event, TextMessage):
        event = await client.event()
    assert event.code == 4001


# -- operators ---------------------------------------------------------------------------------------------------------


@pytest.fixture
async def operated(start, store, hub):
    return await start(store=store, hub=hub, access=AccessConfig(api_keys=(ADMIN_ENTRY,), jwt_secret=SECRET))


async def disconnect(server, body, key=ADMIN_KEY):
    return await server.request(
        "POST", "/api/admin/ws/disconnect", json=body, headers={"x-api-key": key} if key else {}
    )


async def test_operators_end_those_of_a_stream_of_a_principal_or_all(operated):
    token = jwt.encode({"exp": 4_000_000_000, "sub": "bob", "scope": "streams:read"}, SECRET, algorithm="HS256")
    follower, bob, other = [
        await connect(operated, **headers) for headers in ({}, {"authorization": f"Bearer {token}"}, {})
    ]
    await follower.ask({"type": "subscribe", "streamId": "stream-x-1", "ref": "r"})
    await other.ask({"type": "subscribe", "streamId": "stream-x-2", "ref": "r"})
    for body, gone in (
        ({"streamId": "stream-x-3"}, []),
        ({"streamId": "stream-x-1"}, [follower]),
        ({"principal": "jwt:alice"}, []),
        ({"principal": "jwt:bob"}, [bob]),
        ({"all": True}, [other]),
        ({"all": True}, []),
    ):
        reply = await disconnect(operated, body)
        assert (reply.status_code, reply.json()) == (200, {"disconnected": len(gone)})
        assert [await client.closed() for client in gone] == [4403] * len(gone)
    assert operated.backend.sockets.closed == {4403: 3}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"all": False},
        {"all": None},
        {"all": True, "principal": "jwt:bob"},
        {"streamId": "x"},
        {"principal": ""},
        {"principal": "bob"},
        {"everyone": True},
        [],
    ],
)
async def test_operators_say_exactly_which(operated, body):
    async with await connect(operated):
        reply = await disconnect(operated, body)
        assert (reply.status_code, reply.json()["error"]) == (400, "VALIDATION_ERROR")
        assert reply.json()["details"]
        assert operated.backend.sockets.count == 1


async def test_nobody_else_ends_them(operated, server):
    assert (await disconnect(operated, {"all": True}, key=None)).status_code == 401
    assert (await disconnect(server, {"all": True}, key=None)).status_code == 404, "no credential is configured"


# -- what is said of them ----------------------------------------------------------------------------------------------


async def test_comings_and_goings_are_logged_with_how_many_there_are(server, carrier):
    with structlog.testing.capture_logs() as lines:
        first = await connect(server)
        async with await connect(server, sec_websocket_protocol=BROADCAST) as second:
            await first.raw(frame(CLOSE, struct.pack("!H", 1000)))
            assert await first.closed() == 1000
            with trio.fail_after(DEADLINE_S):
                while server.backend.sockets.count > 1:
                    await trio.lowlevel.checkpoint()
            del second
    said = [line for line in lines if line["event"].startswith("websocket.")][:3]
    assert [(line["event"], line["total"]) for line in said] == [
        ("websocket.connected", 1),
        ("websocket.connected", 2),
        ("websocket.disconnected", 1),
    ]
    first_id, second_id, gone = [line["connectionId"] for line in said]
    assert first_id == gone != second_id
    assert said[2]["code"] == (1000 if carrier == "direct" else 1006)


async def test_metrics_tell_of_them(client, server):
    await client.send("{")
    await client.message()
    text = (await server.get("/metrics")).text
    for line in (
        "fluxora_websocket_connections 1.0",
        "fluxora_websocket_messages_total 1.0",
        "fluxora_hub_subscriptions 0.0",
        'fluxora_websocket_errors_total{code="INVALID_JSON"} 1.0',
    ):
        assert line in text
    await trio.aclose_forcefully(client.stream)
    await ended(server, 1006)
    assert 'fluxora_websocket_closed_total{code="1006"} 1.0' in (await server.get("/metrics")).text


@OURS
async def test_codes_that_clients_make_up_are_one_label(server):
    for code in (3000, 3777, 4999, 1000):
        async with await connect(server) as client:
            await client.raw(frame(CLOSE, struct.pack("!H", code)))
            assert isinstance(await client.event(), CloseConnection)
    with trio.fail_after(DEADLINE_S):
        while server.backend.sockets.count:
            await trio.lowlevel.checkpoint()
    lines = (await server.get("/metrics")).text.splitlines()
    closed = [line for line in lines if line.startswith("fluxora_websocket_closed_total{")]
    assert sorted(closed) == [
        'fluxora_websocket_closed_total{code="1000"} 1.0',
        'fluxora_websocket_closed_total{code="other"} 3.0',
    ]


async def test_what_is_told_to_all_reaches_both_protocols(client, listener, hub):
    await client.ask({"type": "ping"})
    await hub.announce("service.degraded", "the database does not answer", 1_767_225_600_000)
    told = {"reason": "the database does not answer", "timestamp": "2026-01-01T00:00:00.000Z"}
    assert await client.message() == {"type": "service.degraded", **told}
    assert await listener.message() == {"event": "service.degraded", **told}
