"""How much each caller may ask, and which web pages may read the answers: section 7 of the contract, over a socket."""

from __future__ import annotations

import re
from ipaddress import ip_network
from typing import Any

import httpx
import pytest
from spoken import APP, INGEST, KEYS, NEW, NOW, ONE, READER, ROOT, TOKEN, WRITER, bearer, key
from story import batch, created
from wire import assert_refused

from fluxora.config import LimitConfig
from fluxora.http.limits import Limiter

LIMIT_HEADERS = {
    "ratelimit-policy",
    "ratelimit",
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
}
EXEMPT = ["/health", "/health/live", "/health/ready", "/metrics"]


@pytest.fixture
async def opened(start, store, cache):
    """Zero configuration."""
    return await start(store=store, cache=cache)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def limited(start, store, record, cache, writes):
    """Small limits on a clock that stands still until a test moves it, behind proxies that are trusted."""
    await record(batch(created(0, ledger=10)))
    server = await start(
        store=store,
        cache=cache,
        writes=writes,
        clock=lambda: NOW + 0.5,
        access=KEYS,
        indexer_worker_token=TOKEN,
        trusted_proxies=(ip_network("127.0.0.0/8"),),
        limits=LimitConfig(anonymous_read=3, anonymous_write=2, key=4, admin=6),
    )
    server.limit_clock = Clock()
    server.backend.limiter = Limiter(server.backend.config.limits, clock=server.limit_clock, wall=lambda: float(NOW))
    return server


def shown(answer: httpx.Response) -> tuple[str, int, int]:
    """Policy, limit and what is left, which both families of headers say alike."""
    name, quota, window = re.fullmatch(r'"([a-z-]+)";q=(\d+);w=(\d+)', answer.headers["ratelimit-policy"]).groups()
    same, left, seconds = re.fullmatch(r'"([a-z-]+)";r=(\d+);t=(\d+)', answer.headers["ratelimit"]).groups()
    assert (same, window) == (name, "60")
    assert answer.headers["x-ratelimit-limit"] == quota
    assert answer.headers["x-ratelimit-remaining"] == left
    assert int(answer.headers["x-ratelimit-reset"]) >= NOW
    assert 0 <= int(seconds) <= 60
    return name, int(quota), int(left)


