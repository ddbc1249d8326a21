from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stellar_sdk import scval
from story import (
    ALICE,
    BOB,
    FIRST,
    GENESIS_S,
    created,
    created_payload,
    event,
    event_id,
    ledger_hash,
    pushed,
    stream,
)
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from fluxora.errors import BadRequest, StorageUnavailable
from fluxora.http.pushed_event import read_batch

TOKEN = "correct horse battery staple"
URL = "/internal/indexer/contract-events"
HEADERS = {"x-indexer-worker-token": TOKEN}


def creation(number: int, ledger: int, index: int = 0, **changes: Any) -> dict[str, Any]:
    payload = created_payload(number)
    return pushed(created(number, ledger=ledger, index=index), "created", payload) | changes


def pausing(number: int, ledger: int, branch: str = "") -> dict[str, Any]:
    payload = {"stream_id": number, "reason": "Operational"}
    return pushed(event("paused", payload, ledger=ledger), "paused", payload, branch)


def raw_creation(number: int, ledger: int) -> dict[str, Any]:
    """The same event as the network carries it, encoded by stellar_sdk."""
    amounts = {"deposit_amount": 10**10, "rate_per_second": 10**7, "withdraw_dust_threshold": 0}
    times = {"start_time": GENESIS_S, "cliff_time": GENESIS_S, "end_time": GENESIS_S + 1000, "stream_id": number}
    fields = {name: scval.to_int128(value) for name, value in amounts.items()}
    fields |= {name: scval.to_uint64(value) for name, value in times.items()}
    fields |= {"sender": scval.to_address(ALICE), "recipient": scval.to_address(BOB)}
    fields |= {"memo": scval.to_void(), "metadata": scval.to_void()}
    value = scval.to_map({scval.to_symbol(name): fields[name] for name in sorted(fields)})
    item = creation(number, ledger)
    del item["topic"], item["payload"]
    item["topicXdr"] = [scval.to_symbol("created").to_xdr(), scval.to_uint64(number).to_xdr()]
    item["valueXdr"] = value.to_xdr()
    return item


def details(answer) -> set[tuple[str, str]]:
    assert (answer.status_code, answer.json()["error"]) == (400, "VALIDATION_ERROR"), answer.text
    return {(detail["field"], detail["code"]) for detail in answer.json()["details"]}


@pytest.fixture
async def server(start, store, push):
    return await start(store=store, push=push, indexer_worker_token=TOKEN)


async def post(server, *events: Any, **options: Any):
    return await server.request("POST", URL, **{"headers": HEADERS, "json": {"events": list(events)}, **options})


async def test_a_batch_is_recorded_and_a_replay_changes_nothing(server):
    first, second = creation(0, 10), pausing(0, 11)
    answer = await post(server, second, first)  # the order in the body does not matter
    assert (answer.status_code, answer.json()) == (
        200,
        {
            "outcome": "persisted",
            "insertedCount": 2,
            "duplicateCount": 0,
            "insertedEventIds": [first["eventId"], second["eventId"]],
            "duplicateEventIds": [],
            "position": "2",
        },
    )
    shown = (await server.get(f"/api/streams/{stream(0)}")).json()
    assert (shown["status"], shown["ledger"]) == ("paused", 11)

    replay = (await post(server, first, second)).json()
    assert (replay["insertedCount"], replay["duplicateCount"], replay["position"]) == (0, 2, "2")
    assert sorted(replay["duplicateEventIds"]) == [first["eventId"], second["eventId"]]
    mixed = (await post(server, second, creation(1, 12))).json()
    assert (mixed["insertedCount"], mixed["duplicateCount"], mixed["position"]) == (1, 1, "3")


async def test_the_log_says_by_which_request_a_batch_came(server):
    with capture_logs(processors=(merge_contextvars,)) as lines:
        for request_id, item in (("pushed-1", creation(0, 10)), ("pushed-2", pausing(0, 10, branch="b"))):
            answer = await post(server, item, headers=HEADERS | {"x-request-id": request_id})
            assert answer.status_code == 200
    committed = [line["rounds"] for line in lines if line["event"] == "recorder.batch_committed"]
    assert committed == [["pushed-1"], ["pushed-2"]]
    assert [line["round"] for line in lines if line["event"] == "guard.fork_detected"] == ["pushed-2"]


