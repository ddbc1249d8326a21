"""Circuit breakers: when they open, for how long, and what closes them."""

from __future__ import annotations

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from fluxora.actors.breaker import FIRST_OPEN_S, FORGET_S, LONGEST_OPEN_S, THRESHOLD, Breakers


def fail(breakers: Breakers, now: float, *, times: int = THRESHOLD, key: str = "a") -> list[bool]:
    return [breakers.failed(key, began=now, now=now) for _ in range(times)]


def test_opens_with_the_fifth_failure_in_a_row_and_not_before() -> None:
    breakers = Breakers()
    assert fail(breakers, 0.0, times=4) == [False] * 4
    breakers.succeeded("a")
    assert fail(breakers, 1.0) == [False, False, False, False, True]
    assert (breakers.open(1.0), breakers.half_open(1.0)) == (["a"], [])
    assert breakers.next_change(1.0) == 1.0 + FIRST_OPEN_S


def test_half_open_until_one_attempt_decides() -> None:
    breakers = Breakers()
    fail(breakers, 0.0)
    now, lasted = FIRST_OPEN_S, []
    for _ in range(5):
        assert (breakers.open(now), breakers.half_open(now), breakers.next_change(now)) == ([], ["a"], inf)
        assert fail(breakers, now, times=1) == [True]
        lasted.append(breakers.next_change(now) - now)
        now += lasted[-1]
    assert lasted == [20.0, 40.0, 60.0, 60.0, 60.0]
    breakers.succeeded("a")
    assert (breakers.open(now), breakers.half_open(now)) == ([], [])
    assert fail(breakers, now, times=4) == [False] * 4


def test_what_was_on_its_way_when_it_opened_does_not_prolong_it() -> None:
    breakers = Breakers()
    fail(breakers, 5.0)
    for now in (6.0, 5.0 + FIRST_OPEN_S + 1):
        assert not breakers.failed("a", began=4.9, now=now)
    assert breakers.half_open(5.0 + FIRST_OPEN_S) == ["a"]


def test_what_nobody_tries_is_forgotten() -> None:
    breakers = Breakers()
    fail(breakers, 0.0)
    fail(breakers, 10.0, key="b")
    breakers.forget_old(FORGET_S + 5.0)
    assert breakers.half_open(FORGET_S + 5.0) == ["b"]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.booleans(), st.floats(0, 100)), max_size=60))
def test_each_key_is_in_one_state_and_no_success_leaves_it_open(steps: list[tuple[str, bool, float]]) -> None:
    breakers, now, run = Breakers(), 0.0, {"a": 0, "b": 0}
    for key, well, passed in steps:
        now += passed
        if well:
            breakers.succeeded(key)
            run[key] = 0
        else:
            breakers.failed(key, began=now, now=now)
            run[key] += 1
        open_, half = set(breakers.open(now)), set(breakers.half_open(now))
        assert not open_ & half
        assert (key in open_ | half) == (run[key] >= THRESHOLD)
        assert open_ == (set() if breakers.next_change(now) == inf else open_)
        assert breakers.next_change(now) == inf or now < breakers.next_change(now) <= now + LONGEST_OPEN_S
