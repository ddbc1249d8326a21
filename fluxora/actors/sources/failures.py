"""Every way in which a Stellar RPC endpoint fails, under a stable name, with what is done about it.

The names appear in /health, in metrics and in logs; they are part of the interface.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Literal

from fluxora.actors.http_client import Fault
from fluxora.errors import ChainDiverged, HistoryLost, SourceError, SourceUnavailable

LAG_LEDGERS = 30
"""A node that ends at most so many ledgers (about three minutes) below what is known is a lagging replica."""

LONGEST_RETRY_AFTER_S = 300.0
_MAX_LEDGER = 2**32 - 1


class Failure(StrEnum):
    """The classes of failure."""

    UNREACHABLE = "unreachable"
    TLS = "tls"
    TIMEOUT = "timeout"
    CONNECTION_DROPPED = "connection_dropped"
    TRUNCATED_BODY = "truncated_body"
    MALFORMED_RESPONSE = "malformed_response"
    RESPONSE_TOO_LARGE = "response_too_large"
    THROTTLED = "throttled"
    OVERLOADED = "overloaded"
    NODE_TIMEOUT = "node_timeout"
    UNAUTHORIZED = "unauthorized"
    HTTP_ERROR = "http_error"
    RPC_ERROR = "rpc_error"
    NODE_UNHEALTHY = "node_unhealthy"
    NODE_BEHIND = "node_behind"
    NETWORK_RESET = "network_reset"
    HISTORY_PRUNED = "history_pruned"
    WRONG_NETWORK = "wrong_network"
    UNPROVEN_HEADER = "unproven_header"
    OLD_NODE = "old_node"


@dataclass(frozen=True)
class Treatment:
    """What a class of failure means for the endpoint.

    `retry`: the same endpoint may do within the same call, after a backoff. `cooldown_s`: how long other endpoints are
    preferred. `lasting`: another kind of call that succeeds on the endpoint does not disprove it.
    """

    meaning: str
    retry: bool = False
    cooldown_s: float = 15
    lasting: bool = False


TREATMENTS: dict[Failure, Treatment] = {
    Failure.UNREACHABLE: Treatment("name resolution or connecting failed", retry=True),
    Failure.TLS: Treatment("the TLS handshake or the certificate is wrong", cooldown_s=60),
    Failure.TIMEOUT: Treatment("no answer within our deadline", retry=True),
    Failure.CONNECTION_DROPPED: Treatment("the connection closed without an answer", retry=True, cooldown_s=5),
    Failure.TRUNCATED_BODY: Treatment("the answer broke off", retry=True, cooldown_s=5),
    Failure.MALFORMED_RESPONSE: Treatment("the answer is not what JSON-RPC or the method promises", retry=True),
    Failure.RESPONSE_TOO_LARGE: Treatment("the answer is longer than we accept", lasting=True),
    Failure.THROTTLED: Treatment("HTTP 429 or a rate limit: we ask too often", retry=True),
    Failure.OVERLOADED: Treatment("HTTP 503 or a full queue: the node is busy", retry=True),
    Failure.NODE_TIMEOUT: Treatment("HTTP 504 or -32001: the node gave up on its own work", retry=True),
    Failure.UNAUTHORIZED: Treatment("HTTP 401 or 403: the provider wants a key", cooldown_s=60),
    Failure.HTTP_ERROR: Treatment("any other HTTP status", retry=True),
    Failure.RPC_ERROR: Treatment("the node refuses the request", lasting=True),
    Failure.NODE_UNHEALTHY: Treatment("the node says so: it has seen no ledger lately", lasting=True),
    Failure.NODE_BEHIND: Treatment("the node has not yet the ledgers that are known to exist", lasting=True),
    Failure.NETWORK_RESET: Treatment("the node ends far below what is known: a reset, or it starts anew", lasting=True),
    Failure.HISTORY_PRUNED: Treatment("the node no longer has the ledgers needed", cooldown_s=60, lasting=True),
    Failure.WRONG_NETWORK: Treatment("the node serves another network", cooldown_s=60, lasting=True),
    Failure.UNPROVEN_HEADER: Treatment("a header's hash or parent link does not hold", retry=True, lasting=True),
    Failure.OLD_NODE: Treatment("only a warning: before 27.1.1, events can get lost", cooldown_s=0, lasting=True),
}

BY_FAULT: dict[Fault, Failure] = {
    Fault.UNREACHABLE: Failure.UNREACHABLE,
    Fault.TLS: Failure.TLS,
    Fault.TIMEOUT: Failure.TIMEOUT,
    Fault.DROPPED: Failure.CONNECTION_DROPPED,
    Fault.TRUNCATED: Failure.TRUNCATED_BODY,
    Fault.MALFORMED: Failure.MALFORMED_RESPONSE,
    Fault.TOO_LARGE: Failure.RESPONSE_TOO_LARGE,
}

Meaning = Literal["pruned", "lagging", "future", "reset"]


class NodeRange(SourceUnavailable):
    """The node does not have ledger `requested` now: it has `oldest`..`latest`.

    `meaning` is as much as the source alone can know: "lagging" (others have reported that ledger), "future" (nobody
    has, and it is near), "reset" (the node ends far below; whether the network began anew is told by stored hashes).
    """

    def __init__(self, failure: Failure, meaning: Meaning, requested: int, oldest: int, latest: int) -> None:
        super().__init__(failure, f"ledger {requested} is not within the node's {oldest} - {latest} ({meaning})")
        self.meaning = meaning
        self.requested = requested
        self.oldest = oldest
        self.latest = latest


class HistoryPruned(HistoryLost):
    """Ledger `requested` is below the node's `oldest`..`latest`: a hard gap, never skipped."""

    meaning: Meaning = "pruned"

    def __init__(self, requested: int, oldest: int, latest: int) -> None:
        super().__init__(
            Failure.HISTORY_PRUNED, f"ledger {requested} is gone from the node, which keeps {oldest} - {latest}"
        )
        self.requested = requested
        self.oldest = oldest
        self.latest = latest


