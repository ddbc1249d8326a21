from __future__ import annotations

import argparse
import math
from collections import Counter
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.latencies import bucket
from bench.profiles.thresholds import METRICS, Measured, Threshold, merged, parse

OPERATORS = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}
BOUNDS = st.one_of(st.integers(0, 10**9).map(float), st.floats(0, 1e6).map(lambda value: round(value, 4)))


@st.composite
def thresholds(draw):
    metric = draw(st.sampled_from(sorted(METRICS)))
    aggregate = draw(st.sampled_from(METRICS[metric]))
    if aggregate == "p":
        aggregate = f"p({draw(st.sampled_from(['50', '90', '99', '99.9', '100']))})"
    scenario = draw(st.none() | st.sampled_from(["rest_reads", "ingest"]))
    return Threshold(metric, scenario, aggregate, draw(st.sampled_from(list(OPERATORS))), draw(BOUNDS))


@given(thresholds(), st.sampled_from(["", " "]))
def test_a_threshold_is_read_as_it_is_written(threshold, space):
    assert parse(str(threshold)) == threshold
    assert (
        parse(f" {threshold.name}{space}{threshold.operator}{space}{threshold.required.lstrip('<>=!')} ") == threshold
    )


@given(thresholds(), st.floats(0, 1e9))
def test_a_threshold_holds_as_its_operator_says(threshold, value):
    assert threshold.holds(value) is OPERATORS[threshold.operator](value, threshold.bound)
    assert threshold.holds(threshold.bound) is ("=" in threshold.operator and threshold.operator != "!=")


@given(st.text(max_size=40))
def test_any_other_text_is_refused_and_nothing_else_happens(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"is no threshold|is no metric|has no"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("http_req_duration p(99)", "p\\(99\\)<250"),
        ("http_req_duration p(101)<1", "is no threshold"),
        ("http_req_duration p(99)<1ms", "is no threshold"),
        ("latency p(99)<1", "is no metric; there are http_req_duration"),
        ("lost p(99)<1", "lost has no p\\(99\\); it has count, rate"),
        ("http_req_duration rate<1", "it has p\\(N\\), avg, min, max, count"),
    ],
)
def test_what_is_wrong_is_said_with_what_there_is(text, why):
    with pytest.raises(argparse.ArgumentTypeError, match=why):
        parse(text)


@given(st.lists(st.floats(1e-4, 100), min_size=1, max_size=100))
def test_figures_of_latencies_are_those_of_the_latencies(seconds):
    measured = Measured(latencies=Counter(map(bucket, seconds)))
    ordered = sorted(seconds)
    exact = {
        "avg": fmean(seconds),
        "min": ordered[0],
        "max": ordered[-1],
        "p(50)": ordered[math.ceil(len(seconds) / 2) - 1],
        "p(100)": ordered[-1],
    }
    for aggregate, value in exact.items():
        assert measured.value(aggregate) == pytest.approx(value * 1e3, rel=0.02)
    assert measured.value("count") == len(seconds)


def test_a_rate_is_a_share_or_per_second_and_nothing_measured_is_no_value():
    assert Measured(count=2, of=200).value("rate") == 0.01
    assert Measured(count=2, seconds=4.0).value("rate") == 0.5
    assert Measured(count=0, of=0).value("rate") is None
    assert Measured(latencies=Counter()).value("p(99)") is None
    assert Measured(samples=()).value("max") is None
    assert Measured(samples=[3.0, 1.0, 2.0]).value("p(50)") == 2.0


def test_what_is_given_takes_the_place_of_what_it_names():
    own = [parse("lost count==0"), parse("http_req_duration p(99)<250")]
    given_ = [parse("http_req_duration p(99)<10"), parse("errors rate<1")]
    assert merged(own, given_) == [own[0], *given_]
