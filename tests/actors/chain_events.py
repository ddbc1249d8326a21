"""Events and headers for the pipeline's actors, made through the decoder as pushed events are."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

from stellar_sdk import StrKey

from fluxora.protocol import contract
from fluxora.protocol.chain import LedgerHeader
from fluxora.protocol.contract import ContractEvent

CONTRACT = StrKey.encode_contract(b"\x07" * 32)
GENESIS_S = 1_700_000_000


def event(ledger: int, index: int = 0) -> ContractEvent:
    """A contract-level event: it concerns no stream, so a test may have as many as it likes."""
    return contract.decode_named(
        id=f"{(ledger << 32) | (1 << 12):019d}-{index:010d}",
        ledger=ledger,
        closed_at=GENESIS_S + 5 * ledger,
        contract_id=CONTRACT,
        tx_hash=sha256(f"{ledger}/{index}".encode()).hexdigest(),
        topic="gl_pause",
        payload={"paused": index % 2 == 0},
    )


def digest(ledger: int, branch: str = "") -> str:
    return sha256(f"{branch}{ledger}".encode()).hexdigest()


def header(ledger: int, branch: str = "") -> LedgerHeader:
    return LedgerHeader(ledger, digest(ledger, branch), None, GENESIS_S + 5 * ledger)


def ids(events: Iterable[ContractEvent]) -> list[str]:
    return [one.id for one in events]
