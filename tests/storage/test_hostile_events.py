"""No event can stop ingest: whatever a contract or a node can say is recorded, taken back and recorded again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted import ACCOUNTS, CONTRACT, DECIMALS, batch, created, event, header
from stellar_sdk import scval, xdr

from fluxora.config import StorageConfig
from fluxora.protocol import contract
from fluxora.protocol.contract import ContractEvent, decode_raw
from fluxora.protocol.messages import view
from fluxora.protocol.streams import StreamState
from fluxora.protocol.topics import TOPICS
from fluxora.storage.store import EventQuery, StreamQuery, open_store

U64 = 2**64 - 1
LAST_SECOND = 253_402_300_799
I128 = [0, 1, -1, 10**12, 2**127 - 1, -(2**127)]
TIMES = [0, 1, 1_700_000_000, 2**63, U64]
ODD_TEXTS = st.sampled_from(["", "\0", "a\0b", "y" * 9_000, "Active", b"\xff\0", ACCOUNTS[0]])
ODD_MAPS = st.sampled_from(
    [{}, {(1, (2,)): {None: [2**200]}}, {True: 1, (b"x", None): 2}, {2**100: {}}, {b"\0": b"\0"}]
)
ODD = ODD_TEXTS | ODD_MAPS | st.sampled_from([None, True, 2**256 - 1, -(2**255), 1, 3, [1]])
FIELDS = {
    "i128": st.sampled_from(I128),
    "u64": st.sampled_from(TIMES),
    "u32": st.sampled_from([0, 2**32 - 1]),
    "bool": st.booleans(),
    "address": st.sampled_from([*ACCOUNTS[:2], CONTRACT]),
    "text": st.sampled_from(["", "a\0b", "\U0001f600"]),
    "bytes": st.sampled_from(["", "\0", "\u202e", "x" * 3_000]),
    "hash": st.just("ab" * 32),
    "entries": st.sampled_from([{}, {"\0": "\0"}, {"a": "b"}]),
}
ENTRIES = st.dictionaries(st.sampled_from([*StreamState.__struct_fields__, "novelty", "\0"]), ODD, max_size=12)


def raw_event(ledger: int, topic: str, pairs: list[tuple[xdr.SCVal, xdr.SCVal]], stream_id: int = 5) -> ContractEvent:
    """An event whose data is a map of `pairs`, keys of any kind."""
    value = xdr.SCVal(xdr.SCValType.SCV_MAP, map=xdr.SCMap([xdr.SCMapEntry(key, item) for key, item in pairs]))
    return contract.decode_xdr(
        id=f"{ledger << 32:019d}-{1:010d}",
        ledger=ledger,
        closed_at=LAST_SECOND,
        contract_id=CONTRACT,
        tx_hash="not a hash\0",
        topics=[scval.to_symbol(topic).to_xdr_bytes(), scval.to_uint64(stream_id).to_xdr_bytes()],
        value=value.to_xdr_bytes(),
    )


KEYS = {
    "number": scval.to_uint32(7),
    "great number": scval.to_int256(-(2**255)),
    "bytes": scval.to_bytes(b"\xff\0"),
    "text that is no UTF-8": scval.to_string(b"\xff"),
    "NUL": scval.to_string("a\0b"),
    "nothing": scval.to_void(),
    "list": scval.to_vec([scval.to_uint32(1), scval.to_vec([])]),
    "map": scval.to_map({scval.to_symbol("k"): scval.to_void()}),
}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS.keys())
async def test_data_with_any_key_is_recorded_and_refolded(storage_config: StorageConfig, key: xdr.SCVal) -> None:
    told = [(scval.to_symbol("stream_id"), scval.to_uint64(5)), (key, scval.to_uint64(U64))]
    odd = raw_event(11, "ac_revoke", told)
    assert odd.action == "ac_revoke"
    entry = {"sender": ACCOUNTS[0], "novelty": {(1, (2,)): {None: [2**200]}, 2**100: {b"\xff": 1}}}
    correction = contract.correction(
        ledger=12, closed_at=0, contract_id=CONTRACT, stream_id=5, entry=entry, immutable_only=False
    )
    late = event(10, 9, "top_up", stream_id=5, top_up_amount=1, new_deposit_amount=2**127 - 1, new_end_time=U64)
    async with open_store(storage_config, decimals=DECIMALS) as store:
        lease = await store.try_lease()
        assert lease is not None
        first = batch([created(10, 0, 5, memo="\0", metadata={"\0": "\0"}), odd, correction], 12, headers=(header(12),))
        await store.append([first], lease=lease.number)
        await store.append([batch([late])], lease=lease.number)
        await store.append([batch([], rollback_to=10)], lease=lease.number)
        again = await store.append([batch([odd, correction], 12)], lease=lease.number)
        assert again.outcomes[0].inserted == [odd.id, correction.id]
        rows = await store.events(EventQuery(after=0, limit=100))
        assert all(json.loads(row.payload) for row in rows)
        [record] = await store.streams(StreamQuery(limit=10))
        assert record.state.memo == b"\0"
        assert view(record, LAST_SECOND).metadata == {"\0": "\0"}
        await lease.aclose()


@st.composite
def happenings(draw: st.DrawFn) -> list[ContractEvent]:
    """What may happen to one stream, every number and text at its extremes, entries of any make among it."""
    made = []
    for ledger in range(1, draw(st.integers(2, 9))):
        closed_at = draw(st.sampled_from([0, 1_700_000_000, LAST_SECOND]))
        if draw(st.integers(0, 3)) == 0:
            common: dict[str, Any] = {"ledger": ledger, "closed_at": closed_at, "contract_id": CONTRACT, "stream_id": 5}
            made.append(contract.correction(**common, entry=draw(ENTRIES), immutable_only=draw(st.booleans())))
            continue
        topic = TOPICS[draw(st.sampled_from(["created"] * 9 + sorted(TOPICS)))]
        payload = {name: draw(FIELDS[kind]) for name, kind in topic.kinds.items()}
        made.append(
            contract.decode_named(
                id=f"{ledger << 32:019d}-{0:010d}",
                ledger=ledger,
                closed_at=closed_at,
                contract_id=CONTRACT,
                tx_hash="\0",
                topic=topic.name,
                payload=payload | ({topic.id_field: 5} if topic.id_field else {}) | {"\0": draw(FIELDS["text"])},
            )
        )
    return made


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(happened=happenings(), cut=st.integers(0, 8))
async def test_no_history_of_extremes_stops_ingest(
    storage_config: StorageConfig, happened: list[ContractEvent], cut: int
) -> None:
    for one in happened:
        assert decode_raw(one.id, one.ledger, one.closed_at, one.contract_id, one.tx_hash, one.raw) == one
    async with open_store(storage_config, decimals={CONTRACT: 0}) as store:
        lease = await store.try_lease()
        assert lease is not None
        rollback = await store.append([batch([], rollback_to=0)], lease=lease.number)
        assert rollback.epoch == 1
        for one in happened:
            await store.append([batch([one])], lease=lease.number)
        await store.append([batch([], rollback_to=cut)], lease=lease.number)
        again = await store.append([batch(happened)], lease=lease.number)
        assert again.outcomes[0].inserted == [one.id for one in happened if one.ledger > cut]
        for record in await store.streams(StreamQuery(limit=10)):
            for as_of in (0, 1_700_000_000, LAST_SECOND):
                assert view(record, as_of).id == record.id
        await lease.aclose()
