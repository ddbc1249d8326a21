"""Single-pass decoder of ScVal, the XDR value type of Soroban events and ledger entries.

Rules
- `decode` reads each byte once and returns native values; it is strict XDR (RFC 4506): padding must be zero, booleans
  and presence flags 0 or 1, no trailing bytes. Lengths are checked against what is left before anything is allocated.
- Whatever is malformed raises `DecodeError` and nothing else.

Native values
  bool, void               bool, None
  u32 i32 u64 i64 u128 i128 u256 i256 timepoint duration   int
  bytes                    bytes
  string, executable tag   str; bytes when they are not UTF-8 (the ledger does not promise it)
  symbol                   str (at most 32 bytes; one that is not UTF-8 is malformed)
  address                  StrKey str: G..., C..., M..., B... or L...
  vec                      list
  map                      dict; of equal keys the last one wins. A key that is itself a list or dict becomes a tuple
                           (a dict: a tuple of (key, value) tuples), because dict keys must be hashable
  error                    {"error": "contract" | "wasm_vm" | ..., "code": int}
  contract instance        {"executable": executable, "storage": dict | None}, where executable is {"wasm": bytes},
                           {"stellar_asset": None} or {"external_ref": {"owner": address, "tag": string}}
  ledger key arms          {"ledger_key": "contract_instance"}, {"ledger_key": "nonce", "nonce": int}
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

from fluxora.errors import DecodeError
from fluxora.protocol import addresses
from fluxora.protocol.addresses import AddressKind

MAX_DEPTH: Final = 128
"""Vecs, maps and contract instances may nest this deep; the ledger's own bound is far lower for anything it stores."""

_MAX_SYMBOL_BYTES: Final = 32
_SYMBOL: Final = 15

_u32 = struct.Struct(">I").unpack_from
_i32 = struct.Struct(">i").unpack_from
_u64 = struct.Struct(">Q").unpack_from
_i64 = struct.Struct(">q").unpack_from
_u32_pair = struct.Struct(">II").unpack_from
_u128_parts = struct.Struct(">QQ").unpack_from
_i128_parts = struct.Struct(">qQ").unpack_from
_u256_parts = struct.Struct(">QQQQ").unpack_from
_i256_parts = struct.Struct(">qQQQ").unpack_from

_ERROR_TYPES: Final = (
    "contract",
    "wasm_vm",
    "context",
    "storage",
    "object",
    "crypto",
    "events",
    "budget",
    "value",
    "auth",
)
_ERROR_CODES: Final = 10

_Arm = Callable[[bytes, int, int], tuple[Any, int]]
"""Reads one arm's body at a position, at a depth; returns the value and the position after it."""


def decode(data: bytes) -> Any:
    """Decode one whole ScVal into native values (the module's docstring has the table).

    Raises:
        DecodeError: truncated, trailing bytes, an unknown arm, a bad length, nested deeper than MAX_DEPTH, ...
    """
    try:
        value, end = _ARMS[_u32(data, 0)[0]](data, 4, 0)
    except struct.error as error:
        raise DecodeError("ScVal is truncated") from error
    except IndexError as error:
        raise DecodeError("ScVal has an unknown arm") from error
    except (RecursionError, MemoryError) as error:  # the caller's stack was nearly full, or the machine is
        raise DecodeError("ScVal cannot be decoded here") from error
    if end != len(data):
        raise DecodeError(f"ScVal has {len(data) - end} trailing bytes")
    return value


def decode_topic(data: bytes) -> Any:
    """`decode`, remembered: the topics of events (names, addresses, ids) repeat.

    Raises:
        DecodeError: as `decode`.
    """
    value = _decode_remembered(data)
    # A list or dict handed out twice could be changed by one of its holders.
    return decode(data) if isinstance(value, list | dict) else value


@lru_cache(maxsize=1 << 14)
def _decode_remembered(data: bytes) -> Any:
    return decode(data)


def _bool(data: bytes, pos: int, _depth: int) -> tuple[bool, int]:
    flag = _u32(data, pos)[0]
    if flag > 1:
        raise DecodeError(f"ScVal bool is {flag}")
    return flag == 1, pos + 4


def _void(_data: bytes, pos: int, _depth: int) -> tuple[None, int]:
    return None, pos


