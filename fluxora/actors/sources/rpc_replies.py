"""What Stellar RPC answers, as structs: only the fields in use, tolerant of the rest.

Numbers may come as strings (close times do, and may grow fractions), unknown keys are ignored, and a zero-topic event
has no `topic` key.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from fluxora.actors.sources.failures import Failure
from fluxora.actors.sources.jsonrpc import Envelope
from fluxora.errors import SourceUnavailable


class NetworkReply(msgspec.Struct):
    """getNetwork."""

    passphrase: str


class VersionReply(msgspec.Struct):
    """getVersionInfo."""

    version: str = ""


class HealthReply(msgspec.Struct, rename="camel"):
    """getHealth. The close time is there since v27.1."""

    latest_ledger: int
    oldest_ledger: int
    status: str = "healthy"
    latest_ledger_close_time: float | None = None


class RpcEvent(msgspec.Struct, rename="camel", gc=False):
    """One event of getEvents; topics and value are XDR, their base64 already undone."""

    type: str
    ledger: int
    ledger_closed_at: str
    id: str
    tx_hash: str = ""
    contract_id: str = ""
    topic: list[bytes] | None = None
    value: bytes = b""


class EventsReply(msgspec.Struct, rename="camel"):
    """getEvents."""

    events: list[RpcEvent]
    latest_ledger: int
    oldest_ledger: int = 0
    cursor: str = ""


class RpcLedger(msgspec.Struct, rename="camel"):
    """One ledger of getLedgers; its metadata, which is nearly all of the answer, is passed over."""

    hash: str
    sequence: int
    ledger_close_time: float
    header_xdr: str


class LedgersReply(msgspec.Struct, rename="camel"):
    """getLedgers."""

    ledgers: list[RpcLedger]
    latest_ledger: int
    oldest_ledger: int = 0


class RpcEntry(msgspec.Struct, rename="camel"):
    """One entry of getLedgerEntries."""

    key: str
    xdr: str
    last_modified_ledger_seq: int = 0


class EntriesReply(msgspec.Struct, rename="camel"):
    """getLedgerEntries; entries that do not exist are left out."""

    latest_ledger: int
    entries: list[RpcEntry] | None = None


NETWORK = msgspec.json.Decoder(Envelope[NetworkReply], strict=False)
VERSION = msgspec.json.Decoder(Envelope[VersionReply], strict=False)
HEALTH = msgspec.json.Decoder(Envelope[HealthReply], strict=False)
EVENTS = msgspec.json.Decoder(Envelope[EventsReply], strict=False)
LEDGERS = msgspec.json.Decoder(Envelope[LedgersReply], strict=False)
ENTRIES = msgspec.json.Decoder(Envelope[EntriesReply], strict=False)


class CloseTimes:
    """Reads RFC 3339 close times; neighbouring events share theirs, so the last one is remembered."""

    def __init__(self) -> None:
        self._text = ""
        self._seconds = 0

    def seconds(self, text: str) -> int:
        """Unix seconds of `text`, fractions cut off.

        Raises:
            SourceUnavailable: it is no time with a zone ("malformed_response").
        """
        if text != self._text:
            seconds = _unix_seconds(text)
            if seconds is None:
                message = f"getEvents: {text[:40]!r} is not a close time with its zone"
                raise SourceUnavailable(Failure.MALFORMED_RESPONSE, message)
            self._text, self._seconds = text, seconds
        return self._seconds


def _unix_seconds(text: str) -> int | None:
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return None
    return None if when.tzinfo is None else int(when.timestamp() // 1)
