from __future__ import annotations

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.profiles.stages import Stage, arrivals, length_s, parse, peak, target_at

STAGES = st.lists(
    st.builds(Stage, st.sampled_from([0.0, 0.5, 1.0, 3.0]), st.sampled_from([0.0, 1.0, 7.0, 40.0])),
    min_size=1,
    max_size=5,
)


def test_stages_are_written_as_in_k6():
    assert parse("10s:100, 1.5m:200,500ms:0,1h:1") == (
        Stage(10.0, 100.0),
        Stage(90.0, 200.0),
        Stage(0.5, 0.0),
        Stage(3600.0, 1.0),
    )


@given(STAGES)
def test_what_is_shown_of_stages_is_what_an_option_takes(stages):
    assert list(parse(",".join(map(str, [*stages, Stage(1.0, 1.0)])))) == [*stages, Stage(1.0, 1.0)]


@pytest.mark.parametrize("text", ["", "10s", "10:5", "s:5", "10s:-5", "10s:5;", "10s:nan", "10s:0", "0s:10", "10s:5,"])
def test_what_is_no_stage_is_refused_with_the_form(text):
    with pytest.raises(argparse.ArgumentTypeError, match="10s:100,1m:200"):
        parse(text)


def test_the_target_is_on_the_line_between_stages_and_jumps_at_none():
    stages = parse("10s:100,10s:100,0s:20,10s:0")
    assert [target_at(stages, at) for at in (-1, 0, 5, 10, 19.9, 20, 25, 30, 99)] == [0, 0, 50, 100, 100, 20, 10, 0, 0]
    assert (length_s(stages), peak(stages)) == (30.0, 100.0)


@given(STAGES)
def test_as_many_arrivals_are_due_as_there_is_area_below_the_line(stages):
    """The oracle adds up thin slices of the line."""
    due = list(arrivals(stages))
    assert due == sorted(due)
    whole, slices = length_s(stages), 4000
    width = whole / slices
    area = 0.0
    for nth in range(slices):
        area += target_at(stages, (nth + 0.5) * width) * width
        if nth % 500 == 0:
            passed = sum(one <= (nth + 1) * width for one in due)
            assert abs(passed - area) <= 1.2 + 0.02 * area
    assert abs(len(due) - area) <= 1.2 + 0.02 * area


def test_a_level_rate_is_evenly_spaced():
    assert list(arrivals(parse("0s:10,1s:10"))) == pytest.approx([nth / 10 for nth in range(1, 11)])
