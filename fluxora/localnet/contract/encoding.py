"""The contract's events as ScVals, by topic: field names and types after the newest contract version's Rust structs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stellar_sdk import scval, xdr

from fluxora.localnet.entries import address, bytes_map, i128, optional, struct, symbol, u32, u64, variant

Encoder = Callable[[Any], xdr.SCVal]

_TERMS: dict[str, Encoder] = {
    "sender": address,
    "recipient": address,
    "deposit_amount": i128,
    "rate_per_second": i128,
    "start_time": u64,
    "cliff_time": u64,
    "end_time": u64,
}
_RATES: dict[str, Encoder] = {
    "stream_id": u64,
    "old_rate_per_second": i128,
    "new_rate_per_second": i128,
    "effective_time": u64,
}
_ENDS: dict[str, Encoder] = {"stream_id": u64, "old_end_time": u64, "new_end_time": u64}

STRUCTS: dict[str, dict[str, Encoder]] = {
    "created": {
        "stream_id": u64,
        **_TERMS,
        "withdraw_dust_threshold": i128,
        "memo": optional(scval.to_bytes),
        "metadata": optional(bytes_map),
    },
    "withdrew": {"stream_id": u64, "recipient": address, "amount": i128},
    "wdraw_to": {"stream_id": u64, "recipient": address, "destination": address, "amount": i128},
    "paused": {"stream_id": u64, "reason": scval.to_string},
    "kp_cncl": {
        "stream_id": u64,
        "keeper": address,
        "keeper_fee": i128,
        "recipient_amount": i128,
        "sender_refund": i128,
    },
    "rate_upd": _RATES,
    "rate_dec": {**_RATES, "checkpointed_amount": i128, "refund_amount": i128},
    "end_shrt": {**_ENDS, "refund_amount": i128},
    "end_ext": _ENDS,
    "top_up": {"stream_id": u64, "top_up_amount": i128, "new_deposit_amount": i128, "new_end_time": u64},
    "recp_upd": {"stream_id": u64, "old_recipient": address, "new_recipient": address},
    "claim_own": {"stream_id": u64, "old_owner": optional(address), "new_owner": address},
    "del_share": {
        "parent_stream_id": u64,
        "child_stream_id": u64,
        "delegator": address,
        "delegatee": address,
        "share_bps": u32,
        "new_parent_rate": i128,
        "child_rate": i128,
    },
    "cloned": {"new_stream_id": u64, "source_stream_id": u64, **_TERMS, "withdraw_dust_threshold": i128},
    "renewed": {"old_stream_id": u64, "new_stream_id": u64},
    "decomm": {"stream_id": u64, "decommissioned": scval.to_bool},
    "health": {"stream_id": u64, "is_underfunded": scval.to_bool, "remaining_balance": i128, "seconds_remaining": u64},
    "ac_set": {"stream_id": u64, "destination": address},
    "ac_revoke": {"stream_id": u64},
    "ac_trig": {"stream_id": u64, "destination": address, "amount": i128},
    "offr_crt": {"offer_id": u64, **_TERMS, "expiry_time": optional(u64), "created_at": u64},
    "offr_acc": {"offer_id": u64, "effective_start_time": u64, "recipient": address},
    "offr_cxl": {"offer_id": u64, "by": address, "refund_amount": i128},
    "gl_pause": {"paused": scval.to_bool},
    "gl_resume": {"resumed_at": u64},
    "ct_pause": {"paused": scval.to_bool},
    "pr_pause": {"reason": scval.to_string, "paused_at": u64},
    "pr_resume": {"resumed_at": u64},
    "ex_swept": {"to": address, "amount": i128},
    "upgraded": {"new_wasm_hash": scval.to_bytes, "new_version": u32, "upgraded_at": u64, "upgraded_by": address},
    "tmpl_def": {"template_id": u64, "owner": address, "start_delay": u64, "cliff_delay": u64, "duration": u64},
}
"""Topics whose data is a struct: field name to encoder."""

VARIANTS = {
    "resumed": "Resumed",
    "cancelled": "StreamCancelled",
    "completed": "StreamCompleted",
    "closed": "StreamClosed",
}
"""Topics whose data is Vec[Symbol(variant), u64]."""

TUPLES: dict[str, tuple[Encoder, ...]] = {
    "AdminUpd": (address, address),
    "res_rel": (u64, u32, u32, u32),
}
"""Topics whose data is a tuple."""


def encode_topics(name: str, *rest: int | str) -> tuple[bytes, ...]:
    """The topic's name, then ids as u64 and addresses."""
    behind = (u64(part) if isinstance(part, int) else address(part) for part in rest)
    return tuple(one.to_xdr_bytes() for one in (symbol(name), *behind))


def encode_struct(name: str, data: dict[str, Any]) -> bytes:
    """The data of a struct topic; every field must be given.

    Raises:
        KeyError: a field is missing.
    """
    return struct({field: encode(data[field]) for field, encode in STRUCTS[name].items()}).to_xdr_bytes()


def encode_variant(name: str, stream_id: int) -> bytes:
    """The data of a variant topic."""
    return variant(VARIANTS[name], u64(stream_id)).to_xdr_bytes()


def encode_tuple(name: str, *values: object) -> bytes:
    """The data of a tuple topic."""
    parts = [encode(value) for encode, value in zip(TUPLES[name], values, strict=True)]
    return scval.to_vec(parts).to_xdr_bytes()
