"""The examples of Stellar RPC's own documentation, and real mainnet headers, through the source's decoders."""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode
from itertools import pairwise

import msgspec

from fluxora.actors.sources import rpc_replies as replies
from fluxora.actors.sources.event_walk import EventWalk
from fluxora.protocol.chain import parse_header


def answer(decoder, result):
    envelope = decoder.decode(msgspec.json.encode({"jsonrpc": "2.0", "id": 1, "result": result}))
    assert envelope.result is not None
    return envelope.result


def test_documented_events_are_read(fixtures_dir):
    examples = json.loads((fixtures_dir / "stellar_rpc_events_examples.json").read_text())
    for name, kept in (("TwoNativeTransferEvents", 2), ("AnyTwoEvents", 2)):
        result = examples[name]["value"]
        events = result["events"]
        contracts = sorted({event["contractId"] for event in events})
        walk = EventWalk(contracts, events[0]["ledger"], result["latestLedger"], 2)
        found = walk.absorb(answer(replies.EVENTS, result))
        assert len(found) == kept
        assert [(e.id, e.ledger, e.tx_hash) for e in found] == [(e["id"], e["ledger"], e["txHash"]) for e in events]
        assert [e.value for e in found] == [b64decode(e["value"]) for e in events]
        assert [e.topic for e in found] == [[b64decode(topic) for topic in e["topic"]] for e in events]
        assert walk.complete_through == events[-1]["ledger"] - 1  # a full page may split its last ledger
        assert walk.request()["pagination"]["cursor"] == result["cursor"]
    assert replies.CloseTimes().seconds("2026-07-21T18:01:10Z") == 1784656870


def test_documented_ledgers_are_proven_and_linked(fixtures_dir):
    examples = json.loads((fixtures_dir / "stellar_rpc_ledgers_examples.json").read_text())
    reply = answer(replies.LEDGERS, examples["GetLedgersResult"]["value"])
    headers = [
        parse_header(one.header_xdr, hash_hex=one.hash, sequence=one.sequence, closed_at=int(one.ledger_close_time))
        for one in reply.ledgers
    ]
    assert [(header.sequence, header.closed_at) for header in headers] == [(36233, 1734032457), (36234, 1734032462)]
    assert headers[1].previous_hash == headers[0].hash
    assert (reply.oldest_ledger, reply.latest_ledger) == (29312, 36379)


def test_mainnet_headers_are_proven_and_linked(fixtures_dir):
    ledgers = json.loads((fixtures_dir / "mainnet_ledger_headers.json").read_text())
    headers = []
    for ledger in ledgers:
        proven = hashlib.sha256(b64decode(ledger["headerXdr"])[32:-4]).hexdigest()
        headers.append(
            parse_header(ledger["headerXdr"], hash_hex=proven, sequence=ledger["sequence"], closed_at=1_780_000_000)
        )
    neighbours = [(a, b) for a, b in pairwise(headers) if a.sequence + 1 == b.sequence]
    assert neighbours
    assert all(child.previous_hash == parent.hash for parent, child in neighbours)
