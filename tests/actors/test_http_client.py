"""The HTTP client against real sockets: connection reuse, deadlines, bounds, TLS, cancellation."""

from __future__ import annotations

import ssl
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.lowlevel
from scripted_node import Answer, running

from fluxora.actors.http_client import (
    FAIR_EVERY,
    MAX_INTERIM,
    Deadlines,
    ExchangeFailed,
    Fault,
    HttpClient,
    Target,
)

PEM = Path(__file__).parent / "node_test.pem"  # a certificate and key for node.test, made for these tests
TIGHT = Deadlines(connect_s=2.0, write_s=2.0, first_byte_s=0.1, total_s=0.3)


@pytest.fixture
async def client():
    made = HttpClient(max_body_bytes=100_000)
    yield made
    made.close()


async def post(client, node, body=b"{}", **options):
    return await client.request("POST", Target.parse(node.url), body=body, **options)


def fixed(answer):
    return lambda _method, _params: answer


async def fault_of(client, node, **options):
    with pytest.raises(ExchangeFailed) as caught:
        await post(client, node, **options)
    return caught.value.fault


# Connections


async def test_connection_is_reused_one_exchange_at_a_time(client):
    async with running(fixed(Answer(body=b"x" * 50_000))) as [node]:
        for _ in range(5):
            assert (await post(client, node)).body == b"x" * 50_000
        assert node.connections == 1
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(post, client, node)
        assert node.connections == 3


async def test_connection_that_died_while_idle_is_replaced_once(client):
    async with running(fixed(Answer(body=b"ok", close_after=True))) as [node]:
        for _ in range(3):
            assert (await post(client, node)).body == b"ok"
        assert (node.connections, len(node.requests)) == (3, 3)


async def test_reused_connection_that_drops_the_request_is_retried_once_only(client):
    answers = [Answer(body=b"ok"), Answer(drop=True), Answer(drop=True), Answer(body=b"never")]
    async with running(lambda _method, _params: answers.pop(0)) as [node]:
        await post(client, node)
        assert await fault_of(client, node) is Fault.DROPPED
        assert len(node.requests) == 3


async def test_fresh_connection_that_drops_the_request_is_not_retried(client):
    async with running(fixed(Answer(drop=True))) as [node]:
        assert await fault_of(client, node) is Fault.DROPPED
        assert len(node.requests) == 1


async def test_answer_that_breaks_off_on_a_reused_connection_is_not_retried(client):
    answers = [Answer(body=b"ok"), Answer(body=b"x" * 100, cut=0)]
    async with running(lambda _method, _params: answers.pop(0)) as [node]:
        await post(client, node)
        assert await fault_of(client, node) is Fault.TRUNCATED
        assert len(node.requests) == 2


async def test_connection_close_is_honoured(client):
    async with running(fixed(Answer(body=b"ok", headers=[("Connection", "close")]))) as [node]:
        await post(client, node)
        await post(client, node)
        assert node.connections == 2


async def test_answer_that_nobody_asked_for_is_never_taken_for_the_next(client):
    async def serve(stream):
        await stream.receive_some(10_000)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" * 2)
        await stream.receive_some(10_000)

    connections = []

    async def count(stream):
        connections.append(stream)
        await serve(stream)
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        target = Target.parse(f"http://127.0.0.1:{listener.socket.getsockname()[1]}/")
        nursery.start_soon(trio.serve_listeners, count, [listener])
        for _ in range(2):
            assert (await client.request("GET", target)).body == b"ok"
        assert len(connections) == 2
        nursery.cancel_scope.cancel()


async def test_idle_connections_are_bounded():
    client = HttpClient(max_idle=2)
    async with running(*[fixed(Answer(body=b"ok"))] * 4) as nodes:
        for node in nodes:
            await post(client, node)
        with trio.fail_after(2):
            await nodes[0].closed.wait()
            await nodes[1].closed.wait()
        assert [node.open_connections for node in nodes] == [0, 0, 1, 1]
        client.close()


async def test_cancelled_exchange_closes_its_connection(client):
    async with running(fixed(Answer(hang=True))) as [node]:
        with trio.move_on_after(0.05) as scope:
            await post(client, node)
        assert scope.cancelled_caught
        with trio.fail_after(2):
            await node.closed.wait()
        node.answer = fixed(Answer(body=b"mine"))
        assert (await post(client, node)).body == b"mine"


async def test_begun_exchange_can_be_read_later_or_aborted(client):
    async with running(fixed(Answer(body=b"ok"))) as [node]:
        early = await client.begin("POST", Target.parse(node.url), body=b"1")
        other = await client.begin("POST", Target.parse(node.url), body=b"2")
        other.abort()
        other.abort()
        assert (await early.reply()).body == b"ok"


# What is sent


