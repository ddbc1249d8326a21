"""http/strict_json.read, against the json module: the same value where it takes a text, a reason where it does not."""

from __future__ import annotations

import json
import math
from typing import Any

from bench.fuzz.findings import demand
from fluxora.errors import InvalidJson
from fluxora.http import strict_json

MOST_DEPTH = 32


def execute(data: bytes) -> bool:
    """A body."""
    try:
        value = strict_json.read(data)
    except InvalidJson:
        demand(_may_be_refused(data), "refused without a reason")
        return False
    demand(not _may_be_refused(data), "taken, though it is to be refused")
    demand(_same(value, json.loads(data.decode("utf-8"))), "another value than the json module's")
    return True


def _may_be_refused(data: bytes) -> bool:
    """True where a reason for a refusal is found."""
    state = _Doubts()
    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=state.pairs, parse_constant=state.constant, parse_float=state.number)
    except (ValueError, RecursionError):
        return True
    return state.any or _depth_above(value, MOST_DEPTH) or _has_half_a_pair(value)


class _Doubts:
    """What the json module takes and strict JSON does not. Objects become lists of pairs in one list."""

    def __init__(self) -> None:
        self.any = False

    def pairs(self, pairs: list[tuple[str, Any]]) -> list[Any]:
        keys = [key for key, _ in pairs]
        self.any = self.any or len(set(keys)) < len(keys) or any(map(_has_half_a_pair, keys))
        return [value for _, value in pairs]

    def constant(self, _name: str) -> None:
        self.any = True

    def number(self, text: str) -> float:
        self.any = self.any or math.isinf(float(text))
        return 0.0


def _depth_above(value: Any, bound: int) -> bool:
    return isinstance(value, list) and (bound == 0 or any(_depth_above(item, bound - 1) for item in value))


def _has_half_a_pair(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_has_half_a_pair, value))
    return isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value)


def _same(one: Any, other: Any) -> bool:
    """Equal, and of the same types: 1, 1.0 and True are three values here."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
