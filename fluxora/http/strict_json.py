"""JSON from outside, read strictly: UTF-8, nesting bounded before it is parsed, no duplicate keys, no NaN."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

import msgspec

from fluxora.errors import InvalidJson

MAX_DEPTH = 32
# A string without an end is taken to the end, or each quote in it would start the search anew: quadratic time. The
# quantifiers are possessive, so nothing is tried twice.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def read(body: bytes) -> Any:
    """Parse one JSON text.

    Raises:
        InvalidJson: not UTF-8, not JSON, nested deeper than 32, a key twice in one object, NaN, Infinity, a number that
            is too large to be one, or a string that is no Unicode text (a lone surrogate).
    """
    _check_depth(body)
    try:
        text = body.decode("utf-8")
        value = json.loads(
            text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant, parse_float=_finite
        )
    except UnicodeDecodeError as error:
        raise InvalidJson("The body is not UTF-8") from error
    except ValueError as error:  # JSONDecodeError, and the interpreter's bound on the digits of an integer
        raise InvalidJson(f"The body is not JSON: {error}") from error
    if b"\\u" in body:
        _check_surrogates(value)
    return value


def _check_depth(body: bytes) -> None:
    """Count brackets outside strings; a scan, so that hostile nesting costs no stack."""
    brackets = _STRING.sub(b"", body).translate(None, _NO_BRACKETS)
    depth = 0
    for bracket in brackets:  # a body may be nothing but brackets: only they are looked at one by one
        if bracket in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise InvalidJson(f"The body is nested deeper than {MAX_DEPTH}")
        else:
            depth -= 1


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise InvalidJson(f"The key {key[:60]!r} stands twice in one object")
            seen.add(key)
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidJson(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise InvalidJson("A number is too large")
    return number


def _check_surrogates(value: Any) -> None:
    try:
        msgspec.json.encode(value)
    except UnicodeEncodeError as error:
        raise InvalidJson("A string holds half of a surrogate pair") from error
