"""State as a fold: one stream's state after each event of the contract.

The events alone do not tell everything (a relayer's fee, which function changed a rate, some streams' kind). Where they
do not, the fold takes the likelier reading and asks for the stream's ledger entry; the answer comes back as an event of
its own ("corrected") and is folded like the others.

An event that is known but lacks a field, as a newer contract's might, leaves the state as it was and asks as well:
folding never raises. Events that the contract cannot have sent in a status (resumed while active) are applied, for the
chain is the truth, and asked about.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from msgspec.structs import replace

from fluxora.errors import DecodeError
from fluxora.protocol.addresses import is_account_or_contract
from fluxora.protocol.streams import (
    CONTRACT_FIELDS,
    StreamKind,
    StreamState,
    StreamStatus,
    accrued,
    accrued_on_schedule,
    claimable_at,
    read_fields,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from fluxora.protocol.contract import ContractEvent

_ACTIVE, _PAUSED, _COMPLETED, _CANCELLED = StreamStatus
_LINEAR, _CLIFF_ONLY, _CLIFF_SLOPE = StreamKind

Kind = Literal["created", "updated", "cancelled"]


class Folded(msgspec.Struct, frozen=True, gc=False):
    """What an event made of a stream.

    `state` is None while the stream is unknown (its creation was not seen). `child` is the new stream of a delegated
    share, which no `created` announces. `wants_entry` asks for the ledger entry of the stream, and of the child too.
    """

    state: StreamState | None
    child: StreamState | None
    kind: Kind
    wants_entry: bool


def fold(state: StreamState | None, event: ContractEvent) -> Folded:
    """The state after `event`; `state` is the one before it, None where there is none. Pure; never raises."""
    action = event.action
    if event.stream_id is None:
        return Folded(state, None, "updated", wants_entry=False)
    try:
        if action == "created":
            return _created(event)
        if action == "corrected":
            return _corrected(state, event)
        if state is None:
            return Folded(None, None, "updated", wants_entry=action != "closed")
        step = _STEPS.get(action)
        if step is not None:
            return step(state, event)
    except (KeyError, TypeError):  # a known action in a shape that is not known
        if state is not None:
            return _ask(state)
        return Folded(None, None, "updated", wants_entry=True)
    # Informational actions change nothing. An unknown one may have, and only the ledger can tell.
    return Folded(state, None, "updated", wants_entry=action == "unknown" and state.closed_at is None)


def _sure(state: StreamState, kind: Kind = "updated", /, **changes: Any) -> Folded:
    return Folded(replace(state, **changes), None, kind, wants_entry=False)


def _ask(state: StreamState, kind: Kind = "updated", /, **changes: Any) -> Folded:
    """Apply `changes` and ask for the entry, which a closed stream has no more."""
    return Folded(replace(state, **changes), None, kind, wants_entry=state.closed_at is None)


def _told(certain: bool, state: StreamState, kind: Kind = "updated", /, **changes: Any) -> Folded:  # noqa: FBT001
    """Apply `changes`; ask for the entry unless they are `certain` to be what the ledger has."""
    return _sure(state, kind, **changes) if certain else _ask(state, kind, **changes)


def _created(event: ContractEvent) -> Folded:
    """A new stream. The oldest contracts told the deposit alone; the kind is never told, the numbers must show it."""
    data = event.data
    stream_id = event.stream_id or 0
    deposit = data["deposit_amount"]
    sender = data.get("sender")
    if sender is None:
        shell = StreamState(stream_id=stream_id, deposit_amount=deposit, kind_known=False)
        return Folded(shell, None, "created", wants_entry=True)
    rate, start, cliff, end = data["rate_per_second"], data["start_time"], data["cliff_time"], data["end_time"]
    kind, kind_known = _LINEAR, True
    if rate == 0:
        kind = _CLIFF_ONLY
    elif deposit < rate * (end - start):  # a linear stream must be able to pay its whole schedule
        kind = _CLIFF_SLOPE
    elif cliff > start:  # at cliff == start the two kinds accrue alike
        kind_known = False
    recipient = data["recipient"]
    pooled = sender == recipient  # refused for any other stream
    created = StreamState(
        stream_id=stream_id,
        sender=sender,
        recipient=recipient,
        deposit_amount=deposit,
        rate_per_second=rate,
        start_time=start,
        cliff_time=cliff,
        end_time=end,
        checkpointed_at=start,
        withdraw_dust_threshold=data.get("withdraw_dust_threshold") or 0,
        memo=data.get("memo"),
        metadata=data.get("metadata"),
        kind=kind,
        kind_known=kind_known,
        is_pooled=True if pooled else None,
    )
    return Folded(created, None, "created", wants_entry=pooled or not kind_known)


def _withdrew(state: StreamState, event: ContractEvent) -> Folded:
    """A payout. Through a relayer the amount is net of a fee that also counts as withdrawn and that no event tells.

    Any other withdrawal pays all that can be claimed at that second, so an amount that equals it proves that no fee was
    taken. Less may be a fee, or the contract's balance, or a lookback window; more means that this state is off.
    """
    amount = event.data["amount"]
    withdrawn = state.withdrawn_amount + amount
    paid = state.paid_out + amount
    if state.is_pooled or event.data.get("recipient", state.recipient) != state.recipient:
        # A member of a pool takes a share, exactly. Members are not told from others before the pool is known as one.
        return _told(bool(state.is_pooled), state, withdrawn_amount=withdrawn, paid_out=paid, is_pooled=True)
    claimable = accrued(state, event.closed_at) - state.withdrawn_amount
    if amount != claimable and state.max_lookback_ledgers is not None:
        claimable = claimable_at(state, event.closed_at)
    changes = {"withdrawn_amount": withdrawn, "paid_out": paid, "last_withdraw_ledger": event.ledger}
    return _told(amount == claimable, state, **changes)


def _wdraw_to(state: StreamState, event: ContractEvent) -> Folded:
    """A payout to another address, always gross; also what ac_trig announced with the same amount, counted here."""
    amount = event.data["amount"]
    return _sure(state, withdrawn_amount=state.withdrawn_amount + amount, paid_out=state.paid_out + amount)


def _completed(state: StreamState, _event: ContractEvent) -> Folded:
    """The whole deposit is withdrawn: whatever fees were not told before are in it."""
    usual = state.status in (_ACTIVE, _PAUSED)
    return _told(usual, state, status=_COMPLETED, withdrawn_amount=state.deposit_amount)


def _paused(state: StreamState, event: ContractEvent) -> Folded:
    usual = state.status == _ACTIVE
    changes = {"paused_at_timestamp": event.closed_at, "last_pause_toggle_ledger": event.ledger}
    return _told(usual, state, status=_PAUSED, **changes)


def _resumed(state: StreamState, event: ContractEvent) -> Folded:
    usual = state.status == _PAUSED
    total = state.cumulative_paused_duration
    if usual:
        total += max(0, event.closed_at - state.paused_at_timestamp)
    changes = {"paused_at_timestamp": 0, "cumulative_paused_duration": total, "last_pause_toggle_ledger": event.ledger}
    return _told(usual, state, status=_ACTIVE, **changes)


def _cancelled(state: StreamState, event: ContractEvent) -> Folded:
    usual = state.status in (_ACTIVE, _PAUSED)
    return _told(usual, state, "cancelled", status=_CANCELLED, cancelled_at=event.closed_at)


def _kp_cncl(state: StreamState, event: ContractEvent) -> Folded:
    """A keeper's cancellation pays the recipient without counting it as withdrawn: the contract may pay it again."""
    paid = state.paid_out + event.data["recipient_amount"]
    return _ask(state, "cancelled", status=_CANCELLED, cancelled_at=event.closed_at, paid_out=paid)


