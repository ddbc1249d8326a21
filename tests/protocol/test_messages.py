"""Streams and events as JSON: names, amounts, times, and what is spliced in unread."""

from __future__ import annotations

import json
from base64 import b64encode
from calendar import timegm
from datetime import UTC, datetime
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from stellar_sdk import StrKey, scval

from fluxora.protocol.contract import correction, decode_named, decode_xdr
from fluxora.protocol.fold import fold
from fluxora.protocol.messages import (
    LogEvent,
    StreamRecord,
    change_of,
    encode_event,
    octets_text,
    payload_for,
    reverted_payload,
    stream_id,
    timestamp_text,
    view,
)
from fluxora.protocol.streams import StreamKind, StreamState, StreamStatus, accrued, withdrawable

CONTRACT = "CADQOBYHA4DQOBYHA4DQOBYHA4DQOBYHA4DQOBYHA4DQOBYHA4DQP5KR"
SENDER, RECIPIENT = (StrKey.encode_ed25519_public_key(bytes([number]) * 32) for number in (1, 2))
FEW = settings(max_examples=100, deadline=None)

STATE = StreamState(
    stream_id=42,
    sender=SENDER,
    recipient=RECIPIENT,
    deposit_amount=10_000_000_000,
    rate_per_second=100_000,
    start_time=1_785_000_000,
    cliff_time=1_785_000_000,
    end_time=1_785_100_000,
    checkpointed_at=1_785_000_000,
    withdrawn_amount=5_000_000,
    memo=b"payroll-07",
    metadata={b"dept": b"eng", b"\xff": b"\xfe\x00"},
)
RECORD = StreamRecord(
    id="stream-cadqobyha4dq-42",
    origin="chain",
    epoch=1,
    contract_id=CONTRACT,
    decimals=7,
    state=STATE,
    position=2**60,
    created_position=17,
    ledger=999,
    created_at=1_785_000_000_000,
    updated_at=1_785_000_500_250,
)


def shown(record, as_of):
    return json.loads(msgspec.json.encode(view(record, as_of)), parse_float=str)


def record_of(**changes):
    return replace(RECORD, state=replace(STATE, **changes))


def pushed(topic, *, at=1_785_000_500, **payload):
    return decode_named(
        id="0" * 19 + "-" + "0" * 10,
        ledger=999,
        closed_at=at,
        contract_id=CONTRACT,
        tx_hash="ab" * 32,
        topic=topic,
        payload=payload,
    )


def test_a_stream_as_clients_read_it():
    assert shown(RECORD, 1_785_000_500) == {
        "id": "stream-cadqobyha4dq-42",
        "origin": "chain",
        "contractId": CONTRACT,
        "chainStreamId": "42",
        "sender": SENDER,
        "recipient": RECIPIENT,
        "depositAmount": "1000.0000000",
        "ratePerSecond": "0.0100000",
        "withdrawnAmount": "0.5000000",
        "streamedAmount": "5.0000000",
        "withdrawableAmount": "4.5000000",
        "remainingAmount": "995.0000000",
        "startTime": 1_785_000_000,
        "cliffTime": 1_785_000_000,
        "endTime": 1_785_100_000,
        "kind": "linear",
        "status": "active",
        "depletionTime": 1_785_100_000,
        "memo": "payroll-07",
        "metadata": {"dept": "eng", "/w==": "/gA="},
        "position": str(2**60),
        "ledger": 999,
        "asOf": 1_785_000_500,
        "createdAt": "2026-07-25T17:20:00.000Z",
        "updatedAt": "2026-07-25T17:28:20.250Z",
    }


def test_before_its_start_a_stream_is_worth_nothing():
    for status in StreamStatus:
        early = shown(record_of(status=status, cancelled_at=1_785_000_400), 1_784_999_999)
        assert (early["streamedAmount"], early["withdrawableAmount"]) == ("0.0000000", "0.0000000")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"status": StreamStatus.PAUSED, "paused_at_timestamp": 1_785_000_400},
            {"pausedAt": 1_785_000_400, "withdrawableAmount": "0.0000000", "streamedAmount": "10.0000000"},
        ),
        (
            {"status": StreamStatus.CANCELLED, "cancelled_at": 1_785_000_400, "paused_at_timestamp": 5},
            {"cancelledAt": 1_785_000_400, "streamedAmount": "4.0000000", "remainingAmount": "0.0000000"},
        ),
        (
            {"status": StreamStatus.COMPLETED, "withdrawn_amount": 10_000_000_000, "closed_at": 1_785_000_900},
            {"closedAt": 1_785_000_900, "streamedAmount": "1000.0000000", "remainingAmount": "0.0000000"},
        ),
        (
            {"kind": StreamKind.CLIFF_ONLY, "rate_per_second": 0},
            {"kind": "cliff_only", "streamedAmount": "1000.0000000", "depletionTime": 1_785_000_000},
        ),
        ({"kind": StreamKind.CLIFF_SLOPE}, {"kind": "cliff_slope"}),
        ({"sender": "", "recipient": ""}, {"sender": None, "recipient": None}),
    ],
)
def test_what_each_state_shows(changes, expected):
    seen = shown(record_of(**changes), 1_785_001_000)
    assert {name: seen[name] for name in expected} == expected
    assert ("pausedAt" in seen) == (seen["status"] == "paused")
    assert ("cancelledAt" in seen) == (seen["status"] == "cancelled")


