"""stellar_sdk's own client talks to localnet and finds what is there."""

from __future__ import annotations

import hashlib
from base64 import b64decode

from sdk_client import open_server
from stellar_sdk import scval, xdr
from stellar_sdk.soroban_rpc import EventFilter, EventFilterType

from fluxora.localnet import stream_key
from fluxora.protocol.chain import parse_header


async def test_health_network_version_and_latest_ledger_are_readable(busy):
    async with open_server(busy.url) as server:
        health = await server.get_health()
        assert (health.status, health.latest_ledger, health.oldest_ledger) == ("healthy", 130, 100)
        assert health.ledger_retention_window == busy.chain.retention
        network = await server.get_network()
        assert network.passphrase == busy.chain.passphrase
        version = await server.get_version_info()
        assert version.protocol_version == network.protocol_version
        latest = await server.get_latest_ledger()
        assert (latest.sequence, latest.id) == (130, busy.chain.latest.hash.hex())
        assert latest.close_time == busy.chain.latest.closed_at
        parse_header(latest.header_xdr, hash_hex=latest.id, sequence=130, closed_at=latest.close_time)


async def test_ledgers_hash_link_and_parse_as_xdr(busy):
    async with open_server(busy.url) as server:
        page = await server.get_ledgers(start_ledger=100, limit=200)
    assert [ledger.sequence for ledger in page.ledgers] == list(range(100, 131))
    previous = None
    for ledger in page.ledgers:
        header = parse_header(
            ledger.header_xdr, hash_hex=ledger.hash, sequence=ledger.sequence, closed_at=ledger.ledger_close_time
        )
        assert previous is None or header.previous_hash == previous
        previous = ledger.hash
        entry = xdr.LedgerHeaderHistoryEntry.from_xdr(ledger.header_xdr)
        assert hashlib.sha256(entry.header.to_xdr_bytes()).hexdigest() == ledger.hash
        assert entry.header.ledger_seq.uint32 == ledger.sequence
        assert entry.header.scp_value.close_time.time_point.uint64 == ledger.ledger_close_time
        meta = xdr.LedgerCloseMeta.from_xdr(ledger.metadata_xdr)
        assert meta.v1 is not None
        assert meta.v1.ledger_header == entry
        assert meta.to_xdr_bytes() == b64decode(ledger.metadata_xdr)


async def test_events_decode_and_filters_select_by_contract_and_topic(busy):
    async with open_server(busy.url) as server:
        everything = await server.get_events(start_ledger=100, limit=10_000)
        created = await server.get_events(
            start_ledger=100,
            limit=10_000,
            filters=[
                EventFilter(
                    type=EventFilterType.CONTRACT,
                    contractIds=[busy.contract.contract_id],
                    topics=[[scval.to_symbol("created").to_xdr(), "*"]],
                )
            ],
        )
    ids = [event.id for event in everything.events]
    assert ids == sorted(set(ids))
    assert len(ids) > 100
    assert {scval.from_symbol(event.topic[0]) for event in created.events} == {"created"}
    names = [scval.from_symbol(event.topic[0]) for event in everything.events]
    assert names.count("created") == len(created.events) > 10
    for event in everything.events:
        value = scval.to_native(event.value)
        assert value is not None
        assert int(event.id[:19]) >> 32 == event.ledger
        assert int(event.ledger_close_at.timestamp()) == busy.chain.ledger(event.ledger).closed_at


async def test_ledger_entries_hold_the_contracts_storage(busy):
    model = busy.contract.model_streams()
    keys = [xdr.LedgerKey.from_xdr(stream_key(busy.contract.contract_id, sid)) for sid in (*sorted(model)[:20], 9_999)]
    async with open_server(busy.url) as server:
        answer = await server.get_ledger_entries(keys)
    assert answer.latest_ledger == 130
    assert [entry.key for entry in answer.entries] == [key.to_xdr() for key in keys[:-1]]
    for entry, sid in zip(answer.entries, sorted(model), strict=False):
        stored = scval.to_native(xdr.LedgerEntryData.from_xdr(entry.xdr).contract_data.val)
        expected = model[sid]
        assert {name: getattr(value, "address", value) for name, value in stored.items()} == expected
        assert 100 < entry.last_modified_ledger <= 130


async def test_the_contracts_instance_tells_its_admin_and_counter(busy):
    async with open_server(busy.url) as server:
        entry = await server.get_contract_data(
            busy.contract.contract_id, xdr.SCVal(xdr.SCValType.SCV_LEDGER_KEY_CONTRACT_INSTANCE)
        )
    storage = xdr.LedgerEntryData.from_xdr(entry.xdr).contract_data.val.instance.storage.sc_map
    values = {scval.from_symbol(scval.from_vec(pair.key)[0]): scval.to_native(pair.val) for pair in storage}
    assert values["NextStreamId"] == busy.contract.globals.next_stream_id
    assert values["Config"]["admin"].address == busy.contract.globals.admin