@pytest.mark.parametrize(
    ("policy", "limit", "headers", "method"),
    [
        ("anonymous-read", 3, {}, "GET"),
        ("anonymous-write", 2, {}, "POST"),
        ("key", 4, key(READER), "GET"),
        ("key", 4, key(WRITER), "POST"),
        ("key", 4, bearer(), "GET"),
        ("admin", 6, key(ROOT), "GET"),
        ("admin", 6, bearer(scope="admin"), "POST"),
    ],
)
async def test_a_policy_lets_its_quota_through_and_tells_how_much_is_left(limited, policy, limit, headers, method):
    async def ask() -> httpx.Response:
        if method == "GET":
            return await limited.get(ONE, headers=headers)
        return await limited.request("POST", "/api/streams", json=NEW, headers=headers)

    for left in reversed(range(limit)):
        answer = await ask()
        assert answer.status_code in {200, 201}
        assert shown(answer) == (policy, limit, left)
        assert "retry-after" not in answer.headers
    refused = await ask()
    assert_refused(refused, 429, "RATE_LIMIT_EXCEEDED")
    assert shown(refused) == (policy, limit, 0)
    wait = int(refused.headers["retry-after"])
    assert wait == -(-60 // limit)
    limited.limit_clock.now += wait
    assert (await ask()).status_code in {200, 201}
    assert (await ask()).status_code == 429


async def test_refusals_and_errors_count_and_say_what_is_left(limited):
    for left, (method, url, status) in enumerate([("GET", "/api/streams?limit=0", 400), ("GET", f"{ONE}x", 404)]):
        answer = await limited.request(method, url)
        assert answer.status_code == status
        assert shown(answer) == ("anonymous-read", 3, 2 - left)
    answer = await limited.request("POST", "/api/streams", content="{")
    assert answer.status_code == 415
    assert shown(answer) == ("anonymous-write", 2, 1)


async def test_nobody_is_an_address_and_a_credential_is_itself(limited):
    async def ask(address: str, **headers: str) -> int:
        return (await limited.get(ONE, headers={"x-forwarded-for": address, **headers})).status_code

    assert [await ask("192.0.2.1") for _ in range(4)] == [200, 200, 200, 429]
    assert await ask("192.0.2.2") == 200
    assert await ask("2001:db8::1") == 200
    statuses = [await ask(f"192.0.2.{number}", **{"x-api-key": READER}) for number in range(5)]
    assert statuses == [200, 200, 200, 200, 429]
    assert [await ask(f"192.0.2.7, 192.0.2.{number}") for number in (1, 3)] == [429, 200], "the last hop counts"


async def test_without_trusted_proxies_the_header_means_nothing(start):
    server = await start(limits=LimitConfig(anonymous_read=2))
    statuses = [(await server.get("/", headers={"x-forwarded-for": f"192.0.2.{n}"})).status_code for n in range(3)]
    assert statuses == [200, 200, 429]


async def test_health_and_metrics_are_never_limited(limited):
    while (await limited.get("/")).status_code != 429:
        pass
    for url in EXEMPT * 10:
        answer = await limited.get(url)
        assert answer.status_code == 200
        assert not LIMIT_HEADERS & set(answer.headers)


async def test_guessed_keys_are_429_before_their_hash_is_computed(limited, monkeypatch):
    hashed = []
    verify = limited.backend.access._hashed_key

    async def counted(text: str) -> Any:
        hashed.append(text)
        return await verify(text)

    monkeypatch.setattr(limited.backend.access, "_hashed_key", counted)
    guesses = [key(f"flx_reader_{number:043d}") for number in range(25)]
    statuses = [(await limited.get("/", headers=guess)).status_code for guess in guesses]
    assert statuses == [401] * 20 + [429] * 5
    assert len(hashed) == 20
    refused = await limited.get("/", headers=guesses[0])
    assert_refused(refused, 429, "RATE_LIMIT_EXCEEDED")
    assert shown(refused)[0] == "failed-credentials"
    assert int(refused.headers["retry-after"]) > 0
    assert (await limited.get("/", headers={**key(READER), "x-forwarded-for": "192.0.2.9"})).status_code == 200


@pytest.mark.parametrize("guess", [key("x"), {"authorization": "Bearer a.b.c"}])
async def test_guesses_that_need_no_hash_are_429_too(limited, guess):
    statuses = [(await limited.get("/", headers=guess)).status_code for _ in range(22)]
    assert statuses == [401] * 20 + [429] * 2


async def test_guessed_worker_tokens_are_429(limited):
    async def ask(guess: str) -> httpx.Response:
        return await limited.request("POST", INGEST, json={"events": []}, headers={"x-indexer-worker-token": guess})

    statuses = [(await ask(f"guess{number}")).status_code for number in range(22)]
    assert statuses == [401] * 20 + [429] * 2
    refused = await ask("guess")
    assert_refused(refused, 429, "RATE_LIMIT_EXCEEDED")
    assert len(refused.headers.get_list("retry-after")) == 1
    assert shown(refused)[0] == "failed-credentials"
    assert (await ask(TOKEN)).status_code == 400, "whoever has the token is let through"


async def test_off_nothing_is_said_of_limits(opened):
    answer = await opened.get("/")
    assert not LIMIT_HEADERS & set(answer.headers)


async def test_the_defaults(start):
    server = await start(limits=LimitConfig())
    assert shown(await server.get("/"))[:2] == ("anonymous-read", 100)
    assert shown(await server.request("POST", "/api/streams"))[:2] == ("anonymous-write", 20)


# -- other origins ------------------------------------------------------------------------------------------------


async def test_cors_is_off_by_default(opened):
    for method, headers in (("GET", {}), ("OPTIONS", {"access-control-request-method": "POST"})):
        answer = await opened.request(method, "/api/streams", headers={"origin": APP, **headers})
        assert answer.status_code == (200 if method == "GET" else 405)
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert "vary" not in answer.headers


@pytest.mark.parametrize("origin", [APP, "https://other.example", APP + ".evil", APP.upper(), "null", None])
async def test_an_allowed_origin_may_read_answers_and_errors_and_no_other(start, origin):
    server = await start(cors_origins=(APP,), limits=LimitConfig(anonymous_read=2))
    headers = {} if origin is None else {"origin": origin}
    answers = [await server.get(url, headers=headers) for url in ("/", "/nowhere", "/api/streams?limit=0", "/")]
    assert [answer.status_code for answer in answers] == [200, 404, 400, 429]
    for answer in answers:
        assert answer.headers.get("access-control-allow-origin") == (APP if origin == APP else None)
        assert "origin" in answer.headers["vary"].lower()
        assert "access-control-allow-credentials" not in answer.headers
        if origin == APP:
            exposed = set(answer.headers["access-control-expose-headers"].split(", "))
            assert (
                LIMIT_HEADERS | {"etag", "location", "x-request-id", "retry-after", "idempotency-replayed"} <= exposed
            )


async def test_a_preflight_comes_before_credentials_and_limits(start):
    server = await start(cors_origins=(APP,), access=KEYS, limits=LimitConfig(anonymous_read=1))
    asked = {"origin": APP, "access-control-request-method": "PATCH", "access-control-request-headers": "x-api-key"}
    for _ in range(5):
        answer = await server.request("OPTIONS", "/api/admin/access", headers=asked)
        assert answer.status_code == 204
        assert "PATCH" in answer.headers["access-control-allow-methods"]
        assert {"x-api-key", "authorization", "idempotency-key"} <= set(
            answer.headers["access-control-allow-headers"].split(", ")
        )
    assert (await server.get("/")).status_code == 200
