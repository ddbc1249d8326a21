"""Who may do what and how much, and what every answer carries: section 7 of the contract, over a socket."""

from __future__ import annotations

import base64
import hmac
import json
import re
from uuid import UUID

import httpx
import pytest
from spoken import APP, INGEST, KEYS, NEW, NOW, ONE, READER, ROOT, SECRET, TOKEN, WRITER, bearer, key
from story import ALICE, batch, created
from wire import assert_refused

from fluxora.config import AccessConfig
from fluxora.http.routes import ROUTES

POLICY = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
HEADERS = {
    "content-security-policy": POLICY,
    "strict-transport-security": "max-age=31536000; includeSubDomains",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "x-dns-prefetch-control": "off",
    "x-permitted-cross-domain-policies": "none",
    "cache-control": "no-store",
}
READS = [route for route in ROUTES if route.method == "GET" and route.access.scope == "streams:read"]
EXEMPT = ["/health", "/health/live", "/health/ready", "/metrics"]


def url_of(pattern: str) -> str:
    return pattern.replace("{id}", "stream-x").replace("{address}", ALICE).replace("{file}", "start.js")


@pytest.fixture
async def opened(start, store, record, cache, writes):
    """Zero configuration, over one stream."""
    await record(batch(created(0, ledger=10)))
    return await start(store=store, cache=cache, writes=writes, clock=lambda: NOW + 0.5)


@pytest.fixture
async def bare(start):
    """Keys and tokens are configured; for what is refused before anything is read."""
    return await start(clock=lambda: NOW + 0.5, access=KEYS)


@pytest.fixture
async def guarded(start, store, record, cache, writes):
    """Keys, tokens and the worker's token are configured; nothing else is changed."""
    await record(batch(created(0, ledger=10)))
    return await start(
        store=store,
        cache=cache,
        writes=writes,
        clock=lambda: NOW + 0.5,
        access=KEYS,
        indexer_worker_token=TOKEN,
    )


# -- what every answer carries ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "url", "headers", "status"),
    [
        ("GET", "/", {}, 200),
        ("GET", ONE, {"if-none-match": "*"}, 304),
        ("POST", "/api/streams", {}, 201),
        ("OPTIONS", "/", {"origin": APP, "access-control-request-method": "GET"}, 204),
        ("GET", "/metrics", {}, 200),
        ("GET", "/openapi.json", {}, 200),
        ("GET", "/api/export/events.ndjson", {}, 200),
        ("GET", "/nowhere", {}, 404),
        ("PUT", "/", {}, 405),
        ("GET", "/", {"accept": "text/html"}, 406),
        ("GET", "/", {"x-api-key": "x"}, 401),
        ("GET", "/api/streams?limit=0", {}, 400),
    ],
)
async def test_every_answer_carries_the_security_headers_once(opened, method, url, headers, status):
    answer = await opened.request(method, url, headers=headers, json=NEW if method == "POST" else None)
    if status == 204:  # CORS is off here: a question that is none
        assert answer.status_code == 405
    else:
        assert answer.status_code == status
    assert_headers(answer)


def assert_headers(answer: httpx.Response, *, policy: str = POLICY, cached: str = "no-store") -> None:
    for name, value in {**HEADERS, "content-security-policy": policy, "cache-control": cached}.items():
        assert answer.headers.get_list(name) == [value], name
    assert re.fullmatch(r"([a-z-]+=\(\)(, )?)+", answer.headers["permissions-policy"])
    assert not {"server", "x-powered-by", "via"} & set(answer.headers)
    assert len(answer.headers.get_list("x-request-id")) == len(answer.headers.get_list("date")) == 1


async def test_a_preflight_and_a_crossing_answer_carry_them_too(start):
    server = await start(cors_origins=(APP,))
    asked = {"origin": APP, "access-control-request-method": "POST"}
    answer = await server.request("OPTIONS", "/api/streams", headers=asked)
    assert (answer.status_code, answer.content) == (204, b"")
    assert "content-length" not in answer.headers
    assert_headers(answer)
    assert_headers(await server.get("/", headers={"origin": APP}))


