from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import time

import pytest
import trio
import trio.testing
from front import DEADLINE_S, read_replies, read_to_end, report
from structlog.testing import capture_logs

from fluxora.errors import ConfigError
from fluxora.http import app, direct_carrier, replies

LIVE = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
OK = b'{"status":"ok"}'
INGEST = b"POST /internal/indexer/contract-events HTTP/1.1\r\nHost: x\r\nx-indexer-worker-token: " + b"t" * 16 + b"\r\n"
# Two lengths for one body: what stands before us may have gone by the other one (RFC 9112 6.3).
SMUGGLED = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"


def parse(reply: bytes) -> tuple[int, dict[str, str], dict]:
    head, _, body = reply.partition(b"\r\n\r\n")
    status_line, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    assert int(headers["content-length"]) == len(body)
    return int(status_line.split()[1]), headers, json.loads(body)


def assert_complete(headers: dict[str, str], error: dict) -> None:
    assert headers["x-request-id"] == error["requestId"]
    assert headers["content-type"] == "application/json"
    for name, value in replies.SECURITY_HEADERS:
        assert headers[name] == value.lower()
    assert "server" not in headers
    assert "x-powered-by" not in headers


async def test_a_head_may_arrive_byte_by_byte(start):
    server = await start()
    async with await server.connect() as stream:
        for i in range(len(LAST)):
            await stream.send_all(LAST[i : i + 1])
        assert (await read_to_end(stream)).endswith(OK)


async def test_pipelined_requests_are_answered_in_order(start):
    server = await start()
    index = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    async with await server.connect() as stream:
        await stream.send_all(LIVE + index + LIVE + LAST)
        first, second, third, fourth = await read_replies(stream, 4)
    assert (first, third, fourth) == (OK, OK, OK)
    assert json.loads(second)["version"] == "1.2.3"


async def test_one_connection_serves_many_requests_and_then_closes_when_asked(start):
    server = await start()
    async with await server.connect() as stream:
        for _ in range(20):
            await stream.send_all(LIVE)
            assert await read_replies(stream, 1) == [OK]
        await stream.send_all(LAST)
        assert (await read_to_end(stream)).endswith(OK)


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"\x16\x03\x01\x02\x00\x01", 400, "VALIDATION_ERROR"),  # TLS on a plain port
        (b"\r\n\r\n", 400, "VALIDATION_ERROR"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "VALIDATION_ERROR"),  # no Host
        (b"GET / HTTP/1.1\r\nHost: x\r\nnonsense\r\n\r\n", 400, "VALIDATION_ERROR"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400, "VALIDATION_ERROR"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501, "NOT_IMPLEMENTED"),
        (SMUGGLED + b"0\r\n\r\n" + LIVE, 400, "VALIDATION_ERROR"),
        (LIVE + SMUGGLED + b"0\r\n\r\n" + LIVE, 400, "VALIDATION_ERROR"),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 70_000, 431, "REQUEST_HEADER_FIELDS_TOO_LARGE"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nx: " + b"y" * 65_600 + b"\r\n\r\n", 431, "REQUEST_HEADER_FIELDS_TOO_LARGE"),
        (LIVE + b"GET / HTTP/1.1\r\nx: " + b"y" * 70_000, 431, "REQUEST_HEADER_FIELDS_TOO_LARGE"),
        (LIVE + b"GET / HTTP/1.1\r\n\r\n", 400, "VALIDATION_ERROR"),
    ],
)
async def test_what_is_no_request_is_refused_in_the_error_shape_and_closed(start, sent, status, code):
    server = await start()
    reply = await server.exchange(sent)
    if sent.startswith(LIVE):
        assert OK in reply
        reply = reply.partition(OK)[2]
    got, headers, error = parse(reply)
    assert (got, error["error"]) == (status, code)
    assert headers["connection"] == "close"
    assert_complete(headers, error)


