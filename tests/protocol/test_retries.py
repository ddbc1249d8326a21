"""The retry schedule, and Retry-After against the standard library's writer and reader of dates."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fluxora.errors import InvariantError
from fluxora.protocol.retries import (
    DELAYS_S,
    MAX_ATTEMPTS,
    MAX_RETRY_AFTER_MS,
    RETRY_AFTER_STATUSES,
    delay_ms,
    retry_after_ms,
)

DRAWS = st.floats(0, 1, exclude_max=True)
MINUTE, HOUR = 60, 3_600
NOW = datetime(1994, 11, 6, 8, 49, 0, tzinfo=UTC)
NOW_MS = round(NOW.timestamp() * 1_000)


def test_the_schedule_is_the_contracts():
    contract = (
        5,
        30,
        2 * MINUTE,
        10 * MINUTE,
        30 * MINUTE,
        2 * HOUR,
        5 * HOUR,
        10 * HOUR,
        14 * HOUR,
        20 * HOUR,
        24 * HOUR,
    )
    assert contract == DELAYS_S
    assert MAX_ATTEMPTS == 12
    assert frozenset({429, 503}) == RETRY_AFTER_STATUSES
    assert [delay_ms(made, 0.5, None) for made in range(1, 12)] == [second * 1_000 for second in contract]
    assert delay_ms(12, 0.5, None) is None


@given(st.integers(1, 11), DRAWS)
def test_a_delay_is_within_a_fifth_of_its_step(made, draw):
    waited = delay_ms(made, draw, None)
    step = DELAYS_S[made - 1] * 1_000
    assert waited is not None
    assert step * 4 <= waited * 5 <= step * 6


@pytest.mark.parametrize("made", range(1, 12))
def test_the_draw_spreads_over_the_whole_width(made):
    step = DELAYS_S[made - 1]
    assert delay_ms(made, 0.0, None) == step * 800
    assert delay_ms(made, 0.25, None) == step * 900
    assert delay_ms(made, 1 - 2**-53, None) == step * 1_200


@given(st.integers(1, 11), DRAWS, st.integers(0, MAX_RETRY_AFTER_MS))
def test_the_wait_is_never_shorter_than_what_was_asked_for(made, draw, asked):
    assert delay_ms(made, draw, asked) == max(delay_ms(made, draw, None), asked)


@pytest.mark.parametrize("made", [12, 13, 10_000])
def test_no_retry_after_gives_a_dead_delivery_another_try(made):
    assert delay_ms(made, 0.0, MAX_RETRY_AFTER_MS) is None


@pytest.mark.parametrize("made", [0, -1])
def test_what_was_never_tried_has_no_delay(made):
    with pytest.raises(InvariantError):
        delay_ms(made, 0.0, None)


# Retry-After


@given(st.integers(0, 10**12), st.integers(0, 4_102_444_800_000))
def test_seconds_are_taken_up_to_a_day(seconds, now_ms):
    assert retry_after_ms(str(seconds), now_ms) == min(seconds * 1_000, 86_400_000)


@pytest.mark.parametrize(
    "header",
    [
        "Sun, 06 Nov 1994 08:49:37 GMT",  # the three examples of RFC 9110
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
        " Sun, 06 Nov 1994 08:49:37 GMT\t",
        "Mon, 06 Nov 1994 08:49:37 GMT",  # it was a Sunday: the date counts
        "37",
        "0000037",
    ],
)
def test_every_form_of_a_date_is_understood(header):
    assert retry_after_ms(header, NOW_MS) == 37_000


@given(
    st.integers(0, 253_402_214_400).map(lambda second: datetime.fromtimestamp(second, tz=UTC)),
    st.integers(0, 253_402_300_799_999),
)
@example(NOW + timedelta(seconds=5), NOW_MS + 5_000)
@example(NOW + timedelta(days=1, seconds=1), NOW_MS)
@example(NOW + timedelta(seconds=1), NOW_MS + 1)
def test_dates_agree_with_the_standard_library(when, now_ms):
    ahead = round(when.timestamp() * 1_000) - now_ms
    expected = min(max(ahead, 0), 86_400_000)
    assert retry_after_ms(format_datetime(when, usegmt=True), now_ms) == expected
    assert (
        retry_after_ms(
            when.strftime("%a %b ") + f"{when.day:2d} " + when.strftime("%H:%M:%S ") + f"{when.year:04d}", now_ms
        )
        == expected
    )


@given(st.integers(1, 50 * 365 * 86_400).map(lambda seconds: NOW + timedelta(seconds=seconds)))
@example(datetime(1999, 12, 31, 23, 59, 59, tzinfo=UTC))
@example(datetime(2000, 1, 1, tzinfo=UTC))
def test_two_digits_of_a_year_mean_one_within_fifty_years_of_now(when):
    ahead = round((when - NOW).total_seconds() * 1_000)
    assert retry_after_ms(when.strftime("%A, %d-%b-%y %H:%M:%S GMT"), NOW_MS) == min(ahead, 86_400_000)


def test_two_digits_that_would_be_more_than_fifty_years_ahead_are_the_century_before():
    now_ms = round(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1_000)
    assert retry_after_ms("Sunday, 06-Nov-76 08:49:37 GMT", now_ms) == 86_400_000
    assert retry_after_ms("Sunday, 06-Nov-77 08:49:37 GMT", now_ms) == 0


def test_a_leap_second_is_a_time():
    now_ms = round(datetime(2016, 12, 31, 23, 59, 0, tzinfo=UTC).timestamp() * 1_000)
    assert retry_after_ms("Sat, 31 Dec 2016 23:59:60 GMT", now_ms) == 59_000


@pytest.mark.parametrize(
    "header",
    [
        "",
        " ",
        "-1",
        "+5",
        "1.5",
        "1e3",
        "5 s",
        "soon",
        "٣",
        "9" * 101,
        "Sun, 31 Feb 1994 08:49:37 GMT",
        "Sun, 06 Nov 0000 08:49:37 GMT",
        "Sun, 06 Nov 1994 24:00:00 GMT",
        "Sun, 06 Nov 1994 08:49:61 GMT",
        "Sun, 06 Nov 1994 08:49:37 PST",
        "Sun, 06 Nov 1994 08:49:37 +0000",
        "Sun, 06 Nov 1994 08:49:37",
        "Sun, 06 nov 1994 08:49:37 GMT",
        "Sun, 6 Nov 1994 08:49:37 GMT",
        "Sun, 06 Nov 1994 08:49:37 GMT, 120",
        "1994-11-06T08:49:37Z",
        "x" * 100_000,
    ],
)
def test_what_is_neither_asks_for_nothing(header):
    assert retry_after_ms(header, NOW_MS) is None


@given(st.text(max_size=60), st.integers(0, 4_102_444_800_000))
def test_any_text_is_a_wait_within_a_day_or_none(text, now_ms):
    asked = retry_after_ms(text, now_ms)
    assert asked is None or 0 <= asked <= MAX_RETRY_AFTER_MS


@given(
    st.from_regex(
        r"[A-Z][a-z]{2}, [0-3][0-9] (Jan|Feb|Nov) [1-9][0-9]{3} [0-2][0-9]:[0-5][0-9]:[0-6][0-9] GMT", fullmatch=True
    )
)
def test_a_date_that_exists_is_the_one_that_the_standard_library_reads(text):
    asked = retry_after_ms(text, 0)
    if asked is None:
        return
    when = parsedate_to_datetime(text.replace(":60 GMT", ":59 GMT"))
    assert asked == min(max(round(when.timestamp() * 1_000), 0), MAX_RETRY_AFTER_MS)
