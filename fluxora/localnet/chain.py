"""The simulated chain: ledgers linked by real header hashes, the events they hold, and contract data as of any ledger.

Promises
- Deterministic: the same seed and the same calls give the same hashes, ids and close times.
- The chain always has a latest ledger: the first one is closed, empty, by construction.
- `fork` undoes ledgers with their events and entries and tells the participants; what closes next hashes differently.
- Nothing here knows HTTP, trio or the wall clock.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Protocol

import msgspec

from fluxora.config import LOCALNET_PASSPHRASE
from fluxora.errors import InvariantError
from fluxora.localnet.headers import header_bytes, history_entry

DEFAULT_RETENTION = 17_280  # ledgers; 24 h at 5 s each, what the shorter-lived public providers keep
DEFAULT_START_TIME = 1_785_000_000


class EmittedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """What a contract emits: topics and value as ScVal XDR bytes.

    Consecutive events of one ledger with the same non-negative `call` share a transaction; -1 gives one of its own.
    """

    contract_id: str
    topics: tuple[bytes, ...]
    value: bytes
    call: int = -1
    type: str = "contract"


class LedgerEvents(msgspec.Struct, frozen=True, gc=False):
    """The events of one ledger as parallel lists in id order; `rendered` is each event's JSON for getEvents."""

    positions: list[int]  # tx << 44 | op << 32 | event index: the id without the ledger
    rendered: list[bytes]
    contracts: list[str]
    topics: list[tuple[bytes, ...]]
    types: list[str]
    sole_contract: str | None  # the contract that emitted all of them, when there is exactly one and all are "contract"


NO_EVENTS = LedgerEvents([], [], [], [], [], None)
EventSource = Callable[["Ledger"], LedgerEvents]


class Ledger(msgspec.Struct, frozen=True):
    """One closed ledger. `events` renders what it holds: at once for stored ledgers, anew each time for bulk ones."""

    sequence: int
    hash: bytes
    previous_hash: bytes
    closed_at: int
    header: bytes  # LedgerHeader XDR
    source: EventSource
    touched: tuple[str, ...] = ()  # keys of the entries it changed

    def events(self) -> LedgerEvents:
        """The ledger's events, rendered."""
        return self.source(self)

    @property
    def header_xdr(self) -> str:
        """The base64 LedgerHeaderHistoryEntry."""
        return b64encode(history_entry(self.header)).decode()


class Participant(Protocol):
    """A model that lives on the chain and must follow it back."""

    def rewind(self, sequence: int) -> None:
        """Forget everything above ledger `sequence`, and what was not closed yet."""

    def reset(self) -> None:
        """The network began anew: forget everything."""


class Entry(msgspec.Struct, frozen=True):
    """A contract data entry as of some ledger: its LedgerEntryData (base64) and the ledger that wrote it."""

    key: str
    xdr: str
    last_modified: int


def render_event(
    *, ledger: int, closed_at: str, tx: int, op: int, index: int, tx_hash: str, event: EmittedEvent
) -> bytes:
    """One event of getEvents as JSON text. A zero-topic event has no `topic` key at all, as on the real server."""
    topics = '","'.join(b64encode(topic).decode() for topic in event.topics)
    listed = f'"topic":["{topics}"],' if event.topics else ""
    toid = ledger << 32 | tx << 12 | op
    return (
        f'{{"type":"{event.type}","ledger":{ledger},"ledgerClosedAt":"{closed_at}","contractId":"{event.contract_id}",'
        f'"id":"{toid:019d}-{index:010d}","operationIndex":{op},"transactionIndex":{tx},"txHash":"{tx_hash}",'
        f'"inSuccessfulContractCall":true,{listed}"value":"{b64encode(event.value).decode()}"}}'
    ).encode()


