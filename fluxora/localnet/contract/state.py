"""The simulated contract's storage: records that can be rewound ledger by ledger, and the events of the open ledger.

Every call runs at the chain's open ledger: its sequence and its close time are what the contract sees. A call that is
refused raises before it changes anything, so it leaves no event, as a failed transaction does.
"""

from __future__ import annotations

import copy
import hashlib
from typing import Any

import msgspec
from stellar_sdk import scval, xdr

from fluxora.errors import FluxoraError
from fluxora.localnet.chain import Chain, EmittedEvent
from fluxora.localnet.contract.accrual import Stream
from fluxora.localnet.contract.encoding import Encoder, encode_struct, encode_topics, encode_tuple, encode_variant
from fluxora.localnet.entries import address, data_entry, data_key, instance, stream_value, u32, u64, variant

Key = tuple[str, int | str, *tuple[str, ...]]

ERRORS = {
    1: "StreamNotFound",
    2: "InvalidState",
    3: "InvalidParams",
    4: "ContractPaused",
    5: "StartTimeInPast",
    10: "InsufficientDeposit",
    11: "StreamAlreadyPaused",
    12: "StreamNotPaused",
    13: "StreamTerminalState",
    28: "UnsupportedStreamKind",
    30: "PauseCooldownActive",
    31: "WithdrawalTooFrequent",
    33: "KeeperGracePeriodNotElapsed",
    36: "RateCooldownActive",
    38: "OfferNotFound",
    39: "OfferExpired",
    44: "DelegationDepthExceeded",
}


class ContractError(FluxoraError):
    """The contract refuses a call; `number` is its own error number."""

    code = "CONTRACT_ERROR"

    def __init__(self, number: int) -> None:
        super().__init__(f"contract error {number}: {ERRORS[number]}")
        self.number = number


class Globals(msgspec.Struct, frozen=True):
    """The contract-wide state."""

    admin: str
    token: str
    next_stream_id: int = 0
    emergency_paused: bool = False
    creation_paused: bool = False
    next_template_id: int = 0


_ABSENT: Any = object()


def _encode_shares(shares: dict[str, int]) -> xdr.SCVal:
    return scval.to_vec([scval.to_vec([address(member), u32(share)]) for member, share in shares.items()])


ENTRY_VALUES: dict[str, Encoder] = {
    "Stream": lambda stream: stream_value(stream.fields()),
    "AutoClaimDestination": address,
    "AutoRenewEnabled": scval.to_bool,
    "MaxLookbackLedgers": u32,
    "PooledStreamShares": _encode_shares,
    "PooledStreamWithdrawn": scval.to_int128,
}
"""The records that are ledger entries of their own; the others are this model's bookkeeping."""


class _Journal(msgspec.Struct):
    """What one ledger's calls changed, as it was before."""

    globals: Globals
    records: dict[Key, Any]
    calls: int = 0


