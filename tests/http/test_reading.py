from __future__ import annotations

import re
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from schemas import FORMATS, parameters, validator
from stellar_sdk import StrKey
from story import ALICE, BOB, FIRST

from fluxora.errors import BadRequest
from fluxora.http.models import (
    AllEvents,
    FollowAll,
    FollowOne,
    ListStreams,
    NewStream,
    OneStream,
    StatusChange,
    StreamEvents,
)
from fluxora.http.reading import read_body, read_query
from fluxora.protocol import cursors

NOW = 1_767_225_600
MAX_UNIX_S = 253_402_300_799


def failures(read, model, value, **options: Any) -> list[tuple[str, str]]:
    """What is wrong with a request; nothing but a model or BadRequest may come of it."""
    try:
        assert isinstance(read(model, value, **options), model)
    except BadRequest as refused:
        details = refused.details or []
    else:
        return []
    assert details
    assert all(len(field) <= 100 and len(message) <= 200 for field, _, message in details)
    return [(field, code) for field, code, _ in details]


query_failures = partial(failures, read_query)
body_failures = partial(failures, read_body)


# -- queries ---------------------------------------------------------------------------------------------------------


def test_absent_parameters_are_none_or_the_default():
    wanted = read_query(ListStreams, ())
    assert (wanted.limit, wanted.order, wanted.status, wanted.cursor, wanted.as_of) == (20, "asc", None, None, None)
    log = read_query(AllEvents, ())
    assert (log.after, log.limit, log.event, log.ledger_from) == (0, 100, None, None)


def test_parameters_become_inner_values():
    pairs = [("after", "0007"), ("limit", "1000"), ("ledgerFrom", "4"), ("ledgerTo", "4"), ("contractId", FIRST)]
    wanted = read_query(AllEvents, pairs)
    assert (wanted.after, wanted.limit, wanted.ledger_from, wanted.ledger_to) == (7, 1000, 4, 4)
    assert wanted.contract_id == FIRST


def test_every_wrong_parameter_is_named_in_one_answer():
    pairs = [("limit", "0"), ("status", "sleeping"), ("sender", "G1"), ("contractId", "x"), ("x", "1"), ("limit", "3")]
    assert query_failures(ListStreams, pairs) == [
        ("limit", "OUT_OF_RANGE"),
        ("status", "INVALID_VALUE"),
        ("sender", "INVALID_ADDRESS"),
        ("contractId", "INVALID_ADDRESS"),
        ("x", "UNKNOWN_PARAMETER"),
        ("limit", "REPEATED_PARAMETER"),
    ]


@pytest.mark.parametrize(
    "text", ["", "+1", "-1", "1.0", "1e2", " 1", "1 ", "1\n", "0x1", "\u0661", "\u00b2", "1_0", "9" * 20, "null"]
)
def test_numbers_are_ascii_digits(text):
    assert query_failures(ListStreams, [("limit", text)]) == [("limit", "INVALID_FORMAT")]
    assert query_failures(StreamEvents, [("after", text)]) == [("after", "INVALID_FORMAT")]


def test_a_range_of_ledgers_is_judged_with_the_rest():
    pairs = [("ledgerFrom", "5"), ("ledgerTo", "4"), ("limit", "x")]
    assert query_failures(AllEvents, pairs) == [("limit", "INVALID_FORMAT"), ("ledgerTo", "OUT_OF_RANGE")]
    assert query_failures(AllEvents, [("ledgerFrom", "x"), ("ledgerTo", "4")]) == [("ledgerFrom", "INVALID_FORMAT")]


@given(st.integers(0, 2**63 - 1), st.sampled_from([None, "active", "paused"]), st.sampled_from(["asc", "desc", None]))
def test_a_cursor_goes_on_in_its_own_list_only(after, status, order):
    pairs = [(name, text) for name, text in (("status", status), ("order", order)) if text is not None]
    cursor = read_query(ListStreams, pairs).next_cursor(after)
    assert read_query(ListStreams, [*pairs, ("limit", "3"), ("cursor", cursor)]).cursor == after
    other = [*pairs, ("sender", ALICE), ("cursor", cursor)]
    assert query_failures(ListStreams, other) == [("cursor", "INVALID_CURSOR")]
    # What it is bound to is wrong itself: it cannot be judged.
    assert query_failures(ListStreams, [("recipient", "x"), ("cursor", cursor)]) == [("recipient", "INVALID_ADDRESS")]
    assert query_failures(ListStreams, [("cursor", cursor[:-1])]) == [("cursor", "INVALID_CURSOR")]


def test_cursors_that_clients_hold_stay_good():
    filters = {"status": "paused", "sender": None, "recipient": BOB, "contractId": None, "order": "asc"}
    pairs = [("status", "paused"), ("recipient", BOB), ("cursor", cursors.encode(77, filters))]
    assert read_query(ListStreams, pairs).cursor == 77


