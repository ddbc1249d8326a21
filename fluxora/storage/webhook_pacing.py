"""The rate limit of an endpoint: a token bucket, kept as the one moment at which it will be full again (GCRA).

The bucket holds a tenth of what a second may have, and at least one. So within any second an endpoint is sent at most a
tenth more than its limit, and what is below ten a second is evenly spaced. Moments are Unix microseconds; a limit of 0
is none.
"""

from __future__ import annotations

from typing import Final

UNLIMITED: Final = 1_000_000_000
_SECOND_US: Final = 1_000_000


def allowed(limit: int, full_us: int, now_us: int) -> int:
    """How many may be sent now, where the bucket is full at `full_us`."""
    if limit == 0:
        return UNLIMITED
    each = _each_us(limit)
    return max(0, (_burst(limit) * each - max(0, full_us - now_us)) // each)


def taken(limit: int, full_us: int, now_us: int, count: int) -> int:
    """When the bucket will be full after `count` were taken now."""
    return max(full_us, now_us) + count * _each_us(limit) if limit else full_us


def wait_ms(limit: int, full_us: int, now_us: int) -> int:
    """Milliseconds until one more may be sent, rounded up; 0: now."""
    if limit == 0:
        return 0
    return max(0, -(-(full_us - (_burst(limit) - 1) * _each_us(limit) - now_us) // 1000))


def _each_us(limit: int) -> int:
    return -(-_SECOND_US // limit)


def _burst(limit: int) -> int:
    return max(1, limit // 10)
