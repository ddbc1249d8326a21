"""Requests as bytes, with the answers that the contract has for them: the table that both carriers are held to."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import jwt
from story import ALICE, BOB, CAROL, FIRST, GENESIS_S, stream

from fluxora.config import AccessConfig
from fluxora.protocol.api_keys import ENTROPY_BYTES, make

NOW = GENESIS_S + 250
SECRET = "0123456789abcdef0123456789abcdef"
TOKEN = "t" * 16
APP = "https://app.example"
INGEST = "/internal/indexer/contract-events"
READER, _READER = make("reader", ["streams:read"], entropy=bytes(range(ENTROPY_BYTES)))
WRITER, _WRITER = make("writer", ["streams:write"], entropy=bytes(range(50, 50 + ENTROPY_BYTES)))
ROOT, _ROOT = make("root", ["admin"], entropy=bytes(range(100, 100 + ENTROPY_BYTES)))
KEYS = AccessConfig(api_keys=(_READER, _WRITER, _ROOT), jwt_secret=SECRET)
NEW = {
    "sender": ALICE,
    "recipient": BOB,
    "depositAmount": "100.0000000",
    "ratePerSecond": "0.5000000",
    "startTime": NOW - 10,
}


class Row(NamedTuple):
    """A request and its answer's status and error code. `unread`: refused before its body was looked at."""

    method: str
    sent: bytes
    status: int
    code: str | None = None
    unread: bool = False


