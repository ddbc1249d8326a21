"""Random histories of a contract, the log they must leave, and dumps of what the store made of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from scripted import ACCOUNTS, CONTRACT, GENESIS_S, OTHER_CONTRACT, close_time, created, event, query, withdrew

from fluxora.protocol.contract import ContractEvent, correction
from fluxora.protocol.streams import unpack_state

LEDGERS = 12
FIRST_LEDGER = 100
TOPICS = (
    *("created", "created", "withdrew", "withdrew", "wdraw_to", "paused", "resumed", "cancelled", "top_up", "closed"),
    *("rate_upd", "del_share", "gl_pause", "mystery", "kp_cncl", "corrected"),
)


@st.composite
def one_event(draw: st.DrawFn, ledger: int, index: int) -> ContractEvent:
    stream = draw(st.integers(0, 3))
    contract = draw(st.sampled_from([CONTRACT, CONTRACT, OTHER_CONTRACT]))
    amount = draw(st.sampled_from([1, 1000, 10**12, 2**100]))
    topic = draw(st.sampled_from(TOPICS))
    same = {"contract_id": contract}
    match topic:
        case "created":
            return created(ledger, index, stream, deposit_amount=str(amount * 10), **same)
        case "withdrew":
            return withdrew(ledger, index, stream, amount, **same)
        case "wdraw_to":
            parties = {"recipient": ACCOUNTS[1], "destination": ACCOUNTS[2]}
            return event(ledger, index, topic, stream_id=stream, amount=str(amount), **parties, **same)
        case "paused":
            return event(ledger, index, topic, stream_id=stream, reason="Operational", **same)
        case "resumed" | "cancelled" | "closed":
            return event(ledger, index, topic, stream_id=stream, **same)
        case "top_up":
            numbers = {"top_up_amount": str(amount), "new_deposit_amount": str(amount * 11), "new_end_time": "0"}
            return event(ledger, index, topic, stream_id=stream, **numbers, **same)
        case "rate_upd":
            numbers = {"old_rate_per_second": "1000000", "new_rate_per_second": str(draw(st.integers(1, 2_000_000)))}
            return event(ledger, index, topic, stream_id=stream, effective_time=close_time(ledger), **numbers, **same)
        case "del_share":
            parties = {"delegator": ACCOUNTS[1], "delegatee": ACCOUNTS[3], "share_bps": 100}
            children = {"parent_stream_id": stream, "child_stream_id": 10 + draw(st.integers(0, 1))}
            rates = {"new_parent_rate": "600000", "child_rate": "400000"}
            return event(ledger, index, topic, **parties, **children, **rates, **same)
        case "gl_pause":
            return event(ledger, index, topic, paused=True, **same)
        case "kp_cncl":
            numbers = {"keeper_fee": "1", "recipient_amount": str(amount), "sender_refund": "3"}
            return event(ledger, index, topic, stream_id=stream, keeper=ACCOUNTS[4], **numbers, **same)
        case "corrected":
            entry = {"stream_id": stream, "sender": ACCOUNTS[0], "recipient": ACCOUNTS[5], "deposit_amount": amount * 2}
            entry |= {"rate_per_second": 3, "start_time": GENESIS_S, "end_time": GENESIS_S + 10**6, "kind": 2}
            return correction(
                ledger=ledger,
                closed_at=close_time(ledger),
                contract_id=contract,
                stream_id=stream,
                entry=entry,
                immutable_only=draw(st.booleans()),
            )
        case _:
            return event(ledger, index, topic, anything="at all", **same)


@st.composite
def ledgers(draw: st.DrawFn, first: int, last: int) -> list[ContractEvent]:
    """A history of the ledgers `first` to `last`, in chain order, each event with an id of its own."""
    made: dict[str, ContractEvent] = {}
    for ledger in range(first, last + 1):
        for index in range(draw(st.integers(0, 4))):
            one = draw(one_event(ledger, index))
            made[one.id] = one
    return [made[key] for key in sorted(made)]


async def dump(url: str, *, told: bool = True) -> dict[str, Any]:
    """Streams and live events, without what depends on how often history was rewritten: positions.

    `told`: with what each row said at its time, which for events out of order is what was known then.
    """
    streams = await query(
        url,
        "SELECT id, contract_id, chain_stream_id::text, status, kind, sender, recipient, deposit_amount::text, "
        "rate_per_second::text, withdrawn_amount::text, start_time::text, cliff_time::text, end_time::text, ledger, "
        "created_ms, updated_ms, last_event_id, parked, epoch, state FROM streams ORDER BY id",
    )
    events = await query(
        url,
        "SELECT event_id, epoch, ledger, tx_hash, contract_id, stream_id, event, action, timestamp_ms, payload, raw "
        "FROM events WHERE reverted_by IS NULL AND raw IS NOT NULL ORDER BY event_id",
    )
    return {
        "streams": [dict(row) | {"state": unpack_state(row["state"])} for row in streams],
        "events": [
            dict(row) | ({"payload": _unplaced(row["payload"])} if told else {"payload": None, "event": None})
            for row in events
        ],
    }


def _unplaced(payload: str) -> Any:
    value = json.loads(payload)
    value.pop("position", None)
    return value


async def check_log(url: str) -> None:
    """What holds after any history: positions without gaps, every revert named, streams that point into the log."""
    rows = await query(
        url, "SELECT position, event_id, stream_id, ledger, event, reverted_by, payload FROM events ORDER BY 1"
    )
    (head,) = await query(url, "SELECT position FROM log_head")
    assert [row["position"] for row in rows] == list(range(1, head["position"] + 1))
    undone: dict[int, list[str]] = {}
    for row in rows:
        if row["reverted_by"] is not None:
            undone.setdefault(row["reverted_by"], []).append(row["event_id"])
    said = {row["position"]: json.loads(row["payload"])["reverts"] for row in rows if row["event"] == "stream.reverted"}
    assert said == undone
    by_position = {row["position"]: row for row in rows}
    streams = await query(url, "SELECT id, position, created_position FROM streams")
    for stream in streams:
        assert by_position[stream["position"]]["stream_id"] == stream["id"]
        assert by_position[stream["created_position"]]["stream_id"] == stream["id"]
        assert stream["position"] == max(row["position"] for row in rows if row["stream_id"] == stream["id"])
    runs = await query(url, "SELECT * FROM log_runs ORDER BY first_position")
    for run in runs:
        inside = [row["ledger"] for row in rows if run["first_position"] <= row["position"] <= run["last_position"]]
        assert inside == sorted(inside)
        assert (inside[0], inside[-1]) == (run["first_ledger"], run["last_ledger"])
    assert sum(run["last_position"] - run["first_position"] + 1 for run in runs) == len(rows)


def splits(events: Sequence[ContractEvent]) -> st.SearchStrategy[list[list[ContractEvent]]]:
    """`events` in consecutive pieces."""
    cuts = st.lists(st.integers(0, len(events)), max_size=4).map(sorted)
    return cuts.map(lambda at: [list(events[a:b]) for a, b in zip([0, *at], [*at, len(events)], strict=True)])
