"""Circuit breakers: what keeps failing is left alone for a while, so that nothing is wasted on it.

A breaker opens after `THRESHOLD` failures in a row. While it is open nothing is to be sent; after `FIRST_OPEN_S` it is
half open and one attempt may go through. That one's success closes it; its failure opens it for twice as long, up to
`LONGEST_OPEN_S`. A failure of an attempt that began before the breaker opened says nothing new and counts for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

THRESHOLD = 5
FIRST_OPEN_S = 10.0
LONGEST_OPEN_S = 60.0
FORGET_S = 3600.0


@dataclass
class _Breaker:
    """`failures` in a row while it is closed; open from `opened_at` to `open_until`, half open from then on."""

    failures: int = 0
    open_s: float = 0.0  # 0: closed
    opened_at: float = -inf
    open_until: float = -inf
    touched: float = -inf


class Breakers:
    """One breaker for each key; all times are seconds of one monotonic clock.

    Only what fails is remembered, and what has not been tried for an hour is forgotten, as after its removal.
    """

    def __init__(self) -> None:
        self._failing: dict[str, _Breaker] = {}

    def succeeded(self, key: str) -> None:
        """An attempt has got through: the breaker is closed."""
        self._failing.pop(key, None)

    def failed(self, key: str, *, began: float, now: float) -> bool:
        """An attempt that began at `began` has failed; True where the breaker opens with it."""
        breaker = self._failing.setdefault(key, _Breaker())
        breaker.touched = now
        if began < breaker.opened_at:
            return False
        if not breaker.open_s:
            breaker.failures += 1
            if breaker.failures < THRESHOLD:
                return False
        breaker.open_s = min(breaker.open_s * 2, LONGEST_OPEN_S) or FIRST_OPEN_S
        breaker.opened_at, breaker.open_until = now, now + breaker.open_s
        return True

    def open(self, now: float) -> list[str]:
        """Those to which nothing may be sent."""
        return [key for key, breaker in self._failing.items() if now < breaker.open_until]

    def half_open(self, now: float) -> list[str]:
        """Those to which one attempt at a time may be made."""
        return [key for key, breaker in self._failing.items() if breaker.open_s and breaker.open_until <= now]

    def next_change(self, now: float) -> float:
        """When the next open one becomes half open; infinity where none is open."""
        return min((breaker.open_until for breaker in self._failing.values() if now < breaker.open_until), default=inf)

    def forget_old(self, now: float) -> None:
        """Let go of those that nobody has tried for an hour."""
        for key in [key for key, breaker in self._failing.items() if breaker.touched + FORGET_S < now]:
            del self._failing[key]
