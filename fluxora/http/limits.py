"""Rate limits: one token bucket per caller and policy.

A bucket holds as many tokens as the limit per minute says and is refilled evenly, so that a caller may send its whole
quota at once and then one request each 60/limit seconds. A refused request costs nothing.

A credential's caller is its principal, wherever it comes from; nobody's is the client's address, of IPv6 the first 64
bits, since that is what one site has to itself.

Arithmetic is in integers and exact: time is counted in microseconds times the limit, which makes a token worth the same
60,000,000 in every policy. A bucket is one number, the time at which it is full again; this is the token bucket written
the other way round (the generic cell rate algorithm).

At most 100,000 buckets are kept; beyond that the one used longest ago is forgotten, which fills it. A bucket that was
not used for a minute is full anyway: only where more callers than that come within a minute does one of them start anew
too early.

Headers: `ratelimit-policy` and `ratelimit` as in draft-ietf-httpapi-ratelimit-headers-11: q requests in w seconds; r
are left, and in t seconds the whole quota is there again, or, on a refusal, a request can be served again (the draft
wants it to name the same moment as retry-after). `x-ratelimit-reset` is the Unix second by which the whole quota is
there again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv6Address, ip_network
from typing import Literal

import msgspec
from cachetools import LRUCache

from fluxora.config import LimitConfig
from fluxora.http.access import Principal

MOST_BUCKETS = 100_000
FAILURES_PER_MINUTE = 20

_MICROSECONDS = 1_000_000
_TOKEN = 60 * _MICROSECONDS
_MOST_GRANTS = 4_096  # of each policy: answers that say the same are made once
_WINDOW_S = 60


class Grant(msgspec.Struct, frozen=True):
    """What a limit says to one request. `headers` go on its answer, allowed or not; with retry-after where it is not.

    `retry_after_s` is in whole seconds, 0 where the request is allowed.
    """

    allowed: bool
    headers: tuple[tuple[str, str], ...]
    retry_after_s: int = 0


class Limiter:
    """The buckets of one listener. `clock` only ever goes forward; `wall` returns Unix seconds.

    `refused` counts what was not allowed, by the name of the policy.
    """

    def __init__(
        self,
        config: LimitConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        most_buckets: int = MOST_BUCKETS,
    ) -> None:
        self._enabled = config.enabled
        self._clock = clock
        self._wall = wall
        self._read = _Policy("anonymous-read", config.anonymous_read)
        self._write = _Policy("anonymous-write", config.anonymous_write)
        self._key = _Policy("key", config.key)
        self._admin = _Policy("admin", config.admin)
        self._failures = _Policy("failed-credentials", FAILURES_PER_MINUTE)
        self._buckets: LRUCache[tuple[str, str], _Bucket] = LRUCache(most_buckets)
        policies = (self._read, self._write, self._key, self._admin, self._failures)
        self.refused = {policy.name: 0 for policy in policies}

    @property
    def callers(self) -> int:
        """How many buckets are kept."""
        return len(self._buckets)

    def take(self, principal: Principal, client: str, kind: Literal["read", "write"]) -> Grant | None:
        """Take a token for one request; None where limits are off. Nobody's reads and writes have a bucket each."""
        if not self._enabled:
            return None
        if principal.is_anonymous:
            return self._taken(self._read if kind == "read" else self._write, site_of(client))
        return self._taken(self._admin if "admin" in principal.scopes else self._key, principal.id)

    def may_try(self, client: str) -> Grant | None:
        """Ask before a credential is checked that takes a slow hash: refused where too many from there were no good.

        Takes nothing, for a good credential costs nothing. None where limits are off.
        """
        if not self._enabled:
            return None
        return self._taken(self._failures, site_of(client), cost=0)

    def take_failure(self, client: str) -> Grant | None:
        """Note a credential that was no good; refused where too many were. None where limits are off."""
        if not self._enabled:
            return None
        return self._taken(self._failures, site_of(client))

    def _taken(self, policy: _Policy, caller: str, cost: int = _TOKEN) -> Grant:
        now = int(self._clock() * _MICROSECONDS) * policy.limit
        key = (policy.name, caller)
        try:
            bucket = self._buckets[key]
        except KeyError:
            bucket = self._buckets[key] = _Bucket()
        lacking = bucket.full_at - now
        if lacking < 0:  # noqa: PLR1730 (max() costs a tenth of the whole call)
            lacking = 0
        over = lacking + _TOKEN - policy.capacity
        if over <= 0:
            lacking += cost
            bucket.full_at = now + lacking
        else:
            self.refused[policy.name] += 1
        return policy.grant(lacking, over, self._wall())


class _Bucket:
    """`full_at` is in microseconds of the clock times the limit."""

    __slots__ = ("full_at",)

    def __init__(self) -> None:
        self.full_at = 0


class _Policy:
    """A limit, `limit` requests in 60 s, and its answers. `capacity` and `second` are in microseconds times limit."""

    __slots__ = ("_fixed", "_grants", "capacity", "limit", "name", "second")

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.limit = limit
        self.capacity = limit * _TOKEN
        self.second = limit * _MICROSECONDS
        self._fixed = (
            ("ratelimit-policy", f'"{name}";q={limit};w={_WINDOW_S}'),
            ("x-ratelimit-limit", str(limit)),
        )
        self._grants: dict[tuple[int, int, int], Grant] = {}

    def grant(self, lacking: int, over: int, wall: float) -> Grant:
        """The answer for a bucket that is not full by `lacking`; `over`, if above 0, is what it lacks for one token."""
        refused = over > 0
        remaining = (self.capacity - lacking) // _TOKEN
        seconds = -(-(over if refused else lacking) // self.second)
        reset = math.ceil(wall + lacking / self.second)
        key = (-1 if refused else remaining, seconds, reset)
        grant = self._grants.get(key)
        if grant is None:
            if len(self._grants) >= _MOST_GRANTS:
                self._grants.clear()
            grant = self._grants[key] = self._made(remaining, seconds, reset, refused=refused)
        return grant

    def _made(self, remaining: int, seconds: int, reset: int, *, refused: bool) -> Grant:
        headers = (
            *self._fixed,
            ("ratelimit", f'"{self.name}";r={remaining};t={seconds}'),
            ("x-ratelimit-remaining", str(remaining)),
            ("x-ratelimit-reset", str(reset)),
        )
        if refused:
            return Grant(allowed=False, headers=(*headers, ("retry-after", str(seconds))), retry_after_s=seconds)
        return Grant(allowed=True, headers=headers)


@lru_cache(maxsize=1 << 13)
def site_of(client: str) -> str:
    """What an address counts as: IPv4 as it is, also where IPv6 carries it, and the /64 of any other IPv6.

    What is no address (a peer without one) counts as it is.
    """
    if ":" not in client:
        return client
    try:
        address = IPv6Address(client)
    except ValueError:
        return client
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ip_network((int(address) & ~0xFFFF_FFFF_FFFF_FFFF, 64)))
