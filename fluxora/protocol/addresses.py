"""StrKey: the text form of Stellar addresses (SEP-23), with its checksum.

A StrKey is base32 without padding of: version byte, payload, CRC16-XModem (little endian). The five kinds are those
that an ScAddress can hold. Encoding is cached because the same few addresses appear in every event.
"""

from __future__ import annotations

from binascii import crc_hqx
from enum import IntEnum
from functools import lru_cache
from typing import Final

from fluxora.errors import DecodeError


class AddressKind(IntEnum):
    """What an address names; the numbers are the ScAddress discriminants."""

    ACCOUNT = 0
    CONTRACT = 1
    MUXED_ACCOUNT = 2
    CLAIMABLE_BALANCE = 3
    LIQUIDITY_POOL = 4


# kind -> (version byte, payload bytes); the version's top five bits are the first letter.
_FORMS: Final = {
    AddressKind.ACCOUNT: (6 << 3, 32),  # G
    AddressKind.CONTRACT: (2 << 3, 32),  # C
    AddressKind.MUXED_ACCOUNT: (12 << 3, 40),  # M: ed25519 key, then the id
    AddressKind.CLAIMABLE_BALANCE: (1 << 3, 33),  # B: balance id version (0), then the hash
    AddressKind.LIQUIDITY_POOL: (11 << 3, 32),  # L
}
_ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_BY_LETTER: Final = {_ALPHABET[version >> 3]: (kind, version, size) for kind, (version, size) in _FORMS.items()}
_CHECKED_LENGTH: Final = 56  # characters of a G... or C... address

# base64.b32encode and b32decode are Python loops, several times slower on a new address. Encoding takes ten bits at a
# time from a table; decoding lets int() do it, for which the letters become the digits that int(text, 32) knows.
_PAIRS: Final = [first + second for first in _ALPHABET for second in _ALPHABET]
_DIGITS: Final = bytes(
    b"0123456789abcdefghijklmnopqrstuv"[_ALPHABET.index(chr(byte))] if chr(byte) in _ALPHABET else 0x21
    for byte in range(256)
)


@lru_cache(maxsize=1 << 13)
def encode(kind: AddressKind, payload: bytes) -> str:
    """Encode `payload` (32 bytes; 40 for a muxed account, key first; 33 for a claimable balance, version first).

    Raises:
        DecodeError: the payload has not the size of its kind.
    """
    version, size = _FORMS[kind]
    if len(payload) != size:
        raise DecodeError(f"{kind.name.lower()} address of {len(payload)} bytes, not {size}")
    body = bytes((version,)) + payload
    body += crc_hqx(body, 0).to_bytes(2, "little")
    characters = (len(body) * 8 + 4) // 5
    body += bytes(-len(body) % 5)  # whole groups of 40 bits
    pairs = _PAIRS
    groups = [int.from_bytes(body[at : at + 5], "big") for at in range(0, len(body), 5)]
    text = "".join(
        [
            pairs[group >> 30] + pairs[group >> 20 & 1023] + pairs[group >> 10 & 1023] + pairs[group & 1023]
            for group in groups
        ]
    )
    return text[:characters]


def decode(text: str) -> tuple[AddressKind, bytes]:
    """Decode a StrKey of any of the five kinds into its kind and payload, checksum verified.

    Raises:
        DecodeError: not base32 in canonical form, an unknown kind, a wrong length or a wrong checksum.
    """
    kind, version, size = _BY_LETTER.get(text[:1], (None, 0, 0))
    if kind is None:
        raise DecodeError("address is of no known kind")
    octets = size + 3
    spare = -octets * 8 % 5
    if len(text) * 5 != octets * 8 + spare:
        raise DecodeError("address has a wrong length")
    try:
        bits = int(text.encode("ascii").translate(_DIGITS), 32)
    except ValueError as error:
        raise DecodeError("address is not base32") from error
    decoded = (bits >> spare).to_bytes(octets, "big")
    if decoded[0] != version or bits & ((1 << spare) - 1):  # one text per address: unused bits are zero
        raise DecodeError("address is not in canonical form")
    if crc_hqx(decoded[:-2], 0).to_bytes(2, "little") != decoded[-2:]:
        raise DecodeError("address has a wrong checksum")
    payload = decoded[1:-2]
    if kind is AddressKind.CLAIMABLE_BALANCE and payload[0] != 0:
        raise DecodeError("claimable balance id is of no known version")
    return kind, payload


def encode_contract(contract_hash: bytes) -> str:
    """C... of a 32-byte contract id."""
    return encode(AddressKind.CONTRACT, contract_hash)


def is_account_or_contract(text: str) -> bool:
    """Whether `text` is a G... or C... address with a valid checksum: what a stream's party can be."""
    return len(text) == _CHECKED_LENGTH and _is_party(text)  # nothing longer is remembered


@lru_cache(maxsize=1 << 15)
def _is_party(text: str) -> bool:
    return _is_one_of(text, (AddressKind.ACCOUNT, AddressKind.CONTRACT))


def is_contract(text: str) -> bool:
    """Whether `text` is a C... address with a valid checksum."""
    return _is_one_of(text, (AddressKind.CONTRACT,))


def _is_one_of(text: str, kinds: tuple[AddressKind, ...]) -> bool:
    if len(text) != _CHECKED_LENGTH:
        return False
    try:
        kind, _ = decode(text)
    except DecodeError:
        return False
    return kind in kinds
