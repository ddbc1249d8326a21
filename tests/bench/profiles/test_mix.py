from __future__ import annotations

import argparse
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.profiles.mix import Chooser, parse, shares

WEIGHTS = st.dictionaries(st.sampled_from("abcd"), st.floats(0.01, 100), min_size=1)


def test_weights_are_read_and_zero_takes_no_part():
    assert parse("rest_reads=80, ingest=20,ws_followers=0") == {"rest_reads": 80.0, "ingest": 20.0}


@pytest.mark.parametrize("text", ["", "a", "a=", "=1", "a=-1", "a=x", "a=1,a=2", "a=0", "a=nan", "a=inf"])
def test_what_is_no_mix_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"NAME=WEIGHT|above 0"):
        parse(text)


@given(WEIGHTS, st.integers(0, 1000))
def test_a_whole_is_dealt_out_to_the_last_and_nobody_is_off_by_one(weights, whole):
    dealt = shares(weights, whole)
    assert sum(dealt.values()) == whole
    for name, weight in weights.items():
        assert abs(dealt[name] - whole * weight / sum(weights.values())) < 1


def test_names_are_drawn_by_their_weights_and_the_same_ones_in_every_process():
    weights = {"rest_reads": 80.0, "rest_writes": 5.0, "ingest": 15.0}
    one, other = Chooser(weights, 7), Chooser(weights, 7)
    drawn = [one.draw() for _ in range(20_000)]
    assert drawn == [other.draw() for _ in range(20_000)]
    counts = Counter(drawn)
    for name, weight in weights.items():
        assert counts[name] / 20_000 == pytest.approx(weight / 100, abs=0.015)  # five standard deviations
