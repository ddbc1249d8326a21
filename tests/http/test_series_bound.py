"""No client makes /metrics longer: what it can name as it likes (paths, methods, addresses, tokens, codes) is no label.

The series are those that a few requests of each kind have made: ten thousand more, of which no two are alike, add none.
And all of them are within what the program can say at most, whatever it is asked.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from ipaddress import ip_network
from itertools import islice
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
import trio
from front import Server
from prometheus_client.parser import text_string_to_metric_families
from socket_client import frame, handshake
from story import batch, created, stream

from fluxora.actors.breaker import Breakers
from fluxora.actors.deliveries import DispatcherStatus, Tally
from fluxora.config import AccessConfig, LimitConfig
from fluxora.http.limits import MOST_BUCKETS
from fluxora.http.metrics import BOUNDS_S
from fluxora.http.routes import ROUTES
from fluxora.protocol.close_codes import CLOSE_CODES
from fluxora.storage.webhook_records import Result

LONG = os.environ.get("FLUXORA_PROOF") == "long"
NAMES = 100_000 if LONG else 10_000  # of each kind: paths, streams, addresses, principals, endpoints
STREAMS = 10_000
CODES = range(3000, 5000) if LONG else range(3000, 3150)
WARM = 100
PIPELINED = 50
LANES = 8
JWT_SECRET = "a secret of thirty-two bytes and more"
DURATIONS = "fluxora_http_request_duration_seconds"
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "OTHER"}
Make = Callable[[int], bytes]


@pytest.fixture
def carrier() -> str:
    """The listener's own: labels are made in the answer, which all carriers share."""
    return "direct"


def request(method: str, path: str, number: int, **headers: str) -> bytes:
    """From an address of its own: of every other one an IPv6 site."""
    octets = number.to_bytes(3, "big")
    client = f"2001:db8:{octets[0]:x}:{number & 0xFFFF:x}::1" if number % 2 else "10." + ".".join(map(str, octets))
    lines = {"host": "x", "x-forwarded-for": client, "x-request-id": f"id-{number}", **headers}
    text = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{text}\r\n".encode()


def token(number: int) -> str:
    claims = {"sub": f"subject-{number}", "exp": int(time.time()) + 600, "scope": "streams:read"}
    return f"Bearer {jwt.encode(claims, JWT_SECRET, algorithm='HS256')}"


KINDS: tuple[Make, ...] = (
    lambda n: request("GET", f"/nowhere/{n}", n),
    lambda n: request("GET", f"/%6eowhere/%{n % 256:02x}/{n}", n),
    lambda n: request("GET", f"/api/streams/no%20stream-{n}", n),
    lambda n: request("GET", f"/api/streams?cursor=c{n}&p{n}={n}", n),
    lambda n: request("GET", f"/api/treasury/G{n}", n),
    lambda n: request("GET", f"/docs/{n}.js", n),
    lambda n: request(f"BREW{n}", f"/api/streams/{n}", n),
    lambda n: request("DELETE", f"/api/events/{n}", n),
    lambda n: request("OPTIONS", f"/{n}", n, origin=f"https://{n}.example", access_control_request_method="GET"),
    lambda n: request("GET", "/api/streams?limit=0", n, authorization=token(n)),
    lambda n: request("GET", f"/api/streams?limit=0&x={n}", n, x_api_key=f"fx_{n}_{n:032x}"),
    lambda n: request("GET", f"/api/streams?limit=0&y={n}", n, accept=f"text/x-{n}"),
)


def mixed(first: int, last: int) -> Iterator[bytes]:
    return (KINDS[n % len(KINDS)](n) for n in range(first, last))


def reads(first: int, last: int) -> Iterator[bytes]:
    return (request("GET", f"/api/streams/{stream(n % STREAMS)}", n + (1 << 23)) for n in range(first, last))


async def flood(server: Server, requests: Iterator[bytes]) -> int:
    """Send them, many at a time on a connection; how many answers came."""
    answers = 0

    async def lane() -> None:
        nonlocal answers
        while some := list(islice(requests, PIPELINED)):
            some.append(request("GET", "/health/live", 0, connection="close"))
            received = await server.exchange(b"".join(some))
            answers += received.count(b"HTTP/1.1 ") - 1

    async with trio.open_nursery() as nursery:
        for _ in range(LANES):
            nursery.start_soon(lane)
    return answers


