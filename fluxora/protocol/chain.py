"""Ledgers as a chain: headers linked by hash, the batch that travels down the pipeline, what a header proves.

Rules
- A ledger is identified by (epoch, sequence); its hash is sha256 of its XDR header, which names the parent's hash.
- The same sequence with another hash means that history below has changed (a fork, a testnet reset, another network).
- Stellar itself does not fork; a mismatch there is a reset, a wrong network or a faulty node. The names say which.
"""

from __future__ import annotations

import hashlib
from base64 import b64decode
from binascii import Error as Base64Error
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable

import msgspec

from fluxora.errors import DecodeError
from fluxora.protocol.contract import ContractEvent


class LedgerHeader(msgspec.Struct, frozen=True, gc=False):
    """One ledger of the chain. `hash` and `previous_hash` are 64 lower-case hex digits; `closed_at` is Unix seconds.

    `previous_hash` is None where the source does not tell it (the push source).
    """

    sequence: int
    hash: str
    previous_hash: str | None
    closed_at: int


class LedgerBatch(msgspec.Struct, frozen=True, kw_only=True):
    """One step of the source on its way down the pipeline; what it says is recorded in one transaction or not at all.

    `events` ascend by id. `complete_through` says that every event of every ledger up to it has been handed over (with
    this batch or before); None leaves the stored mark as it is. `headers` ascend by sequence and are stored.
    `generation` is the ingester's count of rewinds: what was fetched before a rewind is dropped by the guard.
    The guard sets `rollback_to` (undo everything above that ledger first) and `new_epoch` (the network began anew: park
    the old epoch first); the other two fields say why, for the log.
    """

    events: tuple[ContractEvent, ...] = ()
    headers: tuple[LedgerHeader, ...] = ()
    complete_through: int | None = None
    tip: int | None = None
    generation: int = 0
    rollback_to: int | None = None
    new_epoch: bool = False
    existing_hash: str | None = None
    incoming_hash: str | None = None


def parse_header(header_xdr: str, *, hash_hex: str, sequence: int, closed_at: int) -> LedgerHeader:
    """Read a base64 LedgerHeaderHistoryEntry (or a bare LedgerHeader) by slicing, and prove its hash.

    Layout: hash[32] || LedgerHeader || ext[4]; a LedgerHeader starts with ledgerVersion[4] || previousLedgerHash[32].
    Slicing survives header versions that stellar_sdk cannot parse yet.

    Raises:
        DecodeError: not base64, too short, or its sha256 is not the hash it came with.
    """
    try:
        raw = b64decode(header_xdr, validate=True)
    except (Base64Error, ValueError) as error:
        raise DecodeError(f"ledger {sequence}: header is not base64") from error
    if len(raw) >= 72 and hashlib.sha256(raw[32:-4]).hexdigest() == hash_hex == raw[:32].hex():
        previous = raw[36:68]
    elif len(raw) >= 36 and hashlib.sha256(raw).hexdigest() == hash_hex:
        previous = raw[4:36]
    else:
        raise DecodeError(f"ledger {sequence}: header does not hash to {hash_hex[:16]}")
    return LedgerHeader(sequence, hash_hex, previous.hex(), closed_at)


class Conflict(msgspec.Struct, frozen=True):
    """A header that contradicts what is stored. `sequence` is the ledger whose stored hash is refuted.

    `existing_hash` is the stored one, `incoming_hash` the one that the header states (its own, or its parent's).
    """

    sequence: int
    existing_hash: str
    incoming_hash: str


class KnownChain:
    """The headers that we hold of one epoch: a bounded window of the newest, with gaps where none were fetched.

    Since each header commits to all history below it, an equal hash proves everything underneath.
    """

    def __init__(self, headers: Iterable[LedgerHeader] = (), *, keep: int = 4096) -> None:
        self._hashes: dict[int, str] = {}
        self._order: list[int] = []  # ascending sequences
        self._keep = keep
        self.add(sorted(headers, key=lambda header: header.sequence))

    def __len__(self) -> int:
        return len(self._order)

    @property
    def newest(self) -> int | None:
        """The highest sequence that is known."""
        return self._order[-1] if self._order else None

    def hash_of(self, sequence: int) -> str | None:
        """The known hash of a ledger."""
        return self._hashes.get(sequence)

    def below(self, sequence: int) -> list[int]:
        """Known sequences below `sequence`, ascending."""
        return self._order[: bisect_left(self._order, sequence)]

    def conflict(self, headers: Iterable[LedgerHeader]) -> Conflict | None:
        """The lowest contradiction between ascending `headers` and what is known, or among them; None without one."""
        parent: LedgerHeader | None = None
        for header in headers:
            before, previous = header.sequence - 1, header.previous_hash
            known = parent.hash if parent and parent.sequence == before else self._hashes.get(before)
            if known is not None and previous is not None and previous != known:
                return Conflict(before, known, previous)
            known = self._hashes.get(header.sequence)
            if known is not None and known != header.hash:
                return Conflict(header.sequence, known, header.hash)
            parent = header
        return None

    def add(self, headers: Iterable[LedgerHeader]) -> None:
        """Take over headers that are known to fit; the oldest beyond the window are forgotten."""
        for header in headers:
            if header.sequence not in self._hashes:
                insort(self._order, header.sequence)
            self._hashes[header.sequence] = header.hash
        excess = len(self._order) - self._keep
        if excess > 0:
            for sequence in self._order[:excess]:
                del self._hashes[sequence]
            del self._order[:excess]

    def truncate(self, after: int | None) -> None:
        """Forget everything above ledger `after`; everything at all with None."""
        keep = 0 if after is None else bisect_right(self._order, after)
        for sequence in self._order[keep:]:
            del self._hashes[sequence]
        del self._order[keep:]
