"""Contract data entries as XDR: ledger keys and the values behind them, encoded by stellar_sdk.

Structs are maps whose keys are Symbols in the order of their bytes, Option<T> is the value or void, enums with explicit
numbers are U32, and storage keys are vectors that start with the variant's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from stellar_sdk import Address, scval, xdr

ENTRY_TTL_LEDGERS = 120_960  # the contract bumps an entry's life by at least this much on every touch

VOID = xdr.SCVal(xdr.SCValType.SCV_VOID)


@lru_cache(maxsize=4096)
def address(strkey: str) -> xdr.SCVal:
    """An account (G...) or contract (C...) as a ScVal."""
    return scval.to_address(Address(strkey))


@lru_cache(maxsize=512)
def symbol(name: str) -> xdr.SCVal:
    """A Symbol as a ScVal."""
    return scval.to_symbol(name)


def struct(fields: Mapping[str, xdr.SCVal]) -> xdr.SCVal:
    """A Rust struct: a map with Symbol keys in the order of their bytes."""
    pairs = [xdr.SCMapEntry(symbol(name), fields[name]) for name in sorted(fields, key=str.encode)]
    return xdr.SCVal(xdr.SCValType.SCV_MAP, map=xdr.SCMap(pairs))


def optional(encode: Callable[[Any], xdr.SCVal]) -> Callable[[Any], xdr.SCVal]:
    """The encoder of Option<T>: void for None."""

    def encode_optional(value: Any) -> xdr.SCVal:
        return VOID if value is None else encode(value)

    return encode_optional


def bytes_map(value: Mapping[bytes, bytes]) -> xdr.SCVal:
    """Map<Bytes, Bytes>, keys ascending."""
    pairs = [xdr.SCMapEntry(scval.to_bytes(key), scval.to_bytes(value[key])) for key in sorted(value)]
    return xdr.SCVal(xdr.SCValType.SCV_MAP, map=xdr.SCMap(pairs))


u32, u64, i128 = scval.to_uint32, scval.to_uint64, scval.to_int128

STREAM_FIELDS: dict[str, Callable[[Any], xdr.SCVal]] = {
    "stream_id": u64,
    "sender": address,
    "recipient": address,
    "claim_owner": optional(address),
    "deposit_amount": i128,
    "rate_per_second": i128,
    "start_time": u64,
    "cliff_time": u64,
    "end_time": u64,
    "withdrawn_amount": i128,
    "status": u32,
    "cancelled_at": optional(u64),
    "checkpointed_amount": i128,
    "checkpointed_at": u64,
    "withdraw_dust_threshold": i128,
    "memo": optional(scval.to_bytes),
    "kind": u32,
    "last_pause_toggle_ledger": u32,
    "last_withdraw_ledger": u32,
    "metadata": optional(bytes_map),
    "irrevocable": optional(scval.to_bool),
    "witness": optional(address),
    "is_pooled": optional(scval.to_bool),
    "last_rate_change_ledger": u32,
    "delegation_depth": u32,
    "parent_stream_id": optional(u64),
    "decommissioned": optional(scval.to_bool),
    "paused_at_timestamp": u64,
    "cumulative_paused_duration": u64,
}
"""The 29 fields of a Stream in storage and how each is encoded."""


def stream_value(fields: Mapping[str, Any]) -> xdr.SCVal:
    """A Stream as the contract stores it; a subset of the fields gives the shape of an older contract version."""
    return struct({name: STREAM_FIELDS[name](value) for name, value in fields.items()})


def variant(name: str, *arguments: xdr.SCVal) -> xdr.SCVal:
    """An enum variant with or without payload: a vector of its name and its arguments."""
    return scval.to_vec([symbol(name), *arguments])


def data_key(contract_id: str, key: xdr.SCVal) -> str:
    """The base64 LedgerKey of a persistent entry of a contract."""
    return xdr.LedgerKey(
        xdr.LedgerEntryType.CONTRACT_DATA,
        contract_data=xdr.LedgerKeyContractData(
            contract=Address(contract_id).to_xdr_sc_address(), key=key, durability=xdr.ContractDataDurability.PERSISTENT
        ),
    ).to_xdr()


def data_entry(contract_id: str, key: xdr.SCVal, value: xdr.SCVal) -> str:
    """The base64 LedgerEntryData of a persistent entry of a contract."""
    return xdr.LedgerEntryData(
        xdr.LedgerEntryType.CONTRACT_DATA,
        contract_data=xdr.ContractDataEntry(
            ext=xdr.ExtensionPoint(0),
            contract=Address(contract_id).to_xdr_sc_address(),
            key=key,
            durability=xdr.ContractDataDurability.PERSISTENT,
            val=value,
        ),
    ).to_xdr()


def stream_key(contract_id: str, stream_id: int) -> str:
    """The base64 LedgerKey of Stream(stream_id)."""
    return data_key(contract_id, variant("Stream", u64(stream_id)))


def stream_entry(contract_id: str, fields: Mapping[str, Any]) -> tuple[str, str]:
    """The base64 LedgerKey and LedgerEntryData of a stream given by its storage fields."""
    key = variant("Stream", u64(fields["stream_id"]))
    return data_key(contract_id, key), data_entry(contract_id, key, stream_value(fields))


def instance(contract_id: str, storage: Sequence[tuple[xdr.SCVal, xdr.SCVal]], wasm_hash: bytes) -> tuple[str, str]:
    """The base64 LedgerKey and LedgerEntryData of a contract's instance with its instance storage."""
    key = xdr.SCVal(xdr.SCValType.SCV_LEDGER_KEY_CONTRACT_INSTANCE)
    pairs = [xdr.SCMapEntry(name, value) for name, value in sorted(storage, key=lambda pair: pair[0].to_xdr_bytes())]
    value = xdr.SCVal(
        xdr.SCValType.SCV_CONTRACT_INSTANCE,
        instance=xdr.SCContractInstance(
            executable=xdr.ContractExecutable(
                xdr.ContractExecutableType.CONTRACT_EXECUTABLE_WASM, wasm_hash=xdr.Hash(wasm_hash)
            ),
            storage=xdr.SCMap(pairs),
        ),
    )
    return data_key(contract_id, key), data_entry(contract_id, key, value)