async def test_request_carries_its_headers_and_asks_for_no_compression(client):
    async with running(fixed(Answer(body=b"ok", headers=[("X-Back", "yes")]))) as [node]:
        target = Target.parse(node.url.replace("//", "//us%40er:pass@") + "/hook?a=1#part")
        reply = await client.request("POST", target, headers=[("X-Signature", "abc")], body=b"pay")
    head = {name.decode(): value.decode() for name, value in node.last_head.headers}
    assert node.last_head.target == b"/hook?a=1"
    assert node.last_body == b"pay"
    assert head["host"] == f"127.0.0.1:{node.port}"
    assert head["authorization"] == "Basic dXNAZXI6cGFzcw=="
    assert head["accept-encoding"] == "identity"
    assert head["x-signature"] == "abc"
    assert head["content-length"] == "3"
    assert (reply.status, reply.header("x-back"), reply.header("absent")) == (200, "yes", None)


async def test_redirect_is_handed_back_and_not_followed(client):
    async with running(fixed(Answer(status=307, headers=[("Location", "http://127.0.0.1:1/")], body=b""))) as [node]:
        reply = await post(client, node)
    assert (reply.status, reply.header("location")) == (307, "http://127.0.0.1:1/")


async def test_pinned_address_is_connected_to_while_the_host_is_named(client):
    async with running(fixed(Answer(body=b"ok"))) as [node]:
        target = Target.parse(f"http://does-not-exist.invalid:{node.port}/", address="127.0.0.1")
        assert (await client.request("POST", target)).body == b"ok"
    assert dict(node.last_head.headers)[b"host"] == f"does-not-exist.invalid:{node.port}".encode()


@pytest.mark.parametrize(
    ("url", "authority", "path"),
    [
        ("http://Node.Example", "node.example", "/"),
        ("https://node.example:443/rpc?k=v", "node.example", "/rpc?k=v"),
        ("https://node.example:80", "node.example:80", "/"),
        ("http://[::1]:8000/x", "[::1]:8000", "/x"),
        ("http://bücher.example/", "xn--bcher-kva.example", "/"),
    ],
)
def test_target_is_parsed(url, authority, path):
    target = Target.parse(url)
    assert (target.authority, target.path) == (authority, path)


@pytest.mark.parametrize(
    "url",
    ["ftp://a/", "http://", "node.example", "", "http://a:port/", "http://a/\u043a\u043b\u044e\u0447", "http://a/b c"],
)
def test_target_that_is_no_http_url_is_refused(url):
    with pytest.raises(ValueError):
        Target.parse(url)


# Bounds


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (Answer(hang=True), Fault.TIMEOUT),
        (Answer(body=b"x" * 100_001), Fault.TOO_LARGE),
        (Answer(body=b"x" * 5000, cut=100), Fault.TRUNCATED),
    ],
)
async def test_answer_that_does_not_arrive_whole(client, answer, fault):
    async with running(fixed(answer)) as [node]:
        assert await fault_of(client, node, deadlines=TIGHT) is fault
        node.answer = fixed(Answer(body=b"next"))
        assert (await post(client, node)).body == b"next"


