"""One attempt against real consumers: what is sent, what counts as delivered, what is never connected to."""

from __future__ import annotations

import itertools
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from email.utils import formatdate
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec import structs
from standardwebhooks import Webhook, WebhookVerificationError
from webhook_consumer import OK, SECRET, Answer, consuming, in_turn

from fluxora import __version__
from fluxora.actors.resolver import Resolver
from fluxora.actors.webhook_sender import Message, Sent, WebhookSender, sign
from fluxora.config import WebhookConfig
from fluxora.protocol.messages import LogEvent
from fluxora.protocol.signing import MAX_BODY_BYTES, Secret
from fluxora.webhooks import verify

PEM = Path(__file__).parent / "node_test.pem"  # a certificate and key for node.test, made for the tests
LOOPBACK = WebhookConfig(allowed_networks=(ip_network("127.0.0.0/8"),))
STRICT = WebhookConfig()
EVENT = LogEvent(
    7, "1-0007", "stream.updated", "withdrew", "stream-7", 70, "ab", "C7", 1_700_000_000_123, b'{"id":"stream-7"}'
)
TIGHT_S = 0.3


def message(*secrets: str) -> Message:
    return sign("msg_we_1_7", EVENT, [Secret(text) for text in secrets or (SECRET,)], now_s=int(time.time()))


@contextmanager
def sending(config: WebhookConfig = LOOPBACK, **options: Any) -> Iterator[WebhookSender]:
    sender = WebhookSender(config, **options)
    yield sender
    sender.close()


async def attempt(url: str, config: WebhookConfig = LOOPBACK, **options: Any) -> Sent:
    with sending(config, **options) as sender, trio.fail_after(20):
        return await sender.send(url, message())


def names(*answers: Sequence[str]) -> tuple[Resolver, list[str]]:
    """A resolver that gives the answers one after the other, then the last one for ever; and what it was asked."""
    asked: list[str] = []
    waiting = itertools.chain(answers, itertools.repeat(answers[-1]))

    def lookup(host: str) -> Sequence[str]:
        asked.append(host)
        return next(waiting)

    return Resolver(lookup), asked


# What is sent


async def test_a_body_that_receivers_refuse_by_its_size_is_not_sent() -> None:
    """Exactly as many bytes as they take arrive; with one more nothing does, and no later attempt could be better."""
    wrapping = len(message().body) - len(EVENT.payload)
    async with consuming() as consumer:
        for size in (MAX_BODY_BYTES, MAX_BODY_BYTES + 1):
            payload = b'"' + b"x" * (size - wrapping - 2) + b'"'
            large = sign(
                "msg_we_1_7", structs.replace(EVENT, payload=payload), [Secret(SECRET)], now_s=int(time.time())
            )
            assert len(large.body) == size
            with sending() as sender, trio.fail_after(20):
                sent = await sender.send(consumer.url, large)
            assert (sent.delivered, sent.hopeless) == (size <= MAX_BODY_BYTES, size > MAX_BODY_BYTES)
        assert sent.error is not None
        assert "262,145 bytes" in sent.error
    [request] = consumer.requests
    assert len(verify(request.body, request.headers, secret=SECRET).body) == MAX_BODY_BYTES


async def test_a_delivery_carries_the_event_and_both_families_of_headers() -> None:
    async with consuming(Answer(202, b"thanks")) as consumer:
        sent = await attempt(consumer.url + "?a=1")
    [request] = consumer.requests
    assert (sent.status, sent.error, sent.response, sent.delivered) == (202, None, "thanks", True)
    assert request.path == "/hook?a=1"
    assert request.verified() == {
        "event": "stream.updated",
        "eventId": "1-0007",
        "streamId": "stream-7",
        "position": "7",
        "action": "withdrew",
        "ledger": 70,
        "txHash": "ab",
        "contractId": "C7",
        "timestamp": "2023-11-14T22:13:20.123Z",
        "payload": {"id": "stream-7"},
    }
    headers = request.headers
    assert headers["x-fluxora-delivery-id"] == headers["webhook-id"] == "msg_we_1_7"
    assert headers["x-fluxora-timestamp"] == headers["webhook-timestamp"]
    assert headers["x-fluxora-event"] == "stream.updated"
    assert headers["content-type"] == "application/json"
    assert headers["user-agent"] == f"Fluxora-Webhooks/{__version__}"
    assert headers["host"] == f"127.0.0.1:{consumer.port}"
    assert not request.repeated
    assert not {"authorization", "cookie", "transfer-encoding"} & set(headers)


