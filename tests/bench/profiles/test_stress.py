from __future__ import annotations

from collections import Counter

import pytest

from bench.latencies import bucket
from bench.profiles.measures import Measures
from bench.profiles.stress import climb, not_held, split
from bench.profiles.thresholds import parse

HELD = [parse("http_req_duration p(99)<250"), parse("errors rate<0.001")]


class Server:
    """Stands for a drive: a system that is slow above `capacity`, and at the `hiccups`-th legs."""

    def __init__(self, capacity, hiccups=(), stops_after=None):
        self.capacity, self.hiccups, self.stops_after = capacity, hiccups, stops_after
        self.rates, self.notes = [], []

    @property
    def stopping(self):
        return self.stops_after is not None and len(self.rates) >= self.stops_after

    def note(self, text):
        self.notes.append(text)

    def leg(self, _title, steps):
        self.rates.append(steps[-1].target)
        slow = self.rates[-1] > self.capacity or len(self.rates) in self.hiccups
        return measured(0.5 if slow else 0.01)


def measured(seconds, errors=0):
    found = Measures()
    found.latencies["rest_reads"] = Counter({bucket(seconds): 100})
    found.due["rest_reads"] = found.answered["rest_reads"] = 100
    found.errors["rest_reads"] = Counter({"status 500": errors})
    return found


@pytest.mark.parametrize("capacity", [150, 400, 1000, 2345])
def test_the_peak_is_found_from_below_to_a_tenth(capacity):
    server = Server(capacity)
    peak = climb(server, HELD, 100, 10_000, 1.0)
    assert 0.85 * capacity < peak <= capacity
    assert server.notes


def test_a_step_is_played_once_more_before_it_is_too_much():
    assert climb(Server(10**6, hiccups=(2, 5)), HELD, 100, 1000, 1.0) > 500
    assert climb(Server(50), HELD, 100, 1000, 1.0) == 0.0


def test_it_ends_where_it_is_told_to():
    server = Server(10**6, stops_after=3)
    climb(server, HELD, 100, 10**9, 1.0)
    assert len(server.rates) == 3
    assert climb(Server(10**6), HELD, 100, 250, 1.0) == pytest.approx(196)


def test_the_first_condition_that_is_missed_is_named_with_what_was_found():
    assert not_held(measured(0.01), HELD) is None
    assert not_held(measured(0.5), HELD).startswith("http_req_duration p(99) <250, found 49")
    assert not_held(measured(0.01, errors=1), HELD) == "errors rate <0.001, found 0.01"
    assert not_held(Measures(), HELD).endswith("found nothing")


def test_loss_is_judged_over_the_whole_run():
    lost = parse("lost count==0")
    assert split([*HELD, lost]) == (HELD, [lost])
