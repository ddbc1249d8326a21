"""What a client may say over a WebSocket, and the messages and events that it is told, read back by other parsers."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stellar_sdk import StrKey

from fluxora.protocol import sockets
from fluxora.protocol.messages import LogEvent
from fluxora.protocol.sockets import ALL, MessageError, Ping, Selector, Subscribe, Unsubscribe, parse

ACCOUNT = StrKey.encode_ed25519_public_key(b"\x01" * 32)
OTHER = StrKey.encode_ed25519_public_key(b"\x02" * 32)
CONTRACT = StrKey.encode_contract(b"\x03" * 32)
STREAM = "stream-ccmaoccy634r-42"
PAYLOAD = b'{"id":"stream-1",  "memo":"\xc3\xbc","amount":"1.0000000"}'  # as stored: its bytes are nobody's to change


def event(payload: bytes = PAYLOAD, **changes: object) -> LogEvent:
    fields: dict = {
        "position": 2**60,
        "event_id": "1-0000000001-0000000001",
        "event": "stream.updated",
        "action": "withdrew",
        "stream_id": STREAM,
        "ledger": 52_000_000,
        "tx_hash": "ab" * 32,
        "contract_id": CONTRACT,
        "timestamp_ms": 1_767_225_600_123,
        "payload": payload,
    }
    return LogEvent(**{**fields, **changes})


def said(**members: object) -> bytes:
    return json.dumps(members).encode()


# -- what a client says ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "selector"),
    [
        ({"streamId": STREAM}, Selector("stream", STREAM)),
        ({"streamId": "*"}, ALL),
        ({"sender": ACCOUNT}, Selector("sender", ACCOUNT)),
        ({"recipient": CONTRACT}, Selector("recipient", CONTRACT)),
        ({"recipient": ACCOUNT, "sender": None, "streamId": None}, Selector("recipient", ACCOUNT)),
        ({"streamId": "not-created-yet"}, Selector("stream", "not-created-yet")),
    ],
)
def test_a_subscription_names_exactly_one_thing_to_follow(members, selector):
    assert parse(said(type="subscribe", **members)) == Subscribe(selector, None, None)
    assert parse(said(type="subscribe", after="0", ref="r", **members)) == Subscribe(selector, 0, "r")
    assert parse(said(type="unsubscribe", after="what?", ref="", **members)) == Unsubscribe(selector, "")


def test_a_ping_needs_nothing_else():
    assert parse(b' {"type":"ping"} ') == Ping(None)
    assert parse(said(type="ping", ref="\U0001f600" * 64)) == Ping("\U0001f600" * 64)


@given(st.integers(0, 2**63 - 1), st.text(st.characters(codec="utf-8"), max_size=64))
def test_every_position_and_every_ref_of_its_size_is_taken(after, ref):
    message = parse(said(type="subscribe", streamId="*", after=str(after), ref=ref))
    assert message == Subscribe(ALL, after, ref)


def test_unknown_members_are_ignored():
    deep = json.loads("[" * 31 + "]" * 31)
    assert parse(said(type="ping", deep=deep, n=1.5, brackets="[{" * 40, quote='\\"[')) == Ping(None)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"", "INVALID_JSON"),
        (b"{", "INVALID_JSON"),
        (b'{"type":"ping"} x', "INVALID_JSON"),
        (b'{"type":"ping","ref":"\xff"}', "INVALID_JSON"),
        (b'\xef\xbb\xbf{"type":"ping"}', "INVALID_JSON"),
        (b'{"type":"ping","type":"ping"}', "INVALID_JSON"),
        (b'{"type":"ping","x":{"a":1,"a":1}}', "INVALID_JSON"),
        (b'{"type":"ping","x":NaN}', "INVALID_JSON"),
        (b'{"type":"ping","x":-Infinity}', "INVALID_JSON"),
        (b'{"type":"ping","x":' + b"[" * 32 + b"]" * 32 + b"}", "INVALID_JSON"),
        (b"[" * 4096, "INVALID_JSON"),
        (b'{"a":' * 800, "INVALID_JSON"),
        (b'{"type":"ping","ref":"\\ud800"}', "INVALID_JSON"),
        (b"[]", "INVALID_MESSAGE"),
        (b'"ping"', "INVALID_MESSAGE"),
        (b"null", "INVALID_MESSAGE"),
        (b"{}", "INVALID_MESSAGE"),
        (b'{"type":["ping"]}', "INVALID_MESSAGE"),
        (said(type="ping", ref=1), "INVALID_MESSAGE"),
        (said(type="ping", ref="x" * 65), "INVALID_MESSAGE"),
        (said(type="Subscribe", streamId="*"), "UNKNOWN_TYPE"),
        (said(type=""), "UNKNOWN_TYPE"),
        (said(type="subscribe"), "INVALID_MESSAGE"),
        (said(type="subscribe", streamId=None), "INVALID_MESSAGE"),
        (said(type="subscribe", streamId="*", sender=ACCOUNT), "INVALID_MESSAGE"),
        (said(type="unsubscribe", recipient=ACCOUNT, sender=ACCOUNT), "INVALID_MESSAGE"),
        (said(type="subscribe", streamId=7), "INVALID_MESSAGE"),
        (said(type="subscribe", streamId=""), "INVALID_MESSAGE"),
        (said(type="subscribe", streamId="x" * 129), "INVALID_MESSAGE"),
        (said(type="subscribe", streamId="a\0"), "INVALID_MESSAGE"),
        (said(type="subscribe", streamId="stream-ü"), "INVALID_MESSAGE"),
        (said(type="subscribe", sender="*"), "INVALID_MESSAGE"),
        (said(type="subscribe", sender=[ACCOUNT]), "INVALID_MESSAGE"),
        (said(type="subscribe", sender=ACCOUNT[:-1] + "A"), "INVALID_MESSAGE"),  # its checksum
        (said(type="subscribe", recipient=ACCOUNT.lower()), "INVALID_MESSAGE"),
        *(
            (said(type="subscribe", streamId="*", after=after), "INVALID_MESSAGE")
            for after in (1, 0, True, "", "-1", "+1", "1.0", " 1", "1\n", "٣", str(2**63), "1" * 20, [], "1e3")
        ),
    ],
)
def test_what_cannot_be_used_is_refused_under_its_code(text, code):
    with pytest.raises(MessageError) as caught:
        parse(text)
    assert caught.value.code == code
    assert caught.value.message


def test_a_refusal_carries_the_ref_where_there_is_one():
    for members in (
        {"type": "dance"},
        {"type": 1},
        {"type": "subscribe"},
        {"type": "subscribe", "streamId": "*", "after": "x"},
        {"type": "unsubscribe", "sender": "x"},
    ):
        with pytest.raises(MessageError) as caught:
            parse(said(**members, ref="my ref"))
        assert caught.value.ref == "my ref"
        answer = json.loads(sockets.error(caught.value.code, caught.value.message, caught.value.ref))
        assert (answer["type"], answer["ref"]) == ("error", "my ref")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
likely = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["subscribe", "unsubscribe", "ping"]) | json_values,
        "streamId": st.sampled_from(["*", STREAM]) | json_values,
        "sender": st.just(ACCOUNT) | json_values,
        "recipient": st.just(CONTRACT) | json_values,
        "after": st.integers(0, 2**64).map(str) | json_values,
        "ref": st.text(max_size=70) | json_values,
    },
)


@given(
    st.binary(max_size=4096)
    | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | (likely | json_values).map(lambda value: json.dumps(value).encode())
)
def test_whatever_comes_it_is_a_message_or_a_refusal_that_can_be_sent(text):
    try:
        message = parse(text)
    except MessageError as refusal:
        json.loads(sockets.error(refusal.code, refusal.message, refusal.ref))
    else:
        assert isinstance(message, Subscribe | Unsubscribe | Ping)
        json.loads(sockets.ack(message.ref, 0, recovered=False))


# -- what it is told ---------------------------------------------------------------------------------------------------


def test_an_event_over_each_protocol():
    payload = json.loads(PAYLOAD)
    update = sockets.stream_update(event())
    assert PAYLOAD in update
    assert json.loads(update) == {
        "type": "stream_update",
        "streamId": STREAM,
        "eventId": "1-0000000001-0000000001",
        "payload": payload,
        "event": "stream.updated",
        "action": "withdrew",
        "position": "1152921504606846976",
        "ledger": 52_000_000,
        "timestamp": "2026-01-01T00:00:00.123Z",
    }
    shown = sockets.broadcast(event())
    assert PAYLOAD in shown
    assert json.loads(shown) == {
        "event": "stream.updated",
        "streamId": STREAM,
        "payload": payload,
        "timestamp": "2026-01-01T00:00:00.123Z",
    }


def test_what_an_event_has_not_is_null():
    of_contract = json.loads(sockets.stream_update(event(stream_id=None, ledger=None)))
    assert (of_contract["streamId"], of_contract["ledger"]) == (None, None)
    assert json.loads(sockets.broadcast(event(stream_id=None)))["streamId"] is None


def test_server_sent_events_have_one_line_of_each_kind():
    text = sockets.sse(event()).decode()
    assert text.endswith("\n\n")
    lines = text[:-2].split("\n")
    assert lines[:2] == ["id: 1152921504606846976", "event: stream.updated"]
    (data,) = lines[2:]
    assert json.loads(data.removeprefix("data: ")) == {
        "event": "stream.updated",
        "eventId": "1-0000000001-0000000001",
        "streamId": STREAM,
        "position": "1152921504606846976",
        "action": "withdrew",
        "ledger": 52_000_000,
        "txHash": "ab" * 32,
        "contractId": CONTRACT,
        "timestamp": "2026-01-01T00:00:00.123Z",
        "payload": json.loads(PAYLOAD),
    }


def test_a_payload_of_many_lines_stays_one_event():
    text = sockets.sse(event(b'{"a":\n1,\r\n"b":"\\n"}')).decode()
    assert [line.partition(":")[0] for line in text.split("\n")] == ["id", "event", "data", "", ""]
    assert "\r" not in text
    assert json.loads(text.split("data: ")[1])["payload"] == {"a": 1, "b": "\n"}


def test_the_other_messages():
    told = [
        (sockets.ack("r", 7, recovered=True), {"type": "ack", "ref": "r", "position": "7", "recovered": True}),
        (sockets.pong(), {"type": "pong"}),
        (sockets.pong("r"), {"type": "pong", "ref": "r"}),
        (sockets.reset(9, "why"), {"type": "reset", "position": "9", "reason": "why"}),
        (sockets.error("FORBIDDEN", "no"), {"type": "error", "code": "FORBIDDEN", "message": "no"}),
        (
            sockets.service("service.degraded", "database", 0),
            {"type": "service.degraded", "reason": "database", "timestamp": "1970-01-01T00:00:00.000Z"},
        ),
        (
            sockets.broadcast_service("service.recovered", "database", 1),
            {"event": "service.recovered", "reason": "database", "timestamp": "1970-01-01T00:00:00.001Z"},
        ),
    ]
    for encoded, expected in told:
        assert json.loads(encoded) == expected


def test_what_server_sent_events_tell_beside_the_log_has_no_id():
    reset = sockets.sse_reset(9, "why").decode()
    service = sockets.sse_service("service.degraded", "database", 0).decode()
    for text, name in ((reset, "reset"), (service, "service.degraded")):
        first, data, *rest = text.split("\n")
        assert first == f"event: {name}"
        assert json.loads(data.removeprefix("data: "))["reason"] in {"why", "database"}
        assert rest == ["", ""]


# -- whom an event concerns --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ({"sender": ACCOUNT, "recipient": OTHER, "change": {"amount": "1"}}, (ACCOUNT, OTHER)),
        ({"sender": None, "recipient": OTHER}, (None, OTHER)),
        ({"change": {"recipient": OTHER, "sender": ACCOUNT}}, (None, None)),  # of a stream that is not known
        ({"stream": {"sender": ACCOUNT, "recipient": OTHER}, "reverts": ["1"]}, (ACCOUNT, OTHER)),
        ({"stream": None, "reverts": ["1"]}, (None, None)),
        ({"change": {"topics": [["x"]], "value": {"oldSender": 7}, "oldSender": {"a": 1}}}, (None, None)),
    ],
)
def test_the_parties_of_an_event_are_those_of_its_stream(payload, expected):
    assert sockets.parties(event(json.dumps(payload).encode())) == expected


def test_an_event_of_no_stream_has_no_parties():
    payload = json.dumps({"sender": ACCOUNT, "recipient": OTHER}).encode()
    assert sockets.parties(event(payload, stream_id=None)) == (None, None)


def test_a_transfer_concerns_those_who_had_the_stream_too():
    payload = {"sender": ACCOUNT, "recipient": OTHER, "change": {"oldRecipient": CONTRACT, "newRecipient": OTHER}}
    named = sockets.concerned(event(json.dumps(payload).encode()))
    assert named == sockets.Concerned(ACCOUNT, OTHER, None, CONTRACT)


def test_a_retraction_names_what_it_takes_back():
    assert sockets.reverted_ids(event(b'{"stream":null,"reverts":["1-7","1-8"]}')) == {"1-7", "1-8"}
