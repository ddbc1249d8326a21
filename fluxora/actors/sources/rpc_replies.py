"""What Stellar RPC answers, as structs: only the fields in use, tolerant of the rest.

Numbers may come as strings (close times do, and may grow fractions), unknown keys are ignored, and a zero-topic event
has no `topic` key. A ledger number that does not fit 32 bits and a time that no calendar has make an answer malformed:
what is let through here must fit the database and every later calculation.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec

from fluxora.actors.sources.failures import Failure
from fluxora.actors.sources.jsonrpc import Envelope
from fluxora.errors import SourceUnavailable

_MAX_UNIX_S = 253_402_300_799  # 9999-12-31T23:59:59Z, the last second that RFC 3339 can write
LedgerNumber = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
UnixTime = Annotated[float, msgspec.Meta(ge=0, le=_MAX_UNIX_S)]


class NetworkReply(msgspec.Struct):
    """getNetwork."""

    passphrase: str


class VersionReply(msgspec.Struct):
    """getVersionInfo."""

    version: str = ""


class HealthReply(msgspec.Struct, rename="camel"):
    """getHealth. The close time is there since v27.1."""

    latest_ledger: LedgerNumber
    oldest_ledger: LedgerNumber
    status: str = "healthy"
    latest_ledger_close_time: UnixTime | None = None


class RpcEvent(msgspec.Struct, rename="camel", gc=False):
    """One event of getEvents; topics and value are XDR, their base64 already undone."""

    type: str
    ledger: LedgerNumber
    ledger_closed_at: str
    id: str
    tx_hash: str = ""
    contract_id: str = ""
    topic: list[bytes] | None = None
    value: bytes = b""


class EventsReply(msgspec.Struct, rename="camel"):
    """getEvents."""

    events: list[RpcEvent]
    latest_ledger: LedgerNumber
    oldest_ledger: LedgerNumber = 0
    cursor: str = ""


class RpcLedger(msgspec.Struct, rename="camel"):
    """One ledger of getLedgers; its metadata, which is nearly all of the answer, is passed over."""

    hash: str
    sequence: LedgerNumber
    ledger_close_time: UnixTime
    header_xdr: str


class LedgersReply(msgspec.Struct, rename="camel"):
    """getLedgers."""

    ledgers: list[RpcLedger]
    latest_ledger: LedgerNumber
    oldest_ledger: LedgerNumber = 0


class RpcEntry(msgspec.Struct, rename="camel"):
    """One entry of getLedgerEntries."""

    key: str
    xdr: str
    last_modified_ledger_seq: LedgerNumber = 0


class EntriesReply(msgspec.Struct, rename="camel"):
    """getLedgerEntries; entries that do not exist are left out."""

    latest_ledger: LedgerNumber
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
            SourceUnavailable: it is no time with a zone, or none from 1970 to 9999 ("malformed_response").
        """
        if text != self._text:
            seconds = _unix_seconds(text)
            if seconds is None:
                message = f"getEvents: {text[:40]!r} is not a close time of this calendar, with its zone"
                raise SourceUnavailable(Failure.MALFORMED_RESPONSE, message)
            self._text, self._seconds = text, seconds
        return self._seconds


def _unix_seconds(text: str) -> int | None:
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return None
    if when.tzinfo is None:
        return None
    seconds = int(when.timestamp() // 1)
    return seconds if 0 <= seconds <= _MAX_UNIX_S else None  # a zone can carry a year beyond the calendar's ends
