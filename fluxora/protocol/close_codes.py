"""Why a WebSocket is closed by this side, and what its client should do then."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

Reconnect = Literal["resume", "after_pause", "from_rest", "with_new_token", "no"]
"""What a client should do: come back and resume behind its last position, at once ("resume") or after a pause; read the
state by REST first; bring a new token; or stay away."""


class CloseCode(msgspec.Struct, frozen=True):
    """A close code (RFC 6455, section 7.4), its reason as the frame carries it (at most 123 bytes), and what then."""

    code: int
    reason: str
    reconnect: Reconnect


GOING_AWAY: Final = CloseCode(1001, "server going away", "resume")
POLICY: Final = CloseCode(1008, "too many messages", "after_pause")
TOO_BIG: Final = CloseCode(1009, "message too big", "after_pause")
SLOW_CONSUMER: Final = CloseCode(4001, "slow consumer", "resume")
HEARTBEAT_LOST: Final = CloseCode(4002, "heartbeat lost", "resume")
RESUME_LOST: Final = CloseCode(4003, "resume point lost, reload", "from_rest")
TOKEN_ENDED: Final = CloseCode(4401, "token expired or revoked", "with_new_token")
DISCONNECTED: Final = CloseCode(4403, "disconnected by an operator", "no")

CLOSE_CODES: Final = (
    GOING_AWAY,
    POLICY,
    TOO_BIG,
    SLOW_CONSUMER,
    HEARTBEAT_LOST,
    RESUME_LOST,
    TOKEN_ENDED,
    DISCONNECTED,
)
"""All of them, ascending by code."""
