from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook
from wsproto.frame_protocol import FrameProtocol, Opcode

from bench.profiles.endpoint import Endpoint
from bench.profiles.receivers_process import Place
from bench.profiles.scene import TICKS_PER_S, Scene
from bench.profiles.traffic import FOLLOWERS, REQUESTS
from bench.profiles.traffic.forms import Registered, Sort, Wrong
from bench.profiles.traffic.sse_followers import SseFollowers
from bench.profiles.traffic.webhooks import Webhooks
from bench.profiles.traffic.ws_followers import WsFollowers
from bench.server_process import CONTRACT, account
from fluxora.http.pushed_event import read_batch

PEOPLE = [account(1), account(2)]


def scene(**changes):
    known = {
        "endpoint": Endpoint("127.0.0.1", 1),
        "zero": 0.0,
        "first_ledger": 65_000_000,
        "offset_s": 3.25,
        "contract_id": CONTRACT,
        "hot": ["stream-a"],
        "hot_numbers": [7, 8, 9],
        "ids": ["stream-a", "stream-b"],
        "people": PEOPLE,
        "headers": {"x-api-key": "flx_secret"},
        "admin_headers": {"x-api-key": "flx_operator"},
        "worker_token": "correct horse",
        "seed": 1,
    }
    return Scene(**known | changes)


def told(position, event_id="1-0279172874240000000-0000000000"):
    return {
        "type": "stream_update",
        "streamId": "stream-a",
        "eventId": event_id,
        "payload": {"position": "3", "memo": '"eventId":"no'},
        "position": str(position),
    }


# -- what is asked -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_are_whole_and_carry_the_credentials(name):
    scenario = REQUESTS[name](scene(), random.Random(1))
    for nth in range(40):
        connection = h11.Connection(h11.SERVER)
        connection.receive_data(scenario.ask(nth / 10).octets)
        head = connection.next_event()
        assert dict(head.headers)[b"x-api-key"] == b"flx_secret"
        events = [head]
        while not isinstance(events[-1], h11.EndOfMessage):
            events.append(connection.next_event())
        assert connection.trailing_data == (b"", False)


def test_pushed_events_are_what_the_server_reads_and_tell_when_they_were_due():
    at = scene()
    push = REQUESTS["ingest"](at, random.Random(1)).ask(12.5)
    batch = read_batch(json.loads(push.octets.partition(b"\r\n\r\n")[2])["events"])
    assert [event.id for event in batch.events] == list(push.ids)
    assert [event.stream_id for event in batch.events] == [7, 8, 9, 7, 8, 9, 7, 8, 9, 7]
    for event in batch.events:
        assert at.due_of(f"1-{event.id}".encode()) == pytest.approx(12.5, abs=1 / TICKS_PER_S)


@given(st.floats(0, 1e5), st.floats(0, 4.9999), st.floats(0, 1e5))
def test_ids_ascend_with_their_time_and_foreign_ones_tell_nothing(due, offset, later):
    at = scene(offset_s=offset)
    first, second = at.event_id(due, 0), at.event_id(due + later, 1)
    assert first < second
    assert at.due_of(f"2-{first}".encode()) == pytest.approx(due, abs=1 / TICKS_PER_S)
    assert scene(first_ledger=1).due_of(f"2-{first}".encode()) is None
    for foreign in (b"0196-7b-uuid", first.encode(), b"1-" + first.encode()[1:]):
        assert at.due_of(foreign) is None


@pytest.mark.parametrize(
    ("name", "status", "body", "stored"),
    [
        ("rest_writes", 201, b'{"id":"stream-x","status":"active"}', ("stream-x",)),
        ("rest_writes", 200, b'{"id":"stream-x"}', None),
        ("rest_writes", 201, b'{"streamId":"stream-x"}', None),
        ("rest_reads", 500, b"{}", None),
        ("rest_reads", 200, b"{}", None),
        ("ingest", 200, b'{"insertedEventIds":[],"position":"3"}', None),
        ("ingest", 200, b"null", None),
    ],
)
def test_an_answer_is_what_is_due_or_wrong(name, status, body, stored):
    asked = REQUESTS[name](scene(), random.Random(1)).ask(0.0)
    if stored is None:
        with pytest.raises(Wrong):
            asked.judge(status, body)
    else:
        assert asked.judge(status, body) == stored


