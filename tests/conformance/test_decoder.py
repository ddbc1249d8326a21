"""The decoder against stellar_sdk: events of real transactions, of the contract's test runs, of its newest version."""

from __future__ import annotations

import gzip
import json
from base64 import b64decode
from typing import TYPE_CHECKING, Any

from stellar_sdk import Address, scval

from fluxora.protocol import contract
from fluxora.protocol.scval import decode, decode_topic
from fluxora.protocol.topics import TOPICS

if TYPE_CHECKING:
    from pathlib import Path

    from fluxora.protocol.contract import ContractEvent


def plain(value: Any) -> Any:
    if isinstance(value, Address):
        return value.address
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    return value


def check_event(event: dict[str, Any]) -> tuple[list[Any], Any]:
    """Hold every ScVal of `event` against stellar_sdk; give back what the topics and the value are."""
    natives = []
    for text in [*event["topic"], event["value"]]:
        native = plain(scval.to_native(text))
        data = b64decode(text)
        assert repr(decode(data)) == repr(native)
        assert repr(decode_topic(data)) == repr(native)
        natives.append(native)
    return natives[:-1], natives[-1]


def event_of(event: dict[str, Any]) -> ContractEvent:
    where: dict[str, Any] = {"id": "", "ledger": 1, "closed_at": 2, "contract_id": "", "tx_hash": ""}
    topics, value = [b64decode(topic) for topic in event["topic"]], b64decode(event["value"])
    decoded = contract.decode_xdr(**where, topics=topics, value=value)
    assert contract.decode_raw(**where, raw=decoded.raw) == decoded
    return decoded


def test_mainnet_events_equal_stellar_sdk_and_are_none_of_ours(fixtures_dir: Path) -> None:
    events = json.loads((fixtures_dir / "mainnet_events.json").read_text())
    assert len(events) == 107
    for event in events:
        topics, value = check_event(event)
        decoded = event_of(event)
        assert (decoded.action, decoded.stream_id) == ("unknown", None)
        assert decoded.data == {"topics": topics, "value": value}


def test_every_topic_of_the_newest_version_is_recognised_with_all_its_fields(fixtures_dir: Path) -> None:
    lines = (fixtures_dir / "contract_events_head_synthetic.jsonl").read_text().splitlines()
    seen = set()
    for line in lines:
        event = json.loads(line)
        topics, value = check_event(event)
        decoded = event_of(event)
        seen.add(decoded.action)
        assert decoded.action == topics[0] == event["topic0"]
        topic = TOPICS[decoded.action]
        if isinstance(value, dict):
            holder = {topic.holder: topics[1]} if topic.holder else {}
            assert decoded.data == {**value, **holder}
        else:
            names = topic.tuple_fields or ("", topic.id_field)
            assert [decoded.data[name] for name in names if name] == value[names.count("") :]
        assert set(topic.kinds) == set(decoded.data), "the field table and the event have the same fields"
        has_id = topic.is_stream and topic.id_field is not None
        assert decoded.stream_id == (topics[1] if has_id else None)
    assert len(seen) == 39
    # What the newest version no longer sends has no sample there.
    assert set(TOPICS) - seen == {"sndr_xfr", "recp_prp", "recp_cxl"}


def test_the_contracts_own_test_runs_are_recognised_throughout(fixtures_dir: Path) -> None:
    cases = 0
    events = 0
    with gzip.open(fixtures_dir / "contract_cases.jsonl.gz", "rt") as lines:
        for line in lines:
            cases += 1
            for event in json.loads(line)["events"]:
                events += 1
                topics, value = check_event(event)
                decoded = event_of(event)
                assert decoded.action == topics[0]
                if len(topics) > 1:
                    assert decoded.stream_id == decoded.data["stream_id"] == topics[1]
                if isinstance(value, dict):
                    assert value.items() <= decoded.data.items()
                elif decoded.action == "created":
                    assert decoded.data == {"deposit_amount": value, "stream_id": topics[1]}
                elif decoded.action == "AdminUpd":
                    assert decoded.data == {"old_admin": value[0], "new_admin": value[1]}
                else:
                    assert decoded.data == {"stream_id": value[1]}
    assert cases == 384
    assert events > 700


def test_the_stream_entry_of_the_newest_version_equals_stellar_sdk(fixtures_dir: Path) -> None:
    sample = json.loads((fixtures_dir / "contract_stream_entry_head_synthetic.json").read_text())
    value = sample["value"] if "value" in sample else sample["val"]
    entry = decode(b64decode(value))
    assert repr(entry) == repr(plain(scval.to_native(value)))
    assert len(entry) == 29
