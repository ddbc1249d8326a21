"""Bulk histories: exact counts, the contract's own encoding, entries that agree with the events."""

from __future__ import annotations

from base64 import b64decode

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sdk_client import call
from stellar_sdk import scval, xdr

from fluxora.errors import InvariantError
from fluxora.localnet import Chain, Contract, Script, account, bulk, contract_address, open_localnet, stream_key
from fluxora.localnet.bulk import LIFETIME_S, STEPS, STRIDE, TOP_UP_S

CONTRACT = contract_address(9, 0)


def events_of(chain: Chain, first: int = 0):
    return [msgspec.json.decode(text) for ledger in chain.ledgers(first, 1 << 32) for text in ledger.events().rendered]


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 900), st.integers(1, 40))
def test_a_history_has_exactly_the_events_asked_for_in_order(count, per_ledger):
    chain = Chain(9)
    history = bulk(chain, count, contract_id=CONTRACT, events_per_ledger=per_ledger)
    events = events_of(chain)
    ids = [event["id"] for event in events]
    assert len(ids) == count
    assert ids == sorted(set(ids))
    created = [event for event in events if event["topic"][0] == scval.to_symbol("created").to_xdr()]
    assert len(created) == history.streams
    assert sum(history.steps(sid) for sid in range(history.streams)) == count
    again = Chain(9)
    bulk(again, count, contract_id=CONTRACT, events_per_ledger=per_ledger)
    assert again.latest.hash == chain.latest.hash
    assert events_of(again) == events


def test_its_events_and_states_are_those_of_the_simulated_contract():
    """One stream a ledger, lived by the simulated contract as well: byte for byte the same."""
    chain, twin = Chain(9), Chain(9)
    history = bulk(chain, 400, contract_id=CONTRACT, events_per_ledger=8)
    contract = Contract(twin, CONTRACT, admin=account(9, "admin"), token=contract_address(9, -1))
    for index in range(history.ledgers):
        for step, name in enumerate(STEPS):
            sid = index - step * STRIDE
            if sid < 0:
                break
            if name == "created":
                rate = 1_000 + sid * 7_919 % 99_000
                contract.create(
                    account(9, f"bulk-{sid % 64}"),
                    account(9, f"bulk-{(sid + 1) % 64}"),
                    deposit=rate * LIFETIME_S,
                    rate=rate,
                    end=twin.next_closed_at + LIFETIME_S,
                )
            elif name == "top_up":
                contract.top_up(sid, contract.stream(sid).rate_per_second * TOP_UP_S)
            elif name == "withdrew":
                assert contract.withdraw(sid) > 0
            else:
                calls = {"paused": contract.pause, "resumed": contract.resume, "cancelled": contract.cancel}
                calls[name](sid)
        events, entries = contract.drain()
        twin.close_ledger(events, entries=entries)
    expected, found = events_of(twin)[:400], events_of(chain)
    for one, other in zip(found, expected, strict=True):
        same = ("id", "topic", "value", "ledgerClosedAt", "contractId")
        assert {key: one[key] for key in same} == {key: other[key] for key in same}
    model = contract.model_streams()
    whole = [sid for sid in model if history.steps(sid) == min(len(STEPS), (history.ledgers - 1 - sid) // STRIDE + 1)]
    assert len(whole) > 50
    for sid in whole:
        assert history.stream(sid) == model[sid]
        assert chain.entry(stream_key(CONTRACT, sid)) == twin.entry(stream_key(CONTRACT, sid))


def test_entries_are_as_of_the_ledger_asked_for():
    chain = Chain(9)
    history = bulk(chain, 2_000, contract_id=CONTRACT, events_per_ledger=16)
    key = stream_key(CONTRACT, 3)
    born = history.first_ledger + 1
    assert chain.entry(key, at=born - 1) is None
    for made in range(1, len(STEPS) + 1):
        for at in (born + (made - 1) * STRIDE, born + made * STRIDE - 1):
            entry = chain.entry(key, at=at)
            assert entry.last_modified == born + (made - 1) * STRIDE
            stored = scval.to_native(xdr.LedgerEntryData.from_xdr(entry.xdr).contract_data.val)
            assert stored["withdrawn_amount"] == history.stream(3, at=at)["withdrawn_amount"]
    assert chain.entry(stream_key(CONTRACT, 1 << 40)) is None
    assert chain.entry(stream_key(contract_address(9, 5), 3)) is None


def test_a_fork_takes_back_its_last_ledgers():
    chain = Chain(9)
    history = bulk(chain, 2_000, contract_id=CONTRACT, events_per_ledger=16)
    tip = chain.latest.sequence
    before = history.stream(3, at=tip - 60)
    chain.fork(60)
    for _ in range(80):
        chain.close_ledger()
    assert history.stream(3) == before
    chain.reset()
    assert history.streams == 0
    assert chain.entry(stream_key(CONTRACT, 3)) is None


def test_a_history_that_would_prune_itself_is_refused():
    with pytest.raises(InvariantError, match="do not fit a retention of 10"):
        bulk(Chain(9, retention=10), 1_000, contract_id=CONTRACT, events_per_ledger=8)


async def test_it_is_served_in_pages_and_goes_on_with_the_accounts(http):
    async with open_localnet(seed=9, script=Script(9)) as net:
        other = contract_address(9, 3)
        history = bulk(net.chain, 3_000, contract_id=other, events_per_ledger=100)
        await net.close_ledgers(3)
        filters = [{"type": "contract", "contractIds": [other]}]
        params = {"startLedger": 2, "filters": filters, "pagination": {"limit": 700}}
        seen = []
        while True:
            page = await call(http, net.url, "getEvents", params)
            seen += page["events"]
            if len(page["events"]) < 700:
                break
            params = {"filters": filters, "pagination": {"limit": 700, "cursor": page["cursor"]}}
        assert len({event["id"] for event in seen}) == len(seen) == history.events
        for event in seen[::97]:
            value = scval.to_native(event["value"])
            sid = value["stream_id"] if isinstance(value, dict) else value[1]
            assert scval.to_native(event["topic"][1]) == sid
            assert scval.from_symbol(event["topic"][0]) in STEPS
            assert b64decode(event["value"])