def test_a_push_is_stored_where_all_of_it_was_inserted():
    push = REQUESTS["ingest"](scene(), random.Random(1)).ask(0.0)
    body = json.dumps({"insertedEventIds": list(push.ids)[::-1], "position": "9"}).encode()
    assert push.judge(200, body) == push.ids


def test_the_scene_hides_what_is_secret():
    assert "secret" not in repr(scene())
    assert "horse" not in repr(scene())
    assert "operator" not in repr(scene())


# -- what is told ------------------------------------------------------------------------------------------------------


def frame(text):
    return bytes(FrameProtocol(client=False, extensions=[]).send_data(json.dumps(text, separators=(",", ":"))))


def chunk(text):
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    connection.next_event()
    connection.send(h11.Response(status_code=200, headers=[("transfer-encoding", "chunked")]))
    return connection.send(h11.Data(data=text.encode()))


def sse(position):
    return chunk(
        f"id: {position}\nevent: stream.updated\ndata: {json.dumps(told(position), separators=(',', ':'))}\n\n"
    )


def started(kind):
    if kind is WsFollowers:
        return frame({"type": "ack", "ref": "f", "position": "10", "recovered": False})
    return chunk("retry: 3000\nid: 10\n\n")


@pytest.mark.parametrize("kind", [WsFollowers, SseFollowers])
@given(st.lists(st.integers(11, 10**15), max_size=4), st.data())
def test_messages_are_read_once_they_are_whole(kind, positions, data):
    make = (lambda position: frame(told(position))) if kind is WsFollowers else sse
    octets = started(kind) + b"".join(map(make, positions))
    buffer, found, at = bytearray(), [], 0
    while at < len(octets):
        size = data.draw(st.integers(1, len(octets) - at))
        buffer += octets[at : at + size]
        at += size
        taken = 0
        for message in kind().messages(buffer):
            found.append(message)
            taken = message.end
        del buffer[:taken]
    assert [(message.sort, message.position) for message in found] == [
        (Sort.START, 10),
        *((Sort.EVENT, position) for position in positions),
    ]
    assert {message.event_id for message in found[1:]} <= {b"1-0279172874240000000-0000000000"}
    assert not buffer


def test_what_is_no_event_is_answered_ignored_or_the_end():
    protocol = FrameProtocol(client=False, extensions=[])
    other = frame({"type": "service.degraded", "reason": "x", "timestamp": "y"})
    octets = bytes(protocol.ping()) + other + bytes(protocol.close(4001, "slow"))
    assert [message.sort for message in WsFollowers().messages(bytearray(octets))] == [Sort.PING, Sort.OTHER, Sort.END]
    octets = chunk(": alive\n\n") + chunk("id: 9\nevent: reset\ndata: {}\n\n")
    assert [message.sort for message in SseFollowers().messages(bytearray(octets))] == [Sort.OTHER, Sort.END]
    assert [message.sort for message in SseFollowers().messages(bytearray(b"0\r\n\r\n"))] == [Sort.END]


@pytest.mark.parametrize("name", FOLLOWERS)
def test_a_refusal_is_told_and_who_asks_shows_the_credentials(name):
    form = FOLLOWERS[name]()
    with pytest.raises(Wrong, match="refused with 503"):
        form.welcome(b"HTTP/1.1 503 Service Unavailable", "*")
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(form.hello(scene(), "stream-a"))
    assert dict(connection.next_event().headers)[b"x-api-key"] == b"flx_secret"