async def test_while_a_secret_is_replaced_both_verify_and_no_other() -> None:
    other, third = ("whsec_" + letter * 43 + "=" for letter in "QU")
    async with consuming() as consumer:
        with sending() as sender:
            await sender.send(consumer.url, message(other, SECRET))
    [request] = consumer.requests
    assert request.verified(SECRET) == request.verified(other)
    with pytest.raises(WebhookVerificationError):
        Webhook(third).verify(request.body, request.headers)


async def test_the_connection_is_kept_for_the_next_message() -> None:
    async with consuming() as consumer:
        with sending() as sender:
            for _ in range(5):
                assert (await sender.send(consumer.url, message())).delivered
    assert (consumer.connections, len(consumer.requests)) == (1, 5)


# What counts


@pytest.mark.parametrize("status", [200, 201, 204, 299])
async def test_any_2xx_is_delivered(status: int) -> None:
    async with consuming(Answer(raw=b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status)) as consumer:
        sent = await attempt(consumer.url)
    assert (sent.status, sent.delivered) == (status, True)


@pytest.mark.parametrize("status", [300, 301, 304, 400, 401, 404, 410, 418, 429, 500, 503, 599])
async def test_nothing_else_is(status: int) -> None:
    async with consuming(Answer(raw=b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status)) as consumer:
        sent = await attempt(consumer.url)
    assert (sent.status, sent.error, sent.delivered) == (status, None, False)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(status: int) -> None:
    async with consuming() as inner:
        async with consuming(Answer(status, headers=[("Location", inner.url)])) as consumer:
            sent = await attempt(consumer.url)
        assert (sent.status, sent.delivered) == (status, False)
        assert inner.connections == 0


@pytest.mark.parametrize(
    ("status", "header", "at_least", "at_most"),
    [
        (429, "7", 7_000, 7_000),
        (503, "0", 0, 0),
        (503, "999999999", 86_400_000, 86_400_000),
        (503, "in an hour", 3_000_000, 3_600_000),
        (429, "soon", None, None),
        (500, "7", None, None),
        (302, "7", None, None),
    ],
)
async def test_only_429_and_503_may_ask_for_a_wait(
    status: int, header: str, at_least: int | None, at_most: int | None
) -> None:
    if header == "in an hour":
        header = formatdate(time.time() + 3600, usegmt=True)
    async with consuming(Answer(status, headers=[("Retry-After", header)])) as consumer:
        asked = (await attempt(consumer.url)).retry_after_ms
    if at_least is None or at_most is None:
        assert asked is None
    else:
        assert asked is not None
        assert at_least <= asked <= at_most


# Answers that are hard to read


async def test_the_response_is_shown_in_its_beginning_as_text_that_a_database_takes() -> None:
    async with consuming(Answer(500, b"a\0b\xff" + "\u00e9".encode() * 2000)) as consumer:
        sent = await attempt(consumer.url)
    assert sent.response.startswith("a\ufffdb\ufffd\u00e9\u00e9")
    assert len(sent.response) <= 1024


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, b"x" * 5_000_000),
        Answer(200, chunks=itertools.repeat(b"x" * 10_000)),
        Answer(500, chunks=itertools.repeat(b"x" * 10_000)),
    ],
)
async def test_a_long_answer_is_cut_and_its_connection_closed_but_its_status_counts(answer: Answer) -> None:
    async with consuming(in_turn(answer, OK)) as consumer:
        closed = consumer.closed
        with sending() as sender:
            sent = await sender.send(consumer.url, message())
            assert (sent.status, sent.error) == (answer.status, None)
            assert sent.delivered == (answer.status == 200)
            assert sent.response == "x" * 1024
            with trio.fail_after(10):
                await closed.wait()
            assert (await sender.send(consumer.url, message())).delivered
    assert consumer.connections == 2


