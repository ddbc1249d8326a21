"""What stellar_sdk says an ScVal is, under the decoder's stated mapping; and ScVals of every arm."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from stellar_sdk import Address, scval, xdr
from stellar_sdk.xdr import SCValType as T

SPECIAL = {T.SCV_ERROR, T.SCV_CONTRACT_INSTANCE, T.SCV_LEDGER_KEY_CONTRACT_INSTANCE, T.SCV_LEDGER_KEY_NONCE}


def hashable(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(hashable(item) for item in value)
    if isinstance(value, dict):
        return tuple((key, hashable(item)) for key, item in value.items())
    return value


def plain(value: Any) -> Any:
    """to_native's result with addresses as their text."""
    if isinstance(value, Address):
        return value.address
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    return value


def entries(value: xdr.SCMap) -> dict[Any, Any]:
    return {hashable(expected(entry.key)): expected(entry.val) for entry in value.sc_map}


def expected(value: xdr.SCVal) -> Any:
    if value.type == T.SCV_VEC:
        return [expected(item) for item in value.vec.sc_vec]
    if value.type == T.SCV_MAP:
        return entries(value.map)
    if value.type == T.SCV_ERROR:
        name = value.error.type.name.removeprefix("SCE_").lower()
        code = value.error.contract_code.uint32 if name == "contract" else value.error.code.value
        return {"error": name, "code": code}
    if value.type == T.SCV_LEDGER_KEY_CONTRACT_INSTANCE:
        return {"ledger_key": "contract_instance"}
    if value.type == T.SCV_LEDGER_KEY_NONCE:
        return {"ledger_key": "nonce", "nonce": value.nonce_key.nonce.int64}
    if value.type == T.SCV_CONTRACT_INSTANCE:
        storage = value.instance.storage
        return {
            "executable": executable(value.instance.executable),
            "storage": None if storage is None else entries(storage),
        }
    return plain(scval.to_native(value))


def executable(value: xdr.ContractExecutable) -> dict[str, Any]:
    if value.wasm_hash is not None:
        return {"wasm": value.wasm_hash.hash}
    if value.external_ref is None:
        return {"stellar_asset": None}
    owner = Address.from_xdr_sc_address(value.external_ref.executable_owner).address
    tag = xdr.SCVal(T.SCV_EXECUTABLE_TAG, executable_tag=value.external_ref.tag)
    return {"external_ref": {"owner": owner, "tag": scval.to_native(tag)}}


def _bits(low: int, high: int) -> st.SearchStrategy[int]:
    return st.integers(low, high) | st.sampled_from([low, high, 0, 1])


U32, I32 = _bits(0, 2**32 - 1), _bits(-(2**31), 2**31 - 1)
U64, I64 = _bits(0, 2**64 - 1), _bits(-(2**63), 2**63 - 1)
HASH = st.binary(min_size=32, max_size=32)
SYMBOL = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_", max_size=32)

ADDRESS = st.one_of(
    HASH.map(Address.from_raw_account),
    HASH.map(Address.from_raw_contract),
    st.binary(min_size=40, max_size=40).map(Address.from_raw_muxed_account),
    HASH.map(lambda key: Address.from_raw_claimable_balance(b"\0" + key)),
    HASH.map(Address.from_raw_liquidity_pool),
)


def _error(kind: xdr.SCErrorType, contract_code: int, code: xdr.SCErrorCode) -> xdr.SCVal:
    if kind == xdr.SCErrorType.SCE_CONTRACT:
        return xdr.SCVal(T.SCV_ERROR, error=xdr.SCError(kind, contract_code=xdr.Uint32(contract_code)))
    return xdr.SCVal(T.SCV_ERROR, error=xdr.SCError(kind, code=code))


def _instance(executable: xdr.ContractExecutable, storage: xdr.SCMap | None) -> xdr.SCVal:
    return xdr.SCVal(T.SCV_CONTRACT_INSTANCE, instance=xdr.SCContractInstance(executable, storage))