def test_a_registered_stream_has_no_place_on_a_chain_and_may_have_no_end():
    state = replace(STATE, end_time=0, metadata=None, memo=None)
    record = replace(RECORD, id="stream-00", origin="api", contract_id=None, ledger=None, state=state)
    seen = shown(record, 1_785_050_000)
    assert not {"contractId", "chainStreamId", "ledger", "memo", "metadata"} & seen.keys()
    assert (seen["endTime"], seen["streamedAmount"], seen["depletionTime"]) == (0, "500.0000000", 1_785_100_000)


@FEW
@given(
    deposit=st.integers(0, 10**20),
    rate=st.integers(0, 10**15),
    withdrawn=st.integers(0, 10**20),
    at=st.integers(0, 2**64 - 1),
    decimals=st.integers(0, 18),
    status=st.sampled_from([StreamStatus.ACTIVE, StreamStatus.PAUSED]),
)
def test_amounts_are_exact_and_make_the_deposit(*, deposit, rate, withdrawn, at, decimals, status):
    changes = {"deposit_amount": deposit, "rate_per_second": rate, "withdrawn_amount": withdrawn, "status": status}
    record = replace(record_of(**changes), decimals=decimals)
    seen = shown(record, at)

    def units(name):
        text = seen[name]
        assert isinstance(text, str)
        assert len(text.partition(".")[2]) == decimals
        return int(Decimal(text).scaleb(decimals))

    assert units("depositAmount") == deposit
    assert units("ratePerSecond") == rate
    assert units("streamedAmount") == accrued(record.state, at)
    assert units("withdrawableAmount") == withdrawable(record.state, at)
    assert units("streamedAmount") + units("remainingAmount") == deposit


def test_a_payload_is_the_stream_after_the_event_and_its_change():
    event = pushed("withdrew", stream_id=42, recipient=RECIPIENT, amount="45000000")
    record = replace(RECORD, state=fold(STATE, event).state)
    payload = payload_for(record, event)
    assert b"\n" not in payload
    read = json.loads(payload)
    change = read.pop("change")
    assert read == shown(record, 1_785_000_500)
    assert read["withdrawnAmount"] == "5.0000000"
    assert change == {"streamId": "42", "recipient": RECIPIENT, "amount": "4.5000000"}


def test_a_delegated_share_has_two_payloads():
    share = {"parent_stream_id": 42, "child_stream_id": 43, "delegator": RECIPIENT, "delegatee": SENDER}
    event = pushed("del_share", **share, share_bps=2500, new_parent_rate="75000", child_rate="25000")
    folded = fold(STATE, event)
    child = replace(RECORD, id="stream-cadqobyha4dq-43", state=folded.child)
    first, second = (json.loads(payload_for(r, event)) for r in (replace(RECORD, state=folded.state), child))
    assert first["change"] == second["change"]
    assert first["change"]["newParentRate"] == "0.0075000"
    assert first["change"]["shareBps"] == 2500
    assert (first["chainStreamId"], second["chainStreamId"]) == ("42", "43")
    total = Decimal(first["depositAmount"]) + Decimal(second["depositAmount"])
    assert total == Decimal(1000)


def test_a_change_shows_contract_data_in_the_wires_terms():
    fields = {
        "stream_id": str(2**63),
        "sender": SENDER,
        "recipient": RECIPIENT,
        "deposit_amount": str(2**100),
        "rate_per_second": "1",
        "start_time": 5,
        "cliff_time": 6,
        "end_time": 2**64 - 1,
        "withdraw_dust_threshold": "10",
        "memo": "rent",
        "metadata": {"k": "v"},
    }
    assert change_of(pushed("created", **fields), 2) == {
        "streamId": str(2**63),
        "sender": SENDER,
        "recipient": RECIPIENT,
        "depositAmount": "12676506002282294014967032053.76",
        "ratePerSecond": "0.01",
        "startTime": 5,
        "cliffTime": 6,
        "endTime": str(2**64 - 1),
        "withdrawDustThreshold": "0.10",
        "memo": "rent",
        "metadata": {"k": "v"},
    }


