"""POST, PATCH and DELETE over a socket: what section 3 of the contract says of each, and many callers at once."""

from __future__ import annotations

import json
from datetime import datetime

import pytest
from registering import NEW, NOW, URL, details, post, registered
from story import ALICE, BOB, GENESIS_S, batch, created, event, stream

from fluxora.protocol.addresses import is_account_or_contract
from fluxora.protocol.messages import STATUS_NAMES


@pytest.fixture
async def server(start, store, cache, writes):
    return await start(store=store, cache=cache, writes=writes, clock=lambda: NOW + 0.5)


@pytest.fixture
async def front(start):
    """A server for what is refused before anything could be written: it has nothing to write with."""
    return await start(clock=lambda: NOW + 0.5)


async def test_a_registration_answers_201_with_its_location_and_the_stream(server, store):
    answer = await post(server)
    made = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"{URL}/{made['id']}"
    assert "idempotency-replayed" not in answer.headers
    assert made["id"].startswith("stream-")
    assert len(made["id"]) == len("stream-") + 32
    assert (made["origin"], made["status"], made["kind"]) == ("api", "active", "linear")
    assert "contractId" not in made
    assert "chainStreamId" not in made
    assert (made["depositAmount"], made["ratePerSecond"]) == ("1000.0000000", "0.5000000")
    assert (made["startTime"], made["endTime"], made["withdrawnAmount"]) == (GENESIS_S, 0, "0.0000000")
    assert all(is_account_or_contract(made[party]) for party in ("sender", "recipient"))
    shown = (await server.get(f"{answer.headers['location']}?asOf={made['asOf']}")).json()
    assert shown == made, "what is answered is what is read behind it"
    (logged,) = (await server.get(f"{URL}/{made['id']}/events")).json()["events"]
    assert (logged["event"], logged["action"], logged["position"]) == ("stream.created", "created", made["position"])
    assert int(made["position"]) == await store.position()


@pytest.mark.parametrize("field", ["depositAmount", "ratePerSecond"])
@pytest.mark.parametrize(
    ("value", "code"),
    [
        (1000, "DECIMAL_INVALID_TYPE"),
        (0.5, "DECIMAL_INVALID_TYPE"),
        (True, "DECIMAL_INVALID_TYPE"),
        ([], "DECIMAL_INVALID_TYPE"),
        ({}, "DECIMAL_INVALID_TYPE"),
        (None, "DECIMAL_EMPTY_VALUE"),
        ("", "DECIMAL_EMPTY_VALUE"),
        (" 1", "DECIMAL_INVALID_FORMAT"),
        ("1 ", "DECIMAL_INVALID_FORMAT"),
        ("1.", "DECIMAL_INVALID_FORMAT"),
        (".5", "DECIMAL_INVALID_FORMAT"),
        ("1e5", "DECIMAL_INVALID_FORMAT"),
        ("1,000", "DECIMAL_INVALID_FORMAT"),
        ("0x10", "DECIMAL_INVALID_FORMAT"),
        ("--1", "DECIMAL_INVALID_FORMAT"),
        ("NaN", "DECIMAL_INVALID_FORMAT"),
        ("\u0661", "DECIMAL_INVALID_FORMAT"),  # a digit of another script
        ("1\n", "DECIMAL_INVALID_FORMAT"),
        ("0.00000001", "DECIMAL_OUT_OF_RANGE"),
        ("1.00000000", "DECIMAL_OUT_OF_RANGE"),  # eight digits, if zeros
        ("9223372036854775808", "DECIMAL_OUT_OF_RANGE"),
        ("9" * 5000, "DECIMAL_OUT_OF_RANGE"),
    ],
)
async def test_amounts_that_are_none_are_refused_by_code(front, field, value, code):
    assert details(await post(front, {**NEW, field: value})) == {field: code}


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("+5", "5.0000000"),
        ("007.5", "7.5000000"),
        ("0.0000001", "0.0000001"),
        ("9223372036854775807.9999999", "9223372036854775807.9999999"),
    ],
)
async def test_amounts_come_back_in_their_one_form(server, given, shown):
    made = (await post(server, {**NEW, "depositAmount": given, "ratePerSecond": given})).json()
    assert (made["depositAmount"], made["ratePerSecond"]) == (shown, shown)