EXECUTABLE = st.one_of(
    HASH.map(
        lambda key: xdr.ContractExecutable(xdr.ContractExecutableType.CONTRACT_EXECUTABLE_WASM, wasm_hash=xdr.Hash(key))
    ),
    st.just(xdr.ContractExecutable(xdr.ContractExecutableType.CONTRACT_EXECUTABLE_STELLAR_ASSET)),
    st.builds(
        lambda owner, tag: xdr.ContractExecutable(
            xdr.ContractExecutableType.CONTRACT_EXECUTABLE_EXTERNAL_REF,
            external_ref=xdr.ContractExecutableExternalRef(owner.to_xdr_sc_address(), xdr.SCString(tag)),
        ),
        ADDRESS,
        st.binary(max_size=9),
    ),
)

SCALARS = {
    T.SCV_BOOL: st.booleans().map(scval.to_bool),
    T.SCV_VOID: st.just(scval.to_void()),
    T.SCV_ERROR: st.builds(_error, st.sampled_from(xdr.SCErrorType), U32, st.sampled_from(xdr.SCErrorCode)),
    T.SCV_U32: U32.map(scval.to_uint32),
    T.SCV_I32: I32.map(scval.to_int32),
    T.SCV_U64: U64.map(scval.to_uint64),
    T.SCV_I64: I64.map(scval.to_int64),
    T.SCV_TIMEPOINT: U64.map(scval.to_timepoint),
    T.SCV_DURATION: U64.map(scval.to_duration),
    T.SCV_U128: _bits(0, 2**128 - 1).map(scval.to_uint128),
    T.SCV_I128: _bits(-(2**127), 2**127 - 1).map(scval.to_int128),
    T.SCV_U256: _bits(0, 2**256 - 1).map(scval.to_uint256),
    T.SCV_I256: _bits(-(2**255), 2**255 - 1).map(scval.to_int256),
    T.SCV_BYTES: st.binary(max_size=20).map(scval.to_bytes),
    T.SCV_STRING: (st.binary(max_size=20) | st.text(max_size=9).map(str.encode)).map(scval.to_string),
    T.SCV_SYMBOL: SYMBOL.map(scval.to_symbol),
    T.SCV_ADDRESS: ADDRESS.map(scval.to_address),
    T.SCV_LEDGER_KEY_CONTRACT_INSTANCE: st.just(xdr.SCVal(T.SCV_LEDGER_KEY_CONTRACT_INSTANCE)),
    T.SCV_LEDGER_KEY_NONCE: I64.map(
        lambda nonce: xdr.SCVal(T.SCV_LEDGER_KEY_NONCE, nonce_key=xdr.SCNonceKey(xdr.Int64(nonce)))
    ),
    T.SCV_EXECUTABLE_TAG: st.binary(max_size=9).map(
        lambda tag: xdr.SCVal(T.SCV_EXECUTABLE_TAG, executable_tag=xdr.SCString(tag))
    ),
}


def _map(keys: st.SearchStrategy[xdr.SCVal], values: st.SearchStrategy[xdr.SCVal]) -> st.SearchStrategy[xdr.SCMap]:
    return st.lists(st.builds(xdr.SCMapEntry, keys, values), max_size=4).map(xdr.SCMap)


def containers(inner: st.SearchStrategy[xdr.SCVal]) -> dict[T, st.SearchStrategy[xdr.SCVal]]:
    return {
        T.SCV_VEC: st.lists(inner, max_size=4).map(scval.to_vec),
        T.SCV_MAP: _map(inner, inner).map(lambda entries: xdr.SCVal(T.SCV_MAP, map=entries)),
        T.SCV_CONTRACT_INSTANCE: st.builds(_instance, EXECUTABLE, st.none() | _map(inner, inner)),
    }


ANY_SCALAR = st.one_of(*SCALARS.values())
ANY = st.recursive(ANY_SCALAR, lambda inner: st.one_of(*containers(inner).values()), max_leaves=12)
ARMS = SCALARS | containers(ANY)

# Values that stellar_sdk.scval.to_native turns into plain values whole: no special arm, every map key hashable.
_PLAIN_SCALAR = st.one_of(*(strategy for arm, strategy in SCALARS.items() if arm not in SPECIAL))
PLAIN = st.recursive(
    _PLAIN_SCALAR,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(scval.to_vec),
        _map(_PLAIN_SCALAR, inner).map(lambda entries: xdr.SCVal(T.SCV_MAP, map=entries)),
    ),
    max_leaves=12,
)
