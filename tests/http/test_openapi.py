from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import httpx
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemas import operation, parameters, published, response, validator
from story import ALICE, FIRST, GENESIS_S, batch, created, event, pushed, stream

from fluxora.http import reply_models as shown
from fluxora.http.models import NewStream
from fluxora.http.reading import read_body
from fluxora.http.routes import ROUTES
from fluxora.protocol import messages
from fluxora.protocol.chain import LedgerBatch
from fluxora.protocol.streams import StreamState

TOKEN = "correct horse battery staple"
INGEST = "/internal/indexer/contract-events"


def operations() -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, method, shape) for path, methods in published()["paths"].items() for method, shape in methods.items()
    ]


# -- the document by itself ------------------------------------------------------------------------------------------


def test_the_document_is_openapi_3_1():
    errors = [error.message for error in OpenAPIV31SpecValidator(published()).iter_errors()]
    assert errors == []


def test_the_document_is_the_same_each_time():
    script = "from fluxora.http import openapi, routes; print(hash_of(openapi.document(routes.ROUTES, '1')))"
    script = f"from hashlib import sha256\nhash_of = lambda text: sha256(text).hexdigest()\n{script}"
    seen = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1


def test_every_route_with_an_operation_is_in_it_and_nothing_else():
    wanted = {(route.pattern, route.method.lower()) for route in ROUTES if route.operation is not None}
    assert {(path, method) for path, method, _ in operations()} == wanted
    ids = [shape["operationId"] for _, _, shape in operations()]
    assert len(ids) == len(set(ids))


def test_every_part_of_a_path_is_a_parameter():
    for path, _, shape in operations():
        named = {part[1:-1] for part in path.split("/") if part.startswith("{")}
        assert set(parameters(shape["operationId"], "path")) == named


def test_every_operation_says_how_it_can_fail():
    for path, _, shape in operations():
        statuses = set(shape["responses"])
        assert {"400", "406", "500", "503"} <= statuses, path
        if "requestBody" in shape:
            assert {"408", "413", "415"} <= statuses, path
        if shape["security"]:
            assert "401" in statuses, path


def test_examples_fit_their_schemas():
    count = 0
    for shape in walk(published()):
        if "examples" in shape and isinstance(shape["examples"], list):
            for example in shape["examples"]:
                count += 1
                assert validator({k: v for k, v in shape.items() if k != "default"}).is_valid(example), shape
        if "example" in shape:
            count += 1
            assert validator(shape["schema"]).is_valid(shape["example"]), shape
    assert count > 50


def walk(node: Any):
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from walk(value)
    elif isinstance(node, list):
        for item in node:
            yield from walk(item)


def test_the_example_of_a_new_stream_would_be_registered():
    body = operation("createStream")["requestBody"]["content"]["application/json"]["example"]
    read_body(NewStream, body)


def test_links_lead_to_operations_that_take_an_id():
    links = operation("createStream")["responses"]["201"]["links"]
    assert set(links) == {"getStream", "changeStreamStatus", "cancelStream", "listEventsOfStream"}
    for link in links.values():
        assert set(link["parameters"]) == set(parameters(link["operationId"], "path")) == {"id"}


def test_bodies_have_no_room_for_unknown_members():
    for name in ("NewStream", "StatusChange"):
        assert published()["components"]["schemas"][name]["additionalProperties"] is False


def test_nothing_private_or_internal_shows():
    for shape in walk(published()):
        assert not str(shape.get("title", "")).startswith("_")
        assert "/_" not in str(shape.get("$ref", ""))
        assert not (shape.get("type") == "integer" and "pattern" in shape)


@pytest.mark.parametrize(
    ("model", "sent"),
    [(shown.Stream, messages.StreamView), (shown.Event, messages._WireEvent)],
)
def test_the_shown_models_have_the_members_that_are_sent(model, sent):
    assert model.__struct_encode_fields__ == sent.__struct_encode_fields__
    assert len(model.__struct_defaults__) == len(sent.__struct_defaults__)


@pytest.mark.parametrize("origin", ["chain", "api"])
@pytest.mark.parametrize("state", [StreamState(), StreamState(stream_id=2**64 - 1, sender=ALICE, recipient=ALICE)])
def test_streams_of_which_little_is_known_fit(origin, state):
    of_chain = origin == "chain"
    record = messages.StreamRecord(
        stream(0), origin, 1, FIRST if of_chain else None, 0, state, 1, 1, 5 if of_chain else None, 0, 0
    )
    sent = json.loads(messages.encode_view(record, 0))
    validator({"$ref": "#/components/schemas/Stream"}, closed=True).validate(sent)


# -- replies as they are sent ----------------------------------------------------------------------------------------


