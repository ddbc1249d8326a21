"""What schemathesis must know of Fluxora beyond the OpenAPI document.

A JSON schema says what each value is like, and nothing of two values together; nor can it tell 5.0 from 5, which the
API does. So there are strategies for the string formats here; and a request that is meant to be right is made right
where it breaks such a rule, just before it is sent. Requests that are meant to be wrong go out as they are.

Schemathesis loads this module by the name in its configuration.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, MutableMapping
from datetime import datetime
from ipaddress import ip_network
from typing import Any

import schemathesis
from hypothesis import strategies as st
from stellar_sdk import StrKey

from bench import fuzzed_process
from bench.server_process import CONTRACT, account
from fluxora.errors import DecodeError
from fluxora.protocol import contract, cursors

_KEYS = st.binary(min_size=32, max_size=32)
_CONTRACTS = st.one_of(st.just(CONTRACT), _KEYS.map(StrKey.encode_contract))
_ADDRESSES = st.one_of(
    st.sampled_from([account(number) for number in range(fuzzed_process.PEOPLE)]),
    _KEYS.map(StrKey.encode_ed25519_public_key),
    _CONTRACTS,
)
_STREAM_IDS = st.one_of(
    st.sampled_from([fuzzed_process.stream_id(number) for number in range(1, fuzzed_process.STREAMS + 1)]),
    st.uuids().map(lambda made: f"stream-{made.hex}"),
    st.from_regex(r"stream-[a-z0-9]{12}-[0-9]{1,20}(-e[0-9]{1,10})?", fullmatch=True),
)
_TIMES = st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31))  # noqa: DTZ001 (in UTC, as the Z behind them says)
_POSITIONS = st.one_of(st.integers(0, 40), st.integers(0, 2**63 - 1))
_AMOUNTS = st.builds(
    lambda sign, whole, fraction: sign + whole + fraction,
    st.sampled_from(["", "", "+", "-"]),
    st.integers(0, 2**63 - 1).map(str),
    st.from_regex(r"(\.[0-9]{1,7})?", fullmatch=True),
)
_ENDPOINTS = st.one_of(st.just("default"), st.uuids().map(lambda made: f"we_{made.hex}"))
_PRINTABLE = st.characters(exclude_categories=("C", "Z"), include_characters=" ")
_FORMATS: dict[str, st.SearchStrategy[str]] = {
    "stellar-address": _ADDRESSES,
    "stellar-contract": _CONTRACTS,
    "stream-id": _STREAM_IDS,
    "position": _POSITIONS.map(str),
    "decimal-amount": _AMOUNTS,
    "cursor": _POSITIONS.map(lambda after: cursors.encode(after, {})),  # of the list without filters
    "date-time": _TIMES.map(lambda at: f"{at.isoformat()}Z"),
    "event-id": st.builds("{:019d}-{:010d}".format, st.integers(2**32, 2**63 - 1), st.integers(0, 2**32 - 1)),
}
_FORMATS |= {
    "one-line": st.text(_PRINTABLE),
    "webhook-endpoint-id": _ENDPOINTS,
    "webhook-delivery-id": st.builds("msg_{}_{}".format, _ENDPOINTS, st.integers(1, 2**63 - 1)),
    "webhook-url": st.builds(  # where nobody listens, so that no packet leaves the machine
        "http://127.0.0.1:{}/{}".format, st.integers(1, 9), st.from_regex(r"[A-Za-z0-9._~-]{0,40}", fullmatch=True)
    ),
}
for _name, _strategy in _FORMATS.items():
    schemathesis.openapi.format(_name, _strategy)


# Wrong credentials are limited by their client's address; here every refusal is to be that of the request itself.
_CLIENTS = map(str, ip_network("10.0.0.0/8").hosts())


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: dict[str, Any]) -> None:
    """Hold a request that is meant to be right to its rules. Each request comes from a client of its own."""
    case.headers["X-Forwarded-For"] = next(_CLIENTS)
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if isinstance(case.body, dict):
        case.body = _whole(case.body)
    hold = _RULES.get(case.operation.label)
    if hold is not None:
        hold(case)


def _whole(value: Any) -> Any:
    """The value with every whole number written as one."""
    if isinstance(value, dict):
        return {name: _whole(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _ledgers_in_order(case: Any) -> None:
    query = case.query
    if isinstance(query, dict) and {"ledgerFrom", "ledgerTo"} <= query.keys():
        query["ledgerFrom"], query["ledgerTo"] = sorted((query["ledgerFrom"], query["ledgerTo"]), key=int)


def _cursor_of_this_list(case: Any) -> None:
    """A cursor holds for the filters that it was made with; a position is all that is kept of one."""
    query = case.query
    if not isinstance(query, dict) or "cursor" not in query:
        return
    try:
        after = cursors.decode(query["cursor"], {})
    except DecodeError:
        after = 0
    filters = {name: query.get(name) for name in ("status", "sender", "recipient", "contractId")}
    query["cursor"] = cursors.encode(after, {**filters, "order": query.get("order", "asc")})


def _a_stream_that_can_be(case: Any) -> None:
    """Two parties, and start, cliff and end in this order where they are there; without a start it is now.

    An idempotency key goes with one body only.
    """
    body = case.body
    if body["sender"] == body["recipient"]:
        body["recipient"] = account(0) if body["sender"] != account(0) else account(1)
    names = [name for name in ("startTime", "cliffTime", "endTime") if body.get(name)]
    times = sorted(body[name] for name in names)
    if "startTime" not in body or body["startTime"] is None:
        soonest = int(time.time()) + 60
        times = [max(at, soonest) for at in times]
    body.update(zip(names, times, strict=True))
    if body.get("endTime") and body["endTime"] <= (body.get("startTime") or 0):
        body["endTime"] = 0
    if "Idempotency-Key" in case.headers:
        digest = hashlib.sha256(json.dumps(body).encode()).hexdigest()[:16]
        case.headers["Idempotency-Key"] = f"{case.headers['Idempotency-Key'][:100]}-{digest}"


def _a_batch_that_can_be(case: Any) -> None:
    """Ids of the events' own ledgers, each once; one hash for each ledger; payloads that fit their topics."""
    hashes: dict[int, str] = {}
    for index, event in enumerate(case.body["events"]):
        ledger = event["ledger"]
        event["eventId"] = f"{(ledger << 32) + (1 << 12):019d}-{index:010d}"
        event["ledgerHash"] = hashes.setdefault(ledger, event["ledgerHash"])
        if "topic" in event and not _fits(event["topic"], event["payload"]):
            event["topic"], event["payload"] = "created", fuzzed_process.created(1000 + index)


