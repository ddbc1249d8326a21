"""When a webhook is tried again: the schedule, its jitter, and what `Retry-After` asks for.

The first attempt is made at once. Each of the delays below is counted from the end of the attempt before it and varied
by up to a fifth, so that what failed together does not come back together. A delivery that has failed as often as there
are attempts is dead: it stays, with all its attempts, until somebody sends it anew.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from fluxora.errors import InvariantError

DELAYS_S: Final = (5, 30, 120, 600, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
MAX_ATTEMPTS: Final = len(DELAYS_S) + 1
JITTER: Final = 0.2
MAX_RETRY_AFTER_MS: Final = 24 * 3_600_000
RETRY_AFTER_STATUSES: Final = frozenset({429, 503})
"""The answers whose `Retry-After` is listened to."""

_SECONDS: Final = re.compile(r"[0-9]{1,100}")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH: Final = "(?P<month>" + "|".join(_MONTHS) + ")"
_CLOCK: Final = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_DATES: Final = (  # RFC 9110, section 5.6.7: the form to send, and the two old ones that must be understood
    re.compile(rf"[A-Z][a-z]{{2}}, (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_CLOCK} GMT"),
    re.compile(rf"[A-Z][a-z]{{5,8}}, (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_CLOCK} GMT"),
    re.compile(rf"[A-Z][a-z]{{2}} {_MONTH} (?P<day>[ 0-9][0-9]) {_CLOCK} (?P<year>[0-9]{{4}})"),
)


def delay_ms(attempts_made: int, draw: float, retry_after_ms: int | None) -> int | None:
    """How long to wait after a failed attempt, in ms; None where there are no attempts left.

    `attempts_made` counts the failed one (from 1), `draw` is a random number in [0, 1), and the wait is never shorter
    than `retry_after_ms`.

    Raises:
        InvariantError: no attempt was made, so there is nothing to wait after.
    """
    if attempts_made < 1:
        raise InvariantError(f"{attempts_made} attempts cannot have failed")
    if attempts_made >= MAX_ATTEMPTS:
        return None
    varied = round(DELAYS_S[attempts_made - 1] * 1_000 * (1 - JITTER + 2 * JITTER * draw))
    return max(varied, retry_after_ms or 0)


def retry_after_ms(header: str, now_ms: int) -> int | None:
    """What a `Retry-After` header asks for, in ms from `now_ms` (Unix), at most a day; None where it says nothing.

    Seconds and the three forms of an HTTP date are understood. A date that has passed asks for no wait.
    """
    text = header.strip(" \t")
    if _SECONDS.fullmatch(text):
        return min(int(text) * 1_000, MAX_RETRY_AFTER_MS)
    at_ms = _date_ms(text, now_ms)
    return None if at_ms is None else min(max(at_ms - now_ms, 0), MAX_RETRY_AFTER_MS)


def _date_ms(text: str, now_ms: int) -> int | None:
    """An HTTP date in Unix ms. A weekday that does not fit its date is not held against it."""
    match = next(filter(None, (pattern.fullmatch(text) for pattern in _DATES)), None)
    if match is None:
        return None
    year = int(match["year"])
    if len(match["year"]) == 2:
        year = _full_year(year, now_ms)
    second = min(int(match["second"]), 59) if match["second"] == "60" else int(match["second"])  # 60 is a leap second
    clock = int(match["hour"]), int(match["minute"]), second
    try:
        when = datetime(year, _MONTHS.index(match["month"]) + 1, int(match["day"]), *clock, tzinfo=UTC)
    except ValueError:  # the 31st of February
        return None
    return round(when.timestamp() * 1_000)


def _full_year(two_digits: int, now_ms: int) -> int:
    """The year that two digits mean: the one of those that is not more than 50 years ahead, nor 50 or more behind."""
    this_year = datetime.fromtimestamp(now_ms / 1_000, tz=UTC).year
    earliest = this_year - 49
    return earliest + (two_digits - earliest) % 100
