from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.profiles.trend import second_half, trend


@given(st.floats(-10, 10), st.floats(-100, 100))
def test_a_line_grows_as_it_rises(rise, offset):
    points = [(float(at), offset + rise * at) for at in range(50)]
    found = trend(points)
    assert found.growth == pytest.approx(rise * 49, abs=1e-6)
    assert found.certain == pytest.approx(max(0.0, rise * 49), abs=1e-5)


@settings(max_examples=50)
@given(st.integers(0, 10**6))
def test_noise_alone_does_not_grow_and_a_leak_shows_through_it(seed):
    chance = random.Random(seed)
    noise = [(float(at), 100 + chance.gauss(0, 1)) for at in range(300)]
    assert trend(noise).certain < 0.5
    leak = [(at, value + at * 0.05) for at, value in noise]
    assert trend(leak).certain > 10


@settings(max_examples=50)
@given(st.integers(0, 10**6))
def test_samples_that_hang_together_are_worth_less(seed):
    """As memory, which stays where it was: the error must not shrink by looking at it more often."""
    chance = random.Random(seed)
    value, points = 0.0, []
    for at in range(300):
        value = 0.9 * value + chance.gauss(0, 1)
        points.append((float(at), value))
    shuffled = [(at, value) for (at, _), (_, value) in zip(points, chance.sample(points, len(points)), strict=True)]
    assert trend(points).error > 2 * trend(shuffled).error


def test_few_samples_tell_nothing():
    assert trend([(0.0, 1.0), (1.0, 5.0)]).certain == 0.0
    assert second_half([]) == []
    assert second_half([(10.0, 1), (11.0, 2), (15.0, 3), (20.0, 4)]) == [(15.0, 3), (20.0, 4)]