async def test_no_rate_is_a_rate_and_minus_nothing_is_nothing(server):
    assert (await post(server, {**NEW, "ratePerSecond": "-0"})).json()["ratePerSecond"] == "0.0000000"


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"sender": BOB, "recipient": BOB}, {"recipient": "INVALID_VALUE"}),
        ({"ratePerSecond": "-0.0000001"}, {"ratePerSecond": "OUT_OF_RANGE"}),
        ({"depositAmount": "0"}, {"depositAmount": "OUT_OF_RANGE"}),
        ({"depositAmount": "-1"}, {"depositAmount": "OUT_OF_RANGE"}),
        ({"endTime": GENESIS_S}, {"endTime": "OUT_OF_RANGE"}),
        ({"endTime": 1}, {"endTime": "OUT_OF_RANGE"}),
        ({"cliffTime": GENESIS_S - 1}, {"cliffTime": "OUT_OF_RANGE"}),
        ({"endTime": GENESIS_S + 10, "cliffTime": GENESIS_S + 11}, {"cliffTime": "OUT_OF_RANGE"}),
        ({"startTime": "1"}, {"startTime": "INVALID_TYPE"}),
        ({"startTime": -1}, {"startTime": "OUT_OF_RANGE"}),
        ({"startTime": 1.0}, {"startTime": "INVALID_TYPE"}),
        ({"sender": ALICE[:-1] + "A"}, {"sender": "INVALID_ADDRESS"}),
        ({"sender": 5}, {"sender": "INVALID_TYPE"}),
        ({"status": "active"}, {"status": "UNKNOWN_FIELD"}),
        ({"id": "stream-1"}, {"id": "UNKNOWN_FIELD"}),
    ],
)
async def test_a_bad_registration_is_refused_by_field(front, changes, wrong):
    assert details(await post(front, {**NEW, **changes})) == wrong


async def test_without_a_start_it_starts_now_and_ends_later(server, store):
    body = {name: value for name, value in NEW.items() if name != "startTime"}
    for changes, wrong in (({"endTime": NOW}, "endTime"), ({"cliffTime": NOW}, "cliffTime")):
        assert details(await post(server, {**body, **changes})) == {wrong: "OUT_OF_RANGE"}
    assert await store.position() == 0
    made = (await post(server, body)).json()
    assert made["startTime"] == made["cliffTime"] == datetime.fromisoformat(made["createdAt"]).timestamp() // 1


async def test_every_failing_field_is_named_at_once(front):
    body = {"sender": "x", "depositAmount": 5, "ratePerSecond": "-1", "endTime": "later", "memo": "m"}
    assert details(await post(front, body)) == {
        "sender": "INVALID_ADDRESS",
        "recipient": "REQUIRED",
        "depositAmount": "DECIMAL_INVALID_TYPE",
        "ratePerSecond": "OUT_OF_RANGE",
        "endTime": "INVALID_TYPE",
        "memo": "UNKNOWN_FIELD",
    }


@pytest.mark.parametrize("body", ["[]", '"x"', "5", "null", "true"])
async def test_a_body_that_is_no_object_is_refused(front, body):
    headers = {"content-type": "application/json"}
    assert details(await front.request("POST", URL, content=body, headers=headers)) == {"": "INVALID_TYPE"}


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "{'a':1}",
        '{"sender":"a","sender":"b"}',
        '{"x":{"a":1,"a":1}}',
        '{"startTime":NaN}',
        '{"startTime":Infinity}',
        '{"startTime":-Infinity}',
        '{"startTime":1e999}',
        '{"x":' + "[" * 32 + "]" * 32 + "}",
        '{"x":"\\ud800"}',
        b'{"x":"\xff"}',
        '{"x":' + "9" * 5000 + "}",
        "{} {}",
    ],
)
async def test_what_is_no_strict_json_is_refused(front, body):
    headers = {"content-type": "application/json"}
    for method, url in (("POST", URL), ("PATCH", f"{URL}/stream-x")):
        answer = await front.request(method, url, content=body, headers=headers)
        assert (answer.status_code, answer.json()["error"]) == (400, "INVALID_JSON")


async def test_nesting_of_32_is_json(front):
    body = '{"x":' + "[" * 31 + "]" * 31 + "}"
    answer = await front.request("POST", URL, content=body, headers={"content-type": "application/json"})
    assert answer.json()["error"] == "VALIDATION_ERROR"


