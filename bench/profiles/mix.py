"""The mix: which scenarios take part, and with what weight. Weights are relative to those of the same kind."""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence
from itertools import accumulate


def parse(text: str) -> dict[str, float]:
    """The weights of an option, `rest_reads=80,ingest=20`: scenarios that are not named do not take part.

    Raises:
        argparse.ArgumentTypeError: it is none; says which form is needed.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition("=")
        try:
            number = float(weight)
        except ValueError:
            number = -1.0
        if not name or name in weights or not 0 <= number < 1e9:
            raise argparse.ArgumentTypeError(f"{part.strip()!r} is no weight; write NAME=WEIGHT[,NAME=WEIGHT...]")
        weights[name] = number
    if not any(weights.values()):
        raise argparse.ArgumentTypeError(f"{text!r} leaves nothing to do: one weight must be above 0")
    return {name: weight for name, weight in weights.items() if weight}


class Chooser:
    """Draws names by their weights; the same seed draws the same names, in whatever process."""

    def __init__(self, weights: Mapping[str, float], seed: int) -> None:
        self._names = list(weights)
        self._sums = list(accumulate(weights.values()))
        self._random = random.Random(seed)

    def draw(self) -> str:
        """The next name."""
        (name,) = self._random.choices(self._names, cum_weights=self._sums)
        return name


def shares(weights: Mapping[str, float], whole: int) -> dict[str, int]:
    """A whole number of things dealt out by weight, to the last one: who is furthest below its share gets the next."""
    total = sum(weights.values())
    exact = {name: whole * weight / total for name, weight in weights.items()}
    dealt = {name: int(share) for name, share in exact.items()}
    by_need: Sequence[str] = sorted(exact, key=lambda name: exact[name] - dealt[name], reverse=True)
    for name in by_need[: whole - sum(dealt.values())]:
        dealt[name] += 1
    return dealt
