"""protocol/cursors.decode: what it takes is exactly what encode writes, so no cursor has a second name."""

from __future__ import annotations

from base64 import urlsafe_b64encode

from bench.fuzz.findings import demand
from fluxora.errors import DecodeError
from fluxora.protocol import cursors

FILTERS: tuple[dict[str, str | None], ...] = (
    {},
    {"order": "asc"},
    {"status": "active", "order": "desc", "sender": None},
)


def execute(data: bytes) -> bool:
    """The first byte chooses the filters, and whether the rest is a cursor's text or what is packed in one."""
    choice = data[0] if data else 0
    filters = FILTERS[choice % len(FILTERS)]
    if choice & 0x80:
        text = urlsafe_b64encode(data[1:]).rstrip(b"=").decode("ascii")
    else:
        text = data[1:].decode("utf-8", "surrogateescape")
    try:
        after = cursors.decode(text, filters)
    except DecodeError:
        return False
    demand(isinstance(after, int) and 0 <= after < 2**63, f"no position: {after!r}")
    demand(cursors.encode(after, filters) == text, "not what encode writes")
    return True