class WrongNetwork(ChainDiverged):
    """The endpoint's passphrase is not ours."""

    def __init__(self, wanted: str, found: str) -> None:
        super().__init__(Failure.WRONG_NETWORK, f"the node serves {found[:80]!r}, not {wanted!r}")


class OutOfRange(Exception):
    """The node said that a ledger is outside `oldest`..`latest`. Never leaves the source: `out_of_range` judges it."""

    def __init__(self, oldest: int, latest: int) -> None:
        super().__init__(oldest, latest)
        self.oldest = oldest
        self.latest = latest


def out_of_range(requested: int, oldest: int, latest: int, *, highest: int) -> SourceError:
    """Tell what "ledger range: A - B" means: the node says it with one code and one text for four different things.

    `highest` is the latest ledger that any endpoint has reported lately (0: none).
    """
    if requested < oldest:
        return HistoryPruned(requested, oldest, latest)
    if requested - latest > LAG_LEDGERS:
        return NodeRange(Failure.NETWORK_RESET, "reset", requested, oldest, latest)
    meaning: Meaning = "lagging" if requested <= highest else "future"
    return NodeRange(Failure.NODE_BEHIND, meaning, requested, oldest, latest)


_RANGES = (
    re.compile(r"ledger range: ([0-9]{1,10}) - ([0-9]{1,10})\b"),  # getEvents
    re.compile(r"oldest ledger: ([0-9]{1,10}) and the latest ledger: ([0-9]{1,10})\b"),  # getLedgers
)


def parse_range(message: str) -> tuple[int, int] | None:
    """Read oldest and latest from an error text that states them."""
    for pattern in _RANGES:
        if found := pattern.search(message):
            return as_range(int(found[1]), int(found[2]))
    return None


def as_range(oldest: int, latest: int) -> tuple[int, int] | None:
    """The two where they can be ledger numbers (32 bits), else None."""
    return (oldest, latest) if 0 <= oldest <= _MAX_LEDGER and 0 <= latest <= _MAX_LEDGER else None


def parse_retry_after(value: str | None, *, now: datetime | None = None) -> float | None:
    """Seconds to wait after a Retry-After header (seconds or an HTTP date), None where it is absent or unreadable.

    At most `LONGEST_RETRY_AFTER_S`, whatever the header says: a node must not be able to silence us for years.
    """
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(float(value[:9]), LONGEST_RETRY_AFTER_S)
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, OverflowError):  # the latter for a zone of absurdly many hours
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return min(max(0.0, (when - (now or datetime.now(UTC))).total_seconds()), LONGEST_RETRY_AFTER_S)