def test_a_subscription_is_a_frame_of_a_client():
    sent = WsFollowers().welcome(b"HTTP/1.1 101 Switching Protocols", "stream-a")
    server = FrameProtocol(client=False, extensions=[])
    server.receive_bytes(sent)
    (received,) = server.received_frames()
    assert received.opcode is Opcode.TEXT
    assert json.loads(received.payload) == {"type": "subscribe", "streamId": "stream-a", "ref": "f"}
    hello = SseFollowers().hello(scene(), "stream-a")
    assert hello.startswith(b"GET /api/events/stream?streamId=stream-a HTTP/1.1\r\n")


# -- what is sent ------------------------------------------------------------------------------------------------------

ENDPOINT = Registered("we_0197f3c58b6e7c21a5d49e03b7f1c864", 10, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=")


@pytest.mark.parametrize(("follows", "only"), [("*", {}), ("stream-a", {"streamIds": ["stream-a"], "ordered": True})])
def test_an_endpoint_is_made_and_taken_away_by_an_operator(follows, only):
    form = Webhooks()
    for octets, method in (
        (form.register(scene(), "http://127.0.0.1:9/0", follows), b"POST"),
        (form.remove(scene(), ENDPOINT), b"DELETE"),
    ):
        connection = h11.Connection(h11.SERVER)
        connection.receive_data(octets)
        head = connection.next_event()
        assert (head.method, dict(head.headers)[b"x-api-key"]) == (method, b"flx_operator")
        body = connection.next_event()
        if method == b"POST":
            wanted = json.loads(body.data)
            assert {name: wanted[name] for name in wanted.keys() - {"description"}} == {
                "url": "http://127.0.0.1:9/0",
                **only,
            }


def test_an_endpoint_begins_where_the_server_says():
    body = json.dumps({"id": ENDPOINT.id, "createdPosition": "10", "secret": ENDPOINT.secret}).encode()
    assert Webhooks().registered(201, body) == ENDPOINT
    assert ENDPOINT.secret not in repr(ENDPOINT)
    for status, other in ((403, body), (201, b"{}")):
        with pytest.raises(Wrong):
            Webhooks().registered(status, other)


def delivery(body, *, at=None):
    at = at or datetime.now(UTC)
    signature = Webhook(ENDPOINT.secret).sign("msg_1", at, body)
    stamp = str(int(at.timestamp()))
    return [("webhook-id", "msg_1"), ("webhook-timestamp", stamp), ("webhook-signature", signature)]


def test_a_delivery_counts_where_its_signature_is_good():
    body = json.dumps(told(11))
    message = Webhooks().event(delivery(body), body.encode(), ENDPOINT)
    assert (message.sort, message.position) == (Sort.EVENT, 11)
    assert message.event_id == b"1-0279172874240000000-0000000000"
    for headers, octets in (
        (delivery(body), body.replace("stream-a", "stream-b").encode()),
        (delivery(body, at=datetime.now(UTC) - timedelta(hours=1)), body.encode()),
        (delivery(body)[:2], body.encode()),
        (delivery("{}"), b"{}"),
    ):
        with pytest.raises(Wrong):
            Webhooks().event(headers, octets, ENDPOINT)


def test_an_endpoint_has_all_once_the_last_is_there_and_of_everything_each():
    everything, one = (Place(Webhooks(), ENDPOINT, follows) for follows in ("*", "stream-a"))
    lasts = {"*": 13, "stream-a": 12}
    for position, done in ((13, False), (11, False), (11, False), (12, True)):
        assert not everything.has_all(lasts)
        everything.told.append(position)
        assert everything.has_all(lasts) is done
    assert everything.story().runs == [(11, 11), (11, 13)]
    assert not one.has_all(lasts)
    one.told += [12]
    assert one.has_all(lasts)
    assert Place(Webhooks(), ENDPOINT, "stream-b").has_all(lasts)
