"""Load: stages of arrivals up to a peak and down again, all scenarios at once, thresholds that fail the run."""

from __future__ import annotations

import argparse

from bench.harness import Run
from bench.profiles import stages
from bench.profiles.profile import PROMISES, SERVED, SPEED, add_options, driving, judge, own_thresholds
from bench.profiles.stages import Stage


class Load:
    """The everyday load."""

    name = "load"
    summary = "a mixed load in ramping stages, with thresholds that fail the run"

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """The stages."""
        parser.add_argument("--rate", type=float, default=100.0, help="requests a second at the peak (%(default)g)")
        parser.add_argument("--seconds", type=float, default=60.0, help="length of the default stages (%(default)g)")
        parser.add_argument(
            "--stages",
            type=stages.parse,
            metavar="STAGES",
            help=f"{stages.FORM}; targets are requests a second. Default: a fifth of the time up to the rate, then "
            "level, a tenth down",
        )
        parser.add_argument(
            "--correctness-only", action="store_true", help="judge loss, doubles and errors, and nothing of speed"
        )
        add_options(parser, followers=100)

    def run(self, run: Run) -> None:
        """Play the stages, and judge."""
        options = run.options
        rate, seconds = options.rate, options.seconds
        default = (Stage(seconds / 5, rate), Stage(seconds * 0.7, rate), Stage(seconds / 10, 0.0))
        speed = () if options.correctness_only else SPEED
        with driving(run) as drive:
            conditions = own_thresholds(drive, [*speed, *SERVED, *PROMISES])
            drive.leg("load", options.stages or default)
        judge(run, drive.measures, conditions)
