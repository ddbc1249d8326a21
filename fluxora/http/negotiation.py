"""What a client is willing to take, by its Accept header (RFC 9110 12.5.1)."""

from __future__ import annotations

import re
from functools import lru_cache

_MAX_LENGTH = 4_096  # characters that are looked at, and remembered
_ZERO = re.compile(r"0(\.0*)?")


def accepts(accept: str, media_type: str) -> bool:
    """True where `media_type` (type/subtype) may be sent. What cannot be understood forbids nothing."""
    return _accepts(accept[:_MAX_LENGTH], media_type)


@lru_cache(maxsize=1024)  # clients send the same few, over and over
def _accepts(accept: str, media_type: str) -> bool:
    kind = media_type.partition("/")[0]
    best = ""
    allowed = True
    for entry in accept.lower().split(","):
        pattern, *parameters = (part.strip() for part in entry.split(";"))
        if pattern in (media_type, f"{kind}/*", "*/*") and (not best or _narrower(pattern, best)):
            best = pattern
            allowed = not any(_is_zero(parameter) for parameter in parameters)
        elif "/" not in pattern:
            return True
    return allowed if best else False


def _narrower(one: str, other: str) -> bool:
    return one.count("*") < other.count("*")


def _is_zero(parameter: str) -> bool:
    """q=0, q=0.0, ...: "not this one"."""
    name, _, value = parameter.partition("=")
    return name.strip() == "q" and _ZERO.fullmatch(value.strip()) is not None
