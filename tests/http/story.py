"""Small histories of the stream contract, built through the pushed form of its events."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from stellar_sdk import StrKey

from fluxora.protocol import contract
from fluxora.protocol.chain import LedgerBatch, LedgerHeader
from fluxora.protocol.contract import ContractEvent
from fluxora.protocol.messages import stream_id as wire_id

GENESIS_S = 1_700_000_000


def account(name: str) -> str:
    return StrKey.encode_ed25519_public_key(sha256(name.encode()).digest())


def contract_id(name: str) -> str:
    return StrKey.encode_contract(sha256(name.encode()).digest())


FIRST = contract_id("first")
SECOND = contract_id("second")
ALICE, BOB, CAROL = account("alice"), account("bob"), account("carol")


def event_id(ledger: int, index: int = 0) -> str:
    return f"{(ledger << 32) + (1 << 12):019d}-{index:010d}"


def ledger_hash(ledger: int, branch: str = "") -> str:
    return sha256(f"{branch}{ledger}".encode()).hexdigest()


def created_payload(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "stream_id": number,
        "sender": ALICE,
        "recipient": BOB,
        "deposit_amount": "10000000000",  # 1000 tokens
        "rate_per_second": "10000000",  # 1 a second
        "start_time": GENESIS_S,
        "cliff_time": GENESIS_S,
        "end_time": GENESIS_S + 1000,
        "withdraw_dust_threshold": "0",
        "memo": None,
        "metadata": None,
        **changes,
    }


def event(topic: str, payload: dict[str, Any], *, ledger: int, index: int = 0, of: str = FIRST) -> ContractEvent:
    return contract.decode_named(
        id=event_id(ledger, index),
        ledger=ledger,
        closed_at=GENESIS_S + ledger,
        contract_id=of,
        tx_hash=sha256(f"tx{ledger}".encode()).hexdigest(),
        topic=topic,
        payload=payload,
    )


def created(number: int, *, ledger: int, index: int = 0, of: str = FIRST, **changes: Any) -> ContractEvent:
    return event("created", created_payload(number, **changes), ledger=ledger, index=index, of=of)


def batch(*events: ContractEvent) -> LedgerBatch:
    ordered = tuple(sorted(events, key=lambda event: event.id))
    ledgers = sorted({event.ledger for event in ordered})
    headers = tuple(LedgerHeader(n, ledger_hash(n), None, GENESIS_S + n) for n in ledgers)
    return LedgerBatch(events=ordered, headers=headers, complete_through=ledgers[-1] if ledgers else None)


def stream(number: int, of: str = FIRST) -> str:
    return wire_id(of, number, 1)


def pushed(source: ContractEvent, topic: str, payload: dict[str, Any], branch: str = "") -> dict[str, Any]:
    """The event as a worker would push it, decoded."""
    return {
        "eventId": source.id,
        "ledger": source.ledger,
        "ledgerHash": ledger_hash(source.ledger, branch),
        "contractId": source.contract_id,
        "topic": topic,
        "txHash": source.tx_hash,
        "txIndex": 1,
        "operationIndex": 0,
        "eventIndex": int(source.id[20:]),
        "happenedAt": _time(source.closed_at),
        "payload": payload,
    }


def _time(seconds: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
