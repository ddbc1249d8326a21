"""Calls that move money or end a stream: create, withdraw in its many forms, cancel, close."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fluxora.localnet.contract.accrual import (
    ACTIVE,
    CANCELLED,
    CLIFF_ONLY,
    COMPLETED,
    LINEAR,
    PAUSED,
    Stream,
    accrued,
    payout,
)
from fluxora.localnet.contract.state import ContractError, ContractState

KEEPER_GRACE_S = 604_800
KEEPER_FEE_BPS = 50


class PaymentCalls(ContractState):
    """Creation, payment and the end of streams."""

    def create(
        self,
        sender: str,
        recipient: str,
        *,
        deposit: int,
        rate: int,
        end: int,
        start: int | None = None,
        cliff: int | None = None,
        kind: int = LINEAR,
        dust: int = 0,
        memo: bytes | None = None,
        metadata: dict[bytes, bytes] | None = None,
        irrevocable: bool | None = None,
        witness: str | None = None,
        lookback: int | None = None,
        shares: Mapping[str, int] | None = None,
    ) -> int:
        """Create a stream (create_stream and its variants) and return its id. `start` defaults to now, `cliff` to it.

        `lookback` sets MaxLookbackLedgers; `shares` (member to weight) makes it a pool, whose recipient is its sender.

        Raises:
            ContractError: 4 while creation is paused, 3 for terms that make no sense, 10 for too small a deposit.
        """
        start = self.now if start is None else start
        cliff = start if cliff is None else cliff
        self._check_creation()
        if sender == recipient and not shares:
            raise ContractError(3)
        self._check_terms(kind, deposit=deposit, rate=rate, start=start, cliff=cliff, end=end)
        stream = Stream(
            stream_id=self._next_id(),
            sender=sender,
            recipient=sender if shares else recipient,
            deposit_amount=deposit,
            rate_per_second=rate,
            start_time=start,
            cliff_time=cliff,
            end_time=end,
            checkpointed_at=start,
            withdraw_dust_threshold=dust,
            memo=memo,
            metadata=metadata,
            kind=kind,
            irrevocable=irrevocable,
            witness=witness,
            is_pooled=True if shares else None,
        )
        if lookback is not None:
            self._put(lookback, "MaxLookbackLedgers", stream.stream_id)
        if shares:
            self._put(dict(shares), "PooledStreamShares", stream.stream_id)
        self._insert(self._begin(), stream)
        return stream.stream_id

    def _check_creation(self) -> None:
        if self.globals.emergency_paused or self.globals.creation_paused:
            raise ContractError(4)

    def _check_terms(self, kind: int, *, deposit: int, rate: int, start: int, cliff: int, end: int) -> None:
        if deposit <= 0 or rate < 0 or not start <= cliff <= end or start >= end or (rate == 0) != (kind == CLIFF_ONLY):
            raise ContractError(3)
        if kind == LINEAR and deposit < rate * (end - start):
            raise ContractError(10)

    def _insert(self, call: int, stream: Stream) -> None:
        self._put(stream, "Stream", stream.stream_id)
        fields = stream.fields()
        del fields["stream_id"]
        self._emit_stream(call, "created", stream.stream_id, **fields)

    # -- withdrawing ---------------------------------------------------------------------------------------------------

    def withdraw(self, stream_id: int) -> int:
        """Pay the recipient what is due and return it; nothing due is no event.

        Raises:
            ContractError: 31 for a second one in a ledger, 2 while paused before the end, 13 when completed.
        """
        stream = self.stream(stream_id)
        self._check_withdrawable(stream)
        self._check_not_again(stream)
        return self._pay_recipient(
            self._begin(), stream_id, payout(stream, self.now, lookback=self._lookback(stream_id))
        )

    def delegated_withdraw(self, stream_id: int, *, fee: int) -> int:
        """A relayer's withdrawal: the recipient gets (and the event says) the amount less the relayer's `fee`."""
        stream = self.stream(stream_id)
        self._check_withdrawable(stream)
        self._check_not_again(stream)
        gross = payout(stream, self.now, lookback=self._lookback(stream_id), dust_matters=False)
        return self._pay_recipient(self._begin(), stream_id, gross, fee=fee) if gross > fee else 0

    def withdraw_to(self, stream_id: int, destination: str) -> int:
        """Pay what is due to another address; not throttled."""
        stream = self.stream(stream_id)
        self._check_withdrawable(stream)
        return self._pay_destination(self._begin(), stream_id, destination)

    def batch_withdraw(self, stream_ids: Sequence[int]) -> int:
        """Pay what is due of several streams in one transaction, each with `wdraw_to` to its own recipient."""
        for stream_id in stream_ids:
            self._check_withdrawable(self.stream(stream_id))
        call = self._begin()
        return sum(self._pay_destination(call, one, self.stream(one).recipient) for one in stream_ids)

    def set_auto_claim(self, stream_id: int, destination: str) -> None:
        """Let anybody trigger payments to `destination`."""
        self.stream(stream_id)
        self._put(destination, "AutoClaimDestination", stream_id)
        self._emit_stream(self._begin(), "ac_set", stream_id, destination=destination)

    def revoke_auto_claim(self, stream_id: int) -> None:
        """Take it back."""
        self.stream(stream_id)
        self._put(None, "AutoClaimDestination", stream_id)
        self._emit_stream(self._begin(), "ac_revoke", stream_id)

    def trigger_auto_claim(self, stream_id: int) -> int:
        """Pay to the auto-claim destination: `ac_trig`, then `wdraw_to` with the same amount."""
        stream = self.stream(stream_id)
        self._check_withdrawable(stream)
        destination = self._get("AutoClaimDestination", stream_id)
        if destination is None:
            raise ContractError(2)
        amount = payout(stream, self.now, lookback=self._lookback(stream_id), dust_matters=False)
        if amount == 0:
            return 0
        call = self._begin()
        self._emit_stream(call, "ac_trig", stream_id, destination=destination, amount=amount)
        return self._pay_destination(call, stream_id, destination, dust_matters=False)

    def withdraw_from_pool(self, stream_id: int, member: str) -> int:
        """Pay one member of a pool its share of what has accrued, rounded down."""
        stream = self.stream(stream_id)
        self._check_withdrawable(stream)
        shares: dict[str, int] | None = self._get("PooledStreamShares", stream_id)
        if shares is None or member not in shares:
            raise ContractError(3)
        taken: int = self._get("PooledStreamWithdrawn", stream_id, member) or 0
        amount = accrued(stream, self.now) * shares[member] // sum(shares.values()) - taken
        if amount <= 0:
            return 0
        call = self._begin()
        self._put(taken + amount, "PooledStreamWithdrawn", stream_id, member)
        changed = self._edit(stream_id)
        changed.withdrawn_amount += amount
        self._pay(stream_id, amount)
        self._emit_stream(call, "withdrew", stream_id, recipient=member, amount=amount)
        self._complete_if_paid(call, changed)
        return amount

    def _lookback(self, stream_id: int) -> int | None:
        window: int | None = self._get("MaxLookbackLedgers", stream_id)
        return window

    def _check_withdrawable(self, stream: Stream) -> None:
        if self.globals.emergency_paused:
            raise ContractError(4)
        if stream.status == COMPLETED:
            raise ContractError(13)
        if stream.status == PAUSED and self.now < stream.end_time:
            raise ContractError(2)

    def _check_not_again(self, stream: Stream) -> None:
        if stream.last_withdraw_ledger == self.ledger:
            raise ContractError(31)

    def _pay_recipient(self, call: int, stream_id: int, gross: int, *, fee: int = 0) -> int:
        if gross <= 0:
            return 0
        changed = self._edit(stream_id)
        changed.withdrawn_amount += gross
        changed.last_withdraw_ledger = self.ledger
        self._pay(stream_id, gross - fee)
        self._emit_stream(call, "withdrew", stream_id, recipient=changed.recipient, amount=gross - fee)
        self._complete_if_paid(call, changed)
        return gross - fee

    def _pay_destination(self, call: int, stream_id: int, destination: str, *, dust_matters: bool = True) -> int:
        window = self._lookback(stream_id)
        amount = payout(self.stream(stream_id), self.now, lookback=window, dust_matters=dust_matters)
        if amount <= 0:
            return 0
        changed = self._edit(stream_id)
        changed.withdrawn_amount += amount
        self._pay(stream_id, amount)
        self._emit_stream(
            call, "wdraw_to", stream_id, recipient=changed.recipient, destination=destination, amount=amount
        )
        self._complete_if_paid(call, changed)
        return amount

    def _complete_if_paid(self, call: int, changed: Stream) -> None:
        if changed.status in (ACTIVE, PAUSED) and changed.withdrawn_amount >= changed.deposit_amount:
            changed.status = COMPLETED
            self._emit_variant(call, "completed", changed.stream_id)

    # -- ending --------------------------------------------------------------------------------------------------------

    def cancel(self, stream_id: int) -> int:
        """Cancel a stream (also after its end) and return what the sender gets back."""
        if self.globals.emergency_paused:
            raise ContractError(4)
        self._check_cancellable(self.stream(stream_id))
        self._emit_variant(self._begin(), "cancelled", stream_id)
        return self._cancelled(stream_id)

    def bulk_cancel(self, stream_ids: Sequence[int]) -> None:
        """The admin's cancel of several streams in one transaction: each is paid what is due and cancelled."""
        for stream_id in stream_ids:
            self._check_cancellable(self.stream(stream_id))
        call = self._begin()
        for stream_id in stream_ids:
            stream = self.stream(stream_id)
            due = accrued(stream, self.now) - stream.withdrawn_amount
            if due > 0:
                self._edit(stream_id).withdrawn_amount += due
                self._pay(stream_id, due)
                self._emit_stream(call, "withdrew", stream_id, recipient=stream.recipient, amount=due)
            self._emit_variant(call, "cancelled", stream_id)
            self._cancelled(stream_id)
            self._emit_stream(call, "health", stream_id, is_underfunded=False, remaining_balance=0, seconds_remaining=0)

    def keeper_cancel(self, stream_id: int, keeper: str) -> int:
        """Anybody's cancel a week after the end, for a fee. Pays the recipient without counting it as withdrawn.

        Raises:
            ContractError: 33 within the grace period.
        """
        stream = self.stream(stream_id)
        self._check_cancellable(stream)
        if self.now < stream.end_time + KEEPER_GRACE_S:
            raise ContractError(33)
        earned = accrued(stream, self.now)
        fee = (stream.deposit_amount - earned) * KEEPER_FEE_BPS // 10_000
        refund = stream.deposit_amount - earned - fee
        due = earned - stream.withdrawn_amount
        self._pay(stream_id, due)
        call = self._begin()
        self._emit_stream(
            call, "kp_cncl", stream_id, keeper=keeper, keeper_fee=fee, recipient_amount=due, sender_refund=refund
        )
        self._cancelled(stream_id)
        return fee

    def _check_cancellable(self, stream: Stream) -> None:
        if stream.status not in (ACTIVE, PAUSED):
            raise ContractError(13)
        if stream.irrevocable:
            raise ContractError(2)

    def _cancelled(self, stream_id: int) -> int:
        changed = self._edit(stream_id)
        changed.status = CANCELLED
        changed.cancelled_at = self.now
        return changed.deposit_amount - accrued(changed, self.now)

    def close(self, stream_id: int) -> None:
        """Delete a completed stream, or a cancelled one with nothing left to claim.

        Raises:
            ContractError: 2, there is still something to come.
        """
        stream = self.stream(stream_id)
        done = stream.status == CANCELLED and accrued(stream, self.now) <= stream.withdrawn_amount
        if stream.status != COMPLETED and not done:
            raise ContractError(2)
        self._emit_variant(self._begin(), "closed", stream_id)
        self._put(stream, "Closed", stream_id)
        for name in ("Stream", "AutoClaimDestination", "MaxLookbackLedgers", "AutoRenewEnabled", "PooledStreamShares"):
            if self._get(name, stream_id) is not None:
                self._put(None, name, stream_id)
