"""Server frames, read back by wsproto, which knows nothing of how they were made."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.frame_protocol import CloseReason, Frame, FrameProtocol, Opcode

from fluxora.errors import InvariantError
from fluxora.protocol import close_codes, frames

AROUND_THE_FORMS = [0, 1, 125, 126, 127, 65535, 65536, 65537, 200_000]
words = st.text(st.characters(codec="utf-8"), max_size=60)


def read(data: bytes) -> list[Frame]:
    """As a client that negotiated no extension; a masked frame would be refused."""
    client = FrameProtocol(client=True, extensions=[])
    client.receive_bytes(data)
    return list(client.received_frames())


@pytest.mark.parametrize("size", AROUND_THE_FORMS)
def test_a_text_of_any_size_is_one_whole_frame_of_least_length(size):
    payload = ("ü" * (size // 2) + "x" * (size % 2)).encode()
    framed = frames.text(payload)
    assert len(framed) == size + (2 if size < 126 else 4 if size < 65536 else 10)
    (frame,) = read(framed)
    assert (frame.opcode, frame.payload.encode()) == (Opcode.TEXT, payload)
    assert frame.frame_finished
    assert frame.message_finished


@given(st.lists(words, min_size=1, max_size=5))
def test_joined_frames_are_read_one_by_one(texts):
    assert [frame.payload for frame in read(b"".join(frames.text(text.encode()) for text in texts))] == texts


@given(
    st.sampled_from([1000, 1001, 1008, 1009, 1011, 3000, 4001, 4999]),
    words.filter(lambda reason: len(reason.encode()) <= 123),  # the rest of a control frame behind its code
)
def test_a_close_frame_carries_its_code_and_reason(code, reason):
    (frame,) = read(frames.close(code, reason))
    assert frame.opcode is Opcode.CLOSE
    code_read, reason_read = frame.payload
    assert (int(code_read), reason_read or "") == (code, reason)


@given(st.binary(max_size=125))
def test_pings_and_pongs_carry_their_payload(payload):
    ping, pong = read(frames.ping(payload) + frames.pong(payload))
    assert (ping.opcode, bytes(ping.payload)) == (Opcode.PING, payload)
    assert (pong.opcode, bytes(pong.payload)) == (Opcode.PONG, payload)


def test_what_no_peer_would_take_is_not_made():
    frames.close(1000, "ü" * 61 + "x")  # 123 bytes
    for make in (
        lambda: frames.ping(bytes(126)),
        lambda: frames.pong(bytes(126)),
        lambda: frames.close(1000, "ü" * 62),
        *(lambda code=code: frames.close(code) for code in (0, 999, 1004, 1005, 1006, 1015, 2999, 5000)),
    ):
        with pytest.raises(InvariantError):
            make()


def test_every_close_code_of_the_contract_can_be_sent_and_is_read():
    assert [one.code for one in close_codes.CLOSE_CODES] == [1001, 1008, 1009, 4001, 4002, 4003, 4401, 4403]
    for one in close_codes.CLOSE_CODES:
        (frame,) = read(frames.close(one.code, one.reason))
        assert frame.payload == (one.code, one.reason)
    assert close_codes.GOING_AWAY.code == CloseReason.GOING_AWAY
    assert {one.code for one in close_codes.CLOSE_CODES if one.reconnect == "resume"} == {1001, 4001, 4002}
    assert [one.code for one in close_codes.CLOSE_CODES if one.reconnect == "no"] == [4403]


@given(st.lists(st.binary(max_size=300) | st.sampled_from([bytes(125), bytes(126), bytes(65_535), bytes(65_536)])))
def test_what_was_joined_is_split_again(payloads):
    closing = frames.close(1001, "bye")
    joined = b"".join(map(frames.text, payloads)) + closing
    assert list(frames.split(joined)) == [*((frames.TEXT, one) for one in payloads), (frames.CLOSE, closing[2:])]
