"""A simulated contract on a chain whose ledgers close when told, and its events in plain values."""

from __future__ import annotations

import pytest
from stellar_sdk import Address, scval, xdr

from fluxora.localnet import Chain, Contract, ContractError, account, contract_address

T0 = 1_000_000
ALICE, BOB, CAROL = (account(1, name) for name in ("alice", "bob", "carol"))


class Bench:
    """A contract on a chain whose ledgers close when told."""

    def __init__(self, cooldown_ledgers: int = 17) -> None:
        self.chain = Chain(1, start_time=T0 - 5)
        self.contract = Contract(
            self.chain,
            contract_address(1, 0),
            admin=account(1, "admin"),
            token=contract_address(1, -1),
            cooldown_ledgers=cooldown_ledgers,
        )

    def close(self) -> list[tuple[str, list, object]]:
        """Close the ledger and return its events as (topic, ids, data)."""
        events, entries = self.contract.drain()
        self.chain.close_ledger(events, entries=entries)
        decoded = []
        for event in events:
            name, *rest = (native(xdr.SCVal.from_xdr_bytes(topic)) for topic in event.topics)
            decoded.append((name, rest, native(xdr.SCVal.from_xdr_bytes(event.value))))
        return decoded

    def at(self, seconds: int) -> None:
        """The open ledger closes that many seconds after T0."""
        self.chain.next_closed_at = T0 + seconds

    def linear(self, **terms) -> int:
        """1000 units at 1/s from T0, unless told otherwise."""
        return self.contract.create(ALICE, BOB, **{"deposit": 1_000, "rate": 1, "end": T0 + 1_000, **terms})


def native(value: xdr.SCVal) -> object:
    return plain(scval.to_native(value))


def plain(value: object) -> object:
    if isinstance(value, Address):
        return value.address
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return value


def refused(number: int):
    return pytest.raises(ContractError, match=f"contract error {number}:")