async def test_raw_xdr_means_the_same_as_the_decoded_form(server):
    assert (await post(server, creation(0, 10), raw_creation(1, 11))).status_code == 200
    decoded = (await server.get(f"/api/streams/{stream(0)}?asOf={GENESIS_S + 500}")).json()
    raw = (await server.get(f"/api/streams/{stream(1)}?asOf={GENESIS_S + 500}")).json()
    for name in ("sender", "recipient", "depositAmount", "ratePerSecond", "startTime", "endTime", "streamedAmount"):
        assert decoded[name] == raw[name]


async def test_xdr_that_cannot_be_read_is_kept_as_unknown(server):
    odd = raw_creation(0, 10) | {"valueXdr": b64encode(b"\xff\xff").decode()}
    bare = raw_creation(0, 11) | {"topicXdr": []}
    assert (await post(server, odd, bare)).json()["insertedCount"] == 2
    log = (await server.get("/api/events")).json()["events"]
    assert [e["action"] for e in log] == ["unknown", "unknown"]


async def test_another_hash_for_a_stored_ledger_is_a_reorg(server):
    await post(server, creation(0, 10))
    await post(server, pausing(0, 11))
    await post(server, creation(1, 12))
    other = pausing(0, 11, "b") | {"topic": "cancelled", "payload": {"stream_id": 0}}
    answer = (await post(server, other)).json()
    assert answer["reorg"] == {"fromLedger": 11, "rolledBack": 2}
    assert answer["insertedEventIds"] == [other["eventId"]]
    assert (await server.get(f"/api/streams/{stream(0)}")).json()["status"] == "cancelled"
    assert (await server.get(f"/api/streams/{stream(1)}")).status_code == 404


async def test_the_route_does_not_exist_without_a_token(start):
    server = await start()
    for method in ("POST", "GET", "PUT"):
        answer = await server.request(method, URL, headers=HEADERS)
        assert (answer.status_code, answer.json()["error"]) == (404, "NOT_FOUND")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-indexer-worker-token": ""},
        {"x-indexer-worker-token": TOKEN + "x"},
        {"x-indexer-worker-token": TOKEN[:-1]},
        {"x-indexer-worker-token": "é".encode("latin-1")},
        [("x-indexer-worker-token", TOKEN), ("x-indexer-worker-token", TOKEN)],
        {"authorization": f"Bearer {TOKEN}"},
    ],
)
async def test_a_missing_or_wrong_token_is_401_and_nothing_is_stored(server, store, headers):
    answer = await post(server, creation(0, 10), headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (401, "UNAUTHORIZED")
    assert TOKEN not in answer.text
    assert await store.position() == 0


@pytest.mark.parametrize(
    ("media_type", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=UTF-8", 200),
        ('application/json;charset="utf-8"', 200),
        ("text/plain", 415),
        ("application/json; charset=latin-1", 415),
        ("application/x-www-form-urlencoded", 415),
        ("", 415),
    ],
)
async def test_the_body_must_be_json(server, media_type, status):
    body = json.dumps({"events": [creation(0, 10)]})
    answer = await post(server, json=None, content=body, headers={**HEADERS, "content-type": media_type})
    assert answer.status_code == status
    if status == 415:
        assert answer.json()["error"] == "UNSUPPORTED_MEDIA_TYPE"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"events":[],"events":[]}', b'{"events":[NaN]}', b"[" * 33 + b"]" * 33, b"\xff", b'{"a":"\\ud800"}'],
)
async def test_what_is_not_strict_json_is_invalid_json(server, body):
    answer = await post(server, json=None, content=body, headers={**HEADERS, "content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]) == (400, "INVALID_JSON")


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ([], {("", "INVALID_TYPE")}),
        ({}, {("events", "REQUIRED")}),
        ({"events": None}, {("events", "INVALID_TYPE")}),
        ({"events": {}}, {("events", "INVALID_TYPE")}),
        ({"events": []}, {("events", "OUT_OF_RANGE")}),
        ({"events": [0] * 1001}, {("events", "OUT_OF_RANGE")}),
        ({"events": [1, None, "x", []]}, {(f"events[{n}]", "INVALID_TYPE") for n in range(4)}),
    ],
)
async def test_the_batch_must_be_1_to_1000_events(server, body, wrong):
    assert details(await post(server, json=body)) == wrong