async def test_the_docs_have_a_policy_of_their_own_without_anything_unsafe(opened):
    for headers, status in (({}, 200), ({"if-none-match": "*"}, 304)):
        answer = await opened.get("/docs", headers=headers)
        assert answer.status_code == status
        policy = answer.headers["content-security-policy"]
        assert_headers(answer, policy=policy, cached="no-cache")
        directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
        assert directives["default-src"] == directives["frame-ancestors"] == directives["base-uri"] == "'none'"
        assert directives["script-src"] == directives["style-src"] == "'self'"
        assert "unsafe" not in policy
        assert "http" not in policy


@pytest.mark.parametrize(
    ("sent", "echoed"),
    [
        ("a", True),
        ("A-Z.a_z:09", True),
        ("a" * 128, True),
        ("a" * 129, False),
        ("", False),
        ("a b", False),
        ("a,b", False),
        ("<a>", False),
    ],
)
async def test_x_request_id_is_echoed_where_it_is_sane_on_answers_and_errors(bare, sent, echoed):
    for url, status in (("/", 200), ("/nowhere", 404)):
        answer = await bare.get(url, headers={"x-request-id": sent})
        assert answer.status_code == status
        given = answer.headers["x-request-id"]
        assert (given == sent) == echoed
        assert echoed or UUID(given).version == 4
        assert status == 200 or answer.json()["requestId"] == given


async def test_each_answer_has_a_request_id_of_its_own(bare):
    async with bare.client() as client:
        ids = [(await client.get("/health/live")).headers["x-request-id"] for _ in range(600)]
    assert len(set(ids)) == 600
    assert all(UUID(one).version == 4 for one in ids)


# -- who ----------------------------------------------------------------------------------------------------------


async def test_without_configuration_reads_and_creates_are_open_and_the_rest_does_not_exist(opened):
    assert (await opened.get(ONE)).status_code == 200
    created_one = await opened.request("POST", "/api/streams", json=NEW)
    assert created_one.status_code == 201
    assert (await opened.request("DELETE", created_one.headers["location"])).status_code == 200
    for method in ("GET", "POST", "OPTIONS", "PUT"):
        for url in ("/api/admin/access", INGEST):
            assert_refused(await opened.request(method, url), 404, "NOT_FOUND")


BAD = {
    "a key that is none": key("x"),
    "an unknown name": key("flx_nobody_" + "A" * 43),
    "a wrong secret": key("flx_reader_" + "A" * 43),
    "the configured entry": key(KEYS.api_keys[0].entry),
    "an empty key": key(""),
    "another scheme": {"authorization": "Basic eDp5"},
    "no scheme": {"authorization": SECRET},
    "an empty header": {"authorization": ""},
    "an expired token": bearer(exp=NOW - 1),
    "a token of tomorrow": bearer(nbf=NOW + 86_400),
    "a token for somebody else": bearer(aud="other"),
    "a token that is none": {"authorization": "Bearer a.b.c"},
    "a key and a token": {**key(READER), **bearer()},
}


@pytest.mark.parametrize("name", BAD)
async def test_an_invalid_credential_is_401_everywhere_and_never_nobody(bare, name):
    for method, url in (("GET", "/"), ("GET", ONE), ("GET", "/docs"), ("POST", "/api/streams"), ("DELETE", ONE)):
        answer = await bare.request(method, url, headers=BAD[name])
        error = assert_refused(answer, 401, "UNAUTHORIZED")
        assert error["message"] == "The credential is not valid"
        assert answer.headers["www-authenticate"].startswith("Bearer")
    assert_refused(await bare.get("/api/admin/access", headers=BAD[name]), 401, "UNAUTHORIZED")


@pytest.mark.parametrize("credential", [key(READER), bearer()])
async def test_a_credential_where_none_is_configured_is_401(start, credential):
    server = await start()
    assert_refused(await server.get("/", headers=credential), 401, "UNAUTHORIZED")