def _one_selection(case: Any) -> None:
    """Exactly one of the members."""
    given = [name for name, value in case.body.items() if value is not None]
    for name in given[1:]:
        del case.body[name]
    if not given:
        case.body["all"] = True


def _some_change(case: Any) -> None:
    """At least one member."""
    if isinstance(case.body, dict) and not any(value is not None for value in case.body.values()):
        case.body["ordered"] = True


def _positions_in_order(case: Any) -> None:
    body = case.body
    if isinstance(body, dict) and body.get("until") is not None and int(body["until"]) <= int(body.get("after") or 0):
        body.pop("after", None)
        body["until"] = str(max(1, int(body["until"])))


def _fits(topic: str, payload: MutableMapping[str, Any]) -> bool:
    try:
        contract.decode_named(
            id="", ledger=1, closed_at=0, contract_id=CONTRACT, tx_hash="", topic=topic, payload=payload
        )
    except DecodeError:
        return False
    return True


_RULES: dict[str, Callable[[Any], None]] = {
    "GET /api/events": _ledgers_in_order,
    "GET /api/export/events.ndjson": _ledgers_in_order,
    "GET /api/streams": _cursor_of_this_list,
    "PATCH /api/admin/webhooks/endpoints/{id}": _some_change,
    "POST /api/admin/webhooks/endpoints/{id}/replay": _positions_in_order,
    "POST /api/admin/ws/disconnect": _one_selection,
    "POST /api/streams": _a_stream_that_can_be,
    f"POST {fuzzed_process.INGEST}": _a_batch_that_can_be,
}