ALL_FIELDS = (
    "eventId",
    "ledger",
    "ledgerHash",
    "contractId",
    "topic",
    "txHash",
    "txIndex",
    "operationIndex",
    "eventIndex",
    "happenedAt",
    "payload",
)


async def test_every_missing_field_of_every_event_is_named(server, store):
    answer = await post(server, creation(0, 10), {}, raw_creation(1, 11) | {"valueXdr": None})
    assert details(answer) == {(f"events[1].{name}", "REQUIRED") for name in ALL_FIELDS} | {
        ("events[2].valueXdr", "REQUIRED")
    }
    assert await store.position() == 0


GOOD = creation(0, 10)


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"ledgerHash": "ab" * 31}, {("ledgerHash", "INVALID_FORMAT")}),
        ({"ledgerHash": ""}, {("ledgerHash", "INVALID_FORMAT")}),
        ({"ledgerHash": None}, {("ledgerHash", "REQUIRED")}),
        ({"ledgerHash": "zz" * 32}, {("ledgerHash", "INVALID_FORMAT")}),
        ({"txHash": "x"}, {("txHash", "INVALID_FORMAT")}),
        ({"ledger": "10"}, {("ledger", "INVALID_TYPE")}),
        ({"ledger": True}, {("ledger", "INVALID_TYPE")}),
        ({"ledger": 10.0}, {("ledger", "INVALID_TYPE")}),
        ({"ledger": 0}, {("ledger", "OUT_OF_RANGE")}),
        ({"ledger": 11}, {("eventId", "LEDGER_MISMATCH")}),
        ({"eventId": "abc"}, {("eventId", "INVALID_FORMAT")}),
        ({"eventId": event_id(10) + "0"}, {("eventId", "INVALID_FORMAT")}),
        ({"eventId": event_id(10).replace("-", "_")}, {("eventId", "INVALID_FORMAT")}),
        ({"eventId": event_id(10)[:20] + "9" * 10}, {("eventId", "INVALID_FORMAT")}),
        ({"eventId": 5}, {("eventId", "INVALID_TYPE")}),
        ({"contractId": ALICE}, {("contractId", "INVALID_FORMAT")}),
        ({"contractId": FIRST[:-1] + ("A" if FIRST[-1] != "A" else "B")}, {("contractId", "INVALID_FORMAT")}),
        ({"txIndex": -1}, {("txIndex", "OUT_OF_RANGE")}),
        ({"operationIndex": "0"}, {("operationIndex", "INVALID_TYPE")}),
        ({"eventIndex": 2**32}, {("eventIndex", "OUT_OF_RANGE")}),
        ({"happenedAt": GENESIS_S}, {("happenedAt", "INVALID_TYPE")}),
        ({"happenedAt": "2026-01-01"}, {("happenedAt", "INVALID_FORMAT")}),
        ({"happenedAt": "2026-01-01T00:00:00"}, {("happenedAt", "INVALID_FORMAT")}),
        ({"happenedAt": "2026-13-01T00:00:00Z"}, {("happenedAt", "INVALID_FORMAT")}),
        ({"happenedAt": "1969-12-31T23:59:59Z"}, {("happenedAt", "OUT_OF_RANGE")}),
        ({"topic": "has space"}, {("topic", "INVALID_FORMAT")}),
        ({"topic": "x" * 33}, {("topic", "INVALID_FORMAT")}),
        ({"payload": []}, {("payload", "INVALID_TYPE")}),
        ({"payload": {}}, {("payload", "INVALID_PAYLOAD")}),
        ({"payload": {**created_payload(0), "deposit_amount": 1.5}}, {("payload", "INVALID_PAYLOAD")}),
        ({"payload": {**created_payload(0), "sender": "G"}}, {("payload", "INVALID_PAYLOAD")}),
        (
            {"payload": {}, "txHash": 1, "ledgerHash": "x"},
            {
                ("payload", "INVALID_PAYLOAD"),
                ("txHash", "INVALID_TYPE"),
                ("ledgerHash", "INVALID_FORMAT"),
            },
        ),
        (
            {"valueXdr": "AAAA"},
            {
                ("topic", "CONFLICTING_FORM"),
                ("payload", "CONFLICTING_FORM"),
                ("topicXdr", "REQUIRED"),
            },
        ),
    ],
)
async def test_each_field_is_checked_and_nothing_is_stored(server, store, changes, wrong):
    answer = await post(server, creation(1, 9), GOOD | changes)
    assert details(answer) == {(f"events[1].{field}", code) for field, code in wrong}
    assert await store.position() == 0