def _closed(state: StreamState, event: ContractEvent) -> Folded:
    """The entry is deleted. The contract does that to a cancelled stream only once nothing of it is claimable.

    So whatever fees were not told before are in what was withdrawn; there is no entry any more to ask.
    """
    withdrawn = state.withdrawn_amount
    if state.status == _CANCELLED:
        withdrawn = max(withdrawn, accrued(state, event.closed_at))
    return _sure(state, closed_at=event.closed_at, withdrawn_amount=withdrawn)


def _rate_upd(state: StreamState, event: ContractEvent) -> Folded:
    """A rate set by one of two functions under one name: one checkpoints (upwards only), the older one is retroactive.

    The event does not say which. The checkpointing one refuses what is listed here, so those are the older one's; of
    the rest it is the likelier, and asked about unless both come to the same.
    """
    data = event.data
    old, new = data["old_rate_per_second"], data["new_rate_per_second"]
    at = data.get("effective_time", event.closed_at)
    refused = (
        state.status not in (_ACTIVE, _PAUSED)
        or bool(state.decommissioned)
        or (state.kind_known and state.kind != _LINEAR)
        or at >= state.end_time
        or state.deposit_amount < new * (state.end_time - state.start_time)
    )
    agrees = old == state.rate_per_second
    if new <= old or refused:
        return _told(agrees, state, rate_per_second=new)
    checkpoint = accrued_on_schedule(state, at)
    same = checkpoint == state.checkpointed_amount and at == state.checkpointed_at
    changes = {"checkpointed_amount": checkpoint, "checkpointed_at": at, "last_rate_change_ledger": event.ledger}
    return _told(agrees and same, state, rate_per_second=new, **changes)


