"""API keys: what a client holds, what the configuration holds, and whether the two belong together.

A client holds `flx_<name>_<secret>`: the secret is base64url of 32 random bytes. The configuration holds the key's
entry, `<name>.<salt>.<hash>.<scope+scope>`: the hash is scrypt over the secret's text, salt and hash are base64url
without padding. An entry has no character that a shell, a .env file or docker compose would take for its own, and the
key cannot be told from it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable
from typing import Final

import msgspec

from fluxora.errors import DecodeError

SCOPES: Final = ("streams:read", "streams:write", "admin")
ENTROPY_BYTES: Final = 48  # the secret's 32, then the salt's 16

_SECRET_BYTES: Final = 32
_HASH_BYTES: Final = 32
_COST, _BLOCK, _LANES = 2**14, 8, 1  # scrypt's n, r and p: 16 MiB and some 50 ms
_NAME = re.compile(r"[a-z0-9-]{1,32}")
_KEY = re.compile(r"flx_([a-z0-9-]{1,32})_([A-Za-z0-9_-]{43})")
_ENTRY = re.compile(r"([^.]*)\.([A-Za-z0-9_-]{22})\.([A-Za-z0-9_-]{43})\.([a-z:+]{1,100})")


class ApiKey(msgspec.Struct, frozen=True):
    """A key as the configuration knows it. `salt` has 16 bytes, `digest` 32; both stay out of the repr."""

    name: str
    salt: bytes
    digest: bytes
    scopes: frozenset[str]

    def __repr__(self) -> str:
        return f"ApiKey(name={self.name!r}, scopes={_listed(self.scopes)!r})"

    @property
    def entry(self) -> str:
        """The configured form."""
        return f"{self.name}.{_encode(self.salt)}.{_encode(self.digest)}.{_listed(self.scopes)}"


def is_name(text: str) -> bool:
    """True for what a key can be called: 1 to 32 of a-z, 0-9 and the hyphen."""
    return _NAME.fullmatch(text) is not None


def make(name: str, scopes: Iterable[str], *, entropy: bytes) -> tuple[str, ApiKey]:
    """A new key: the text for the client, which is kept nowhere, and its entry. `entropy` is 48 random bytes.

    Raises:
        DecodeError: a bad name or scope.
    """
    if not is_name(name):
        raise DecodeError("a name is 1 to 32 of a-z, 0-9 and -")
    secret, salt = _encode(entropy[:_SECRET_BYTES]), entropy[_SECRET_BYTES:ENTROPY_BYTES]
    return f"flx_{name}_{secret}", ApiKey(name, salt, _hash(secret, salt), _known(scopes))


def parse_entry(text: str) -> ApiKey:
    """Read the configured form.

    Raises:
        DecodeError: not an entry. The message holds nothing of it, for it may be the key itself.
    """
    if text.startswith("flx_"):
        raise DecodeError("it is the key, which only its holder should have, and not the entry made with it")
    match = _ENTRY.fullmatch(text)
    if match is None:
        raise DecodeError("it is not of the form <name>.<salt>.<hash>.<scope+scope>")
    name, salt, digest, scopes = match.groups()
    if not is_name(name):
        raise DecodeError("its name is not 1 to 32 of a-z, 0-9 and -")
    key = ApiKey(name, _decode(salt), _decode(digest), _known(scopes.split("+")))
    if f".{_encode(key.salt)}.{_encode(key.digest)}." != f".{salt}.{digest}.":
        raise DecodeError("its salt or its hash was cut short or changed")
    return key


def parse_key(text: str) -> tuple[str, str] | None:
    """Name and secret of a client's key; None where the text cannot be one."""
    match = _KEY.fullmatch(text)
    return None if match is None else (match[1], match[2])


def verify(key: ApiKey, secret: str) -> bool:
    """True if the secret is the one that the entry was made with. Slow on purpose, and constant in time."""
    return hmac.compare_digest(_hash(secret, key.salt), key.digest)


def _hash(secret: str, salt: bytes) -> bytes:
    return hashlib.scrypt(secret.encode("ascii"), salt=salt, n=_COST, r=_BLOCK, p=_LANES, dklen=_HASH_BYTES)


def _known(scopes: Iterable[str]) -> frozenset[str]:
    """The scopes as a set.

    Raises:
        DecodeError: none at all, or one that does not exist.
    """
    known = frozenset(scopes)
    if not known or not known <= frozenset(SCOPES):
        raise DecodeError(f"its scopes are not one or more of {', '.join(SCOPES)}")
    return known


def _listed(scopes: frozenset[str]) -> str:
    return "+".join(scope for scope in SCOPES if scope in scopes)


def _encode(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _decode(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))
