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

Where other processes serve the same callers, actors/limit_exchange.py carries between them what was spent. What comes
from elsewhere is added as if it had been spent here at the time that the other names; added later than it was spent, it
never counts for less. So a bucket can lack more than all of it: what was granted beyond the quota is paid back. Callers
are known by a hash under a key of the database, which is the same in each process.

Headers: `ratelimit-policy` and `ratelimit` as in draft-ietf-httpapi-ratelimit-headers-11: q requests in w seconds; r
are left, and in t seconds the whole quota is there again, or, on a refusal, a request can be served again (the draft
wants it to name the same moment as retry-after). `x-ratelimit-reset` is the Unix second by which the whole quota is
there again.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from ipaddress import IPv6Address, ip_network
from typing import Final, Literal

import msgspec

from fluxora.config import LimitConfig
from fluxora.http.access import Principal
from fluxora.storage.shared_limits import Tally

MOST_BUCKETS = 100_000
FAILURES_PER_MINUTE = 20

_MICROSECONDS = 1_000_000
_TOKEN = 60 * _MICROSECONDS
_MOST_GRANTS = 4_096  # of each policy: answers that say the same are made once
_WINDOW_S = 60
_SHARES = 20  # what is less than this part of a quota is not published
_HASHED = 1 << 15
_AT_ONCE = 1_000  # buckets looked at between two chances for other work


class Grant(msgspec.Struct, frozen=True):
    """What a limit says to one request. `headers` go on its answer, allowed or not; with retry-after where it is not.

    `retry_after_s` is in whole seconds, 0 where the request is allowed.
    """

    allowed: bool
    headers: tuple[tuple[str, str], ...]
    retry_after_s: int = 0


class Limiter:
    """The buckets of one listener. `clock` only ever goes forward; `wall` returns Unix seconds.

    `salt`, up to 64 bytes, is the key of the callers' hashes. `ring` is called when something begins to be there that
    `take_spent` gives.
    `refused` counts what was not allowed, by the name of the policy.
    """

    def __init__(
        self,
        config: LimitConfig,
        *,
        salt: bytes = b"",
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        most_buckets: int = MOST_BUCKETS,
    ) -> None:
        self.ring: Callable[[], None] = _nobody
        self._enabled = config.enabled
        self._clock = clock
        self._wall = wall
        self._read = _Policy(0, "anonymous-read", config.anonymous_read)
        self._write = _Policy(1, "anonymous-write", config.anonymous_write)
        self._key = _Policy(2, "key", config.key)
        self._admin = _Policy(3, "admin", config.admin)
        self._failures = _Policy(4, "failed-credentials", FAILURES_PER_MINUTE)
        self._policies: Final = (self._read, self._write, self._key, self._admin, self._failures)
        self.refused = {policy.name: 0 for policy in self._policies}
        self._most = most_buckets
        self._buckets: OrderedDict[bytes, _Bucket] = OrderedDict()  # by caller, used longest ago first
        self._sharing = False
        self._busy: dict[bytes, _Bucket] = {}  # of which enough was spent to tell of it

        @lru_cache(maxsize=_HASHED)
        def hashed(name: str, caller: str) -> bytes:
            return blake2b(f"{name}\0{caller}".encode(errors="surrogatepass"), key=salt, digest_size=16).digest()

        self._hashed = hashed

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
        key = self._hashed(policy.name, caller)
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._made(key, policy)
        else:
            self._buckets.move_to_end(key)
        lacking = bucket.full_at - now
        if lacking < 0:  # noqa: PLR1730 (max() costs a tenth of the whole call)
            lacking = 0
        over = lacking + _TOKEN - policy.capacity
        if over <= 0:
            lacking += cost
            bucket.full_at = now + lacking
            if self._sharing and cost:
                bucket.untold += 1
                if bucket.untold >= policy.share:
                    self._note(key, bucket)
        else:
            self.refused[policy.name] += 1
        return policy.grant(lacking, over, self._wall())

    def _made(self, key: bytes, policy: _Policy) -> _Bucket:
        bucket = self._buckets[key] = _Bucket(policy)
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return bucket

    # -- what other processes are told, and tell -------------------------------------------------------------------

    def begin_sharing(self) -> Iterator[None]:
        """Count what is spent here from now on, and before that what the buckets lack. Yields between parts of it."""
        self._sharing = True
        for nth, (key, bucket) in enumerate(list(self._buckets.items()), 1):
            policy = bucket.policy
            lacking = bucket.full_at - int(self._clock() * _MICROSECONDS) * policy.limit
            bucket.untold = max(0, -(-lacking // _TOKEN))
            if bucket.untold >= policy.share:
                self._note(key, bucket)
            if nth % _AT_ONCE == 0:
                yield

    def end_sharing(self) -> None:
        """Count nothing any more, and forget what was not told."""
        self._sharing = False
        self._busy.clear()

    def take_spent(self, most: int) -> list[Tally]:
        """What callers spent here and no other process was told of yet: `most` of them, who have waited longest."""
        spent: list[Tally] = []
        while self._busy and len(spent) < most:
            key = next(iter(self._busy))
            bucket = self._busy.pop(key)
            spent.append(Tally(key, bucket.policy.number, bucket.untold))
            bucket.untold = 0
        if self._busy:
            self.ring()
        return spent

    def spend(self, spent: Sequence[Tally], age_s: float) -> None:
        """Take what was spent elsewhere up to `age_s` ago. A limit that this process does not know is passed over."""
        at = int((self._clock() - age_s) * _MICROSECONDS)
        for key, number, tokens in spent:
            if number >= len(self._policies):
                continue
            policy = self._policies[number]
            bucket = self._buckets.get(key)
            if bucket is None:
                bucket = self._made(key, policy)
            else:
                self._buckets.move_to_end(key)
            bucket.full_at = max(bucket.full_at, at * policy.limit) + tokens * _TOKEN

    def _note(self, key: bytes, bucket: _Bucket) -> None:
        if key not in self._busy and len(self._busy) < self._most:
            self._busy[key] = bucket
            if len(self._busy) == 1:
                self.ring()


def _nobody() -> None:
    """Nobody is told."""


class _Bucket:
    """`full_at` is in microseconds of the clock times the limit; `untold` in tokens spent here."""

    __slots__ = ("full_at", "policy", "untold")

    def __init__(self, policy: _Policy) -> None:
        self.full_at = 0
        self.policy = policy
        self.untold = 0


class _Policy:
    """A limit, `limit` requests in 60 s, and its answers. `capacity` and `second` are in microseconds times limit.

    `number` is what other processes know it by. They are told of `share` tokens at least.
    """

    __slots__ = ("_fixed", "_grants", "capacity", "limit", "name", "number", "second", "share")

    def __init__(self, number: int, name: str, limit: int) -> None:
        self.number = number
        self.name = name
        self.share = max(1, limit // _SHARES)
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
        remaining = 0 if refused else (self.capacity - lacking) // _TOKEN
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