class ContractState:
    """Records, journals and emission; the calls are in the classes that build on this one."""

    def __init__(self, chain: Chain, contract_id: str, *, admin: str, token: str, cooldown_ledgers: int = 17) -> None:
        self.chain = chain
        self.contract_id = contract_id
        self.cooldown_ledgers = cooldown_ledgers
        self._initial = Globals(admin, token)
        self._globals = self._initial
        self._records: dict[Key, Any] = {}
        self._journals: dict[int, _Journal] = {}
        self._emitted: list[EmittedEvent] = []
        self._instance_key = self._instance()[0]
        chain.attach(self)

    # -- what the contract sees ----------------------------------------------------------------------------------------

    @property
    def now(self) -> int:
        """The ledger's timestamp during a call: when the open ledger will close."""
        return self.chain.next_closed_at

    @property
    def ledger(self) -> int:
        """The open ledger's sequence."""
        return self.chain.next_sequence

    @property
    def globals(self) -> Globals:
        """The contract-wide state."""
        return self._globals

    def stream(self, stream_id: int) -> Stream:
        """The stream as it is now, to look at only.

        Raises:
            ContractError: 1, there is none (any more).
        """
        found: Stream | None = self._records.get(("Stream", stream_id))
        if found is None:
            raise ContractError(1)
        return found

    def streams(self) -> list[Stream]:
        """Every stream that is not closed, by id; to look at only."""
        return sorted((r for key, r in self._records.items() if key[0] == "Stream"), key=lambda s: s.stream_id)

    def model_streams(self) -> dict[int, dict[str, Any]]:
        """The storage fields of every stream that is not closed, by id: what a faithful reader must arrive at."""
        return {stream.stream_id: stream.fields() for stream in self.streams()}

    def closed_streams(self) -> dict[int, dict[str, Any]]:
        """The last storage fields of every closed stream, by id."""
        closed = (r for key, r in self._records.items() if key[0] == "Closed")
        return {stream.stream_id: stream.fields() for stream in closed}

    def paid_out(self, stream_id: int) -> int:
        """What recipients and destinations have received of a stream, relayer fees not counted."""
        paid: int = self._records.get(("Paid", stream_id), 0)
        return paid

    # -- changing ------------------------------------------------------------------------------------------------------

    def _journal(self) -> _Journal:
        journal = self._journals.get(self.ledger)
        if journal is None:
            journal = self._journals[self.ledger] = _Journal(self._globals, {})
        return journal

    def _begin(self) -> int:
        """A new transaction; its events carry the number."""
        journal = self._journal()
        journal.calls += 1
        return journal.calls

    def _get(self, name: str, *key: int | str) -> Any:
        return self._records.get((name, *key))  # type: ignore[arg-type]

    def _put(self, value: Any, name: str, *key: int | str) -> None:
        """Write a record; None deletes it."""
        full: Key = (name, *key)  # type: ignore[assignment]
        self._journal().records.setdefault(full, self._records.get(full, _ABSENT))
        if value is None:
            self._records.pop(full, None)
        else:
            self._records[full] = value

    def _edit(self, stream_id: int) -> Stream:
        """The stream to be changed by this call."""
        changed = copy.copy(self.stream(stream_id))
        self._put(changed, "Stream", stream_id)
        return changed

    def _set(self, **changes: Any) -> None:
        self._journal()
        self._globals = msgspec.structs.replace(self._globals, **changes)

    def _next_id(self) -> int:
        taken = self._globals.next_stream_id
        self._set(next_stream_id=taken + 1)
        return taken

    def _pay(self, stream_id: int, amount: int) -> None:
        self._put(self.paid_out(stream_id) + amount, "Paid", stream_id)

    # -- emitting ------------------------------------------------------------------------------------------------------

    def _emit(self, call: int, topics: tuple[bytes, ...], value: bytes) -> None:
        self._emitted.append(
            EmittedEvent(contract_id=self.contract_id, topics=topics, value=value, call=self._call_number(call))
        )

    def _call_number(self, call: int) -> int:
        # Several contracts may share a ledger; their calls must not melt into one transaction.
        return int.from_bytes(hashlib.sha256(self.contract_id.encode()).digest()[:4], "big") << 32 | call

    def _emit_struct(self, call: int, topic: str, *ids: int | str, **data: Any) -> None:
        self._emit(call, encode_topics(topic, *ids), encode_struct(topic, data))

    def _emit_stream(self, call: int, topic: str, stream_id: int, **data: Any) -> None:
        """An event about one stream whose data repeats the stream's id."""
        self._emit_struct(call, topic, stream_id, stream_id=stream_id, **data)

    def _emit_variant(self, call: int, topic: str, stream_id: int) -> None:
        self._emit(call, encode_topics(topic, stream_id), encode_variant(topic, stream_id))

    def _emit_tuple(self, call: int, topic: str, *values: Any, key: str | None = None) -> None:
        topics = encode_topics(topic) if key is None else encode_topics(topic, key)
        self._emit(call, topics, encode_tuple(topic, *values))

    def drain(self) -> tuple[list[EmittedEvent], dict[str, str | None]]:
        """The open ledger's events and entry changes, to be closed with it."""
        events, self._emitted = self._emitted, []
        journal = self._journals.get(self.ledger)
        if journal is None:
            return events, {}
        entries = dict(self._entry_change(key) for key in journal.records if key[0] in ENTRY_VALUES)
        if journal.globals != self._globals or self.chain.entry(self._instance_key) is None:
            key, value = self._instance()
            entries[key] = value
        oldest = self.chain.oldest.sequence
        for sequence in [s for s in self._journals if s <= oldest]:
            del self._journals[sequence]
        return events, entries

    def _entry_change(self, record: Key) -> tuple[str, str | None]:
        name, stream_id, *members = record
        assert isinstance(stream_id, int)
        key = variant(name, u64(stream_id), *(address(member) for member in members))
        if record not in self._records:
            return data_key(self.contract_id, key), None
        value = ENTRY_VALUES[name](self._records[record])
        return data_key(self.contract_id, key), data_entry(self.contract_id, key, value)

    def _instance(self) -> tuple[str, str]:
        now = self._globals
        config = {"admin": address(now.admin), "token": address(now.token)}
        pairs = [xdr.SCMapEntry(scval.to_symbol(name), config[name]) for name in sorted(config)]
        storage = [
            (variant("Config"), xdr.SCVal(xdr.SCValType.SCV_MAP, map=xdr.SCMap(pairs))),
            (variant("NextStreamId"), u64(now.next_stream_id)),
            (variant("GlobalEmergencyPaused"), scval.to_bool(now.emergency_paused)),
            (variant("CreationPaused"), scval.to_bool(now.creation_paused)),
        ]
        return instance(self.contract_id, storage, hashlib.sha256(b"fluxora stream v9").digest())

    # -- following the chain -------------------------------------------------------------------------------------------

    def rewind(self, sequence: int) -> None:
        """Take back what ledgers above `sequence` did, the open one included."""
        self._emitted.clear()
        for later in sorted((s for s in self._journals if s > sequence), reverse=True):
            journal = self._journals.pop(later)
            self._globals = journal.globals
            for key, before in journal.records.items():
                if before is _ABSENT:
                    self._records.pop(key, None)
                else:
                    self._records[key] = before

    def reset(self) -> None:
        """Begin anew, as on the first day."""
        self._globals = self._initial
        self._records.clear()
        self._journals.clear()
        self._emitted.clear()