def number_code(text: str, low: int, high: int) -> str | None:
    if not re.fullmatch(r"[0-9]{1,19}", text):
        return "INVALID_FORMAT"
    return None if low <= int(text) <= high else "OUT_OF_RANGE"


def address_code(value: str, *, contract_only: bool = False) -> str | None:
    good = StrKey.is_valid_contract(value) or (not contract_only and StrKey.is_valid_ed25519_public_key(value))
    return None if good else "INVALID_ADDRESS"


# The rules once more, by other means: the name of each parameter, and its code for a text.
LIST_RULES = {
    "status": lambda text: None if text in {"active", "paused", "completed", "cancelled"} else "INVALID_VALUE",
    "sender": address_code,
    "recipient": address_code,
    "contractId": lambda text: address_code(text, contract_only=True),
    "limit": lambda text: number_code(text, 1, 100),
    "order": lambda text: None if text in {"asc", "desc"} else "INVALID_VALUE",
    "asOf": lambda text: number_code(text, 0, MAX_UNIX_S),
}
TEXTS = st.one_of(
    st.sampled_from(["active", "paused", "asc", "desc", ALICE, BOB, FIRST, "20", "0", "100", "101", str(MAX_UNIX_S)]),
    st.sampled_from([ALICE[:-1], ALICE.lower(), f"{ALICE[:-1]}A", FIRST[:5] + "A" + FIRST[6:], str(MAX_UNIX_S + 1)]),
    st.integers(-5, 2**65).map(str),
    st.text(max_size=60),
)


@given(
    st.lists(st.tuples(st.sampled_from([*LIST_RULES, "offset", "Limit"]) | st.text(max_size=120), TEXTS), max_size=6)
)
def test_a_query_is_a_model_or_names_exactly_what_is_wrong(pairs):
    wanted: set[tuple[str, str]] = set()
    seen: set[str] = set()
    for name, text in pairs:
        if name not in LIST_RULES:
            wanted.add((name[:100], "UNKNOWN_PARAMETER"))
        elif name in seen:
            wanted.add((name, "REPEATED_PARAMETER"))
        elif code := LIST_RULES[name](text):
            wanted.add((name, code))
        seen.add(name)
    if "cursor" not in seen:
        found = query_failures(ListStreams, pairs)
        assert len(found) == len(set(found))
        assert set(found) == wanted


@pytest.mark.parametrize(
    ("model", "operation"),
    [
        (ListStreams, "listStreams"),
        (OneStream, "getStream"),
        (StreamEvents, "listEventsOfStream"),
        (AllEvents, "listEvents"),
        (FollowAll, "followEvents"),
        (FollowOne, "followStream"),
    ],
)
@given(data=st.data())
def test_a_parameter_is_accepted_where_its_schema_accepts_it(model, operation, data):
    schemas = {name: schema for name, schema in parameters(operation, "query").items() if name != "cursor"}
    name = data.draw(st.sampled_from(sorted(schemas)))
    schema = schemas[name]
    text = data.draw(TEXTS | st.sampled_from(["stream-a-1", "stream-", "stream.updated", "9223372036854775808", "007"]))
    value: Any = text
    if schema["type"] == "integer" and re.fullmatch(r"[0-9]+", text) and len(text) < 20:
        value = int(text)
    assert (not query_failures(model, [(name, text)])) == validator(schema).is_valid(value), (name, text)


# -- bodies ----------------------------------------------------------------------------------------------------------

GOOD = {"sender": ALICE, "recipient": BOB, "depositAmount": "1000.0000000", "ratePerSecond": "0.0000116"}


def test_a_body_becomes_inner_values():
    body = {**GOOD, "startTime": 5, "cliffTime": None, "endTime": 0}
    new = read_body(NewStream, body)
    assert (new.deposit_amount, new.rate_per_second) == (10_000_000_000, 116)
    assert (new.start_time, new.cliff_time, new.end_time) == (5, None, 0)
    assert read_body(NewStream, GOOD, defaults={"start_time": NOW}).start_time == NOW
    assert read_body(NewStream, {**GOOD, "startTime": None}, defaults={"start_time": NOW}).start_time == NOW


def test_every_missing_member_is_named():
    assert body_failures(NewStream, {}) == [(name, "REQUIRED") for name in GOOD]
    assert body_failures(StatusChange, {"status": None}) == [("status", "REQUIRED")]


