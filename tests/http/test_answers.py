"""What every answer has in common, whoever made it."""

from __future__ import annotations

import json
import re
from uuid import UUID

import pytest
import trio
from front import report
from hypothesis import given
from hypothesis import strategies as st
from story import ALICE
from structlog.testing import capture_logs

from fluxora import errors
from fluxora.http import replies
from fluxora.http.app import create_app

TOKEN = "t" * 16
INGEST = "/internal/indexer/contract-events"


def explode():
    raise RuntimeError("postgresql://user:secret@host/ is in this text")


def lose():
    raise errors.StorageUnavailable("connection refused")


@pytest.mark.parametrize(
    ("options", "method", "url", "status", "code"),
    [
        ({}, "GET", "/", 200, None),
        ({}, "GET", "/health", 200, None),
        ({}, "HEAD", "/", 200, None),
        ({}, "GET", "/nothing", 404, "NOT_FOUND"),
        ({}, "GET", "/api/streams/", 404, "NOT_FOUND"),
        ({}, "GET", "/api/streams?limit=0", 400, "VALIDATION_ERROR"),
        ({}, "DELETE", "/health", 405, "METHOD_NOT_ALLOWED"),
        ({}, "BREW", "/", 405, "METHOD_NOT_ALLOWED"),
        ({}, "OPTIONS", "/api/events", 405, "METHOD_NOT_ALLOWED"),
        ({}, "POST", INGEST, 404, "NOT_FOUND"),
        ({}, "GET", INGEST, 404, "NOT_FOUND"),
        ({"indexer_worker_token": TOKEN}, "POST", INGEST, 401, "UNAUTHORIZED"),
        ({"indexer_worker_token": TOKEN}, "GET", INGEST, 405, "METHOD_NOT_ALLOWED"),
        ({"health": explode}, "GET", "/health", 500, "INTERNAL_ERROR"),
        ({"health": explode}, "HEAD", "/health", 500, None),
        ({"health": lose}, "GET", "/health", 503, "SERVICE_UNAVAILABLE"),
        ({"health": lambda: report("unavailable")}, "GET", "/health", 503, None),
    ],
)
async def test_every_answer_has_the_common_headers_and_errors_the_one_shape(
    start, *, options, method, url, status, code
):
    server = await start(**options)
    answer = await server.request(method, url)
    assert answer.status_code == status
    for name, value in replies.SECURITY_HEADERS:
        assert answer.headers.get_list(name) == [value]
    assert "server" not in answer.headers
    assert "x-powered-by" not in answer.headers
    assert answer.headers["content-type"] == "application/json"
    request_id = answer.headers["x-request-id"]
    assert UUID(request_id).version == 4
    if code is not None:
        error = answer.json()
        assert error["error"] == code
        assert error["requestId"] == request_id
        assert set(error) <= {"error", "message", "details", "requestId"}
        assert "secret" not in answer.text
        assert "refused" not in answer.text
    assert ("allow" in answer.headers) == (status == 405)
    assert ("retry-after" in answer.headers) == (code == "SERVICE_UNAVAILABLE")


async def test_allow_names_what_the_path_serves(start):
    server = await start(indexer_worker_token=TOKEN)
    assert (await server.request("PUT", "/health")).headers["allow"] == "GET, HEAD"
    assert (await server.request("PUT", INGEST)).headers["allow"] == "POST"


async def test_a_defect_is_logged_with_its_traceback(start):
    server = await start(health=explode)
    with capture_logs() as logs:
        answer = await server.get("/health")
    failed = next(line for line in logs if line["event"] == "http.request_failed")
    assert failed["exc_info"]
    assert failed["log_level"] == "error"
    assert answer.json()["message"] == "Internal error"
    assert failed["request_id"] == answer.json()["requestId"]


async def test_each_request_leaves_one_line_with_its_route_and_id(start):
    server = await start()
    from structlog.contextvars import merge_contextvars

    with capture_logs(processors=[merge_contextvars]) as logs:
        answer = await server.get("/api/streams/secret-name?limit=1", headers={"x-request-id": "mine:1"})
    assert answer.headers["x-request-id"] == "mine:1"
    (line,) = (line for line in logs if line["event"] == "http.request_served")
    assert line.pop("duration_ms") >= 0
    assert line == {
        "event": "http.request_served",
        "log_level": "info",
        "actor": "http",
        "method": "GET",
        "route": "/api/streams/{id}",
        "status": 400,
        "request_id": "mine:1",
    }


@given(st.text(max_size=140))
def test_only_a_sane_request_id_is_echoed(given_id):
    answered = replies.request_id_from((("x-request-id", given_id),))
    if re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", given_id):
        assert answered == given_id
    else:
        assert UUID(answered).version == 4


@pytest.mark.parametrize("sent", ["a" * 129, "with space", "", "<script>", "a,b"])
async def test_other_request_ids_are_replaced(start, sent):
    server = await start()
    answer = await server.get("/", headers={"x-request-id": sent})
    assert UUID(answer.headers["x-request-id"]).version == 4


async def test_two_request_ids_are_replaced(start):
    server = await start()
    answer = await server.get("/", headers=[("x-request-id", "a"), ("x-request-id", "b")])
    assert UUID(answer.headers["x-request-id"]).version == 4


@pytest.mark.parametrize("error_class", [e for e in vars(errors).values() if isinstance(e, type)])
def test_every_error_of_the_tree_has_an_answer(error_class):
    if issubclass(error_class, errors.SourceError):
        error = error_class("throttled", "what happened: secret")
    elif issubclass(error_class, errors.AmountError):
        error = error_class("DECIMAL_EMPTY_VALUE", "what happened: secret")
    else:
        error = error_class("what happened: secret")
    reply = replies.error_reply(error, "id")
    body = json.loads(reply.body)
    if issubclass(error_class, errors.RequestError):
        assert (reply.status, body["error"]) == (error_class.status, error_class.code)
    else:
        assert reply.status in {500, 503}
        assert "secret" not in body["message"]
    assert (reply.status == 503) == any(name == "retry-after" for name, _ in reply.headers)
    assert replies.is_expected(error) == (reply.status != 500 or issubclass(error_class, errors.RequestError))


async def test_a_handler_that_takes_too_long_is_answered_503(start, store):
    class Slow:
        async def listings(self, _queries: object) -> None:
            await trio.sleep_forever()

    server = await start(store=Slow(), request_timeout_s=0.1)
    answer = await server.get("/api/streams")
    assert (answer.status_code, answer.json()["error"]) == (503, "SERVICE_UNAVAILABLE")


async def test_the_index_links_to_routes_that_exist(start, store):
    server = await start(store=store)
    index = (await server.get("/")).json()
    assert (index["name"], index["version"]) == ("Fluxora API", "1.2.3")
    for template in index["links"].values():
        path = re.sub(r"\{\?.*\}", "", template).replace("{id}", "stream-x").replace("{address}", ALICE)
        endless = path.endswith("/stream")
        answer = await server.request("HEAD" if endless else "GET", path)
        if answer.status_code == 404:
            assert endless or answer.json()["message"] == "There is no such stream"
        else:
            assert answer.status_code == (426 if path.startswith("/ws/") else 200)


async def test_the_application_reads_bodies_under_another_server_too(start):
    server = await start()
    client = create_app(server.backend).test_client()
    answer = await client.post(
        "/api/streams", data=b"[]", headers={"content-type": "application/json", "content-length": "2"}
    )
    assert (answer.status_code, (await answer.get_json())["error"]) == (400, "VALIDATION_ERROR")
