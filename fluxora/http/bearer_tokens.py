"""Bearer tokens: JWTs signed with HMAC-SHA256 under a secret that the issuer shares with us.

Claims: `exp` is required; `nbf` and `iat` are kept where they are given; `scope` is a list of scopes with spaces
between; `sub` names the principal. A token with an audience (`aud`) is for somebody else, since we have no name for it
to hold, and is refused (RFC 7519 4.1.3).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jwt
import msgspec
from cachetools import LRUCache

from fluxora.errors import ConfigError
from fluxora.protocol.api_keys import SCOPES

MAX_TOKEN_BYTES = 4_096
MAX_SUBJECT_LENGTH = 255
KNOWN_TOKENS = 4_096  # tokens whose signature was checked and is not checked again
CLOCK_SKEW_S = 5  # by which the issuer's clock may be ahead of ours where a token begins; none where it ends

# PyJWT takes padding as well; a token has one spelling.
_FORM = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_ALGORITHMS = ["HS256"]
# Times are judged by our own clock, below; PyJWT would ask the system's.
_OPTIONS: jwt.types.Options = {"require": ["exp"], "verify_exp": False, "verify_nbf": False, "verify_iat": False}
_SCOPES = frozenset(SCOPES)


class Bearer(msgspec.Struct, frozen=True):
    """Whom a token names ("jwt:<sub>"), what it allows, and the Unix second at which it ends."""

    id: str
    scopes: frozenset[str]
    expires_at: float


class BearerTokens:
    """Reads tokens. Those it has verified are remembered by their SHA-256; `clock` returns Unix seconds."""

    def __init__(self, secret: str, *, clock: Callable[[], float]) -> None:
        """Raises ConfigError where the secret is a key of another kind, with which no token could be verified."""
        self._secret = secret.encode("utf-8", "surrogateescape")  # the bytes of the variable, whatever they are
        self._clock = clock
        self._known: LRUCache[bytes, Bearer] = LRUCache(KNOWN_TOKENS)
        try:
            jwt.get_algorithm_by_name("HS256").prepare_key(self._secret)
        except jwt.InvalidKeyError as error:
            raise ConfigError("JWT_SECRET: a shared secret is needed, not a key in PEM or SSH form") from error

    def read(self, token: str) -> Bearer | None:
        """What the token says; None where it is no good, for whatever reason."""
        if len(token) > MAX_TOKEN_BYTES or _FORM.fullmatch(token) is None:
            return None
        sha256 = hashlib.sha256(token.encode("ascii"))
        digest = sha256.digest()
        bearer = self._known.get(digest)
        if bearer is None:
            bearer = self._verified(token, sha256.hexdigest())
            if bearer is None:
                return None
            self._known[digest] = bearer
        if bearer.expires_at <= self._clock():
            del self._known[digest]
            return None
        return bearer

    def _verified(self, token: str, sha256_hex: str) -> Bearer | None:
        """The token's claims, but for its end, which is looked at each time."""
        try:
            claims = jwt.decode(token, self._secret, algorithms=_ALGORITHMS, options=_OPTIONS)
        except (jwt.PyJWTError, RecursionError):  # the latter for JSON that is nested too deep
            return None
        expires_at, scope = claims["exp"], claims.get("scope", "")
        subject = claims.get("sub", sha256_hex[:16])
        if not _is_time(expires_at) or not isinstance(scope, str) or not _is_subject(subject):
            return None
        if not self._has_begun(claims):
            return None
        return Bearer(f"jwt:{subject}", _SCOPES & frozenset(scope.split(" ")), expires_at)

    def _has_begun(self, claims: Mapping[str, Any]) -> bool:
        latest = self._clock() + CLOCK_SKEW_S
        begins = [claims[name] for name in ("nbf", "iat") if name in claims]
        return all(_is_time(begin) and begin <= latest for begin in begins)


def _is_time(value: object) -> bool:
    """True for a number that JSON has: neither a boolean nor one of Python's extensions (NaN, Infinity)."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _is_subject(value: object) -> bool:
    """True for text that can be stored and logged: no control characters, no halves of surrogate pairs."""
    return isinstance(value, str) and 0 < len(value) <= MAX_SUBJECT_LENGTH and value.isprintable()