@pytest.mark.parametrize("media_type", [None, "text/plain", "application/xml", "application/json; charset=latin-1"])
async def test_another_media_type_is_415(front, media_type):
    headers = {} if media_type is None else {"content-type": media_type}
    answer = await front.request("POST", URL, content=json.dumps(NEW), headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (415, "UNSUPPORTED_MEDIA_TYPE")


@pytest.mark.parametrize(
    "media_type", ["application/json; charset=utf-8", "Application/JSON", 'application/json;charset="UTF-8"']
)
async def test_the_media_type_is_read_as_such(server, media_type):
    answer = await server.request("POST", URL, content=json.dumps(NEW), headers={"content-type": media_type})
    assert answer.status_code == 201


@pytest.mark.parametrize("chunked", [False, True])
async def test_256_kib_is_the_bound_and_it_holds_before_parsing(front, chunked):
    for size, status, code in ((262_144, 400, "VALIDATION_ERROR"), (262_145, 413, "PAYLOAD_TOO_LARGE")):
        text = json.dumps({**NEW, "x": ""})
        body = text.replace('"x": ""', '"x": "' + "a" * (size - len(text)) + '"').encode()
        assert len(body) == size

        async def pieces(body: bytes = body):
            for at in range(0, len(body), 50_000):
                yield body[at : at + 50_000]

        answer = await front.request(
            "POST", URL, content=pieces() if chunked else body, headers={"content-type": "application/json"}
        )
        assert (answer.status_code, answer.json()["error"]) == (status, code)


# -- the status ---------------------------------------------------------------------------------------------------

ALLOWED = {
    ("active", "paused"),
    ("active", "completed"),
    ("active", "cancelled"),
    ("paused", "active"),
    ("paused", "cancelled"),
}


@pytest.mark.parametrize("was", STATUS_NAMES)
@pytest.mark.parametrize("to", STATUS_NAMES)
async def test_patch_goes_where_the_contract_lets_it(server, was, to):
    url = await registered(server, was)
    before = (await server.get(url)).json()
    answer = await server.request("PATCH", url, json={"status": to})
    if (was, to) in ALLOWED:
        assert (answer.status_code, answer.json()["status"]) == (200, to)
        assert int(answer.json()["position"]) > int(before["position"])
        assert answer.json() == (await server.get(url)).json()
        logged = (await server.get(f"{url}/events")).json()["events"][-1]
        assert logged["event"] == ("stream.cancelled" if to == "cancelled" else "stream.updated")
        assert logged["payload"]["status"] == to
    else:
        assert details(answer, "CONFLICT", 409) == {"status": "INVALID_TRANSITION"}
        assert (await server.get(url)).json() == before


@pytest.mark.parametrize("was", STATUS_NAMES)
async def test_delete_cancels_once(server, was):
    url = await registered(server, was)
    answer = await server.request("DELETE", url)
    if (was, "cancelled") in ALLOWED:
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
        assert answer.json()["cancelledAt"] > 0
        answer = await server.request("DELETE", url)
    assert details(answer, "CONFLICT", 409) == {"status": "INVALID_TRANSITION"}


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ({}, {"status": "REQUIRED"}),
        ({"status": None}, {"status": "REQUIRED"}),
        ({"status": "sleeping"}, {"status": "INVALID_VALUE"}),
        ({"status": 1}, {"status": "INVALID_TYPE"}),
        ({"status": "paused", "sender": ALICE}, {"sender": "UNKNOWN_FIELD"}),
    ],
)
async def test_a_bad_patch_is_refused_by_field(front, body, wrong):
    assert details(await front.request("PATCH", f"{URL}/stream-x", json=body)) == wrong


async def test_a_stream_of_the_chain_is_the_chains(start, store, record, cache, writes):
    await record(batch(created(0, ledger=10), created(1, ledger=11), event("cancelled", {"stream_id": 1}, ledger=20)))
    server = await start(store=store, cache=cache, writes=writes)
    for number in (0, 1):
        before = (await server.get(f"{URL}/{stream(number)}?asOf=5")).json()
        for answer in (
            await server.request("PATCH", f"{URL}/{stream(number)}", json={"status": "paused"}),
            await server.request("DELETE", f"{URL}/{stream(number)}"),
        ):
            assert (answer.status_code, answer.json()["error"]) == (409, "CHAIN_MANAGED")
        assert (await server.get(f"{URL}/{stream(number)}?asOf=5")).json() == before


@pytest.mark.parametrize("unknown", ["stream-none", "x", "stream-%00", "stream-" + "a" * 200])
async def test_an_unknown_stream_is_404(server, unknown):
    for answer in (
        await server.request("DELETE", f"{URL}/{unknown}"),
        await server.request("PATCH", f"{URL}/{unknown}", json={"status": "paused"}),
    ):
        assert (answer.status_code, answer.json()["error"]) == (404, "NOT_FOUND")
