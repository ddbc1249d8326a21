"""What a simulated stream has earned: the contract's accrual and payout rules, written down here on their own.

This is an oracle for the backend's own arithmetic, so it shares no code with it. All amounts are base units, times Unix
seconds.
"""

from __future__ import annotations

from typing import Any

import msgspec

I128_MAX = (1 << 127) - 1
SECONDS_PER_LEDGER = 5  # the contract's own assumption in the lookback window

ACTIVE, PAUSED, COMPLETED, CANCELLED = 0, 1, 2, 3
LINEAR, CLIFF_ONLY, CLIFF_SLOPE = 0, 1, 2


class Stream(msgspec.Struct, kw_only=True):
    """A stream as the contract stores it: the 29 fields of its storage entry."""

    stream_id: int
    sender: str
    recipient: str
    claim_owner: str | None = None
    deposit_amount: int
    rate_per_second: int
    start_time: int
    cliff_time: int
    end_time: int
    withdrawn_amount: int = 0
    status: int = ACTIVE
    cancelled_at: int | None = None
    checkpointed_amount: int = 0
    checkpointed_at: int
    withdraw_dust_threshold: int = 0
    memo: bytes | None = None
    kind: int = LINEAR
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

    def fields(self) -> dict[str, Any]:
        """The storage fields by their own names, enums as numbers."""
        return {name: getattr(self, name) for name in self.__struct_fields__}


def on_schedule(stream: Stream, at: int) -> int:
    """What the schedule alone gives at `at`: the cliff hides it, a checkpoint restarts it, the deposit caps it."""
    if at < stream.cliff_time or stream.deposit_amount <= 0:
        return 0
    if stream.kind == CLIFF_ONLY:
        return stream.deposit_amount
    until = min(at, stream.end_time)
    if stream.kind == CLIFF_SLOPE:  # from the cliff, blind to checkpoints
        earned = min(max(0, until - stream.cliff_time) * stream.rate_per_second, I128_MAX)
        return max(0, min(earned, stream.deposit_amount))
    if stream.rate_per_second < 0:
        return 0
    added = 0
    if stream.checkpointed_at < stream.end_time:
        added = max(0, until - stream.checkpointed_at) * stream.rate_per_second
        if added > I128_MAX:
            added = stream.deposit_amount
    return max(0, min(stream.checkpointed_amount + added, stream.deposit_amount))


def accrued(stream: Stream, at: int) -> int:
    """What the recipient has earned at `at`, with the status looked at: a pause does not stop it, a cancel does."""
    if stream.status == COMPLETED:
        return stream.deposit_amount
    if stream.status == CANCELLED and stream.cancelled_at is not None:
        return on_schedule(stream, stream.cancelled_at)
    return on_schedule(stream, at)


def payout(stream: Stream, at: int, *, lookback: int | None = None, dust_matters: bool = True) -> int:
    """What a withdrawal at `at` pays: the unpaid part, through the lookback window, nothing below the dust threshold.

    The threshold does not hold at the end, after a cancel, or for the very last units.
    """
    amount = accrued(stream, at) - stream.withdrawn_amount
    if lookback is not None and stream.kind != CLIFF_ONLY:
        effective = at if stream.cancelled_at is None else stream.cancelled_at
        endpoint = min(effective, stream.end_time)
        opening = max(0, endpoint - SECONDS_PER_LEDGER * lookback)
        amount = min(amount, on_schedule(stream, endpoint) - on_schedule(stream, opening))
    if amount <= 0:
        return 0
    final = (
        at >= stream.end_time
        or stream.status in (COMPLETED, CANCELLED)
        or amount == stream.deposit_amount - stream.withdrawn_amount
    )
    if dust_matters and amount < stream.withdraw_dust_threshold and not final:
        return 0
    return amount
