"""XDR of a stream's ledger key, and of what getLedgerEntries answers for it, by hand: both have one fixed layout.

LedgerKey:        type CONTRACT_DATA(6) || contract ScAddress || key ScVal || durability PERSISTENT(1)
LedgerEntryData:  type CONTRACT_DATA(6) || extension point 0   || contract || key || durability || val ScVal

So an entry holds its key at a fixed place, and its value is all the rest. The key of a stream is
Vec[Symbol("Stream"), U64(stream id)]: the contract stores its keys by variant name.
"""

from __future__ import annotations

import struct
from base64 import b64decode
from binascii import Error as Base64Error
from typing import Any

from fluxora.errors import DecodeError
from fluxora.protocol import addresses, scval

_CONTRACT_DATA = struct.pack(">I", 6)
_CONTRACT = struct.pack(">I", 1)
# ScVal vec(16), present, of two: symbol(15) of six bytes "Stream" with its padding, then the tag of u64(5).
_STREAM_KEY = struct.pack(">IIIII8sI", 16, 1, 2, 15, 6, b"Stream\0\0", 5)
_PERSISTENT = struct.pack(">I", 1)
_NO_EXTENSION = struct.pack(">I", 0)
_VALUE_AT = 8 + 36 + len(_STREAM_KEY) + 8 + 4


def stream_key(contract_id: str, stream_id: int) -> bytes:
    """XDR LedgerKey of the entry that holds stream `stream_id`.

    Raises:
        DecodeError: `contract_id` is not a contract's address.
    """
    kind, payload = addresses.decode(contract_id)
    if kind is not addresses.AddressKind.CONTRACT:
        raise DecodeError(f"{contract_id} is not a contract")
    return b"".join((_CONTRACT_DATA, _CONTRACT, payload, _STREAM_KEY, struct.pack(">Q", stream_id), _PERSISTENT))


def read_entry(entry_xdr: str) -> tuple[bytes, dict[str, Any] | None]:
    """Decode a base64 LedgerEntryData of a stream into its key, as `stream_key` makes it, and the stored fields.

    The fields are None where the value is not a map with symbols for keys: one such entry must not cost the others.

    Raises:
        DecodeError: it is no entry of a stream.
    """
    try:
        raw = b64decode(entry_xdr, validate=True)
    except (Base64Error, ValueError) as error:
        raise DecodeError("ledger entry is not base64") from error
    if not raw.startswith(_CONTRACT_DATA + _NO_EXTENSION) or len(raw) < _VALUE_AT:
        raise DecodeError("ledger entry is not contract data")
    key = _CONTRACT_DATA + raw[8:_VALUE_AT]
    if key[40 : 40 + len(_STREAM_KEY)] != _STREAM_KEY:
        raise DecodeError("ledger entry is not that of a stream")
    try:
        value = scval.decode(raw[_VALUE_AT:])
    except DecodeError:
        return key, None
    return key, value if isinstance(value, dict) and all(isinstance(name, str) for name in value) else None
