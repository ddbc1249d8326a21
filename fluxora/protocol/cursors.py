"""List cursors: opaque to clients, bound to the filters of the list that they continue.

A cursor is base64url(msgpack([version, after, digest])) without padding; `after` is the position that the page ended
at, `digest` the first 8 bytes of sha256 over the filters. It is no secret and grants nothing: the digest only keeps a
cursor from being carried over to another list, where it would silently skip entries.
"""

from __future__ import annotations

import hashlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from functools import lru_cache

import msgspec

from fluxora.errors import DecodeError

_VERSION = 1
_MAX_LENGTH = 100
_MAX_POSITION = 2**63 - 1


def encode(after: int, filters: Mapping[str, str | None]) -> str:
    """A cursor that goes on behind `after` in the list that `filters` select."""
    packed = msgspec.msgpack.encode([_VERSION, after, _digest(filters)])
    return urlsafe_b64encode(packed).rstrip(b"=").decode("ascii")


def decode(cursor: str, filters: Mapping[str, str | None]) -> int:
    """The position to go on behind.

    Raises:
        DecodeError: not a cursor, or one of a list with other filters; the message says which.
    """
    try:
        packed = urlsafe_b64decode(cursor[:_MAX_LENGTH] + "=" * (-len(cursor) % 4))
        version, after, digest = msgspec.msgpack.decode(packed, type=tuple[int, int, bytes])
    except (ValueError, msgspec.MsgspecError) as error:
        raise DecodeError("not a cursor of this list") from error
    if version != _VERSION or not 0 <= after <= _MAX_POSITION:
        raise DecodeError("not a cursor of this list")
    if digest != _digest(filters):
        raise DecodeError("the cursor belongs to a list with other filters")
    # What is decoded leniently (stray characters, unused bits, longer forms of a number) is no second name of a cursor.
    if encode(after, filters) != cursor:
        raise DecodeError("not a cursor of this list")
    return after


def _digest(filters: Mapping[str, str | None]) -> bytes:
    """Absent filters count the same as None, so that a route may gain filters without breaking cursors in flight."""
    return _digest_of(tuple(sorted((name, value) for name, value in filters.items() if value is not None)))


@lru_cache(maxsize=1024)  # one list is paged through again and again
def _digest_of(given: tuple[tuple[str, str], ...]) -> bytes:
    return hashlib.sha256(msgspec.msgpack.encode(given)).digest()[:8]
