"""The simulated Fluxora contract: applies calls to its own model, emits the newest version's events, keeps its entries.

It is an oracle: nothing of the backend's decoding, folding or accrual is used here. Guards (status, cooldowns, pauses)
refuse with the contract's own error numbers; authorisation and token balances are not modelled.
"""

from __future__ import annotations

from fluxora.localnet.contract.accrual import (
    ACTIVE,
    CANCELLED,
    CLIFF_ONLY,
    CLIFF_SLOPE,
    COMPLETED,
    LINEAR,
    PAUSED,
    Stream,
    accrued,
    on_schedule,
    payout,
)
from fluxora.localnet.contract.offers import OfferCalls
from fluxora.localnet.contract.payments import KEEPER_GRACE_S
from fluxora.localnet.contract.schedule import PAUSE_REASONS, AdminCalls, ScheduleCalls
from fluxora.localnet.contract.state import ContractError


class Contract(OfferCalls, ScheduleCalls, AdminCalls):
    """One deployed contract on a chain. Calls run at the open ledger; `drain` hands over what they emitted."""


__all__ = [
    "ACTIVE",
    "CANCELLED",
    "CLIFF_ONLY",
    "CLIFF_SLOPE",
    "COMPLETED",
    "KEEPER_GRACE_S",
    "LINEAR",
    "PAUSED",
    "PAUSE_REASONS",
    "Contract",
    "ContractError",
    "Stream",
    "accrued",
    "on_schedule",
    "payout",
]