async def series(server: Server) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    """Every series of /metrics: its name and labels."""
    text = (await server.get("/metrics")).text
    return {
        (one.name, frozenset(one.labels.items()))
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


@pytest.fixture
async def server(start: Any, store: Any, cache: Any, record: Any, live: Any) -> Server:
    for first in range(0, STREAMS, 1_000):
        events = [created(n, ledger=10 + n // 1_000, index=n % 1_000) for n in range(first, first + 1_000)]
        await record(batch(*events))
    return await start(
        store=store,
        cache=cache,
        hub=live.hub,
        trusted_proxies=(ip_network("127.0.0.0/8"),),
        limits=LimitConfig(anonymous_read=WARM),
        access=AccessConfig(jwt_secret=JWT_SECRET),
        max_websockets_per_client=1_000,
        access_log_sample=0.0,
    )


async def test_ten_thousand_names_of_each_kind_add_no_series(server: Server) -> None:
    over_the_limit = (request("GET", "/api/streams?limit=0", 1 << 22) for _ in range(WARM + 1))
    assert await flood(server, over_the_limit) == WARM + 1
    assert await flood(server, mixed(0, WARM)) == WARM
    assert await flood(server, reads(0, WARM)) == WARM
    await server.get("/metrics")
    few = await series(server)
    assert await flood(server, mixed(WARM, NAMES)) == NAMES - WARM
    assert await flood(server, reads(WARM, NAMES)) == NAMES - WARM
    many = await series(server)
    assert many - few == set()
    assert_within_what_the_program_can_say(many)
    limiter, counts = server.backend.limiter, server.backend.metrics
    assert NAMES < limiter.callers <= MOST_BUCKETS, "addresses are told apart, and not kept for ever"
    assert len(counts._served) < 50


def assert_within_what_the_program_can_say(seen: set[tuple[str, frozenset[tuple[str, str]]]]) -> None:
    patterns = {route.pattern for route in ROUTES} | {"unmatched"}
    statuses = {str(status.value) for status in HTTPStatus} | {"499"}
    labels = [dict(found) for name, found in seen if name.startswith(DURATIONS)]
    assert {one["method"] for one in labels} <= METHODS
    assert {one["route"] for one in labels} <= patterns
    assert {one["status"] for one in labels} <= statuses
    per_histogram = len(BOUNDS_S) + 3  # +Inf, sum and count
    assert len(labels) <= len(METHODS) * len(patterns) * len(statuses) * per_histogram


async def test_close_codes_are_named_where_they_mean_something(server: Server) -> None:
    async def close(code: int) -> None:
        await server.exchange(
            handshake(x_forwarded_for=f"10.0.{code >> 8}.{code & 255}") + frame(8, code.to_bytes(2, "big"))
        )

    for code in (CODES[0], 1000):
        await close(code)
    await server.get("/metrics")
    few = await series(server)
    for code in CODES:
        await close(code)
    assert await series(server) == few
    named = {dict(labels)["code"] for name, labels in few if name == "fluxora_websocket_closed_total"}
    assert named <= {"1000", "other"} | {str(one.code) for one in CLOSE_CODES}
    assert not server.backend.sockets._of_site


async def test_endpoints_of_webhooks_are_no_labels(start: Any) -> None:
    tally, breakers = Tally(), Breakers()

    def status() -> DispatcherStatus:
        return DispatcherStatus(0, None, 0, 0, len(breakers.open(0)), dict(tally.attempts), tally.latencies)

    server = await start(dispatcher=SimpleNamespace(status=status()))
    await server.get("/metrics")  # which is counted, too
    few = await series(server)
    for n in range(NAMES):
        outcome = ("delivered", "retry", "dead", "gone")[n % 4]
        url, code = f"https://{n}.example/", 100 + n % 900
        ids = {"endpoint_id": f"endpoint-{n}", "position": n, "url": url}
        tally.count(Result(**ids, outcome=outcome, status=code, error=f"e{n}", latency_ms=n))
        breakers.failed(f"endpoint-{n}", began=n, now=n)
    server.backend.dispatcher = SimpleNamespace(status=status())
    assert await series(server) == few
    breakers.forget_old(NAMES + 1e9)
    assert not breakers._failing
