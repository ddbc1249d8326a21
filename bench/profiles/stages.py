"""Ramping stages: how much is asked for at each moment, and when each single arrival is due.

`10s:100,1m:200` is a ramp from 0 to 100 a second within ten seconds, then one from there to 200 within a minute. A
duration of 0 is a jump. Arrivals are due at times that depend on the stages alone: whatever the server does, the next
one is due when it is due (an open model), and its latency counts from there.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator, Sequence

import msgspec

_STAGE = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)(?P<unit>ms|s|m|h):(?P<target>[0-9]+(?:\.[0-9]+)?)")
_UNITS_S = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
FORM = "DURATION:TARGET[,DURATION:TARGET...], as in 10s:100,1m:200"


class Stage(msgspec.Struct, frozen=True):
    """From the target of the stage before (0 at first) to this one, in a straight line; targets are per second."""

    seconds: float
    target: float

    def __str__(self) -> str:
        return f"{self.seconds:g}s:{self.target:g}"


def parse(text: str) -> tuple[Stage, ...]:
    """The stages of an option.

    Raises:
        argparse.ArgumentTypeError: it is none; says which form is needed.
    """
    found = []
    for part in text.split(","):
        match = _STAGE.fullmatch(part.strip())
        if match is None:
            raise argparse.ArgumentTypeError(f"{part.strip()!r} is no stage; write {FORM}")
        found.append(Stage(float(match["number"]) * _UNITS_S[match["unit"]], float(match["target"])))
    if not any(stage.seconds and (stage.target or before) for before, stage in _with_starts(found)):
        raise argparse.ArgumentTypeError(f"{text!r} asks for nothing; write {FORM}")
    return tuple(found)


def length_s(stages: Sequence[Stage]) -> float:
    """How long all of them take."""
    return sum(stage.seconds for stage in stages)


def peak(stages: Sequence[Stage]) -> float:
    """The highest target."""
    return max(stage.target for stage in stages)


def target_at(stages: Sequence[Stage], at_s: float) -> float:
    """The target at a moment; 0 before the first stage and behind the last one. At a jump it is the later one."""
    if at_s < 0:
        return 0.0
    began = 0.0
    for before, stage in _with_starts(stages):
        if at_s < began + stage.seconds:
            return before + (stage.target - before) * (at_s - began) / stage.seconds
        began += stage.seconds
    return 0.0


def arrivals(stages: Sequence[Stage]) -> Iterator[float]:
    """When each arrival is due: the moments at which the area below the line reaches 1, 2, 3, ..."""
    began, area, due = 0.0, 0.0, 1
    for before, stage in _with_starts(stages):
        whole = (before + stage.target) / 2 * stage.seconds
        while due <= area + whole + 1e-9:
            yield began + min(stage.seconds, _time_to(due - area, before, stage))
            due += 1
        began += stage.seconds
        area += whole


def _time_to(area: float, before: float, stage: Stage) -> float:
    """The seconds into a stage after which the area below its line is `area`."""
    # before * t + slope / 2 * t**2 = area, solved in the form that also holds for a level line
    slope = (stage.target - before) / stage.seconds
    root = math.sqrt(max(0.0, before * before + 2 * slope * area))
    return 2 * area / (before + root) if before + root else stage.seconds


def _with_starts(stages: Sequence[Stage]) -> Iterator[tuple[float, Stage]]:
    before = 0.0
    for stage in stages:
        yield before, stage
        before = stage.target