async def test_body_without_a_length_is_bounded_too():
    """A chunked answer, and one that ends with its connection."""
    client = HttpClient(max_body_bytes=1000)

    async def serve(stream, head, body):
        await stream.receive_some(10_000)
        await stream.send_all(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n" + body)
        await stream.aclose()

    async def answer_of(head, body):
        async with trio.open_nursery() as nursery:
            [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
            port = listener.socket.getsockname()[1]
            nursery.start_soon(trio.serve_listeners, lambda stream: serve(stream, head, body), [listener])
            try:
                return await client.request("GET", Target.parse(f"http://127.0.0.1:{port}/"))
            except ExchangeFailed as error:
                return error.fault
            finally:
                nursery.cancel_scope.cancel()

    chunked = b"Transfer-Encoding: chunked\r\n"
    assert (await answer_of(chunked, b"5\r\nhello\r\n0\r\n\r\n")).body == b"hello"
    assert (await answer_of(b"", b"until the end")).body == b"until the end"
    assert await answer_of(chunked, b"3e9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n") is Fault.TOO_LARGE
    assert await answer_of(b"", b"x" * 1001) is Fault.TOO_LARGE
    assert await answer_of(chunked, b"5\r\nhel") is Fault.TRUNCATED
    assert await answer_of(b"no header at all\r\n", b"") is Fault.MALFORMED
    assert await answer_of(b"HTTP\x00: 1\r\n", b"") is Fault.MALFORMED
    client.close()


async def test_long_answer_may_be_cut_instead_and_its_connection_is_not_used_again():
    client = HttpClient(max_body_bytes=1000, overlong="cut")
    answers = [Answer(status=418, body=b"x" * 100_000), Answer(body=b"y" * 1000)]
    async with running(lambda _method, _params: answers.pop(0)) as [node]:
        cut = await post(client, node)
        whole = await post(client, node)
        assert (cut.status, cut.body, cut.cut) == (418, b"x" * 1000, True)
        assert (whole.status, whole.body, whole.cut) == (200, b"y" * 1000, False)
        assert node.connections == 2
    client.close()


async def test_status_is_known_though_the_rest_of_the_answer_never_comes(client):
    async with running(fixed(Answer(status=503, body=b"x" * 100, cut=10))) as [node]:
        exchange = await client.begin("POST", Target.parse(node.url), body=b"{}")
        assert exchange.status is None
        with pytest.raises(ExchangeFailed):
            await exchange.reply()
        assert exchange.status == 503


async def test_answer_that_trickles_is_bounded_in_total(client):
    async def trickle(stream):
        await stream.receive_some(10_000)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while True:
            await stream.send_all(b"x")
            await trio.sleep(0.02)

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]

        async def serve(stream):
            with suppress(trio.BrokenResourceError):
                await trickle(stream)

        nursery.start_soon(trio.serve_listeners, serve, [listener])
        with pytest.raises(ExchangeFailed) as caught, trio.fail_after(2):
            await client.request("GET", Target.parse(f"http://127.0.0.1:{port}/"), deadlines=TIGHT)
        assert caught.value.fault is Fault.TIMEOUT
        nursery.cancel_scope.cancel()


async def test_interim_answers_are_bounded(client):
    """A peer that sends nothing else would be read, at the cost of a core, for as long as an exchange may take."""

    async def answer_after(interim):
        async def serve(stream):
            await stream.receive_some(10_000)
            answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
            with suppress(trio.BrokenResourceError):
                await stream.send_all(b"HTTP/1.1 103 Early Hints\r\n\r\n" * interim + answer)

        async with trio.open_nursery() as nursery:
            [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
            port = listener.socket.getsockname()[1]
            nursery.start_soon(trio.serve_listeners, serve, [listener])
            try:
                return (await client.request("POST", Target.parse(f"http://127.0.0.1:{port}/"))).body
            except ExchangeFailed as error:
                return error.fault
            finally:
                nursery.cancel_scope.cancel()

    assert await answer_after(MAX_INTERIM) == b"ok"
    assert await answer_after(MAX_INTERIM + 1) is Fault.MALFORMED


async def test_answer_in_tiny_chunks_lets_others_run(client):
    """Thousands of chunks arrive with one read; what takes them apart may not keep the loop for as long as that."""
    sent = trio.Event()
    turns = 0

    async def serve(stream):
        await stream.receive_some(10_000)
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        await stream.send_all(head + b"1\r\nx\r\n" * 8_000 + b"0\r\n\r\n")
        sent.set()

    async def count_turns():
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        exchange = await client.begin("POST", Target.parse(f"http://127.0.0.1:{port}/"))
        await sent.wait()
        nursery.start_soon(count_turns)
        assert len((await exchange.reply()).body) == 8_000
        assert turns > 8_000 // FAIR_EVERY // 2  # one for each, but for the beginning and the end
        nursery.cancel_scope.cancel()


async def test_name_that_does_not_resolve_is_unreachable(client):
    with pytest.raises(ExchangeFailed) as caught:
        await client.request("GET", Target.parse("http://does-not-exist.invalid/"))
    assert caught.value.fault is Fault.UNREACHABLE


# TLS


def server_context():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(PEM)
    return context


async def test_tls_with_a_trusted_certificate_and_a_pinned_address():
    client = HttpClient(tls=ssl.create_default_context(cafile=str(PEM)))
    async with running(fixed(Answer(body=b"ok")), ssl_context=server_context()) as [node]:
        target = Target.parse(node.url, address="127.0.0.1")
        for _ in range(3):
            assert (await client.request("POST", target, body=b"1")).body == b"ok"
        assert node.connections == 1
        client.close()


async def test_tls_idle_connection_that_died_is_replaced():
    client = HttpClient(tls=ssl.create_default_context(cafile=str(PEM)))
    async with running(fixed(Answer(body=b"ok", close_after=True)), ssl_context=server_context()) as [node]:
        target = Target.parse(node.url, address="127.0.0.1")
        for _ in range(2):
            assert (await client.request("POST", target, body=b"1")).body == b"ok"
        client.close()


@pytest.mark.parametrize("host", ["node.test", "other.test"])
async def test_tls_certificate_is_checked(host):
    """Against the system's trust store, which does not know it; and, where it is trusted, against the host's name."""
    trust = None if host == "node.test" else ssl.create_default_context(cafile=str(PEM))
    client = HttpClient(tls=trust)
    async with running(fixed(Answer(body=b"ok")), ssl_context=server_context()) as [node]:
        target = Target.parse(f"https://{host}:{node.port}", address="127.0.0.1")
        with pytest.raises(ExchangeFailed) as caught:
            await client.request("POST", target, body=b"1")
    assert caught.value.fault is Fault.TLS
    assert "verify failed" in str(caught.value)


async def test_plain_http_behind_an_https_url_is_a_tls_fault(client):
    async with running(fixed(Answer(body=b"ok"))) as [node]:
        with pytest.raises(ExchangeFailed) as caught:
            await client.request("POST", Target.parse(node.url.replace("http:", "https:")), body=b"1")
    assert caught.value.fault is Fault.TLS