def _rate_dec(state: StreamState, event: ContractEvent) -> Folded:
    """A checkpointing decrease; everything is told. Linear streams only."""
    data = event.data
    rate, checkpoint, at = data["new_rate_per_second"], data["checkpointed_amount"], data["effective_time"]
    deposit = state.deposit_amount - data["refund_amount"]
    return _told(
        deposit == checkpoint + rate * (state.end_time - at),
        state,
        rate_per_second=rate,
        checkpointed_amount=checkpoint,
        checkpointed_at=at,
        deposit_amount=deposit,
        last_rate_change_ledger=event.ledger,
        kind=_LINEAR,
        kind_known=True,
    )


def _end_shrt(state: StreamState, event: ContractEvent) -> Folded:
    data = event.data
    end, deposit = data["new_end_time"], state.deposit_amount - data["refund_amount"]
    agrees = data.get("old_end_time", state.end_time) == state.end_time and deposit >= 0
    return _told(agrees, state, end_time=end, deposit_amount=deposit, kind=_LINEAR, kind_known=True)


def _end_ext(state: StreamState, event: ContractEvent) -> Folded:
    agrees = event.data.get("old_end_time", state.end_time) == state.end_time
    return _told(agrees, state, end_time=event.data["new_end_time"], kind=_LINEAR, kind_known=True)


def _top_up(state: StreamState, event: ContractEvent) -> Folded:
    """More deposit. The event's `new_end_time` is the end as it was: a top-up does not move it."""
    deposit = event.data["new_deposit_amount"]
    agrees = event.data.get("top_up_amount") in (None, deposit - state.deposit_amount)
    return _told(agrees, state, deposit_amount=deposit)


def _del_share(state: StreamState, event: ContractEvent) -> Folded:
    """Part of the recipient's rate goes to a new stream, which no `created` announces. Linear streams only."""
    data = event.data
    now, rate, child_rate = event.closed_at, data["new_parent_rate"], data["child_rate"]
    checkpoint = accrued_on_schedule(state, now)
    deposit = checkpoint + rate * max(0, state.end_time - now)
    parent = replace(
        state,
        checkpointed_amount=checkpoint,
        checkpointed_at=now,
        rate_per_second=rate,
        deposit_amount=deposit,
        kind=_LINEAR,
        kind_known=True,
    )
    child = StreamState(
        stream_id=data["child_stream_id"],
        sender=state.sender,
        recipient=data["delegatee"],
        deposit_amount=max(0, state.deposit_amount - deposit),
        rate_per_second=child_rate,
        start_time=now,
        cliff_time=max(state.cliff_time, now),
        end_time=state.end_time,
        checkpointed_at=now,
        withdraw_dust_threshold=state.withdraw_dust_threshold,
        memo=state.memo,
        metadata=state.metadata,
        witness=state.witness,
        irrevocable=state.irrevocable,
        delegation_depth=state.delegation_depth + 1,
        parent_stream_id=state.stream_id,
    )
    return Folded(parent, child, "updated", wants_entry=state.closed_at is None)