@pytest.mark.parametrize("value", [None, [], "x", 1, True])
def test_a_body_is_an_object(value):
    assert body_failures(NewStream, value) == [("", "INVALID_TYPE")]


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"depositAmount": None}, {("depositAmount", "DECIMAL_EMPTY_VALUE")}),
        ({"depositAmount": ""}, {("depositAmount", "DECIMAL_EMPTY_VALUE")}),
        ({"depositAmount": 5}, {("depositAmount", "DECIMAL_INVALID_TYPE")}),
        ({"depositAmount": 5.5}, {("depositAmount", "DECIMAL_INVALID_TYPE")}),
        ({"depositAmount": "1e3"}, {("depositAmount", "DECIMAL_INVALID_FORMAT")}),
        ({"depositAmount": "1.00000000"}, {("depositAmount", "DECIMAL_OUT_OF_RANGE")}),
        ({"depositAmount": "9223372036854775808"}, {("depositAmount", "DECIMAL_OUT_OF_RANGE")}),
        ({"depositAmount": "0.0000000"}, {("depositAmount", "OUT_OF_RANGE")}),
        ({"depositAmount": "-1"}, {("depositAmount", "OUT_OF_RANGE")}),
        ({"ratePerSecond": "-0.0000001"}, {("ratePerSecond", "OUT_OF_RANGE")}),
        ({"ratePerSecond": "-0"}, set()),
        ({"sender": 5}, {("sender", "INVALID_TYPE")}),
        ({"sender": BOB}, {("recipient", "INVALID_VALUE")}),
        ({"sender": "G", "recipient": "G"}, {("sender", "INVALID_ADDRESS"), ("recipient", "INVALID_ADDRESS")}),
        ({"startTime": "5"}, {("startTime", "INVALID_TYPE")}),
        ({"startTime": True}, {("startTime", "INVALID_TYPE")}),
        ({"startTime": 5.0}, {("startTime", "INVALID_TYPE")}),
        ({"startTime": -1}, {("startTime", "OUT_OF_RANGE")}),
        ({"startTime": MAX_UNIX_S + 1}, {("startTime", "OUT_OF_RANGE")}),
        ({"endTime": NOW}, {("endTime", "OUT_OF_RANGE")}),  # the start is now
        ({"endTime": NOW + 1}, set()),
        ({"startTime": 10, "endTime": 10}, {("endTime", "OUT_OF_RANGE")}),
        ({"startTime": 10, "cliffTime": 9}, {("cliffTime", "OUT_OF_RANGE")}),
        ({"startTime": 10, "cliffTime": 10, "endTime": 11}, set()),
        ({"startTime": 10, "cliffTime": 11, "endTime": 11}, set()),
        ({"startTime": 10, "cliffTime": 12, "endTime": 11}, {("cliffTime", "OUT_OF_RANGE")}),
        ({"startTime": 10, "cliffTime": 0, "endTime": 0}, set()),
        ({"startTime": "x", "cliffTime": 1, "endTime": 1}, {("startTime", "INVALID_TYPE")}),
        ({"endtime": 5}, {("endtime", "UNKNOWN_FIELD")}),
        ({"start_time": 5}, {("start_time", "UNKNOWN_FIELD")}),
    ],
)
def test_each_member_is_checked(changes, wrong):
    assert set(body_failures(NewStream, {**GOOD, **changes}, defaults={"start_time": NOW})) == wrong


def test_a_body_of_unknown_members_gets_a_bounded_answer():
    body = {f"{number}{'x' * 200}": 1 for number in range(1000)}
    found = body_failures(NewStream, {**GOOD, **body})
    assert 1 <= len(found) <= 50
    assert {code for _, code in found} == {"UNKNOWN_FIELD"}


def amount_code(value: Any, low: Decimal) -> str | None:
    if value is None or value == "":
        return "DECIMAL_EMPTY_VALUE"
    if not isinstance(value, str):
        return "DECIMAL_INVALID_TYPE"
    if not re.fullmatch(r"[+-]?[0-9]+(\.[0-9]+)?", value):
        return "DECIMAL_INVALID_FORMAT"
    if not FORMATS.conforms(value, "decimal-amount"):
        return "DECIMAL_OUT_OF_RANGE"
    return None if Decimal(value) >= low else "OUT_OF_RANGE"


def party_code(value: Any) -> str | None:
    return address_code(value) if isinstance(value, str) else "INVALID_TYPE"


def time_code(value: Any) -> str | None:
    if not isinstance(value, int) or isinstance(value, bool):
        return "INVALID_TYPE"
    return None if 0 <= value <= MAX_UNIX_S else "OUT_OF_RANGE"