def _error(data: bytes, pos: int, _depth: int) -> tuple[dict[str, Any], int]:
    kind, code = _u32_pair(data, pos)
    if kind >= len(_ERROR_TYPES) or (kind and code >= _ERROR_CODES):
        raise DecodeError(f"ScVal error {kind}/{code} is unknown")
    return {"error": _ERROR_TYPES[kind], "code": code}, pos + 8


def _read_u32(data: bytes, pos: int, _depth: int) -> tuple[int, int]:
    return _u32(data, pos)[0], pos + 4


def _read_i32(data: bytes, pos: int, _depth: int) -> tuple[int, int]:
    return _i32(data, pos)[0], pos + 4


def _read_u64(data: bytes, pos: int, _depth: int) -> tuple[int, int]:
    return _u64(data, pos)[0], pos + 8


def _read_i64(data: bytes, pos: int, _depth: int) -> tuple[int, int]:
    return _i64(data, pos)[0], pos + 8


def _read_u128(data: bytes, pos: int, _depth: int) -> tuple[int, int]:
    high, low = _u128_parts(data, pos)
    return high << 64 | low, pos + 16


def _read_i128(data: bytes, pos: int, _depth: int) -> tuple[int, int]:
    high, low = _i128_parts(data, pos)
    return (high << 64 | low if high else low), pos + 16


def _read_u256(data: bytes, pos: int, _depth: int) -> tuple[int, int]:
    a, b, c, d = _u256_parts(data, pos)
    return a << 192 | b << 128 | c << 64 | d, pos + 32


def _read_i256(data: bytes, pos: int, _depth: int) -> tuple[int, int]:
    a, b, c, d = _i256_parts(data, pos)
    return a << 192 | b << 128 | c << 64 | d, pos + 32


def _bytes(data: bytes, pos: int, _depth: int) -> tuple[bytes, int]:
    size = _u32(data, pos)[0]
    pos += 4
    end = pos + size
    stop = pos + (size + 3 & -4)
    if stop > len(data):
        raise DecodeError(f"ScVal is truncated: {size} bytes announced, {len(data) - pos} left")
    if stop != end and any(data[end:stop]):
        raise DecodeError("ScVal padding is not zero")
    return data[pos:end], stop


def _string(data: bytes, pos: int, depth: int) -> tuple[str | bytes, int]:
    value, pos = _bytes(data, pos, depth)
    try:
        return value.decode(), pos
    except UnicodeDecodeError:
        return value, pos


def _symbol(data: bytes, pos: int, _depth: int) -> tuple[str, int]:
    stop = pos + 4 + (_u32(data, pos)[0] + 3 & -4)
    return _symbol_text(data[pos:stop]), stop


@lru_cache(maxsize=4096)
def _symbol_text(field: bytes) -> str:
    """Text of a symbol from its whole field (length, bytes, padding): symbols are few, so each is checked once."""
    size = _u32(field, 0)[0]
    if size > _MAX_SYMBOL_BYTES:
        raise DecodeError(f"ScVal symbol of {size} bytes")
    if len(field) != 4 + (size + 3 & -4):
        raise DecodeError("ScVal is truncated inside a symbol")
    if any(field[4 + size :]):
        raise DecodeError("ScVal padding is not zero")
    try:
        return field[4 : 4 + size].decode()
    except UnicodeDecodeError as error:
        raise DecodeError("ScVal symbol is not text") from error


def _vec(data: bytes, pos: int, depth: int) -> tuple[list[Any], int]:
    present, count = _u32_pair(data, pos)
    pos += 8
    # Every value takes at least 4 bytes: a count that cannot be true is refused before the loop.
    if present != 1 or count > len(data) - pos >> 2:
        raise DecodeError("ScVal vec is absent or longer than its bytes")
    if depth >= MAX_DEPTH:
        raise DecodeError(f"ScVal is nested deeper than {MAX_DEPTH}")
    depth += 1
    items = []
    for _ in range(count):
        item, pos = _ARMS[_u32(data, pos)[0]](data, pos + 4, depth)
        items.append(item)
    return items, pos