def _offr_acc(state: StreamState, _event: ContractEvent) -> Folded:
    """An accepted offer; `created` came before it with the same id and all that the offer's event would add."""
    return Folded(state, None, "updated", wants_entry=not state.kind_known and state.closed_at is None)


_PARTIES: Final = ("sender", "recipient", "claim_owner", "witness")

# What no function of the contract changes after the creation.
_IDENTITY: Final = (
    "kind",
    "irrevocable",
    "witness",
    "is_pooled",
    "parent_stream_id",
    "delegation_depth",
    "withdraw_dust_threshold",
    "memo",
    "metadata",
)
_SCHEDULE: Final = ("sender", "recipient", "start_time", "cliff_time", "end_time", "rate_per_second", "checkpointed_at")


def _corrected(state: StreamState | None, event: ContractEvent) -> Folded:
    """What the stream's ledger entry says.

    `immutable_only`: the entry is newer than the events folded so far, so only what never changes is taken from it;
    whoever read it too early reads again. A stream without known parties also takes its schedule: later events set
    those numbers, they do not add to them.
    """
    entry: dict[str, Any] = event.data["entry"]
    if "checkpointed_at" not in entry and "start_time" in entry:  # of a contract that does not know checkpoints
        entry = entry | {"checkpointed_at": entry["start_time"], "checkpointed_amount": 0}
    try:
        fields = read_fields(entry)
    except DecodeError:  # asking again would bring the same answer
        return Folded(state, None, "updated", wants_entry=False)
    if not all(is_account_or_contract(fields[name]) for name in _PARTIES if fields.get(name) is not None):
        return Folded(state, None, "updated", wants_entry=False)  # the same
    fields.update(stream_id=event.stream_id, kind_known=True)  # an entry without a kind is of a contract without kinds
    partial = bool(event.data.get("immutable_only"))
    if state is None:
        return Folded(None if partial else StreamState(**fields), None, "updated", wants_entry=partial)
    names = CONTRACT_FIELDS if not partial else _IDENTITY if state.sender else _IDENTITY + _SCHEDULE
    changes = {name: fields[name] for name in names if name in entry and name in fields and name != "stream_id"}
    return _sure(state, **changes, kind_known=True)


_STEPS: Final[dict[str, Callable[[StreamState, ContractEvent], Folded]]] = {
    "withdrew": _withdrew,
    "wdraw_to": _wdraw_to,
    "completed": _completed,
    "paused": _paused,
    "resumed": _resumed,
    "cancelled": _cancelled,
    "kp_cncl": _kp_cncl,
    "closed": _closed,
    "rate_upd": _rate_upd,
    "rate_dec": _rate_dec,
    "end_shrt": _end_shrt,
    "end_ext": _end_ext,
    "top_up": _top_up,
    "del_share": _del_share,
    "offr_acc": _offr_acc,
    "sndr_xfr": lambda state, event: _sure(state, sender=event.data["new_sender"]),
    "recp_upd": lambda state, event: _sure(state, recipient=event.data["new_recipient"]),
    "claim_own": lambda state, event: _sure(state, claim_owner=event.data["new_owner"]),
    "decomm": lambda state, event: _sure(state, decommissioned=event.data["decommissioned"]),
    "cloned": lambda state, event: _sure(state, cloned_from=event.data["source_stream_id"]),
    "renewed": lambda state, event: _sure(state, renewed_to=event.data["new_stream_id"]),
    "ac_set": lambda state, event: _sure(state, auto_claim_destination=event.data["destination"]),
    "ac_revoke": lambda state, _event: _sure(state, auto_claim_destination=None),
}
