"""Who asks: from the headers of a request to a principal, or a refusal.

A request has one credential or none: a key as `X-API-Key`, or a JWT as `Authorization: Bearer`. Whatever is not a good
credential is refused (unknown, malformed, expired, of another scheme, given twice, of a kind that is not configured),
and never taken for nobody. The refusal is the same text for all of these.

A key is hashed slowly, so that its entry is worth nothing to a thief. That costs some 50 ms the first time; afterwards
the key is known by its SHA-256, which is all of it that stays in memory.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable

import msgspec
import trio
from cachetools import LRUCache

from fluxora.config import AccessConfig
from fluxora.errors import Forbidden, Unauthorized, Unavailable
from fluxora.http.bearer_tokens import BearerTokens
from fluxora.protocol.api_keys import ApiKey, parse_key, verify

KNOWN_KEYS = 4_096  # keys whose hash was computed and is not computed again
MAX_HASHES = 33  # one computed, 32 waiting
HASH_DEADLINE_S = 5.0
_CHALLENGE = (("www-authenticate", 'Bearer realm="fluxora"'),)


class Principal(msgspec.Struct, frozen=True):
    """Who asks. `id` is "anonymous", "key:<name>" or "jwt:<sub>"; a credential may do what its scopes say, no more.

    `expires_at` is the Unix second at which a token ends, None for what does not.
    """

    id: str
    scopes: frozenset[str] = frozenset()
    expires_at: float | None = None

    @staticmethod
    def anonymous() -> Principal:
        """Nobody: a request without a credential."""
        return _NOBODY

    @property
    def is_anonymous(self) -> bool:
        """True for a request without a credential."""
        return self.id == "anonymous"

    def may(self, scope: str) -> bool:
        """True where the scope is held; admin implies every other."""
        return scope in self.scopes or "admin" in self.scopes


_NOBODY = Principal("anonymous")


def authorize(principal: Principal, scope: str, *, anonymous_ok: bool) -> None:
    """Let a request on, or not. `anonymous_ok` opens the route to nobody, and to no credential without the scope.

    Raises:
        Unauthorized: nobody asks, and a credential is needed.
        Forbidden: the credential does not hold the scope.
    """
    if principal.is_anonymous:
        if not anonymous_ok:
            raise Unauthorized(
                "A credential is needed: a key as X-API-Key or a token as Authorization: Bearer", headers=_CHALLENGE
            )
    elif not principal.may(scope):
        raise Forbidden(f"The credential does not have the scope {scope}")


class Access:
    """Checks credentials. Made once, for what it has verified is remembered; `clock` returns Unix seconds.

    `required` is true where writes and WebSockets are closed to nobody.
    """

    def __init__(self, config: AccessConfig, *, clock: Callable[[], float] = time.time) -> None:
        """Raises ConfigError where the JWT secret cannot serve as one."""
        self.required = config.required
        self._keys = {key.name: key for key in config.api_keys}
        self._tokens = None if config.jwt_secret is None else BearerTokens(config.jwt_secret, clock=clock)
        self._known: LRUCache[bytes, Principal] = LRUCache(KNOWN_KEYS)
        self._hashes: dict[bytes, _Hash] = {}  # those under way, by the key's SHA-256
        self._one_at_a_time = trio.CapacityLimiter(1)

    @property
    def configured_admin(self) -> bool:
        """True where some credential can hold the scope admin; elsewhere admin routes answer 404."""
        return self._tokens is not None or any("admin" in key.scopes for key in self._keys.values())

    def at_once(self, headers: Iterable[tuple[str, str]]) -> Principal | None:
        """Who asks, as far as that takes no waiting; None where a hash must be computed. Header names are lower case.

        Raises:
            Unauthorized: there is a credential, and it is no good.
        """
        given = _credential(headers)
        if given is None:
            return _NOBODY
        header, value = given
        if header == "authorization":
            return self._bearer(value)
        return self._known_key(value)

    async def principal(self, headers: Iterable[tuple[str, str]]) -> Principal:
        """Who asks. A hash is computed in a thread, one at a time.

        Raises:
            Unauthorized: there is a credential, and it is no good.
            Unavailable: too many hashes are waiting, or this one did not get its turn in time.
        """
        headers = tuple(headers)
        principal = self.at_once(headers)
        if principal is not None:
            return principal
        given = _credential(headers)
        assert given is not None  # at_once has found it
        with trio.move_on_after(HASH_DEADLINE_S):
            return await self._hashed_key(given[1])
        raise Unavailable("The key could not be checked in time")

    def _bearer(self, authorization: str) -> Principal:
        scheme, _, token = authorization.partition(" ")
        if self._tokens is None or scheme.lower() != "bearer":
            raise _refusal()
        bearer = self._tokens.read(token.strip(" "))
        if bearer is None:
            raise _refusal()
        return Principal(bearer.id, bearer.scopes, bearer.expires_at)

    def _known_key(self, text: str) -> Principal | None:
        """The principal of a key that was verified before, None where its hash must be computed."""
        digest, _, _ = self._parsed(text)
        return self._known.get(digest)

    async def _hashed_key(self, text: str) -> Principal:
        digest, key, secret = self._parsed(text)
        while (other := self._hashes.get(digest)) is not None:  # many requests may bring a new key at the same time
            await other.ended.wait()  # principal() holds the deadline
            if other.fits is not None:
                return self._settled(key, digest, fits=other.fits)
        if len(self._hashes) >= MAX_HASHES:
            raise Unavailable("Too many keys are being checked now")
        mine = self._hashes[digest] = _Hash()
        try:
            mine.fits = await trio.to_thread.run_sync(verify, key, secret, limiter=self._one_at_a_time)
        finally:
            del self._hashes[digest]
            mine.ended.set()
        return self._settled(key, digest, fits=mine.fits)

    def _parsed(self, text: str) -> tuple[bytes, ApiKey, str]:
        """SHA-256 of the key, the entry of its name, and its secret."""
        parts = parse_key(text)
        if parts is None:
            raise _refusal()
        name, secret = parts
        key = self._keys.get(name)
        if key is None:
            raise _refusal()
        return hashlib.sha256(text.encode("ascii")).digest(), key, secret

    def _settled(self, key: ApiKey, digest: bytes, *, fits: bool) -> Principal:
        if not fits:
            raise _refusal()
        principal = self._known[digest] = Principal(f"key:{key.name}", key.scopes)
        return principal


class _Hash:
    """A hash under way. `fits` is None until it is known, and stays so if whoever computed it was cut off."""

    __slots__ = ("ended", "fits")

    def __init__(self) -> None:
        self.ended = trio.Event()
        self.fits: bool | None = None


def _credential(headers: Iterable[tuple[str, str]]) -> tuple[str, str] | None:
    """The one header that holds a credential, with its value; None where there is none.

    Raises:
        Unauthorized: more than one.
    """
    found = None
    for pair in headers:
        if pair[0] in ("authorization", "x-api-key"):
            if found is not None:
                raise _refusal()
            found = pair
    return found


def _refusal() -> Unauthorized:
    return Unauthorized("The credential is not valid", headers=_CHALLENGE)