def rfc3339(at: int) -> str:
    """Unix seconds as the server writes close times."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _render_all(ledger: Ledger, emitted: Sequence[EmittedEvent]) -> LedgerEvents:
    if not emitted:
        return NO_EVENTS
    positions: list[int] = []
    rendered: list[bytes] = []
    closed_at = rfc3339(ledger.closed_at)
    tx, index, call, tx_hash = 0, 0, -1, ""
    for event in emitted:
        if tx and event.call >= 0 and event.call == call:
            index += 1
        else:
            tx, index, call = tx + 1, 0, event.call
            tx_hash = hashlib.sha256(ledger.hash + tx.to_bytes(4, "big")).hexdigest()
        positions.append(tx << 44 | index)
        rendered.append(
            render_event(
                ledger=ledger.sequence, closed_at=closed_at, tx=tx, op=0, index=index, tx_hash=tx_hash, event=event
            )
        )
    contracts = [event.contract_id for event in emitted]
    types = [event.type for event in emitted]
    alone = len(set(contracts)) == 1 and set(types) == {"contract"}
    topics = [event.topics for event in emitted]
    return LedgerEvents(positions, rendered, contracts, topics, types, contracts[0] if alone else None)


def _content(emitted: Sequence[EmittedEvent], entries: Mapping[str, str | None]) -> bytes:
    digest = hashlib.sha256()
    for event in emitted:
        digest.update(event.contract_id.encode())
        for part in (*event.topics, event.value):
            digest.update(len(part).to_bytes(4, "big"))
            digest.update(part)
    for key, value in entries.items():
        digest.update(key.encode() + b"=" + (value or "").encode() + b";")
    return digest.digest()


class Chain:
    """A chain of ledgers with their events and entries.

    `first_ledger` is the sequence of the ledger that exists from the start (empty), closed at `start_time`; each
    further one closes `seconds_per_ledger` later unless told otherwise. `retention` ledgers are kept (None: all).
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        first_ledger: int = 2,
        start_time: int = DEFAULT_START_TIME,
        seconds_per_ledger: int = 5,
        passphrase: str = LOCALNET_PASSPHRASE,
        retention: int | None = DEFAULT_RETENTION,
    ) -> None:
        self.seed = seed
        self.passphrase = passphrase
        self.seconds_per_ledger = seconds_per_ledger
        self.retention = retention
        self.incarnation = 1  # counts network resets
        self.branch = 0  # counts forks since the network began
        self._first_ledger = first_ledger
        self._participants: list[Participant] = []
        self._entry_fallbacks: list[Callable[[str, int], Entry | None]] = []
        self._entries: dict[str, list[tuple[int, str | None]]] = {}
        self._ledgers: list[Ledger] = []
        self._next_closed_at = start_time
        self._close(_content((), {}), lambda _: NO_EVENTS, {}, None)

    # -- reading -------------------------------------------------------------------------------------------------------

    @property
    def latest(self) -> Ledger:
        """The newest ledger."""
        return self._ledgers[-1]

    @property
    def oldest(self) -> Ledger:
        """The oldest ledger still kept."""
        return self._ledgers[0]

    @property
    def next_sequence(self) -> int:
        """The sequence of the ledger that is open now."""
        return self.latest.sequence + 1

    @property
    def next_closed_at(self) -> int:
        """When the open ledger will close (Unix seconds): what contract calls see as the ledger's timestamp."""
        return self._next_closed_at

    @next_closed_at.setter
    def next_closed_at(self, at: int) -> None:
        self._next_closed_at = at

    def advance(self, seconds: int) -> None:
        """Let the open ledger close `seconds` later than it would have."""
        self._next_closed_at += seconds

    def ledger(self, sequence: int) -> Ledger | None:
        """The ledger of that sequence, None when it is not kept."""
        index = sequence - self._ledgers[0].sequence
        return self._ledgers[index] if 0 <= index < len(self._ledgers) else None

    def ledgers(self, first: int, last: int) -> Sequence[Ledger]:
        """The kept ledgers of [first, last], ascending."""
        base = self._ledgers[0].sequence
        return self._ledgers[max(0, first - base) : max(0, last - base + 1)]

    def entry(self, key: str, *, at: int | None = None) -> Entry | None:
        """The entry under a base64 LedgerKey as of ledger `at` (default: the latest); None when absent then."""
        at = self.latest.sequence if at is None else at
        for written, value in reversed(self._entries.get(key, ())):
            if written <= at:
                return None if value is None else Entry(key, value, written)
        for fallback in self._entry_fallbacks:
            found = fallback(key, at)
            if found is not None:
                return found
        return None

    # -- growing -------------------------------------------------------------------------------------------------------

    def attach(self, participant: Participant) -> None:
        """Let a model follow forks and resets."""
        self._participants.append(participant)

    def attach_entries(self, fallback: Callable[[str, int], Entry | None]) -> None:
        """Ask `fallback(key, at)` for entries that no ledger wrote: bulk histories compute theirs."""
        self._entry_fallbacks.append(fallback)

    def close_ledger(
        self,
        events: Sequence[EmittedEvent] = (),
        *,
        closed_at: int | None = None,
        entries: Mapping[str, str | None] | None = None,
    ) -> Ledger:
        """Close the open ledger with these events and entry changes (None deletes).

        An explicit `closed_at` is taken as it is, even before the parent's: histories recorded elsewhere carry theirs.
        """
        changes = {} if entries is None else dict(entries)
        kept: list[LedgerEvents] = []

        def stored(ledger: Ledger) -> LedgerEvents:
            if not kept:
                kept.append(_render_all(ledger, emitted))
                emitted.clear()  # rendered once, the events' own objects are not needed any more
            return kept[0]

        emitted = list(events)
        return self._close(_content(events, changes), stored, changes, closed_at)

    def close_rendered(self, source: EventSource, content: bytes, *, closed_at: int | None = None) -> Ledger:
        """Close the open ledger with events that `source` renders on request; `content` digests what it will render."""
        return self._close(content, source, {}, closed_at)

    def _close(
        self, content: bytes, source: EventSource, entries: Mapping[str, str | None], closed_at: int | None
    ) -> Ledger:
        sequence = self.next_sequence if self._ledgers else self._first_ledger
        previous = self.latest.hash if self._ledgers else hashlib.sha256(self.passphrase.encode()).digest()
        closed_at = self._next_closed_at if closed_at is None else closed_at
        nonce = f"{self.seed}/{self.incarnation}/{self.branch}/{self.passphrase}".encode()
        header = header_bytes(
            sequence=sequence, previous_hash=previous, closed_at=closed_at, content=content, nonce=nonce
        )
        ledger = Ledger(sequence, hashlib.sha256(header).digest(), previous, closed_at, header, source, tuple(entries))
        for key, value in entries.items():
            self._entries.setdefault(key, []).append((sequence, value))
        self._ledgers.append(ledger)
        self._next_closed_at = closed_at + self.seconds_per_ledger
        if self.retention is not None and len(self._ledgers) > self.retention + self.retention // 10 + 1:
            self.prune(sequence - self.retention + 1)
        return ledger

    # -- going back ----------------------------------------------------------------------------------------------------

    def fork(self, depth: int, *, repeat: bool = False) -> list[Ledger]:
        """Undo the last `depth` ledgers and return them; the next ones get other hashes.

        With `repeat` the same events and entries are closed again at once, under other hashes, and the participants
        keep what they know: a fork in name only.

        Raises:
            InvariantError: at least one ledger has to remain.
        """
        if not 0 < depth < len(self._ledgers):
            raise InvariantError(f"cannot undo {depth} of {len(self._ledgers)} ledgers")
        dropped = self._ledgers[-depth:]
        del self._ledgers[-depth:]
        changes = [self._undo_entries(ledger) for ledger in reversed(dropped)]
        self.branch += 1
        if repeat:
            for ledger, entries in zip(dropped, reversed(changes), strict=True):
                self._close(ledger.hash, _rerendered(ledger), entries, ledger.closed_at)
            return dropped
        self._next_closed_at = dropped[0].closed_at
        for participant in self._participants:
            participant.rewind(self.latest.sequence)
        return dropped

    def reset(self, *, first_ledger: int | None = None) -> Ledger:
        """Begin the network anew under the same passphrase: sequence restarts, no events, no entries, other hashes."""
        self.incarnation += 1
        self.branch = 0
        self._first_ledger = self._first_ledger if first_ledger is None else first_ledger
        self._ledgers.clear()
        self._entries.clear()
        self._entry_fallbacks.clear()
        for participant in self._participants:
            participant.reset()
        return self._close(_content((), {}), lambda _: NO_EVENTS, {}, None)

    def prune(self, before: int) -> None:
        """Forget the ledgers below `before` (the latest one stays); entries keep their newest value."""
        base = self._ledgers[0].sequence
        count = min(max(0, before - base), len(self._ledgers) - 1)
        for ledger in self._ledgers[:count]:
            for key in ledger.touched:
                self._forget_superseded(key, before)
        del self._ledgers[:count]

    def _undo_entries(self, ledger: Ledger) -> dict[str, str | None]:
        undone: dict[str, str | None] = {}
        for key in ledger.touched:
            versions = self._entries[key]
            undone[key] = versions.pop()[1]
            if not versions:
                del self._entries[key]
        return undone

    def _forget_superseded(self, key: str, before: int) -> None:
        versions = self._entries.get(key, [])
        while len(versions) > 1 and versions[1][0] < before:
            versions.pop(0)
        if len(versions) == 1 and versions[0][1] is None and versions[0][0] < before:
            del self._entries[key]


def _rerendered(original: Ledger) -> EventSource:
    """The events of a ledger that was closed again on another branch: the same but for their transaction hashes."""
    before = original.events()

    def source(ledger: Ledger) -> LedgerEvents:
        rendered = []
        for position, text in zip(before.positions, before.rendered, strict=True):
            tx = (position >> 44).to_bytes(4, "big")
            was, now = (hashlib.sha256(own.hash + tx).hexdigest().encode() for own in (original, ledger))
            rendered.append(text.replace(was, now))
        return msgspec.structs.replace(before, rendered=rendered)

    return source