def ask(
    method: str,
    target: str,
    *headers: str,
    body: bytes | str | dict[str, Any] | None = None,
    chunks: int = 0,
    first: str = "Host: x",
    version: str = "HTTP/1.1",
) -> bytes:
    """A request's bytes; a body that is a dict goes as JSON, in chunks of `chunks` bytes if asked for."""
    lines = [f"{method} {target} {version}", *([first] if first else []), *headers]
    if isinstance(body, dict):
        lines.append("Content-Type: application/json")
        body = json.dumps(body)
    data = body.encode() if isinstance(body, str) else body or b""
    if chunks:
        lines.append("Transfer-Encoding: chunked")
        parts = [data[at : at + chunks] for at in range(0, len(data), chunks)]
        data = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    elif body is not None:
        lines.append(f"Content-Length: {len(data)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + data


def row(
    status: int, code: str | None, method: str, target: str, *headers: str, unread: bool = False, **more: Any
) -> Row:
    return Row(method, ask(method, target, *headers, **more), status, code, unread)


def token(**claims: Any) -> str:
    """A bearer token's header."""
    return "Authorization: Bearer " + jwt.encode(
        {"exp": NOW + 60, "sub": "bob", "scope": "streams:read", **claims}, SECRET
    )


def bearer(**claims: Any) -> dict[str, str]:
    """A bearer token as httpx takes headers."""
    return {"authorization": token(**claims).partition(": ")[2]}


def key(text: str) -> dict[str, str]:
    """An API key as httpx takes headers."""
    return {"x-api-key": text}


def ok(target: str, *headers: str, method: str = "GET", status: int = 200, **more: Any) -> Row:
    return row(status, None, method, target, *headers, **more)


def bad(target: str, *headers: str, method: str = "GET", **more: Any) -> Row:
    return row(400, "VALIDATION_ERROR", method, target, *headers, **more)


def missing(target: str, *headers: str, method: str = "GET", **more: Any) -> Row:
    return row(404, "NOT_FOUND", method, target, *headers, **more)


def wrong_method(method: str, target: str, **more: Any) -> Row:
    return row(405, "METHOD_NOT_ALLOWED", method, target, **more)


ONE = f"/api/streams/{stream(0)}"
THEN = f"asOf={GENESIS_S + 500}"

# A service without any configuration, over the history of test_same_answers.py. Nothing here changes anything.
READS = (
    ok("/"),
    ok("/health"),
    ok("/health/live"),
    ok("/health/live?x=1"),
    ok("/openapi.json"),
    ok("/docs"),
    ok("/docs/start.js"),
    ok("/live"),
    ok("/live/follow.js"),
    ok("/docs/swagger-ui.css", "Accept-Encoding: gzip"),
    ok("/docs", 'If-None-Match: "x", *', status=304),
    ok("/api/streams"),
    ok("/api/streams?limit=2&order=desc"),
    ok(f"/api/streams?status=active&sender={ALICE}&recipient={BOB}&contractId={FIRST}&{THEN}"),
    ok(f"/api/streams?sender={CAROL}&recipient={CAROL}"),
    ok(ONE),
    ok(f"{ONE}?{THEN}"),
    ok(f"{ONE}?{THEN}", "If-None-Match: *", status=304),
    ok(f"{ONE}?{THEN}", 'If-None-Match: W/"1-1"'),
    ok(ONE.replace("stream-", "%73tream%2D")),
    ok(f"/api/streams/{stream(1)}/events"),
    ok(f"/api/streams/{stream(1)}/events?limit=1"),
    ok("/api/events"),
    ok(f"/api/events?after=2&limit=3&event=stream.created&contractId={FIRST}&ledgerFrom=1&ledgerTo=99"),
    ok(f"/api/treasury/{ALICE}?{THEN}"),
    ok(f"/api/export/streams.csv?{THEN}"),
    ok("/api/export/events.ndjson"),
    *(
        ok(target, method="HEAD")
        for target in ("/", "/health", "/health/live", "/docs", "/openapi.json", "/api/streams", ONE, "/api/events")
    ),
    ok(f"/api/treasury/{ALICE}", method="HEAD"),
    ok("/api/export/streams.csv", method="HEAD"),
    ok("/api/export/events.ndjson", method="HEAD"),
    ok(f"{ONE}?{THEN}", "If-None-Match: *", method="HEAD", status=304),
    Row("HEAD", ask("HEAD", "/nowhere"), 404),
    Row("HEAD", ask("HEAD", "/api/streams?limit=0"), 400),
    ok("http://h.example/health/live"),
    ok("HTTP://h.example:80/health/live?x"),
    ok("/%68ealth/live"),
    ok("/health/live", first="", version="HTTP/1.0"),
    ok("/health/live", "Connection: close"),
    ok("/health/live", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQC"),
    ok("/", "X-Request-Id: mine:1"),
    ok("/", "X-Request-Id: not sane"),
    ok("/", "X-Request-Id: a", "X-Request-Id: b"),
    ok("/", "Accept: application/json"),
    ok("/api/streams", "Accept: text/html, */*;q=0.1"),
    ok("/api/export/streams.csv", "Accept: text/csv"),
    ok("/docs", "Accept: text/html"),
    ok("/", "Origin: https://app.example"),
    ok("/health", body="{}"),
    ok("/api/streams", body="x" * 100),
    ok("/health/live", body="x" * 100, chunks=30),
    ok("/", "Expect: 100-continue"),
    ok("/", "Expect: something else"),
    row(406, "NOT_ACCEPTABLE", "GET", "/", "Accept: text/html"),
    row(406, "NOT_ACCEPTABLE", "GET", ONE, "Accept: application/json;q=0, text/*"),
    row(406, "NOT_ACCEPTABLE", "GET", "/docs", "Accept: application/json"),
    row(406, "NOT_ACCEPTABLE", "GET", "/api/export/events.ndjson", "Accept: application/json"),
    *(
        missing(target)
        for target in ("/nowhere", "//", "/api/streams/", "/api/../", "/./", "*", "?x", "x", "http://[/", "http://x//")
    ),
    *(
        missing(f"/api/streams/{unknown}{more}")
        for unknown in ("stream-none-1", "x", "stream-%00", "stream-" + "a" * 3000, "%ff", "a%2Fb")
        for more in ("", "/events")
    ),
    missing("/docs/..%2f..%2fconfig.py"),
    missing("/api/admin/nothing"),
    missing("/api/admin/access", "Authorization: Bearer x"),
    missing(INGEST, method="POST", body={"events": []}, unread=True),
    missing("/ws/nothing", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"),
    missing("h.example:443", method="CONNECT"),
    missing("*", method="OPTIONS"),
    wrong_method("OPTIONS", "/api/streams"),
    wrong_method("DELETE", "/health"),
    wrong_method("PUT", ONE, body={"status": "paused"}, unread=True),
    wrong_method("POST", "/api/events", body={}, chunks=1, unread=True),
    wrong_method("BREW", "/"),
    wrong_method("get", "/"),
    wrong_method("head", "/"),
    wrong_method("Post", "/api/streams"),
    wrong_method("TRACE", "/"),
    wrong_method("CONNECT", "/health"),
    *(
        bad(f"/api/streams?{query}")
        for query in (
            "status=sleeping",
            "sender=G",
            "limit=0",
            "limit=101",
            "cursor=zzz",
            "offset=5",
            "limit=5&limit=5",
        )
    ),
    bad("/api/streams?status=x&limit=x&recipient=x&cursor=x&y=x"),
    bad("/api/streams?status=%ff"),
    bad("/api/streams?" + "a=b&" * 101),
    bad(f"{ONE}?asOf=-1"),
    bad(f"{ONE}/events?after=x&limit=0"),
    bad("/api/events?streamId=x&event=y&ledgerFrom=z"),
    bad("/api/events?ledgerFrom=2&ledgerTo=1"),
    bad("/api/treasury/nobody?asOf=x"),
    bad("/api/export/streams.csv?limit=5"),
    bad("/api/export/events.ndjson?after=-1"),
    row(401, "UNAUTHORIZED", "GET", "/", "X-Api-Key: guess"),
    row(401, "UNAUTHORIZED", "GET", ONE, "Authorization: Bearer guess"),
    row(401, "UNAUTHORIZED", "POST", "/api/streams", "Authorization: Basic eDp5", body=NEW, unread=True),
    row(415, "UNSUPPORTED_MEDIA_TYPE", "POST", "/api/streams", "Content-Type: text/plain", body="{}"),
    row(415, "UNSUPPORTED_MEDIA_TYPE", "POST", "/api/streams"),
    row(400, "INVALID_JSON", "POST", "/api/streams", "Content-Type: application/json", body="{"),
    row(400, "INVALID_JSON", "POST", "/api/streams", "Content-Type: application/json", body='{"a":1,"a":2}', chunks=3),
    row(400, "INVALID_JSON", "PATCH", ONE, "Content-Type: application/json", body="[" * 33 + "]" * 33),
    row(400, "INVALID_JSON", "POST", "/api/streams", "Content-Type: application/json", body='{"depositAmount":NaN}'),
    bad("/api/streams", method="POST", body={}),
    bad("/api/streams", method="POST", body={**NEW, "depositAmount": 1, "x": 1}, chunks=7),
    bad("/api/streams", "Expect: 100-continue", method="POST", body={"sender": "x"}),
    bad("/api/streams?dry=1", method="POST", body=NEW),
    bad("/api/streams", "Idempotency-Key: a b", method="POST", body=NEW),
    bad(ONE, method="PATCH", body={"status": "sleeping"}),
    row(413, "PAYLOAD_TOO_LARGE", "POST", "/api/streams", body=b" " * 262_145, unread=True),
    row(413, "PAYLOAD_TOO_LARGE", "POST", "/api/streams", body=b" " * 262_145, chunks=60_000, unread=True),
    row(400, "INVALID_JSON", "POST", "/api/streams", "Content-Type: application/json", body=b" " * 262_144),
)

# What is refused before there is a request, and ends the connection.
NO_REQUESTS = (
    Row("GET", b"GET / HTTP/1.1\r\n\r\n", 400, "VALIDATION_ERROR"),
    Row("GET", b"\x16\x03\x01\x02\x00\x01", 400, "VALIDATION_ERROR"),
    Row("GET", b"GET / HTTP/1.1\nHost: x\n\n", 400, "VALIDATION_ERROR"),
    Row("GET", ask("POST", "/", "Content-Length: 1", "Transfer-Encoding: chunked"), 400, "VALIDATION_ERROR"),
    Row("POST", ask("POST", "/api/streams", "Transfer-Encoding: chunked") + b"zz\r\n", 400, "VALIDATION_ERROR"),
    Row("GET", ask("GET", "/", "Transfer-Encoding: gzip"), 501, "NOT_IMPLEMENTED"),
    Row("GET", ask("GET", "/", version="HTTP/2.0"), 505, "HTTP_VERSION_NOT_SUPPORTED"),
    Row("GET", ask("GET", "/" + "a" * 66_000), 431, "REQUEST_HEADER_FIELDS_TOO_LARGE"),
    Row("GET", ask("GET", "/", "X: " + "a" * 66_000), 431, "REQUEST_HEADER_FIELDS_TOO_LARGE"),
)

# A service with keys, tokens, a worker's token, CORS for APP, and auth required.
GUARDED = (
    ok("/", "Origin: " + APP),
    ok("/", "Origin: https://other.example"),
    ok("/", "Origin: null"),
    ok("/api/streams", "Origin: " + APP),
    ok(ONE, f"X-Api-Key: {READER}"),
    ok(ONE, token()),
    ok(ONE, f"X-Api-Key: {ROOT}", "Origin: " + APP),
    ok("/api/admin/access", f"X-Api-Key: {ROOT}"),
    ok("/api/admin/access", token(scope="admin"), method="HEAD"),
    ok("/health", "X-Api-Key: guess"),
    ok("/api/streams", "Origin: " + APP, "Access-Control-Request-Method: POST", method="OPTIONS", status=204),
    ok("/nowhere", "Origin: https://o.example", "Access-Control-Request-Method: PUT", method="OPTIONS", status=204),
    wrong_method("OPTIONS", "/api/streams"),
    missing("/nowhere", "Origin: " + APP),
    bad("/api/streams?limit=0", "Origin: " + APP),
    row(403, "FORBIDDEN", "GET", ONE, f"X-Api-Key: {WRITER}"),
    row(403, "FORBIDDEN", "GET", "/api/admin/access", f"X-Api-Key: {READER}"),
    row(403, "FORBIDDEN", "POST", "/api/streams", token(), body=NEW, unread=True),
    row(401, "UNAUTHORIZED", "GET", "/api/admin/access"),
    row(401, "UNAUTHORIZED", "POST", "/api/streams", body=NEW, unread=True),
    row(401, "UNAUTHORIZED", "DELETE", ONE),
    row(401, "UNAUTHORIZED", "PATCH", ONE, body={"status": "paused"}, chunks=4, unread=True),
    row(401, "UNAUTHORIZED", "GET", ONE, token(exp=NOW - 1)),
    row(401, "UNAUTHORIZED", "GET", ONE, "X-Api-Key: " + READER[:-1] + "!"),
    row(401, "UNAUTHORIZED", "GET", ONE, "X-Api-Key: flx_reader_" + "0" * 43),
    row(401, "UNAUTHORIZED", "GET", ONE, f"X-Api-Key: {READER}", f"X-Api-Key: {READER}"),
    row(401, "UNAUTHORIZED", "GET", ONE, f"X-Api-Key: {READER}", token()),
    row(401, "UNAUTHORIZED", "GET", "/docs", "Authorization: "),
    wrong_method("GET", INGEST),
    row(401, "UNAUTHORIZED", "POST", INGEST, body={"events": []}, unread=True),
    row(
        401, "UNAUTHORIZED", "POST", INGEST, "X-Indexer-Worker-Token: guess", body={"events": []}, chunks=5, unread=True
    ),
    bad(INGEST, "X-Indexer-Worker-Token: " + TOKEN, method="POST", body={"events": []}),
    row(415, "UNSUPPORTED_MEDIA_TYPE", "POST", INGEST, "X-Indexer-Worker-Token: " + TOKEN, body="x"),
)
