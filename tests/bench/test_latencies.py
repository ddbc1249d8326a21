from __future__ import annotations

import math
from collections import Counter
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.latencies import bucket, mean_ms, percentile_ms

SECONDS = st.lists(st.floats(1e-5, 100), min_size=1, max_size=200)


@given(SECONDS, st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]))
def test_percentiles_are_right_to_two_per_cent(seconds, share):
    exact = sorted(seconds)[max(1, math.ceil(share * len(seconds) - 1e-9)) - 1]
    assert percentile_ms(Counter(map(bucket, seconds)), share) == pytest.approx(exact * 1e3, rel=0.02)


@given(SECONDS)
def test_a_mean_is_right_to_two_per_cent(seconds):
    assert mean_ms(Counter(map(bucket, seconds))) == pytest.approx(fmean(seconds) * 1e3, rel=0.02)


def test_of_nothing_every_latency_is_infinite():
    assert percentile_ms(Counter(), 0.5) == mean_ms(Counter()) == math.inf
