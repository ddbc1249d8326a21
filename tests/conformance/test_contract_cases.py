"""The contract's own test runs: their events folded in order give the contract's own storage, and its read calls."""

from __future__ import annotations

import gzip
import json
from base64 import b64decode
from collections import Counter

import pytest

from fluxora.protocol import contract
from fluxora.protocol.contract import decode_xdr
from fluxora.protocol.fold import fold
from fluxora.protocol.streams import CONTRACT_FIELDS, StreamKind, StreamState, claimable_at, pack_state, unpack_state

SHARED = (
    "stream_id",
    "sender",
    "recipient",
    "deposit_amount",
    "rate_per_second",
    "start_time",
    "cliff_time",
    "end_time",
    "withdrawn_amount",
    "status",
)


@pytest.fixture(scope="module")
def cases(fixtures_dir):
    with gzip.open(fixtures_dir / "contract_cases.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def decode(case, number, closed_at):
    event = case["events"][number]
    return decode_xdr(
        id=f"{(1 << 32) + (1 << 12):019d}-{number:010d}",
        ledger=1,
        closed_at=closed_at,
        contract_id=case["contract_id"],
        tx_hash="00" * 32,
        topics=[b64decode(topic) for topic in event["topic"]],
        value=b64decode(event["value"]),
    )


def run(case, *, upto=None, closed_at=None):
    """Fold the case's events; a cancellation happens when the contract's storage says it did, the rest at the end."""
    cancelled = {s["stream_id"]: s.get("cancelled_at") for s in case["final_streams"]}
    states, closed = {}, set()
    for number in range(len(case["events"]) if upto is None else upto):
        event = decode(case, number, int(case["timestamp"]))
        if event.action == "cancelled" and cancelled.get(str(event.stream_id)):
            event = decode(case, number, int(cancelled[str(event.stream_id)]))
        folded = fold(states.get(event.stream_id), event)
        if event.action == "closed":
            closed.add(event.stream_id)
        if folded.state is not None:
            states[event.stream_id] = folded.state
    return states, closed


def expected_of(final):
    return StreamState.from_contract({name: final[name] for name in (*SHARED, "cancelled_at") if name in final})


def test_every_case_ends_in_the_contracts_own_storage(cases):
    wrong, streams = [], 0
    for case in cases:
        states, closed = run(case)
        live = {stream_id: state for stream_id, state in states.items() if stream_id not in closed}
        finals = {int(final["stream_id"]): final for final in case["final_streams"]}
        if live.keys() != finals.keys():
            wrong.append((case["name"], sorted(live), sorted(finals)))
        if case["schema"] == "v0":
            continue
        for stream_id, final in finals.items():
            streams += 1
            expected = expected_of(final)
            state = live[stream_id]
            wrong += [
                (case["name"], stream_id, name, getattr(state, name), getattr(expected, name))
                for name in (*SHARED, "cancelled_at")
                if name in final and getattr(state, name) != getattr(expected, name)
            ]
    assert not wrong
    assert (len(cases), streams) == (384, 396)


def test_nothing_the_contract_sent_is_unknown(cases):
    actions = Counter(decode(case, number, 0).action for case in cases for number in range(len(case["events"])))
    assert contract.UNKNOWN not in actions
    assert actions.total() == 834


def test_the_oldest_shape_is_completed_by_the_ledger_entry(cases):
    """v0 events tell the deposit alone; what they do not tell comes from the entry, as a correction."""
    [case] = [case for case in cases if case["schema"] == "v0"]
    first = fold(None, decode(case, 0, int(case["timestamp"])))
    assert (first.kind, first.wants_entry, first.state.sender, first.state.recipient) == ("created", True, "", "")

    states, _ = run(case)
    [final] = case["final_streams"]
    [(stream_id, state)] = states.items()
    assert state.deposit_amount == int(final["deposit_amount"])
    assert state.status == int(final["status"])

    entry = expected_of(final)
    correction = contract.correction(
        ledger=2,
        closed_at=10,
        contract_id=case["contract_id"],
        stream_id=stream_id,
        entry={name: getattr(entry, name) for name in SHARED},
        immutable_only=False,
    )
    stored = contract.decode_raw(
        correction.id, correction.ledger, correction.closed_at, correction.contract_id, "", correction.raw
    )
    for event in (correction, stored):
        folded = fold(unpack_state(pack_state(state)), event)
        assert not folded.wants_entry
        for name in SHARED:
            assert getattr(folded.state, name) == getattr(entry, name), name


def test_read_calls_in_the_middle_of_a_case(cases):
    """get_claimable_at names its second, so what the contract answered after N events is what the fold gives."""
    wrong, asked = [], 0
    for case in cases:
        for view in case["views"]:
            states, _ = run(case, upto=view["after"])
            state = states[int(view["args"][0])]
            if view["fn"] == "get_stream_state" and view["ret"] is not None and case["schema"] != "v0":
                expected = expected_of(view["ret"])
                wrong += [
                    (case["name"], view["after"], name, getattr(state, name))
                    for name in SHARED
                    if getattr(state, name) != getattr(expected, name)
                ]
            if view["fn"] == "get_claimable_at":
                asked += 1
                got = claimable_at(state, int(view["args"][1]))
                if got != int(view["ret"]):
                    wrong.append((case["name"], view, got, state))
    assert not wrong
    assert asked == 80


def test_the_newest_entry_reads_whole(fixtures_dir):
    from fluxora.protocol import scval

    sample = json.loads((fixtures_dir / "contract_stream_entry_head_synthetic.json").read_text())
    fields = scval.decode(b64decode(sample["value"]))
    assert set(fields) == set(CONTRACT_FIELDS)
    state = StreamState.from_contract(fields)
    assert {name: getattr(state, name) for name in CONTRACT_FIELDS} == fields
    assert state.kind is StreamKind.LINEAR
