"""WebSocket frames as a server sends them (RFC 6455, section 5): unmasked, whole, without extensions.

A frame is the same bytes for every connection, so it is made once for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fluxora.errors import InvariantError

MAX_CONTROL_BYTES: Final = 125
MAX_REASON_BYTES: Final = MAX_CONTROL_BYTES - 2

TEXT: Final = 0x1
CLOSE: Final = 0x8
_TEXT, _CLOSE, _PING, _PONG = b"\x81", b"\x88", b"\x89", b"\x8a"  # FIN and the opcode
_ONE_BYTE: Final = [bytes((size,)) for size in range(MAX_CONTROL_BYTES + 1)]
_SENT_CODES: Final = frozenset((1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)))


def text(payload: bytes) -> bytes:
    """A text message of one frame; `payload` is UTF-8."""
    size = len(payload)
    if size <= 125:
        return b"".join((_TEXT, _ONE_BYTE[size], payload))
    if size <= 0xFFFF:
        return b"".join((_TEXT, b"\x7e", size.to_bytes(2, "big"), payload))
    return b"".join((_TEXT, b"\x7f", size.to_bytes(8, "big"), payload))


def close(code: int, reason: str = "") -> bytes:
    """The last frame of a connection.

    Raises:
        InvariantError: a code that no frame may carry, or a reason of more than 123 bytes of UTF-8.
    """
    if code not in _SENT_CODES:
        raise InvariantError(f"close code {code} may not be sent")
    octets = reason.encode()
    if len(octets) > MAX_REASON_BYTES:
        raise InvariantError(f"close reason of {len(octets)} bytes, more than {MAX_REASON_BYTES}")
    return _control(_CLOSE, code.to_bytes(2, "big") + octets)


def ping(payload: bytes = b"") -> bytes:
    """Asks the other side for a pong with the same payload.

    Raises:
        InvariantError: more than 125 bytes.
    """
    return _control(_PING, payload)


def pong(payload: bytes = b"") -> bytes:
    """Answers a ping with its payload.

    Raises:
        InvariantError: more than 125 bytes.
    """
    return _control(_PONG, payload)


def split(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The frames that were joined to `data`, all of them made here: the opcode of each, and its payload."""
    at = 0
    while at < len(data):
        opcode, size = data[at] & 0x0F, data[at + 1]
        start = at + 2
        if size > MAX_CONTROL_BYTES:
            start += 2 if size == 126 else 8
            size = int.from_bytes(data[at + 2 : start], "big")
        at = start + size
        yield opcode, data[start:at]


def _control(head: bytes, payload: bytes) -> bytes:
    if len(payload) > MAX_CONTROL_BYTES:
        raise InvariantError(f"control frame of {len(payload)} bytes, more than {MAX_CONTROL_BYTES}")
    return b"".join((head, _ONE_BYTE[len(payload)], payload))
