"""A stream's state and its value at any second, after the stream contract's own functions.

Units: amounts are ints in the token's base units (i128 on the ledger), rates are base units per second, times are Unix
seconds (u64). Nothing here reads a clock: `at` is always given, and it may lie in the past or the future.

The contract's rules that are easy to get wrong
- Accrual runs from the last checkpoint (the start, until a rate changes); the cliff only hides it.
- A pause does not stop accrual.
- A completed stream has accrued its whole deposit; a cancelled one is valued at the second of its cancellation.
- CliffSlope ignores checkpoints and the start; CliffOnly pays everything at the cliff.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any

import msgspec

from fluxora.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Mapping

I128_MAX = (1 << 127) - 1
SECONDS_PER_LEDGER = 5  # the contract's conversion of a lookback window, whatever the network's real pace is


class StreamStatus(IntEnum):
    """Status as the contract stores it. "Ended" is none of them: no event happens at the end time."""

    ACTIVE = 0
    PAUSED = 1
    COMPLETED = 2
    CANCELLED = 3


class StreamKind(IntEnum):
    """How a stream accrues."""

    LINEAR = 0
    CLIFF_ONLY = 1
    CLIFF_SLOPE = 2


class StreamState(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """Everything known of one stream: the contract's 29 storage fields by their names, then what only an indexer keeps.

    `sender` and `recipient` are "" while they are unknown (the oldest `created` events carry a deposit and no more).
    `closed_at`: when the contract deleted the entry. `paid_out`: what the events say was paid to the recipient's side,
    relayer fees left out; it parts from `withdrawn_amount` after a keeper's cancellation, which pays without counting.
    `kind_known`: False while `kind` is a guess that accrual depends on.
    """

    stream_id: int = 0
    sender: str = ""
    recipient: str = ""
    claim_owner: str | None = None
    deposit_amount: int = 0
    rate_per_second: int = 0
    start_time: int = 0
    cliff_time: int = 0
    end_time: int = 0
    withdrawn_amount: int = 0
    status: StreamStatus = StreamStatus.ACTIVE
    cancelled_at: int | None = None
    checkpointed_amount: int = 0
    checkpointed_at: int = 0
    withdraw_dust_threshold: int = 0
    memo: bytes | None = None
    kind: StreamKind = StreamKind.LINEAR
    last_pause_toggle_ledger: int = 0
    last_withdraw_ledger: int = 0
    metadata: dict[bytes, bytes] | None = None
    irrevocable: bool | None = None
    witness: str | None = None
    is_pooled: bool | None = None
    last_rate_change_ledger: int = 0
    delegation_depth: int = 0
    parent_stream_id: int | None = None
    decommissioned: bool | None = None
    paused_at_timestamp: int = 0
    cumulative_paused_duration: int = 0

    closed_at: int | None = None
    paid_out: int = 0
    max_lookback_ledgers: int | None = None
    auto_claim_destination: str | None = None
    renewed_to: int | None = None
    cloned_from: int | None = None
    kind_known: bool = True

    @classmethod
    def from_contract(cls, fields: Mapping[str, Any]) -> StreamState:
        """Read the contract's storage fields by name: ints or digit strings, enums by number or variant name.

        Missing fields take their defaults (`checkpointed_at` the start time, `paid_out` what was withdrawn); unknown
        ones are ignored.

        Raises:
            DecodeError: a known field has a value of another type.
        """
        return cls(**read_fields(fields))


# An enum member read off its class costs a call; these stand in the hot functions below.
_PAUSED, _COMPLETED, _CANCELLED = StreamStatus.PAUSED, StreamStatus.COMPLETED, StreamStatus.CANCELLED
_CLIFF_ONLY, _CLIFF_SLOPE = StreamKind.CLIFF_ONLY, StreamKind.CLIFF_SLOPE

CONTRACT_FIELDS: tuple[str, ...] = StreamState.__struct_fields__[:29]
_INTS = frozenset(name for name, hint in StreamState.__annotations__.items() if hint in {"int", "int | None"})
_TEXTS = frozenset(("sender", "recipient", "claim_owner", "witness", "auto_claim_destination"))
_FLAGS = frozenset(("irrevocable", "is_pooled", "decommissioned", "kind_known"))
_OPTIONAL = frozenset(name for name, hint in StreamState.__annotations__.items() if hint.endswith("| None"))
_STATUSES = {"Active": 0, "Paused": 1, "Completed": 2, "Cancelled": 3}
_KINDS = {"Linear": 0, "CliffOnly": 1, "CliffSlope": 2}


def read_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the known members of a storage mapping to what StreamState holds, with the defaults of `from_contract`.

    Raises:
        DecodeError: a known field has a value of another type.
    """
    known: dict[str, Any] = {}
    for name in StreamState.__struct_fields__:
        if name in fields:
            value = fields[name]
            if value is None:
                if name in _OPTIONAL:
                    known[name] = None
                continue
            known[name] = _read(name, value)
    known.setdefault("checkpointed_at", known.get("start_time", 0))
    known.setdefault("paid_out", known.get("withdrawn_amount", 0))
    return known


