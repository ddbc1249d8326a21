"""Stress: more and more, step by step, until it is too much; then half of that, which must be served as before.

A step is held when its thresholds of speed and service are; one that is not is played once more, since the machine may
have done something else. What is too much may be slow, and may be refused, but nothing may be lost or told twice: that
fails the run, and so does a system that does not recover.
"""

from __future__ import annotations

import argparse

from bench.harness import Run
from bench.profiles.drive import Drive
from bench.profiles.measures import Measures
from bench.profiles.profile import PROMISES, SERVED, SPEED, add_options, driving, judge, own_thresholds
from bench.profiles.stages import Stage
from bench.profiles.thresholds import Threshold

GROWTH = 1.4
TRIES = 2
REFINEMENTS = 2  # steps between the last one that was held and the first one that was not


class Stress:
    """The search for the peak."""

    name = "stress"
    summary = "steps up to the load that is too much: the peak that is served, and that nothing is lost beyond it"

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """The steps."""
        parser.add_argument("--from", type=float, default=100.0, dest="first", help="requests a second at first (100)")
        parser.add_argument("--to", type=float, default=10_000.0, dest="last", help="and at most (10000)")
        parser.add_argument("--step-seconds", type=float, default=10.0, help="length of a step (%(default)g)")
        add_options(parser, followers=100)

    def run(self, run: Run) -> None:
        """Go up, and come down."""
        options = run.options
        with driving(run) as drive:
            held, others = split(own_thresholds(drive, [*SPEED, *SERVED, *PROMISES]))
            peak = climb(drive, held, options.first, options.last, options.step_seconds)
            run.figure("peak", peak, "/s")
            if peak and not drive.stopping:
                broken = step(drive, "half of it again", peak / 2, options.step_seconds, held)
                run.equal("half of the peak afterwards", "held" if not broken else f"missed {broken}", "held")
        if not drive.stopping:
            run.equal("some step held", bool(peak), required=True)
        judge(run, drive.measures, others)


def split(conditions: list[Threshold]) -> tuple[list[Threshold], list[Threshold]]:
    """Those that a step is held by, and those that the whole run is."""
    steps = [one for one in conditions if one.is_of_speed or one.metric in {"errors", "dropped_iterations"}]
    return steps, [one for one in conditions if one not in steps]


def level(rate: float, seconds: float) -> tuple[Stage, Stage]:
    """The same rate all the time."""
    return Stage(0.0, rate), Stage(seconds, rate)


def climb(drive: Drive, held: list[Threshold], first: float, last: float, seconds: float) -> float:
    """The highest rate of arrivals a second that was held; 0 for none."""
    good, bad, rate = 0.0, None, first
    refinements = REFINEMENTS
    while not drive.stopping and rate <= last:
        broken = step(drive, f"{rate:.0f} a second", rate, seconds, held)
        if broken is None:
            good = rate
        else:
            drive.note(f"{rate:.0f} a second were too much: {broken}")
            bad = rate
        if bad is None:
            rate *= GROWTH
        elif refinements and good:
            refinements -= 1
            rate = (good + bad) / 2
        else:
            break
    return good


def step(drive: Drive, title: str, rate: float, seconds: float, held: list[Threshold]) -> str | None:
    """Play a step; the condition that was not met each time, with what was found at last, or None."""
    broken = None
    for number in range(TRIES):
        title = title if not number else f"{title}, once more"
        broken = not_held(drive.leg(title, level(rate, seconds)), held)
        if broken is None or drive.stopping:
            break
    return broken


def not_held(measures: Measures, conditions: list[Threshold]) -> str | None:
    """The first condition that was not met, with what was found; None where all were."""
    for threshold in conditions:
        value = measures.of(threshold.metric, threshold.scenario).value(threshold.aggregate)
        if value is None or not threshold.holds(value):
            return f"{threshold}, found {'nothing' if value is None else f'{value:.4g}'}"
    return None