def fits(operation_id: str, answer: httpx.Response) -> None:
    """The reply is one that the document announces: status, media type, body with nothing more in it, headers."""
    said = response(operation_id, answer.status_code)
    for name, header in said["headers"].items():
        schema = published()["components"]["headers"][header["$ref"].rpartition("/")[2]]
        assert name in answer.headers or not schema["required"], name
        if name in answer.headers and schema["schema"]["type"] == "string":
            assert validator(schema["schema"]).is_valid(answer.headers[name]), name
    if "content" not in said:
        assert answer.content == b""
        return
    media_type = answer.headers["content-type"].partition(";")[0]
    schema = said["content"][media_type]["schema"]
    if media_type == "application/json":
        closed = answer.status_code < 400 and operation_id != "getOpenApi"
        validator(schema, closed=closed).validate(answer.json())


@pytest.fixture
async def server(start, store, record):
    """Every shape that a stream and an event can have, a rollback and a stream of unknown parties among them."""
    await record(
        batch(
            created(0, ledger=10, memo="rent", metadata={"a": "b"}),
            created(1, ledger=10, index=1),
            event("withdrew", {"stream_id": 1, "recipient": ALICE, "amount": "25000000"}, ledger=11),
            event("paused", {"stream_id": 0, "reason": "Operational"}, ledger=12),
            event("gl_pause", {"paused": True}, ledger=13),
            event("withdrew", {"stream_id": 9, "recipient": ALICE, "amount": "1"}, ledger=13, index=1),
            event("what_is_it", {"stream_id": 0}, ledger=13, index=2),
            event("cancelled", {"stream_id": 1}, ledger=14),
            created(2, ledger=15),
            event("cancelled", {"stream_id": 0}, ledger=15, index=1),
        )
    )
    await record(LedgerBatch(rollback_to=14))
    return await start(store=store, indexer_worker_token=TOKEN, clock=lambda: GENESIS_S + 250.75)


@pytest.mark.parametrize(
    ("operation_id", "url", "status"),
    [
        ("getIndex", "/", 200),
        ("getHealth", "/health", 200),
        ("getLive", "/health/live", 200),
        ("getReady", "/health/ready", 200),
        ("getMetrics", "/metrics", 200),
        ("getOpenApi", "/openapi.json", 200),
        ("getDocs", "/docs", 200),
        ("getLivePage", "/live", 200),
        ("listStreams", "/api/streams", 200),
        ("listStreams", "/api/streams?limit=1", 200),
        ("listStreams", "/api/streams?limit=0&x=1", 400),
        ("getStream", f"/api/streams/{stream(0)}", 200),
        ("getStream", f"/api/streams/{stream(1)}?asOf=0", 200),
        ("getStream", f"/api/streams/{stream(2)}", 404),
        ("listEventsOfStream", f"/api/streams/{stream(2)}/events", 200),
        ("listEventsOfStream", "/api/streams/stream-x/events", 404),
        ("listEvents", "/api/events", 200),
        ("listEvents", "/api/events?after=x", 400),
        ("followEvents", "/api/events/stream?after=x", 400),
        ("followStream", "/api/streams/stream-x/stream", 404),
        ("getTreasury", f"/api/treasury/{ALICE}", 200),
        ("getTreasury", "/api/treasury/x", 400),
        ("exportStreams", "/api/export/streams.csv", 200),
        ("exportStreams", "/api/export/streams.csv?limit=1", 400),
        ("exportEvents", "/api/export/events.ndjson", 200),
    ],
)
async def test_replies_are_as_announced(server, operation_id, url, status):
    answer = await server.get(url)
    assert answer.status_code == status, answer.text
    fits(operation_id, answer)


async def test_the_log_holds_every_kind_of_payload(server):
    log = (await server.get("/api/events")).json()["events"]
    assert {item["event"] for item in log} == {
        "stream.created",
        "stream.updated",
        "stream.cancelled",
        "stream.reverted",
        "contract.updated",
    }
    assert {item["streamId"] is None for item in log} == {True, False}
    assert {item["payload"].get("stream", "absent") is None for item in log} == {True, False}


async def test_other_refusals_are_as_announced(server):
    url = f"/api/streams/{stream(0)}?asOf=5"
    etag = (await server.get(url)).headers["etag"]
    fits("getStream", await server.get(url, headers={"if-none-match": etag}))
    refused = await server.get("/api/streams", headers={"accept": "image/png"})
    assert refused.status_code == 406
    fits("listStreams", refused)
    refused = await server.request("PUT", "/api/streams")
    assert refused.status_code == 405
    schema = published()["components"]["responses"]["MethodNotAllowed"]["content"]["application/json"]["schema"]
    validator(schema).validate(refused.json())


async def test_ingest_is_as_announced(start, store, push):
    server = await start(store=store, push=push, indexer_worker_token=TOKEN)
    payload = {"stream_id": 1, "reason": "Operational"}
    good = pushed(event("paused", payload, ledger=10), "paused", payload)
    validator({"$ref": "#/components/schemas/IngestRequest"}).validate({"events": [good]})
    for token, events, status in ((TOKEN, [good], 200), (TOKEN, [], 400), ("x", [good], 401)):
        answer = await server.request(
            "POST", INGEST, headers={"x-indexer-worker-token": token}, json={"events": events}
        )
        assert answer.status_code == status
        fits("pushContractEvents", answer)