def _read(name: str, value: Any) -> Any:
    """One field's value, or DecodeError with the field's name."""
    try:
        if name in _INTS:
            return _integer(value)
        if name == "status":
            return StreamStatus(int(_STATUSES.get(value, value)))
        if name == "kind":
            return StreamKind(int(_KINDS.get(value, value)))
        if name == "metadata":
            return {_octets(key): _octets(item) for key, item in value.items()}
        if name == "memo":
            return _octets(value)
    except (TypeError, ValueError, AttributeError) as error:
        raise DecodeError(f"stream field {name}: {error}") from error
    if (name in _TEXTS and not isinstance(value, str)) or (name in _FLAGS and not isinstance(value, bool)):
        raise DecodeError(f"stream field {name}: {type(value).__name__}")
    return value


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(type(value).__name__)
    return int(value)


def _octets(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    raise TypeError(type(value).__name__)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(StreamState, strict=False)


def pack_state(state: StreamState) -> bytes:
    """MessagePack of a state; ints beyond 64 bits, which MessagePack lacks, travel as digit strings."""
    try:
        return _encoder.encode(state)
    except OverflowError:
        fields = {
            name: str(value) if type(value) is int and value.bit_length() > 63 else value  # an IntEnum stays a number
            for name, value in zip(StreamState.__struct_fields__, msgspec.structs.astuple(state), strict=True)
        }
        return _encoder.encode(fields)


def unpack_state(packed: bytes) -> StreamState:
    """The state that `pack_state` wrote. Fields added since take their defaults.

    Raises:
        DecodeError: not such a state.
    """
    try:
        return _decoder.decode(packed)
    except msgspec.DecodeError as error:
        raise DecodeError(f"stored stream state: {error}") from error


def accrued_on_schedule(state: StreamState, at: int) -> int:
    """What the schedule alone has streamed by `at`, whatever the status (calculate_accrued_amount_checkpointed).

    Between 0 and the deposit; never falls as `at` grows.
    """
    deposit = state.deposit_amount
    if at < state.cliff_time or deposit <= 0:
        return 0
    kind = state.kind
    if kind == _CLIFF_ONLY:
        return deposit
    rate = state.rate_per_second
    end = state.end_time
    if kind == _CLIFF_SLOPE:
        # The contract's multiplication saturates at i128's limits; the deposit is a tighter bound on either side.
        elapsed = min(at, end) - state.cliff_time
        if elapsed <= 0 or rate <= 0:
            return 0
        return min(elapsed * rate, deposit)
    if rate < 0:
        return 0
    total = state.checkpointed_amount
    elapsed = (at if at < end else end) - state.checkpointed_at  # noqa: FURB136  # half the time of min()
    if elapsed > 0:
        added = elapsed * rate
        total += added if added <= I128_MAX else deposit
    if total > deposit:
        return deposit
    return total if total > 0 else 0  # noqa: FURB136  # half the time of max()


def accrued(state: StreamState, at: int) -> int:
    """What the stream has streamed by `at` (calculate_accrued).

    Whatever `at` is, a completed stream has streamed its deposit and a cancelled one what it had at its cancellation.
    """
    status = state.status
    if status == _COMPLETED:
        return max(0, state.deposit_amount)  # no honest contract has one below 0
    if status == _CANCELLED and state.cancelled_at is not None:
        at = state.cancelled_at
    return accrued_on_schedule(state, at)


def _within_lookback(state: StreamState, at: int, total: int, claimable: int) -> int:
    """Bound a claim to what the last `max_lookback_ledgers` before `at` have accrued (apply_lookback_cap)."""
    window = state.max_lookback_ledgers
    if window is None:
        return claimable
    if state.kind == _CLIFF_ONLY and total > 0:
        return max(0, min(claimable, total))  # paid once and whole, however late it is claimed
    endpoint = min(at, state.end_time)
    before = max(0, endpoint - window * SECONDS_PER_LEDGER)
    recent = accrued_on_schedule(state, endpoint) - accrued_on_schedule(state, before)
    return max(0, min(claimable, recent))


def claimable_at(state: StreamState, at: int) -> int:
    """What could be claimed at `at` (get_claimable_at): a paused stream counts as active, a completed one has 0."""
    if state.status == _COMPLETED:
        return 0
    if state.status == _CANCELLED and state.cancelled_at is not None:
        at = min(at, state.cancelled_at)
    total = accrued_on_schedule(state, at)
    return max(0, _within_lookback(state, at, total, total - state.withdrawn_amount))


def withdrawable(state: StreamState, at: int, total: int | None = None) -> int:
    """What a wallet shows as withdrawable at `at` (get_withdrawable): 0 while paused, even past the end, or completed.

    `total` is accrued(state, at) where the caller has it. The lookback window ends at `at` even when the stream is
    cancelled, as in the contract. The contract's own token balance, its last bound, is not known here.
    """
    status = state.status
    if status == _COMPLETED or status == _PAUSED:  # noqa: PLR1714, SIM109  # half the time of a tuple
        return 0
    if total is None:
        total = accrued(state, at)
    claimable = total - state.withdrawn_amount
    if state.max_lookback_ledgers is not None:
        claimable = _within_lookback(state, at, total, claimable)
    return claimable if claimable > 0 else 0  # noqa: FURB136  # half the time of max()


def payout(state: StreamState, at: int) -> int:
    """What `withdraw` would pay at `at`; 0 where it refuses (completed; paused before the end) or pays nothing.

    Below the dust threshold nothing is paid, unless the stream has ended, is terminal, or this drains it.
    """
    terminal = state.status in (_COMPLETED, _CANCELLED) or at >= state.end_time
    if state.status == _COMPLETED or (state.status == _PAUSED and not terminal):
        return 0
    total = accrued(state, at)
    effective = state.cancelled_at if state.cancelled_at is not None else at
    amount = _within_lookback(state, effective, total, total - state.withdrawn_amount)
    drains = state.withdrawn_amount + amount >= state.deposit_amount
    if amount <= 0 or (amount < state.withdraw_dust_threshold and not terminal and not drains):
        return 0
    return amount


def refund(state: StreamState, at: int) -> int:
    """What a cancellation at `at` gives back to the sender, or gave back if the stream is cancelled; 0 once completed.

    With `accrued` it always makes the deposit. An irrevocable stream refuses the call; the amount is hypothetical then.
    """
    return max(0, state.deposit_amount - accrued(state, at))


def depletion_time(state: StreamState) -> int | None:
    """The second when `accrued_on_schedule` first reaches the most it ever will.

    That is the deposit, or what the rate makes of the time to the end where the deposit is larger. Seconds before the
    last checkpoint are not considered. None when nothing ever accrues, and when the stream was cancelled before it.
    """
    cliff, end, kind = state.cliff_time, state.end_time, state.kind
    most = accrued_on_schedule(state, end if end > cliff else cliff)  # noqa: FURB136  # half the time of max()
    if most == 0:
        return None
    if kind == _CLIFF_ONLY:
        reached = cliff
    elif kind == _CLIFF_SLOPE:
        reached = cliff - (-most // state.rate_per_second)
    else:
        since = state.checkpointed_at
        reached = cliff if cliff > since else since  # noqa: FURB136
        missing = most - state.checkpointed_amount
        if missing > 0:
            full = since - (-missing // state.rate_per_second)
            reached = full if full > reached else reached  # noqa: FURB136
    if state.cancelled_at is not None and state.cancelled_at < reached:
        return None
    return reached