@pytest.mark.parametrize(
    "target", ["//", "/api/../", "/api/..", "*", "?x", "/./", "/health%2flive", "http://x//", "http://[/", "x"]
)
async def test_paths_are_taken_as_they_come(start, target):
    server = await start()
    reply = await server.exchange(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    status, headers, error = parse(reply)
    assert (status, error["error"]) == (404, "NOT_FOUND")
    assert_complete(headers, error)


async def test_a_whole_url_and_escapes_in_the_path_are_understood(start):
    server = await start()
    for target in ("http://example.org/health/live", "http://h/health/live?x=1", "/%68ealth/live"):
        reply = await server.exchange(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert reply.endswith(OK)


@pytest.mark.parametrize("host", [b"", b"a b", b"[::1", b"<>&", b"x" * 300, b"a,b", b"\xe9", b"x:99999999", b"../"])
async def test_whatever_the_host_header_says_the_answer_is_ours(start, host):
    server = await start()
    reply = await server.exchange(LAST.replace(b"Host: x", b"Host: " + host))
    if reply.endswith(OK):
        assert reply.startswith(b"HTTP/1.1 200")
    else:
        status, headers, error = parse(reply)
        assert status == 400
        assert_complete(headers, error)


async def test_http_1_0_is_answered_and_closed(start):
    server = await start()
    assert (await server.exchange(b"GET /health/live HTTP/1.0\r\n\r\n")).endswith(OK)


async def test_a_head_of_nearly_64_kib_is_served(start):
    server = await start()
    reply = await server.exchange(LAST[:-2] + b"x: " + b"y" * 60_000 + b"\r\n\r\n")
    assert reply.endswith(OK)


async def test_a_slow_head_is_answered_408_and_closed(start):
    server = await start(read_head_timeout_s=0.1)
    status, headers, error = parse(await server.exchange(b"GET /health/live HT"))
    assert (status, error["error"]) == (408, "REQUEST_TIMEOUT")
    assert_complete(headers, error)


async def test_a_silent_connection_is_closed_without_a_word(start):
    server = await start(read_head_timeout_s=0.1)
    assert await server.exchange(b"") == b""


async def test_a_slow_second_head_is_answered_408_and_closed(start):
    server = await start(read_head_timeout_s=0.1)
    reply = await server.exchange(LIVE + b"GET /")
    first, _, second = reply.partition(OK)
    assert first.startswith(b"HTTP/1.1 200")
    status, headers, error = parse(second)
    assert (status, error["error"]) == (408, "REQUEST_TIMEOUT")
    assert_complete(headers, error)


async def test_a_connection_that_rests_for_too_long_is_closed_without_a_word(start):
    server = await start(keep_alive_s=0.1)
    assert (await server.exchange(LIVE)).endswith(OK)


@pytest.mark.parametrize(
    "when",
    [
        b"",
        b"GET /he",
        LIVE,
        b"POST /internal/indexer/contract-events HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n123",
    ],
)
async def test_a_reset_at_any_moment_ends_that_connection_only(start, when):
    server = await start(indexer_worker_token="t" * 16)
    async with await server.connect() as other:
        await other.send_all(LIVE)
        assert await read_replies(other, 1) == [OK]
        for _ in range(3):
            stream = await server.connect()
            await stream.send_all(when)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            stream.socket.close()  # RST
        await other.send_all(LAST)
        assert (await read_to_end(other)).endswith(OK)
    assert (await server.get("/health/live")).status_code == 200


@pytest.mark.parametrize("where", ["serve_at_once", "serve"])
async def test_a_defect_in_one_connection_is_logged_and_ends_that_connection_only(start, monkeypatch, where):
    server = await start(direct=where == "serve_at_once")

    def explode(*_args: object) -> None:
        raise RuntimeError("a defect")

    with capture_logs() as logs:
        with monkeypatch.context() as patch:
            patch.setattr(direct_carrier.DirectCarrier, where, explode)
            assert await server.exchange(LIVE) == b""
        assert (await server.get("/health/live")).status_code == 200
    assert [line["log_level"] for line in logs if line["event"] == "http.connection_failed"] == ["error"]


async def test_a_failure_of_the_framework_is_answered_in_our_shape_and_logged(start, monkeypatch):
    def explode(*_args: object) -> None:
        raise RuntimeError("a secret of the framework")

    monkeypatch.setattr(app.Application, "create_url_adapter", explode)
    server = await start(direct=False)
    with capture_logs() as logs:
        status, headers, error = parse(await server.exchange(LAST))
    assert (status, error["error"], error["message"]) == (500, "INTERNAL_ERROR", "Internal error")
    assert_complete(headers, error)
    [failed] = [line for line in logs if line["event"] == "http.application_failed"]
    assert failed["request_id"] == error["requestId"]


async def test_connections_over_the_bound_are_told_503(start):
    server = await start(max_connections=2)
    async with await server.connect() as first, await server.connect() as second:
        for stream in (first, second):
            await stream.send_all(LIVE)
            assert await read_replies(stream, 1) == [OK]
        status, headers, error = parse(await server.exchange(LIVE))
        assert (status, error["error"]) == (503, "SERVICE_UNAVAILABLE")
        assert int(headers["retry-after"]) > 0
        assert_complete(headers, error)
        await first.send_all(LIVE)
        assert await read_replies(first, 1) == [OK]
    # Their places are free again, once the server has seen them end.
    with trio.fail_after(DEADLINE_S):
        while (await server.get("/health/live")).status_code != 200:
            await trio.lowlevel.checkpoint()


async def test_connections_over_the_bound_that_reset_before_they_are_told_cost_nobody_anything(start):
    server = await start(max_connections=1)
    async with await server.connect() as first:
        await first.send_all(LIVE)
        assert await read_replies(first, 1) == [OK]
        for _ in range(20):
            hasty = await server.connect()
            hasty.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            hasty.socket.close()
            await trio.testing.wait_all_tasks_blocked()
        await first.send_all(LIVE)
        assert await read_replies(first, 1) == [OK]


async def test_offers_of_other_protocols_are_not_taken_up(start):
    server = await start()
    h2c = (
        b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings, close\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n"
    )
    reply = await server.exchange(h2c)
    assert reply.startswith(b"HTTP/1.1 200")
    assert reply.endswith(OK)
    websocket = (
        b"GET /ws/streams HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    status, headers, error = parse(await server.exchange(websocket))
    assert (status, error["error"]) == (426, "UPGRADE_REQUIRED"), (
        "a connection that is to end cannot become a WebSocket"
    )
    assert_complete(headers, error)


async def test_a_stop_lets_the_request_in_flight_finish_and_closes_the_rest(start, nursery):
    server = await start(indexer_worker_token="t" * 16, drain_s=5)
    body = b'{"events":[]}'
    head = (
        b"POST /internal/indexer/contract-events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"x-indexer-worker-token: tttttttttttttttt\r\nContent-Length: %d\r\n\r\n" % len(body)
    )
    untouched = await server.connect()
    idle = await server.connect()
    await idle.send_all(LIVE)
    assert await read_replies(idle, 1) == [OK]
    busy = await server.connect()
    await busy.send_all(head + body[:5])
    await trio.testing.wait_all_tasks_blocked(0.05)

    server.backend.stopping.set()
    assert await read_to_end(idle) == b""
    assert await read_to_end(untouched) == b""
    with pytest.raises(OSError, match="all attempts to connect"):
        await server.connect()
    await busy.send_all(body[5:])
    status, headers, error = parse(await read_to_end(busy))
    assert (status, error["details"][0]["field"]) == (400, "events")
    assert headers["connection"] == "close"
    for stream in (untouched, idle, busy):
        await stream.aclose()


async def test_who_could_not_know_of_a_stop_is_answered_and_told_to_come_no_more(start):
    """Requests that are in the kernel at that moment, of a connection there too, and one that crosses with the stop."""
    server = await start(drain_s=DEADLINE_S)
    resting, crossing = [await server.connect() for _ in range(2)]
    for stream in (resting, crossing):
        await stream.send_all(LIVE)
        assert await read_replies(stream, 1) == [OK]
    await trio.testing.wait_all_tasks_blocked(0.05)
    # Nothing of the server's runs from here until the stop.
    with socket.create_connection(("127.0.0.1", server.port)) as connected:
        connected.send(LIVE)
        os.write(resting.socket.fileno(), LIVE)
        server.backend.stopping.set()
        await trio.testing.wait_all_tasks_blocked(0.05)
        await crossing.send_all(LIVE)
        connected.setblocking(False)
        unaccepted = trio.SocketStream(trio.socket.from_stdlib_socket(connected))
        for stream in (resting, crossing, unaccepted):
            status, headers, body = parse(await read_to_end(stream))
            assert (status, headers["connection"], body) == (200, "close", {"status": "ok"})
            await stream.aclose()


async def test_a_stop_cuts_off_what_outlasts_the_drain_budget(start):
    server = await start(drain_s=0.1)
    stream = await server.connect()
    await stream.send_all(b"GET / HTT")
    await trio.testing.wait_all_tasks_blocked(0.05)
    server.backend.stopping.set()
    with trio.fail_after(DEADLINE_S):
        with contextlib.suppress(trio.BrokenResourceError):
            assert await stream.receive_some() == b""
    await stream.aclose()


async def test_a_taken_port_is_a_configuration_error_in_one_line(start):
    server = await start()
    with pytest.raises(ConfigError, match=r"^PORT, HOST: cannot listen on 127\.0\.0\.1:\d+: Address already in use$"):
        await start(port=server.port)


async def test_an_oversized_body_is_refused_and_the_answer_arrives(start):
    server = await start(indexer_worker_token="t" * 16, max_body_bytes=1000)
    head = INGEST
    announced = head + b"Content-Length: 500000\r\n\r\n" + b"x" * 500_000
    chunk = b"3e8\r\n" + b"x" * 1000 + b"\r\n"
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 300
    for sent in (announced, chunked):
        async with await server.connect() as stream, trio.open_nursery() as nursery:

            async def send(sent: bytes = sent, stream: trio.SocketStream = stream) -> None:
                try:
                    await stream.send_all(sent)
                except trio.BrokenResourceError:
                    return  # the server has heard enough

            nursery.start_soon(send)
            status, headers, error = parse(await read_to_end(stream))
        assert (status, error["error"]) == (413, "PAYLOAD_TOO_LARGE")
        assert headers["connection"] == "close"  # or the client would send its next request into a closing connection
        assert_complete(headers, error)
    assert (await server.get("/health/live")).status_code == 200


async def test_an_answer_before_the_body_announces_the_end_of_the_connection(start):
    server = await start()
    reply = await server.exchange(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n")
    status, headers, error = parse(reply)
    assert (status, headers["connection"]) == (404, "close")
    assert_complete(headers, error)


@pytest.mark.parametrize("requests", [1, 3])
async def test_a_client_that_has_ended_its_side_gets_its_answers_whole(start, requests):
    server = await start()
    async with await server.connect() as stream:
        await stream.send_all(LIVE * requests)
        await stream.send_eof()
        reply = await read_to_end(stream)
    assert reply.count(OK) == requests
    assert reply.endswith(OK)


async def test_without_the_token_no_body_is_waited_for(start):
    server = await start(indexer_worker_token="t" * 16)
    sent = INGEST.replace(b"t" * 16, b"u" * 16) + b"Content-Length: 200000\r\n\r\n"
    status, headers, error = parse(await server.exchange(sent))
    assert (status, error["error"], headers["connection"]) == (401, "UNAUTHORIZED", "close")


async def test_who_reads_nothing_is_reset_and_nothing_of_it_stays(start):
    server = await start(write_timeout_s=0.1)
    async with await server.connect() as stream:
        await stream.send_all(b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n" * 8)
        with trio.fail_after(DEADLINE_S):
            while server.backend.metrics.connections:
                await trio.sleep(0.01)
        # An orderly close would have the kernel hold the answers until the client has read them, if it ever does.
        with pytest.raises(trio.BrokenResourceError):
            await read_to_end(stream)


async def test_a_slow_body_is_answered_408(start):
    server = await start(indexer_worker_token="t" * 16, request_timeout_s=0.1)
    head = INGEST + b"Content-Length: 10\r\n\r\n123"
    status, headers, error = parse(await server.exchange(head))
    assert (status, error["error"]) == (408, "REQUEST_TIMEOUT")
    assert_complete(headers, error)


async def test_a_client_that_leaves_is_logged(start):
    server = await start(indexer_worker_token="t" * 16)
    with capture_logs() as logs:
        stream = await server.connect()
        await stream.send_all(INGEST + b"Content-Length: 9\r\n\r\n1")
        await trio.testing.wait_all_tasks_blocked(0.05)
        await stream.aclose()
        with trio.fail_after(DEADLINE_S):
            while not any(line["event"] == "http.request_served" for line in logs):
                await trio.lowlevel.checkpoint()
    line = next(line for line in logs if line["event"] == "http.request_served")
    assert line["status"] == 499
    assert line["route"] == "/internal/indexer/contract-events"


async def test_the_report_of_an_unavailable_service_is_503(start):
    server = await start(health=lambda: report("unavailable"))
    answer = await server.get("/health")
    assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")


@pytest.mark.parametrize("nth", range(3))  # who is woken first then is chance
async def test_what_came_while_the_whole_process_stood_still_is_served(start, nth):
    """As after SIGCONT, or on a machine that was suspended: the clients were in time, the server was not."""
    server = await start(read_head_timeout_s=0.4, keep_alive_s=0.4)
    ask = b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n"
    fresh = [await server.connect() for _ in range(8)]
    used = [await server.connect() for _ in range(8)]
    for stream in used:
        await stream.send_all(ask)
        await hear(stream, b'{"status":"ok"}')
    await trio.testing.wait_all_tasks_blocked(0.01)  # all of them rest
    for stream in fresh + used:
        os.write(stream.socket.fileno(), ask)
    time.sleep(1)  # noqa: ASYNC251 (nothing of the process runs, which is what is tested)
    for stream in fresh + used:
        await hear(stream, b'{"status":"ok"}')
        await stream.aclose()


async def hear(stream, end):
    heard = b""
    with trio.fail_after(DEADLINE_S):
        while not heard.endswith(end):
            data = await stream.receive_some(65_536)
            assert data, heard
            heard += data
    assert heard.startswith(b"HTTP/1.1 200 ")