async def test_an_answer_of_just_64_kib_is_read_whole() -> None:
    async with consuming(Answer(200, b"x" * 65_536)) as consumer:
        with sending() as sender:
            for _ in range(2):
                assert (await sender.send(consumer.url, message())).delivered
    assert consumer.connections == 1


@pytest.mark.parametrize(
    ("answer", "status", "says"),
    [
        (Answer(hang=True), None, "no complete answer within 0.3 s|no first byte"),
        (Answer(drop=True), None, "closed without an answer"),
        (Answer(raw=b"SSH-2.0-OpenSSH_9.9\r\n\r\n"), None, "not HTTP"),
        (Answer(raw=b"HTTP/1.1 200 OK\r\nContent-Le"), None, "broke"),
        (Answer(200, b"x" * 100, cut=10), 200, "broke off"),
        (Answer(200, chunks=itertools.repeat(b"x"), every_s=0.01), 200, "no complete answer within 0.3 s"),
    ],
)
async def test_an_answer_that_does_not_come_whole_is_none(answer: Answer, status: int | None, says: str) -> None:
    async with consuming(answer) as consumer:
        sent = await attempt(consumer.url, attempt_s=TIGHT_S)
    assert (sent.status, sent.delivered, sent.retry_after_ms) == (status, False, None)
    assert sent.error is not None
    assert any(part in sent.error for part in says.split("|")), sent.error


async def test_a_head_that_trickles_is_bounded() -> None:
    async def trickle(stream: trio.SocketStream) -> None:
        try:
            await stream.receive_some(10_000)
            for byte in itertools.cycle(b"HTTP/1.1 200 OK\r\nX-A: b\r\n"):
                await stream.send_all(bytes([byte]))
                await trio.sleep(0.005)
        except trio.BrokenResourceError:
            pass

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, trickle, [listener])
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/"
        sent = await attempt(url, attempt_s=TIGHT_S)
        assert (sent.status, sent.error) == (None, "no complete answer within 0.3 s")
        nursery.cancel_scope.cancel()


async def test_nobody_there() -> None:
    async with consuming() as consumer:
        url = consumer.url
    sent = await attempt(url)
    assert (sent.status, sent.delivered) == (None, False)
    assert "cannot connect" in (sent.error or "")


async def test_a_cancelled_attempt_leaves_no_connection() -> None:
    async with consuming(Answer(hang=True)) as consumer:
        closed = consumer.closed
        with sending() as sender:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sender.send, consumer.url, message())
                await consumer.arrived.wait()
                nursery.cancel_scope.cancel()
            with trio.fail_after(10):
                await closed.wait()