@pytest.mark.parametrize(
    ("changes", "field", "code"),
    [
        ({"topicXdr": "AAAA"}, "topicXdr", "INVALID_TYPE"),
        ({"topicXdr": ["AAAA", 5]}, "topicXdr[1]", "INVALID_FORMAT"),
        ({"topicXdr": ["!!!!"]}, "topicXdr[0]", "INVALID_FORMAT"),
        ({"topicXdr": ["AAAA"] * 17}, "topicXdr", "OUT_OF_RANGE"),
        ({"valueXdr": "A"}, "valueXdr", "INVALID_FORMAT"),
        ({"valueXdr": 7}, "valueXdr", "INVALID_TYPE"),
    ],
)
async def test_raw_events_are_checked_alike(server, changes, field, code):
    assert details(await post(server, raw_creation(0, 10) | changes)) == {(f"events[0].{field}", code)}


async def test_a_batch_that_contradicts_itself_is_refused_whole(server, store):
    twice = await post(server, creation(0, 10), creation(1, 11), creation(0, 10))
    assert details(twice) == {("events[2].eventId", "DUPLICATE_ID")}
    hashes = await post(server, creation(0, 10), creation(1, 10, 1, ledgerHash=ledger_hash(10, "b")))
    assert details(hashes) == {("events[1].ledgerHash", "CONFLICTING_HASH")}
    assert await store.position() == 0
    upper = await post(server, creation(0, 10), creation(1, 10, 1, ledgerHash=ledger_hash(10).upper()))
    assert upper.status_code == 200


async def test_times_are_read_with_their_offset(server):
    shifted = creation(0, 10, happenedAt="2023-11-14T23:13:30.999+01:00")
    assert (await post(server, shifted)).status_code == 200
    logged = (await server.get("/api/events")).json()["events"][0]
    assert logged["timestamp"] == "2023-11-14T22:13:30.000Z"


async def test_a_body_over_the_bound_is_413_before_it_is_read(server):
    answer = await post(server, json=None, content=b"x" * 262_145, headers=HEADERS)
    assert (answer.status_code, answer.json()["error"]) == (413, "PAYLOAD_TOO_LARGE")


async def test_a_replica_that_does_not_ingest_answers_503(start, store):
    from fluxora.actors.sources.push import PushSource

    for push in (None, PushSource()):
        server = await start(store=store, push=push, indexer_worker_token=TOKEN)
        answer = await post(server, creation(0, 10))
        assert (answer.status_code, answer.json()["error"]) == (503, "SERVICE_UNAVAILABLE")
        assert int(answer.headers["retry-after"]) > 0


async def test_the_database_away_is_503(start):
    class Away:
        async def submit(self, _events, _hashes):
            raise StorageUnavailable("gone")

    server = await start(push=Away(), indexer_worker_token=TOKEN)
    answer = await post(server, creation(0, 10))
    assert (answer.status_code, answer.json()["error"]) == (503, "SERVICE_UNAVAILABLE")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*ALL_FIELDS, "topicXdr", "valueXdr"]), json_values)
def test_whatever_stands_in_a_field_is_taken_or_refused_by_name(name, value):
    refused = None
    try:
        batch = read_batch([GOOD | {name: value}])
    except BadRequest as error:
        refused = error.details
    if refused is None:
        assert len(batch.events) == 1
    else:
        assert refused
        assert all(field.startswith("events[0].") for field, _, _ in refused)