def _map(data: bytes, pos: int, depth: int) -> tuple[dict[Any, Any], int]:
    present, count = _u32_pair(data, pos)
    pos += 8
    if present != 1 or count > len(data) - pos >> 3:
        raise DecodeError("ScVal map is absent or longer than its bytes")
    if depth >= MAX_DEPTH:
        raise DecodeError(f"ScVal is nested deeper than {MAX_DEPTH}")
    depth += 1
    entries: dict[Any, Any] = {}
    for _ in range(count):
        # Nearly every key is a symbol. Two words can always be read: a key and a value take at least 4 bytes each.
        kind, size = _u32_pair(data, pos)
        if kind == _SYMBOL:
            stop = pos + 8 + (size + 3 & -4)
            key: Any = _symbol_text(data[pos + 4 : stop])
            pos = stop
        else:
            key, pos = _ARMS[kind](data, pos + 4, depth)
            if isinstance(key, list | dict):
                key = hashable(key)
        entries[key], pos = _ARMS[_u32(data, pos)[0]](data, pos + 4, depth)
    return entries, pos


def hashable(value: Any) -> Any:
    """A native value as the key of a map: lists and maps as tuples, the rest as it is."""
    if isinstance(value, list):
        return tuple(map(hashable, value))
    if isinstance(value, dict):
        return tuple((key, hashable(item)) for key, item in value.items())
    return value


_ADDRESS_BYTES: Final = (40, 36, 44, 40, 36)  # by ScAddress discriminant, the discriminant included


def _address(data: bytes, pos: int, _depth: int) -> tuple[str, int]:
    stop = pos + _ADDRESS_BYTES[_u32(data, pos)[0]]
    return _address_text(data[pos:stop]), stop


@lru_cache(maxsize=1 << 15)
def _address_text(field: bytes) -> str:
    """StrKey of a whole ScAddress field."""
    kind = AddressKind(field[3])
    if len(field) != _ADDRESS_BYTES[kind]:
        raise DecodeError("ScVal is truncated inside an address")
    if kind is AddressKind.MUXED_ACCOUNT:
        return addresses.encode(kind, field[12:] + field[4:12])  # the wire has the id first, StrKey the key
    if kind is AddressKind.ACCOUNT or kind is AddressKind.CLAIMABLE_BALANCE:
        if any(field[4:8]):
            raise DecodeError("ScVal address holds an unknown key type")
        return addresses.encode(kind, field[8:] if kind is AddressKind.ACCOUNT else field[7:])
    return addresses.encode(kind, field[4:])


def _instance(data: bytes, pos: int, depth: int) -> tuple[dict[str, Any], int]:
    kind = _u32(data, pos)[0]
    pos += 4
    executable: dict[str, Any]
    if kind == 0:
        executable = {"wasm": data[pos : pos + 32]}
        pos += 32  # a short slice is noticed by the next read, which always follows
    elif kind == 1:
        executable = {"stellar_asset": None}
    elif kind == 2:
        owner, pos = _address(data, pos, depth)
        tag, pos = _string(data, pos, depth)
        executable = {"external_ref": {"owner": owner, "tag": tag}}
    else:
        raise DecodeError(f"ScVal contract executable {kind} is unknown")
    if _u32(data, pos)[0] == 0:
        return {"executable": executable, "storage": None}, pos + 4
    storage, pos = _map(data, pos, depth)
    return {"executable": executable, "storage": storage}, pos


def _ledger_key_instance(_data: bytes, pos: int, _depth: int) -> tuple[dict[str, Any], int]:
    return {"ledger_key": "contract_instance"}, pos


def _ledger_key_nonce(data: bytes, pos: int, _depth: int) -> tuple[dict[str, Any], int]:
    return {"ledger_key": "nonce", "nonce": _i64(data, pos)[0]}, pos + 8


_ARMS: Final[tuple[_Arm, ...]] = (
    _bool,
    _void,
    _error,
    _read_u32,
    _read_i32,
    _read_u64,
    _read_i64,
    _read_u64,  # timepoint
    _read_u64,  # duration
    _read_u128,
    _read_i128,
    _read_u256,
    _read_i256,
    _bytes,
    _string,
    _symbol,
    _vec,
    _map,
    _address,
    _instance,
    _ledger_key_instance,
    _ledger_key_nonce,
    _string,  # executable tag
)