def test_an_event_that_concerns_no_stream_has_its_change_alone():
    assert payload_for(None, pushed("gl_pause", paused=True)) == b'{"change":{"paused":true}}'
    offer = pushed("offr_cxl", offer_id=6, by=SENDER, refund_amount="10000000")
    assert json.loads(payload_for(None, offer, decimals=6)) == {
        "change": {"offerId": "6", "by": SENDER, "refundAmount": "10.000000"}
    }


def raw_event(topics, value):
    return decode_xdr(
        id="0" * 19 + "-" + "0" * 10,
        ledger=1,
        closed_at=0,
        contract_id=CONTRACT,
        tx_hash="",
        topics=topics,
        value=value,
    )


def test_an_unknown_event_is_shown_as_it_came():
    topics = [scval.to_symbol("novel").to_xdr_bytes(), scval.to_uint64(5).to_xdr_bytes()]
    value = scval.to_bytes(b"\xff\x00").to_xdr_bytes()
    change = json.loads(payload_for(None, raw_event(topics, value)))["change"]
    assert change == {"topics": [b64encode(topic).decode() for topic in topics], "value": b64encode(value).decode()}

    broken = json.loads(payload_for(None, raw_event([], b"\xff\xff")))["change"]
    assert (broken["topics"], broken["value"]) == ([], "//8=")
    assert broken["error"]

    named = pushed("novel", amount="1", deep={"x": [2**70, None]})
    assert json.loads(payload_for(None, named))["change"] == {
        "topics": ["novel"],
        "value": {"amount": "1", "deep": {"x": [str(2**70), None]}},
    }


def test_a_correction_shows_the_entry():
    event = correction(
        ledger=5,
        closed_at=9,
        contract_id=CONTRACT,
        stream_id=42,
        entry={"status": 3, "kind": 2, "withdrawn_amount": 5, "stream_id": 42, "memo": b"\xff", "witness": None},
        immutable_only=False,
    )
    assert change_of(event, 1) == {
        "entry": {
            "status": "cancelled",
            "kind": "cliff_slope",
            "withdrawnAmount": "0.5",
            "streamId": "42",
            "memo": "/w==",
            "witness": None,
        },
        "immutableOnly": False,
    }


def test_a_rollback_shows_the_restored_stream_and_what_was_undone():
    undone = ["1-0000000004294967296-0000000000"]
    read = json.loads(reverted_payload(RECORD, undone, 1_785_000_500))
    assert read == {"stream": shown(RECORD, 1_785_000_500), "reverts": undone}
    assert reverted_payload(None, undone, 0) == b'{"stream":null,"reverts":["1-0000000004294967296-0000000000"]}'


def log_event(**changes):
    fields = {
        "position": 2**60,
        "event_id": "1-x",
        "event": "stream.updated",
        "action": "withdrew",
        "stream_id": RECORD.id,
        "ledger": 999,
        "tx_hash": "ab" * 32,
        "contract_id": CONTRACT,
        "timestamp_ms": 1_785_000_500_000,
        "payload": b'{"a":1.10,"b":"\xc3\xa9"}',
    }
    return LogEvent(**fields | changes)


def test_an_event_carries_its_payload_verbatim_on_one_line():
    line = encode_event(log_event())
    assert b'"payload":{"a":1.10,"b":"\xc3\xa9"}' in line
    assert b"\n" not in line
    read = json.loads(line)
    del read["payload"]
    assert read == {
        "event": "stream.updated",
        "eventId": "1-x",
        "streamId": RECORD.id,
        "position": str(2**60),
        "action": "withdrew",
        "ledger": 999,
        "txHash": "ab" * 32,
        "contractId": CONTRACT,
        "timestamp": "2026-07-25T17:28:20.000Z",
    }


def test_an_event_without_a_stream_says_null_and_leaves_the_chain_out():
    read = json.loads(encode_event(log_event(stream_id=None, ledger=None, tx_hash=None, contract_id=None)))
    assert read["streamId"] is None
    assert not {"ledger", "txHash", "contractId"} & read.keys()


def test_public_ids_name_the_epoch_from_the_second_on():
    assert stream_id(CONTRACT, 42, 1) == "stream-cadqobyha4dq-42"
    assert stream_id(CONTRACT, 0, 2) == "stream-cadqobyha4dq-0-e2"


@FEW
@given(moment=st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC)))  # noqa: DTZ001
def test_times_are_rfc_3339_with_milliseconds(moment):
    unix_ms = timegm(moment.timetuple()) * 1000 + moment.microsecond // 1000
    assert timestamp_text(unix_ms) == moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@FEW
@given(st.binary(max_size=12))
def test_octets_are_text_or_base64(octets):
    try:
        assert octets_text(octets).encode() == octets
    except AssertionError:
        assert octets_text(octets) == b64encode(octets).decode()
        with pytest.raises(UnicodeDecodeError):
            octets.decode()