@pytest.mark.parametrize("algorithm", ["none", "HS384", "HS512", "RS256", "hs256", None])
async def test_tokens_are_hs256_alone(bare, algorithm):
    """Whatever a token says of itself, and however it is signed by whoever knows the secret."""
    header = {"typ": "JWT"} if algorithm is None else {"typ": "JWT", "alg": algorithm}
    claims = {"exp": NOW + 60, "sub": "bob", "scope": "admin"}
    text = ".".join(_coded(json.dumps(part).encode()) for part in (header, claims))
    digest = {"HS384": "sha384", "HS512": "sha512"}.get(algorithm, "sha256")
    for signature in (hmac.digest(SECRET.encode(), text.encode(), digest), b"", b"x" * 32):
        answer = await bare.get("/", headers={"authorization": f"Bearer {text}.{_coded(signature)}"})
        assert_refused(answer, 401, "UNAUTHORIZED")


def _coded(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


@pytest.mark.parametrize(
    ("credential", "reads", "creates", "admin"),
    [
        (key(READER), 200, 403, 403),
        (key(WRITER), 403, 201, 403),
        (key(ROOT), 200, 201, 200),
        (bearer(), 200, 403, 403),
        (bearer(scope="streams:write streams:read"), 200, 201, 403),
        (bearer(scope="admin"), 200, 201, 200),
        (bearer(scope="unknown"), 403, 403, 403),
        (bearer(scope=""), 403, 403, 403),
        ({}, 200, 201, 401),
    ],
)
async def test_a_credential_may_do_what_its_scopes_say(guarded, credential, reads, creates, admin):
    asked = [
        (reads, await guarded.get(ONE, headers=credential)),
        (creates, await guarded.request("POST", "/api/streams", json=NEW, headers=credential)),
        (admin, await guarded.get("/api/admin/access", headers=credential)),
    ]
    for status, answer in asked:
        assert answer.status_code == status
        if status == 403:
            assert_refused(answer, 403, "FORBIDDEN")


async def test_every_read_of_data_asks_for_the_scope(guarded):
    """The whole table, so that no route is forgotten."""
    assert len(READS) >= 7
    for route in READS:
        answer = await guarded.get(url_of(route.pattern), headers=key(WRITER))
        assert_refused(answer, 403, "FORBIDDEN")


async def test_required_closes_writes_to_nobody_and_leaves_reads_open(start, store, record, cache, writes):
    await record(batch(created(0, ledger=10)))
    access = AccessConfig(api_keys=KEYS.api_keys, required=True)
    server = await start(store=store, cache=cache, writes=writes, access=access)
    assert (await server.get(ONE)).status_code == 200
    for method, url in (("POST", "/api/streams"), ("PATCH", ONE), ("DELETE", ONE)):
        answer = await server.request(method, url, json=NEW)
        assert_refused(answer, 401, "UNAUTHORIZED")
        assert "www-authenticate" in answer.headers
    assert (await server.request("POST", "/api/streams", json=NEW, headers=key(WRITER))).status_code == 201


async def test_the_worker_has_a_token_of_its_own(guarded):
    for headers in ({}, {"x-indexer-worker-token": "x"}, {"x-indexer-worker-token": TOKEN + "t"}, key(ROOT)):
        assert_refused(await guarded.request("POST", INGEST, json={"events": []}, headers=headers), 401, "UNAUTHORIZED")
    answer = await guarded.request("POST", INGEST, json={"events": []}, headers={"x-indexer-worker-token": TOKEN})
    assert_refused(answer, 400, "VALIDATION_ERROR")


async def test_health_and_metrics_look_at_no_credential(guarded):
    for url in EXEMPT:
        assert (await guarded.get(url, headers=key("guess"))).status_code == 200


async def test_secrets_are_in_no_answer_and_no_log(guarded, capsys):
    for headers in (key(READER), bearer(), key("flx_reader_" + "B" * 43), {"authorization": "Bearer " + SECRET}):
        for url in ("/", "/api/admin/access", ONE, "/metrics"):
            answer = await guarded.get(url, headers=headers)
            given = next(iter(headers.values()))
            assert given not in answer.text
            assert SECRET not in answer.text
    answer = await guarded.get("/api/admin/access", headers=key(ROOT))
    assert not any(one.entry in answer.text or one.salt.hex() in answer.text for one in KEYS.api_keys)
    captured = capsys.readouterr()
    for secret in (READER, ROOT, SECRET, TOKEN, "B" * 43):
        assert secret not in captured.out + captured.err
