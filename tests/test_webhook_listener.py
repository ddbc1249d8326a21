"""`fluxora webhooks listen`, by clients that we did not write: what it answers, what it shows, and when it is done."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import h11
import httpx
import pytest
import trio
from trio.testing import memory_stream_pair

from fluxora import webhook_listener
from fluxora.protocol import signing
from fluxora.protocol.signing import Secret
from fluxora.webhook_listener import MAX_CONNECTIONS, REQUEST_S, Behaviour, Receiver, as_text
from fluxora.webhooks import MAX_BODY_BYTES

SECRET = Secret.from_bytes(bytes(range(32)))
EVENT = {"event": "stream.updated", "action": "withdrew", "streamId": "stream-1", "position": "7", "eventId": "e-7"}
BODY = json.dumps(EVENT).encode()


def signed(delivery: str = "msg_we_1_7", body: bytes = BODY, secret: Secret = SECRET) -> dict[str, str]:
    return dict(signing.headers(delivery, int(time.time()), "stream.updated", body, [secret]))


class Listening:
    """A receiver on a port of its own, what it showed, and a client."""

    def __init__(self, receiver: Receiver, url: str, client: httpx.AsyncClient, lines: list[dict[str, Any]]) -> None:
        self.receiver = receiver
        self.url = url
        self.port = int(url.rpartition(":")[2])
        self.client = client
        self.lines = lines

    async def post(self, delivery: str = "msg_we_1_7", **options: Any) -> int:
        options = {"content": BODY, "headers": signed(delivery), **options}
        return (await self.client.post(self.url, **options)).status_code

    async def speak(self, octets: bytes) -> bytes:
        """All that is answered to these bytes, until the listener ends the connection, in whatever way."""
        answered = bytearray()
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
            with suppress(trio.BrokenResourceError):
                await stream.send_all(octets)
                await stream.send_eof()
                async for data in stream:
                    answered += data
        return bytes(answered)


@asynccontextmanager
async def listening(behaviour: Behaviour | None = None, **options: Any) -> AsyncIterator[Listening]:
    lines: list[dict[str, Any]] = []

    async def show(line: dict[str, Any]) -> None:
        lines.append(line)

    receiver = Receiver(SECRET.reveal(), behaviour or Behaviour(), show, **options)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery, httpx.AsyncClient(timeout=30) as client:
            [listener] = await nursery.start(partial(trio.serve_tcp, receiver.serve, 0, host="127.0.0.1"))
            port = listener.socket.getsockname()[1]
            yield Listening(receiver, f"http://127.0.0.1:{port}", client, lines)
            nursery.cancel_scope.cancel()


async def test_what_is_signed_is_accepted_and_shown_once():
    async with listening() as there:
        assert await there.post() == 200
        assert await there.post() == 200  # a duplicate is answered as it should be: or it would come again
        assert await there.post("msg_we_1_8") == 200
    assert [(line["status"], line["outcome"], line["id"]) for line in there.lines] == [
        (200, "accepted", "msg_we_1_7"),
        (200, "duplicate_delivery", "msg_we_1_7"),
        (200, "accepted", "msg_we_1_8"),
    ]
    assert there.lines[0]["event"] == EVENT


@pytest.mark.parametrize(
    ("headers", "content", "status", "code"),
    [
        (dict, BODY, 401, "missing_delivery_id"),
        (lambda: {**signed(), "x-fluxora-timestamp": "soon"}, BODY, 400, "invalid_timestamp"),
        (lambda: {**signed(), "x-fluxora-timestamp": "1"}, BODY, 401, "timestamp_outside_tolerance"),
        (lambda: signed(secret=Secret.from_bytes(bytes(32))), BODY, 401, "signature_mismatch"),
        (signed, BODY + b" ", 401, "signature_mismatch"),
        (signed, b"x" * (MAX_BODY_BYTES + 1), 413, "payload_too_large"),
        (signed, b"x" * 3_000_000, 413, "payload_too_large"),
        (dict, b"x" * 3_000_000, 401, "missing_delivery_id"),
    ],
)
async def test_what_does_not_verify_gets_its_status(headers, content, status, code):
    async with listening() as there:
        answer = await there.client.post(f"{there.url}/any/path?x", headers=headers(), content=content)
        assert (answer.status_code, answer.json()) == (status, {"outcome": code})
        [line] = there.lines
        assert (line["status"], line["outcome"]) == (status, code)
        assert await there.post() == 200


async def test_a_body_without_a_length_is_cut_where_it_is_too_long():
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"x" * 10_000

    async def small() -> AsyncIterator[bytes]:
        yield BODY[:5]
        yield BODY[5:]

    async with listening() as there:
        assert await there.post(content=parts()) == 413
        assert await there.post(content=small()) == 200


async def test_a_body_that_is_too_long_is_answered_before_all_of_it_came():
    head = "".join(f"{name}: {value}\r\n" for name, value in signed().items())
    head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n{head}\r\n"
    async with listening() as there, await trio.open_tcp_stream("127.0.0.1", there.port) as stream:
        await stream.send_all(head.encode() + b"x" * (MAX_BODY_BYTES + 1))
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 413 ")


async def test_only_post_is_a_delivery():
    async with listening() as there:
        answer = await there.client.get(there.url)
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        assert (await there.client.head(there.url)).status_code == 405
        assert (await there.client.put(there.url, content=BODY, headers=signed())).status_code == 405
        assert await there.post() == 200
    assert [line["outcome"] for line in there.lines] == ["method_not_allowed"] * 3 + ["accepted"]


async def test_deliveries_on_one_connection_are_answered_in_order():
    requests = b""
    for nth in range(3):
        client = h11.Connection(h11.CLIENT)
        fields = [("Host", "x"), ("Content-Length", str(len(BODY))), *signed(f"msg_we_1_{nth}").items()]
        for part in (h11.Request(method="POST", target="/", headers=fields), h11.Data(data=BODY), h11.EndOfMessage()):
            requests += client.send(part) or b""
    async with listening() as there:
        answered = await there.speak(requests)
    assert answered.count(b"HTTP/1.1 200 ") == 3
    assert [line["id"] for line in there.lines] == ["msg_we_1_0", "msg_we_1_1", "msg_we_1_2"]


async def test_who_asks_whether_to_go_on_is_told_so():
    head = "".join(f"{name}: {value}\r\n" for name, value in signed().items())
    head = f"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {len(BODY)}\r\n{head}\r\n"
    async with listening() as there, await trio.open_tcp_stream("127.0.0.1", there.port) as stream:
        await stream.send_all(head.encode())
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 100 ")
        await stream.send_all(BODY)
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "octets",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),  # the hello of TLS
        b"GARBAGE\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5, 6\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 100_000,
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab",  # and no more
    ],
)
async def test_what_is_no_request_ends_its_connection_and_no_other(octets):
    async with listening() as there:
        assert b" 200 " not in await there.speak(octets)
        assert [line["outcome"] for line in there.lines] == ["not_http"]
        assert await there.post() == 200


async def test_a_connection_that_is_reset_harms_no_other():
    async with listening() as there:
        for octets in (b"", b"POST / HT", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"):
            stream = await trio.open_tcp_stream("127.0.0.1", there.port)
            await stream.send_all(octets) if octets else None
            stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            stream.socket.close()
        assert await there.post() == 200


async def test_a_share_fails_on_purpose_and_is_no_duplicate_when_it_comes_again():
    draws = iter([0.29, 0.3, 0.0])
    async with listening(Behaviour(fail=0.3), draw=lambda: next(draws)) as there:
        assert [await there.post(), await there.post(), await there.post()] == [500, 200, 200]
        assert await there.post("msg_we_1_8") == 500
    outcomes = ["failed_on_purpose", "accepted", "duplicate_delivery", "failed_on_purpose"]
    assert [line["outcome"] for line in there.lines] == outcomes


async def test_it_is_done_when_as_many_as_asked_for_are_accepted_and_answered():
    async with listening(Behaviour(count=2)) as there:
        assert [await there.post("msg_a_1"), await there.post("msg_a_1")] == [200, 200]
        assert not there.receiver.done.is_set()
        assert await there.post("msg_a_2") == 200
        await there.receiver.done.wait()
        assert await there.post("msg_a_3") == 503
        assert await there.post("msg_a_2") == 200


async def test_it_is_not_done_while_another_one_is_being_answered():
    asked, answer = trio.Event(), trio.Event()

    async def show(line: dict[str, Any]) -> None:
        if line["id"] == "msg_a_1":
            asked.set()
            await answer.wait()

    async with listening(Behaviour(count=2)) as there, trio.open_nursery() as nursery:
        there.receiver._show = show
        nursery.start_soon(there.post, "msg_a_1")
        await asked.wait()
        assert await there.post("msg_a_2") == 200
        assert not there.receiver.done.is_set()
        answer.set()
        await there.receiver.done.wait()


async def test_it_forgets_the_oldest_ids_first(monkeypatch):
    monkeypatch.setattr(webhook_listener, "REMEMBERED", 3)
    async with listening() as there:
        for delivery in ("msg_a_0", "msg_a_1", "msg_a_2", "msg_a_0", "msg_a_3", "msg_a_1", "msg_a_0"):
            assert await there.post(delivery) == 200
    duplicates = [line["id"] for line in there.lines if line["outcome"] == "duplicate_delivery"]
    assert duplicates == ["msg_a_0", "msg_a_1"]


# time


def request_bytes() -> bytes:
    head = "".join(f"{name}: {value}\r\n" for name, value in signed().items())
    return f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n{head}\r\n".encode() + BODY


async def test_a_slow_one_answers_after_its_time(autojump_clock):
    lines: list[dict[str, Any]] = []

    async def show(line: dict[str, Any]) -> None:
        lines.append(line)

    ours, theirs = memory_stream_pair()
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Receiver(SECRET.reveal(), Behaviour(slow_s=2.0), show).serve, theirs)
        await ours.send_all(request_bytes())
        assert (await ours.receive_some()).startswith(b"HTTP/1.1 200 ")
        assert trio.current_time() - began == pytest.approx(2.0)
        await ours.aclose()


@pytest.mark.parametrize(
    "begun", [b"", b"POST / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc"]
)
async def test_a_request_that_does_not_come_ends_its_connection(begun, autojump_clock):
    async def show(_line: dict[str, Any]) -> None:
        raise AssertionError

    ours, theirs = memory_stream_pair()
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Receiver(SECRET.reveal(), Behaviour(), show).serve, theirs)
        if begun:
            await ours.send_all(begun)
        assert await ours.receive_some() == b""
    assert trio.current_time() - began == pytest.approx(REQUEST_S)


async def test_more_connections_than_it_serves_are_closed(autojump_clock):
    receiver = Receiver(SECRET.reveal(), Behaviour(), trio.lowlevel.checkpoint)
    pairs = [memory_stream_pair() for _ in range(MAX_CONNECTIONS + 1)]
    async with trio.open_nursery() as nursery:
        for _, theirs in pairs:
            nursery.start_soon(receiver.serve, theirs)
            await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        assert await pairs[-1][0].receive_some() == b""
        assert trio.current_time() == began  # at once, and not when its time was over
        nursery.cancel_scope.cancel()


# lines


def test_a_line_says_what_happened_to_what():
    line = {"status": 200, "outcome": "accepted", "id": "msg_a_7", "timestamp": 1, "event": EVENT}
    assert as_text(line) == "200  accepted            stream.updated  withdrew  stream-1  position 7  msg_a_7"


@pytest.mark.parametrize("text", ["\x1b[2J\x1b]0;x\x07", "a\nb", "a\r", "\u202e", "é", "x" * 1_000])
def test_nothing_from_outside_steers_the_terminal(text):
    for line in (
        {"status": 401, "outcome": "signature_mismatch", "id": text, "message": text},
        {"status": 200, "outcome": "accepted", "id": text, "event": {**EVENT, "streamId": text, "action": text}},
        {"status": 200, "outcome": "accepted", "id": text, "event": [text]},
    ):
        shown = as_text(line)
        assert shown.isascii()
        assert shown.isprintable()
        assert len(shown) < 600