# Where nothing is sent


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://127.0.0.1:{port}/", "not on the public Internet"),
        ("https://127.0.0.1:{port}/", "not on the public Internet"),
        ("https://[::ffff:127.0.0.1]:{port}/", "not on the public Internet"),
        ("http://consumer.test:{port}/", "plain http"),
        ("https://user@127.0.0.1:{port}/", "no user"),
        ("https://2130706433:{port}/", "must be a name or an address"),
        ("ftp://127.0.0.1:{port}/", "must begin with https"),
        ("https://localhost:{port}/", "this machine"),
    ],
)
async def test_a_url_that_is_refused_costs_no_packet(url: str, says: str) -> None:
    async with consuming() as consumer:
        resolver, asked = names(["127.0.0.1"])
        sent = await attempt(url.format(port=consumer.port), STRICT, resolver=resolver)
        assert (sent.status, sent.delivered) == (None, False)
        assert says in (sent.error or "")
        assert consumer.connections == 0
        assert asked == []


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["::1"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::7f00:1"],
        ["192.0.2.1", "127.0.0.1"],
        ["1.1.1.1", "10.0.0.8"],
        ["127.0.0.1", "1.1.1.1"],
        ["fe80::1%lo"],
    ],
)
async def test_a_name_with_any_address_that_is_refused_costs_no_packet(
    addresses: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    connected: list[object] = []
    monkeypatch.setattr(trio, "open_tcp_stream", lambda *where: connected.append(where))
    sent = await attempt("https://consumer.test/", STRICT, resolver=names(addresses)[0])
    assert "not on the public Internet" in (sent.error or "")
    assert connected == []


async def test_a_name_that_changes_its_answer_is_asked_once_and_the_connection_made_to_what_was_judged() -> None:
    """The second answer is where the attacker wants us; the first one, though allowed, has nobody listening."""
    allowed = WebhookConfig(allowed_networks=(ip_network("127.0.0.9/32"),))
    async with consuming() as victim:
        resolver, asked = names(["127.0.0.9"], ["127.0.0.1"])
        with sending(allowed, resolver=resolver) as sender:
            url = f"http://consumer.test:{victim.port}/"
            first = await sender.send(url, message())
            assert "cannot connect" in (first.error or "")
            second = await sender.send(url, message())
            assert "not on the public Internet" in (second.error or "")
        assert asked == ["consumer.test"] * 2
        assert victim.connections == 0


async def test_an_address_that_nobody_listens_on_is_passed_over_for_the_next() -> None:
    async with consuming() as consumer:
        resolver, _ = names(["127.0.0.9", "127.0.0.1"])
        sent = await attempt(f"http://consumer.test:{consumer.port}/", resolver=resolver)
    assert sent.delivered
    assert consumer.requests[0].headers["host"] == f"consumer.test:{consumer.port}"


async def test_a_kept_connection_is_not_used_for_another_address_of_the_same_name() -> None:
    async with consuming() as one, trio.open_nursery() as nursery:
        resolver, _ = names(["127.0.0.1"], ["127.0.0.9"])
        with sending(resolver=resolver) as sender:
            assert (await sender.send(f"http://consumer.test:{one.port}/", message())).delivered
            assert not (await sender.send(f"http://consumer.test:{one.port}/", message())).delivered
        assert len(one.requests) == 1
        nursery.cancel_scope.cancel()


async def test_a_name_that_does_not_resolve_is_a_failed_attempt() -> None:
    sent = await attempt("https://does-not-exist.invalid/")
    assert "does-not-exist.invalid cannot be resolved" in (sent.error or "")


async def test_a_name_whose_servers_are_silent_costs_the_time_of_an_attempt() -> None:
    door = threading.Event()

    def lookup(_host: str) -> list[str]:
        door.wait(30)
        return []

    sent = await attempt("https://consumer.test/", attempt_s=TIGHT_S, resolver=Resolver(lookup))
    assert sent.error == "no complete answer within 0.3 s"
    door.set()


# TLS


def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(PEM)
    return context


async def test_https_is_verified_for_the_name_while_the_connection_goes_to_its_address() -> None:
    def trust() -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(PEM))

    async with consuming(tls=server_context()) as consumer:
        resolver, _ = names(["127.0.0.1"])
        with sending(tls=trust(), resolver=resolver) as sender:
            for _ in range(3):
                assert (await sender.send(consumer.url, message())).delivered
        assert consumer.connections == 1
        for url, options in (
            (consumer.url.replace("node.test", "other.test"), {"tls": trust()}),  # another name
            (consumer.url, {}),  # an authority that nobody trusts
        ):
            sent = await attempt(url, resolver=resolver, **options)
            assert "TLS handshake failed" in (sent.error or "")
    assert len(consumer.requests) == 3
    assert consumer.requests[0].headers["host"] == f"node.test:{consumer.port}"


async def test_a_public_address_takes_https_only() -> None:
    sent = await attempt("http://1.1.1.1/", STRICT)
    assert "plain http to 1.1.1.1 is refused" in (sent.error or "")