BODY_RULES = {
    "sender": party_code,
    "recipient": party_code,
    "depositAmount": lambda value: amount_code(value, Decimal("0.0000001")),
    "ratePerSecond": lambda value: amount_code(value, Decimal(0)),
    "startTime": time_code,
    "cliffTime": time_code,
    "endTime": time_code,
}
AMOUNTS = st.from_regex(r"\A[+-]?[0-9]{1,21}(\.[0-9]{1,9})?\Z") | st.sampled_from(
    ["0", "-0.0", "1", "0.0000001", "", "+1"]
)
JSON = st.recursive(
    # 5.0 is an integer to JSON Schema and none here: no client writes a second that way.
    st.none() | st.booleans() | st.integers() | st.floats().filter(lambda x: not x.is_integer()) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
VALUES = {
    "sender": st.sampled_from([ALICE, BOB, FIRST]),
    "recipient": st.sampled_from([ALICE, BOB, FIRST, BOB.lower()]),
    "depositAmount": AMOUNTS,
    "ratePerSecond": AMOUNTS,
    "startTime": st.integers(0, 4) | st.sampled_from([NOW, MAX_UNIX_S, MAX_UNIX_S + 1]),
    "cliffTime": st.integers(-1, 4) | st.integers(NOW - 2, NOW + 2),
    "endTime": st.integers(-1, 4) | st.integers(NOW - 2, NOW + 2),
}


@st.composite
def bodies(draw) -> dict[str, Any]:
    body = {name: draw(strategy) for name, strategy in VALUES.items() if draw(st.integers(0, 9)) > 0}
    for name in draw(st.lists(st.sampled_from([*VALUES, "memo"]) | st.text(max_size=5), max_size=2)):
        body[name] = draw(JSON)
    return body


def own_failures(body: dict[str, Any]) -> set[tuple[str, str]]:
    """What is wrong with each member by itself, by the rules above."""
    wrong: set[tuple[str, str]] = set()
    for name in body:
        if name not in BODY_RULES:
            wrong.add((name, "UNKNOWN_FIELD"))
    for name, code_of in BODY_RULES.items():
        value = body.get(name)
        required = name in GOOD
        if name not in body or (value is None and "Amount" not in name and "rate" not in name):
            code = "REQUIRED" if required else None
        else:
            code = code_of(value)
        if code:
            wrong.add((name, code))
    return wrong


def broken_rules(body: dict[str, Any], wrong: set[str]) -> set[tuple[str, str]]:
    """The rules between members, of those that are good."""
    good = {name: value for name, value in body.items() if name not in wrong and value is not None}
    start = None if "startTime" in wrong else good.get("startTime", NOW)
    cliff, end = good.get("cliffTime") or None, good.get("endTime") or None
    broken: set[tuple[str, str]] = set()
    if "sender" in good and good["sender"] == good.get("recipient"):
        broken.add(("recipient", "INVALID_VALUE"))
    if end is not None and start is not None and end <= start:
        broken.add(("endTime", "OUT_OF_RANGE"))
    if cliff is not None and start is not None and cliff < start:
        broken.add(("cliffTime", "OUT_OF_RANGE"))
    if cliff is not None and end is not None and cliff > end and ("endTime", "OUT_OF_RANGE") not in broken:
        broken.add(("cliffTime", "OUT_OF_RANGE"))
    return broken


@given(bodies())
@example({**GOOD, "startTime": 1, "cliffTime": 0, "endTime": 2})
def test_a_body_is_a_model_or_names_exactly_what_is_wrong(body):
    wrong = own_failures(body)
    wrong |= broken_rules(body, {name for name, _ in wrong})
    found = body_failures(NewStream, body, defaults={"start_time": NOW})
    assert len(found) == len(set(found))
    assert set(found) == wrong


@given(bodies())
@example(GOOD)
def test_a_body_is_accepted_where_its_schema_and_the_rules_accept_it(body):
    fits = validator({"$ref": "#/components/schemas/NewStream"}).is_valid(body)
    found = body_failures(NewStream, body, defaults={"start_time": NOW})
    assert (not found) == (fits and not broken_rules(body, set()))
    # The members that the schema alone refuses are refused here too, whatever the rules say.
    assert fits == (not own_failures(body))


@given(st.sampled_from(["depositAmount", "ratePerSecond"]), AMOUNTS | JSON)
@example("depositAmount", "-0")
@example("depositAmount", "0.0000000")
@example("ratePerSecond", "-0.00")
@example("ratePerSecond", "-0.01")
@example("ratePerSecond", "9223372036854775808")
def test_an_amount_is_accepted_where_its_schema_accepts_it(name, value):
    body = {**GOOD, name: value}
    fits = validator({"$ref": "#/components/schemas/NewStream"}).is_valid(body)
    assert (not body_failures(NewStream, body)) == fits


@given(JSON | st.fixed_dictionaries({"status": JSON | st.sampled_from(["active", "paused", "closed"])}))
def test_a_status_is_accepted_where_its_schema_accepts_it(value):
    fits = validator({"$ref": "#/components/schemas/StatusChange"}).is_valid(value)
    assert (not body_failures(StatusChange, value)) == fits
