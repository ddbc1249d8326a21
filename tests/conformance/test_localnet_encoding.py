"""Localnet's encoding against reference events and a reference entry of the newest contract version, byte for byte."""

from __future__ import annotations

import json
from base64 import b64decode
from pathlib import Path

from stellar_sdk import Address, scval, xdr

from fluxora.localnet import stream_key
from fluxora.localnet.contract.encoding import (
    STRUCTS,
    TUPLES,
    VARIANTS,
    encode_struct,
    encode_topics,
    encode_tuple,
    encode_variant,
)
from fluxora.localnet.entries import STREAM_FIELDS, data_entry, stream_entry, stream_value, u64, variant

# Never on the chain: reverted with the failed call (rate_cap), or an older form of another topic (upgrade).
NOT_EMITTED = {"rate_cap", "upgrade"}


def plain(value: object) -> object:
    return value.address if isinstance(value, Address) else value


def test_every_topic_is_encoded_as_the_reference_does(fixtures_dir: Path):
    seen: set[str] = set()
    for line in (fixtures_dir / "contract_events_head_synthetic.jsonl").read_text().splitlines():
        event = json.loads(line)
        name, *rest = (plain(scval.to_native(topic)) for topic in event["topic"])
        if name in NOT_EMITTED:
            continue
        seen.add(name)
        assert list(encode_topics(name, *rest)) == [b64decode(topic) for topic in event["topic"]]
        data = scval.to_native(event["value"])
        if name in STRUCTS:
            encoded = encode_struct(name, {key: plain(value) for key, value in data.items()})
        elif name in VARIANTS:
            assert data[0] == VARIANTS[name]
            encoded = encode_variant(name, data[1])
        else:
            encoded = encode_tuple(name, *(plain(value) for value in data))
        assert encoded == b64decode(event["value"]), name
    assert seen == {*STRUCTS, *VARIANTS, *TUPLES}


def test_a_stored_stream_is_encoded_as_the_reference_does(fixtures_dir: Path):
    reference = json.loads((fixtures_dir / "contract_stream_entry_head_synthetic.json").read_text())
    contract = reference["contract_id"]
    fields = {name: plain(value) for name, value in scval.to_native(reference["value"]).items()}
    assert fields.keys() == STREAM_FIELDS.keys()
    key, entry = stream_entry(contract, fields)
    assert key == stream_key(contract, 1) == reference["ledger_key"]
    assert stream_value(fields).to_xdr() == reference["value"]
    value = xdr.SCVal.from_xdr(reference["value"])
    assert entry == data_entry(contract, variant("Stream", u64(1)), value)
