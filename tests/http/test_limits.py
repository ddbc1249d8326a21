"""The buckets against a model in exact fractions, and what the headers promise against what happens."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxora.config import LimitConfig
from fluxora.http.access import Principal
from fluxora.http.limits import FAILURES_PER_MINUTE, Limiter

NOBODY = Principal.anonymous()
KEY = Principal("key:a", frozenset({"streams:read", "streams:write"}))
ADMIN = Principal("key:root", frozenset({"admin"}))
TICK = Fraction(1, 64)  # a whole number of microseconds, and exact as a float
BEGAN_S = 1_800_000_000
HERE = "192.0.2.1"

limits = st.integers(1, 40)
waits = st.lists(st.integers(0, 64 * 20), min_size=1, max_size=120)  # ticks before each request


class Clock:
    """Time that only the test moves, in exact fractions of a second; starts somewhere, as a monotonic clock does."""

    def __init__(self, start=Fraction(12_345)):
        self.start = self.now = start

    def monotonic(self):
        return float(self.now)

    def wall(self):
        return float(BEGAN_S + self.now - self.start)


class Model:
    """A token bucket as textbooks have it."""

    def __init__(self, limit, now):
        self.limit, self.tokens, self.at = limit, Fraction(limit), now

    def take(self, now):
        self.tokens = min(Fraction(self.limit), self.tokens + (now - self.at) * self.limit / 60)
        self.at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


def limiter(clock, **config):
    return Limiter(LimitConfig(**config), clock=clock.monotonic, wall=clock.wall)


def shown(grant):
    """Policy, quota, remaining, seconds and X-RateLimit-* of the headers."""
    headers = dict(grant.headers)
    assert len(headers) == len(grant.headers)
    policy = re.fullmatch(r'"([a-z-]+)";q=([0-9]+);w=60', headers["ratelimit-policy"])
    state = re.fullmatch(r'"([a-z-]+)";r=([0-9]+);t=([0-9]+)', headers["ratelimit"])
    assert policy[1] == state[1]
    assert headers["x-ratelimit-limit"] == policy[2]
    assert headers["x-ratelimit-remaining"] == state[2]
    assert headers.get("retry-after", "0") == str(grant.retry_after_s)
    return policy[1], int(policy[2]), int(state[2]), int(state[3]), int(headers["x-ratelimit-reset"])


@given(limits, waits)
def test_it_grants_what_the_model_grants(limit, ticks):
    clock = Clock()
    under_test, model = limiter(clock, anonymous_read=limit), Model(limit, clock.now)
    for wait in ticks:
        clock.now += wait * TICK
        grant = under_test.take(NOBODY, HERE, "read")
        assert grant.allowed == model.take(clock.now)
        _, quota, remaining, _, _ = shown(grant)
        assert (quota, remaining) == (limit, int(model.tokens))


@given(st.integers(1, 12), waits)
def test_no_window_has_more_than_the_quota_and_its_refill(limit, ticks):
    clock = Clock()
    under_test, served = limiter(clock, anonymous_write=limit), []
    for wait in ticks:
        clock.now += wait * TICK
        if under_test.take(NOBODY, HERE, "write").allowed:
            served.append(clock.now)
    for (first, begin), (last, end) in combinations(enumerate(served), 2):
        assert last - first + 1 <= limit + (end - begin) * limit / 60


@given(limits, st.lists(st.sampled_from("rwkaf"), max_size=120))
def test_refusals_are_counted_by_policy(limit, asked):
    under_test = limiter(Clock(), anonymous_read=limit, anonymous_write=limit, key=limit, admin=limit)
    ask = {
        "r": lambda: under_test.take(NOBODY, HERE, "read"),
        "w": lambda: under_test.take(NOBODY, HERE, "write"),
        "k": lambda: under_test.take(KEY, HERE, "read"),
        "a": lambda: under_test.take(ADMIN, HERE, "read"),
        "f": lambda: under_test.take_failure(HERE),
    }
    for letter in asked:
        ask[letter]()
    quotas = dict.fromkeys("rwka", limit) | {"f": FAILURES_PER_MINUTE}
    assert list(under_test.refused.values()) == [max(0, asked.count(one) - quotas[one]) for one in "rwkaf"]
    assert under_test.callers == len(set(asked))


@given(limits, waits)
def test_a_refused_caller_is_served_after_retry_after_and_no_second_earlier(limit, ticks):
    clock = Clock()
    under_test = limiter(clock, key=limit)
    for wait in ticks:
        clock.now += wait * TICK / 8
        grant = under_test.take(KEY, HERE, "read")
        if not grant.allowed:
            break
    while grant.allowed:
        grant = under_test.take(KEY, HERE, "read")
    assert grant.retry_after_s >= 1
    assert shown(grant)[2:4] == (0, grant.retry_after_s)
    if grant.retry_after_s > 1:
        clock.now += grant.retry_after_s - 1
        assert not under_test.take(KEY, HERE, "read").allowed
        clock.now += 1
    else:
        clock.now += 1
    assert under_test.take(KEY, HERE, "read").allowed


@given(limits, waits)
def test_the_whole_quota_is_there_again_when_the_headers_say(limit, ticks):
    clock = Clock()
    under_test = limiter(clock, anonymous_read=limit)
    for wait in ticks:
        clock.now += wait * TICK / 4
        grant = under_test.take(NOBODY, HERE, "read")
    *_, seconds, reset = shown(grant)
    at = reset - BEGAN_S + clock.start
    if grant.allowed:
        assert clock.now + seconds - 1 < at < clock.now + seconds + 1
    clock.now = max(clock.now, at)
    assert [under_test.take(NOBODY, HERE, "read").allowed for _ in range(limit + 1)] == [True] * limit + [False]


def test_the_defaults_and_their_headers():
    clock = Clock()
    under_test = limiter(clock)
    told = [
        shown(under_test.take(who, HERE, kind))[:4]
        for who, kind in [(NOBODY, "read"), (NOBODY, "write"), (KEY, "read"), (KEY, "write"), (ADMIN, "read")]
    ]
    assert told == [
        ("anonymous-read", 100, 99, 1),
        ("anonymous-write", 20, 19, 3),
        ("key", 500, 499, 1),
        ("key", 500, 498, 1),  # reads and writes share a bucket
        ("admin", 2000, 1999, 1),
    ]
    assert set(dict(under_test.take(NOBODY, HERE, "read").headers)) == {
        "ratelimit-policy",
        "ratelimit",
        "x-ratelimit-limit",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
    }


def test_off_means_off():
    under_test = limiter(Clock(), enabled=False)
    assert under_test.take(NOBODY, HERE, "read") is None
    assert under_test.may_try(HERE) is None
    assert under_test.take_failure(HERE) is None


def test_callers_do_not_share():
    clock = Clock()
    under_test = limiter(clock, anonymous_read=1, key=1, admin=1)
    twin = Principal("key:b", KEY.scopes)
    for who, client in [(NOBODY, HERE), (NOBODY, "192.0.2.2"), (KEY, HERE), (twin, HERE), (ADMIN, HERE)]:
        assert under_test.take(who, client, "read").allowed
        assert not under_test.take(who, client, "read").allowed


def test_a_credential_is_one_caller_wherever_it_comes_from():
    under_test = limiter(Clock(), key=1)
    assert under_test.take(KEY, HERE, "read").allowed
    assert not under_test.take(KEY, "192.0.2.2", "write").allowed


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff", True),
        ("2001:db8:1:2::1", "2001:DB8:1:2:0:0:0:1", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("192.0.2.1", "192.0.2.2", False),
        ("", "192.0.2.1", False),
        ("no:address", "no:other", False),
    ],
)
def test_an_address_counts_as_its_site(one, other, same):
    under_test = limiter(Clock(), anonymous_read=1)
    assert under_test.take(NOBODY, one, "read").allowed
    assert under_test.take(NOBODY, other, "read").allowed is not same


def test_failures_are_counted_and_good_credentials_are_not():
    clock = Clock()
    under_test = limiter(clock)
    for _ in range(FAILURES_PER_MINUTE):
        assert all(under_test.may_try(HERE).allowed for _ in range(50))
        assert under_test.take_failure(HERE).allowed
    refused = under_test.may_try(HERE)
    assert not refused.allowed
    assert shown(refused)[:4] == ("failed-credentials", 20, 0, 3)
    assert not under_test.take_failure(HERE).allowed
    assert under_test.may_try("192.0.2.2").allowed
    assert under_test.take(NOBODY, HERE, "read").allowed, "what it may do without a credential is another matter"
    clock.now += refused.retry_after_s
    assert under_test.may_try(HERE).allowed


def test_a_clock_that_stands_still_grants_the_quota_once():
    under_test = limiter(Clock(), anonymous_read=7)
    assert sum(under_test.take(NOBODY, HERE, "read").allowed for _ in range(100)) == 7


def test_memory_is_bounded_and_the_caller_seen_longest_ago_is_forgotten():
    clock = Clock()
    under_test = Limiter(LimitConfig(anonymous_read=1), clock=clock.monotonic, wall=clock.wall, most_buckets=3)

    def served(client):
        return under_test.take(NOBODY, client, "read").allowed

    assert [served(client) for client in "abc"] == [True] * 3
    assert not served("a")  # used last now
    assert served("d")
    assert not served("a")
    assert served("b"), "it was forgotten, and starts with a full bucket"
    assert len(under_test._buckets) == 3


def test_answers_that_are_kept_are_bounded():
    clock = Clock()
    under_test = limiter(clock, key=1_000_000)
    for _ in range(10_000):
        clock.now += 1
        under_test.take(KEY, HERE, "read")
        under_test.take(KEY, HERE, "read")
    assert len(under_test._key._grants) <= 4_096
