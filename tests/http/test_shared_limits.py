"""Several limiters that tell each other what was spent, against a book of everything that they granted."""

from __future__ import annotations

from bisect import bisect_left

from hypothesis import given
from hypothesis import strategies as st

from fluxora.config import LimitConfig
from fluxora.http.access import Principal
from fluxora.http.limits import FAILURES_PER_MINUTE, Limiter

NOBODY = Principal.anonymous()
SECOND = 64  # ticks, each a whole number of microseconds, and exact as a float
TOKEN = 60 * SECOND  # in what comes in anew in a tick, times the limit
HERE = "192.0.2.1"
SALT = bytes(32)
MOST = 100
EXACT = TOKEN // 1000  # microseconds of ages that floats round

# Who, what, and how many ticks after the last: requests, a round (tell and hear), or only one half of it.
moves = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from([1, 1, 1, 3, 30, "r", "s", "h"]), st.integers(0, 64)),
    min_size=1,
    max_size=60,
)


class Clock:
    def __init__(self):
        self.now = 12_345 * SECOND

    def __call__(self):
        return self.now / SECOND


class Replicas:
    """Limiters that hear of each other through a list, and a book of what each of them granted."""

    def __init__(self, number, limit, *, sharing=True):
        self.clock = Clock()
        self.limit = limit
        self.limiters = [self.make() for _ in range(number)]
        for each in self.limiters if sharing else ():
            begin(each)
        self.granted = []  # (when, by whom)
        self.told = [0] * number  # of the grants of each, how many are in the list
        self.rounds = []  # (when, by whom, what)
        self.heard = [[0] * number for _ in range(number)]  # [reader][writer]: grants that it knows of
        self._read = [0] * number

    def make(self):
        return Limiter(LimitConfig(anonymous_read=self.limit), salt=SALT, clock=self.clock, wall=self.clock)

    @property
    def share(self):
        return max(1, self.limit // 20)

    def take(self, who):
        allowed = self.limiters[who].take(NOBODY, HERE, "read").allowed
        if allowed:
            self.granted.append((self.clock.now, who))
        return allowed

    def tell(self, who):
        spent = self.limiters[who].take_spent(MOST)
        assert [tally.tokens for tally in spent] == ([] if not spent else [self.count(who) - self.told[who]])
        if spent:
            self.told[who] = self.count(who)
            self.rounds.append((self.clock.now, who, spent, self.told[who]))

    def hear(self, who):
        new, self._read[who] = self.rounds[self._read[who] :], len(self.rounds)
        for at, writer, spent, told in new:
            if writer != who:
                self.limiters[who].spend(spent, (self.clock.now - at) / SECOND)
                self.heard[who][writer] = told

    def exchange(self):
        for who in range(len(self.limiters)):
            self.tell(who)
        for who in range(len(self.limiters)):
            self.hear(who)

    def count(self, who):
        return sum(by == who for _, by in self.granted)

    def known_to(self, who):
        """When each grant was made that `who` knows of: its own, and of each other the first that it was told of."""
        left = list(self.heard[who])
        known = []
        for at, by in self.granted:
            if by == who:
                known.append(at)
            elif left[by] > 0:
                left[by] -= 1
                known.append(at)
        return known


def begin(limiter):
    for _ in limiter.begin_sharing():
        pass


def fits(times, limit):
    """No window that ends with the last of the times has more than the quota and what comes in anew within it."""
    last, quota = times[-1], limit * TOKEN + EXACT
    return all((len(times) - nth) * TOKEN <= quota + (last - at) * limit for nth, at in enumerate(times))


@given(st.integers(1, 4), st.integers(1, 45), moves)
def test_none_grants_what_all_may_not_grant_as_far_as_it_knows(number, limit, steps):
    replicas = Replicas(number, limit)
    for one, what, ticks in steps:
        replicas.clock.now += ticks
        who = one % number
        if isinstance(what, int):
            for _ in range(what):
                if replicas.take(who):
                    assert fits(replicas.known_to(who), limit)
            continue
        if what in "rs":
            replicas.tell(who)
        if what in "rh":
            replicas.hear(who)


@given(st.integers(2, 4), st.integers(1, 45), moves, st.integers(0, 3))
def test_after_a_round_all_that_one_does_not_know_is_less_than_a_share_of_each_other(number, limit, steps, last):
    replicas = Replicas(number, limit)
    for who, what, ticks in steps:
        replicas.clock.now += ticks
        if isinstance(what, int):
            for _ in range(what):
                replicas.take(who % number)
        else:
            replicas.exchange()
    replicas.exchange()
    last %= number
    if replicas.take(last):
        known = replicas.known_to(last)
        assert fits(known, limit)
        assert len(replicas.granted) - len(known) <= (number - 1) * (replicas.share - 1)


@given(st.integers(2, 4), st.integers(1, 45), moves)
def test_none_is_refused_what_one_limiter_would_grant(number, limit, steps):
    """But for what a late round and the shares that nobody was told of may cost."""
    replicas = Replicas(number, limit)
    late, last = 0, replicas.clock.now
    for who, what, ticks in steps:
        replicas.clock.now += ticks
        if not isinstance(what, int):
            late, last = max(late, replicas.clock.now - last), replicas.clock.now
            replicas.exchange()
            continue
        if not all(replicas.take(who % number) for _ in range(what)):
            now, late_now = replicas.clock.now, max(late, replicas.clock.now - last)
            times = [at for at, _ in replicas.granted]
            shares = number * (replicas.share - 1)
            needed = len(times) + shares + 1
            assert any(
                (needed - bisect_left(times, at - 2 * late_now)) * TOKEN + EXACT > limit * (TOKEN + now - at)
                for at in times
            )


def test_a_caller_that_goes_from_one_to_the_next_gets_its_quota_once():
    replicas = Replicas(3, 40)
    got = []
    for who in range(3):
        got.append(sum(replicas.take(who) for _ in range(100)))
        replicas.exchange()
    assert got == [40, 0, 0]


def test_what_was_granted_beyond_the_quota_is_paid_back():
    """Three grant all of it at once; two minutes later each is where it would be after one quota."""
    replicas = Replicas(3, 60)
    assert sum(replicas.take(who) for who in range(3) for _ in range(100)) == 180
    replicas.exchange()
    refused = replicas.limiters[0].take(NOBODY, HERE, "read")
    assert (refused.allowed, refused.retry_after_s) == (False, 121)
    assert dict(refused.headers)["x-ratelimit-remaining"] == "0"
    replicas.clock.now += 120 * SECOND
    assert not any(replicas.take(who) for who in range(3))
    replicas.clock.now += SECOND
    assert replicas.take(0)
    replicas.exchange()


def test_one_that_was_alone_tells_what_was_spent_before():
    replicas = Replicas(2, 40, sharing=False)
    assert sum(replicas.take(0) for _ in range(30)) == 30
    assert replicas.limiters[0].take_spent(MOST) == []
    replicas.clock.now += 3 * SECOND
    begin(replicas.limiters[0])
    (tally,) = replicas.limiters[0].take_spent(MOST)
    assert tally.tokens == 28, "two have come in anew"
    replicas.limiters[1].spend([tally], 0.0)
    assert sum(replicas.take(1) for _ in range(40)) == 12


def test_what_is_spent_while_it_begins_to_tell_is_told_once():
    limiter = Limiter(LimitConfig(anonymous_read=40), salt=SALT, clock=Clock())
    clients = [f"192.0.{nth // 256}.{nth % 256}" for nth in range(1_500)]
    for client in clients:
        limiter.take(NOBODY, client, "read")
    parts = limiter.begin_sharing()
    next(parts)
    for client in clients:
        limiter.take(NOBODY, client, "read")
    assert list(parts) == []
    assert [tally.tokens for tally in limiter.take_spent(2_000)] == [2] * 1_500


def test_once_it_ceases_to_tell_nothing_is_left():
    replicas = Replicas(1, 20)
    limiter = replicas.limiters[0]
    replicas.take(0)
    limiter.end_sharing()
    replicas.take(0)
    assert limiter.take_spent(MOST) == []


def test_what_was_spent_elsewhere_a_while_ago_has_come_in_anew():
    replicas = Replicas(2, 60)
    assert sum(replicas.take(0) for _ in range(60)) == 60
    spent = replicas.limiters[0].take_spent(MOST)
    replicas.limiters[1].spend(spent, 45.0)
    assert sum(replicas.take(1) for _ in range(60)) == 45


def test_failed_credentials_count_everywhere():
    one, two = Replicas(2, 60).limiters
    for _ in range(FAILURES_PER_MINUTE):
        assert one.take_failure(HERE).allowed
    two.spend(one.take_spent(MOST), 0.0)
    assert not two.may_try(HERE).allowed
    assert not two.take_failure(HERE).allowed
    assert two.take(NOBODY, HERE, "read").allowed


def test_it_rings_once_for_what_waits_and_again_for_what_is_left():
    replicas = Replicas(1, 20)
    limiter, rings = replicas.limiters[0], []
    limiter.ring = lambda: rings.append(len(rings))
    for nth in range(5):
        limiter.take(NOBODY, f"192.0.2.{nth}", "read")
    assert len(rings) == 1
    assert len(limiter.take_spent(3)) == 3
    assert len(rings) == 2
    assert len(limiter.take_spent(3)) == 2
    assert len(rings) == 2


def test_callers_are_told_of_by_a_hash_that_only_the_databases_key_makes():
    limiters = [Limiter(LimitConfig(), salt=salt) for salt in (SALT, SALT, b"another")]
    spent = []
    for each in limiters:
        begin(each)
        for _ in range(5):
            each.take(NOBODY, HERE, "read")
        spent += each.take_spent(MOST)
    assert spent[0] == spent[1] != spent[2]
    assert all(HERE.encode() not in tally.caller and len(tally.caller) == 16 for tally in spent)


def test_a_limit_that_it_does_not_know_is_passed_over():
    replicas = Replicas(1, 20)
    replicas.take(0)
    (tally,) = replicas.limiters[0].take_spent(MOST)
    replicas.limiters[0].spend([tally._replace(policy=200, tokens=1000)], 0.0)
    assert replicas.take(0)


def test_what_comes_from_elsewhere_is_bounded_as_well():
    limiter = Limiter(LimitConfig(), salt=SALT, most_buckets=3)
    other = Limiter(LimitConfig(), salt=SALT)
    begin(other)
    for nth in range(9):
        for _ in range(5):
            other.take(NOBODY, f"192.0.2.{nth}", "read")
    limiter.spend(other.take_spent(MOST), 0.0)
    assert len(limiter._buckets) == 3
