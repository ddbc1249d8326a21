"""Calls that change a running stream or the contract: pause, rates, end, deposit, owners, shares, flags, admin."""

from __future__ import annotations

from fluxora.localnet.contract.accrual import ACTIVE, LINEAR, PAUSED, Stream, accrued
from fluxora.localnet.contract.state import ContractError, ContractState

PAUSE_REASONS = ("Operational", "Administrative", "Emergency", "Compliance")
MAX_DELEGATION_DEPTH = 5


class ScheduleCalls(ContractState):
    """Changes to running streams."""

    def pause(self, stream_id: int, reason: str = "Operational") -> None:
        """Pause an active stream before its end; accrual goes on, withdrawals do not.

        Raises:
            ContractError: 11 when paused, 13 when over, 2 past the end, 30 within the cooldown.
        """
        stream = self.stream(stream_id)
        if stream.status == PAUSED:
            raise ContractError(11)
        self._check_running(stream)
        self._check_toggle(stream)
        changed = self._edit(stream_id)
        changed.status = PAUSED
        changed.paused_at_timestamp = self.now
        changed.last_pause_toggle_ledger = self.ledger
        self._emit_stream(self._begin(), "paused", stream_id, reason=reason)

    def resume(self, stream_id: int) -> None:
        """Resume a paused stream before its end."""
        stream = self.stream(stream_id)
        if stream.status != PAUSED:
            raise ContractError(12)
        self._check_toggle(stream)
        changed = self._edit(stream_id)
        changed.status = ACTIVE
        changed.cumulative_paused_duration += self.now - stream.paused_at_timestamp
        changed.paused_at_timestamp = 0
        changed.last_pause_toggle_ledger = self.ledger
        self._emit_variant(self._begin(), "resumed", stream_id)

    def _check_toggle(self, stream: Stream) -> None:
        if self.now >= stream.end_time:
            raise ContractError(2)
        last = stream.last_pause_toggle_ledger
        if last and self.ledger - last < self.cooldown_ledgers:
            raise ContractError(30)

    def _check_running(self, stream: Stream) -> None:
        if stream.status not in (ACTIVE, PAUSED):
            raise ContractError(13)

    def _check_changeable(self, stream: Stream) -> None:
        if self.globals.emergency_paused:
            raise ContractError(4)
        self._check_running(stream)
        if stream.decommissioned or self.now >= stream.end_time:
            raise ContractError(2)

    def _check_terms_changeable(self, stream: Stream) -> None:
        self._check_changeable(stream)
        if stream.kind != LINEAR:
            raise ContractError(28)

    def _check_rate_change(self, stream: Stream) -> None:
        self._check_terms_changeable(stream)
        last = stream.last_rate_change_ledger
        if last and self.ledger - last < self.cooldown_ledgers:
            raise ContractError(36)

    # -- rates ---------------------------------------------------------------------------------------------------------

    def increase_rate(self, stream_id: int, rate: int) -> None:
        """update_rate_per_second: a higher rate from now on; what has accrued is kept as a checkpoint.

        The deposit must cover the new rate from the start, whatever the checkpoint.
        """
        stream = self.stream(stream_id)
        self._check_rate_change(stream)
        earned = accrued(stream, self.now)
        if rate <= stream.rate_per_second:
            raise ContractError(3)
        if rate * (stream.end_time - stream.start_time) > stream.deposit_amount:
            raise ContractError(10)
        self._change_rate(stream_id, rate, earned)
        self._emit_rate(stream, rate)

    def decrease_rate(self, stream_id: int, rate: int) -> int:
        """decrease_rate_per_second: a lower rate from now on; what it frees of the deposit goes back (returned)."""
        stream = self.stream(stream_id)
        self._check_rate_change(stream)
        earned = accrued(stream, self.now)
        refund = stream.deposit_amount - (earned + rate * (stream.end_time - self.now))
        if not 0 < rate < stream.rate_per_second or refund < 0:
            raise ContractError(3)
        changed = self._change_rate(stream_id, rate, earned)
        changed.deposit_amount -= refund
        self._emit_stream(
            self._begin(),
            "rate_dec",
            stream_id,
            old_rate_per_second=stream.rate_per_second,
            new_rate_per_second=rate,
            effective_time=self.now,
            checkpointed_amount=earned,
            refund_amount=refund,
        )
        return refund

    def update_rate(self, stream_id: int, rate: int) -> None:
        """The legacy update_rate: up or down, retroactive (no checkpoint), no cooldown, no look at the deposit."""
        stream = self.stream(stream_id)
        self._check_running(stream)
        if stream.decommissioned or rate <= 0:
            raise ContractError(2)
        self._edit(stream_id).rate_per_second = rate
        self._emit_rate(stream, rate)

    def _change_rate(self, stream_id: int, rate: int, earned: int) -> Stream:
        changed = self._edit(stream_id)
        changed.rate_per_second = rate
        changed.checkpointed_amount = earned
        changed.checkpointed_at = self.now
        changed.last_rate_change_ledger = self.ledger
        return changed

    def _emit_rate(self, before: Stream, rate: int) -> None:
        self._emit_stream(
            self._begin(),
            "rate_upd",
            before.stream_id,
            old_rate_per_second=before.rate_per_second,
            new_rate_per_second=rate,
            effective_time=self.now,
        )

    # -- end and deposit -----------------------------------------------------------------------------------------------

    def shorten(self, stream_id: int, end: int) -> int:
        """An earlier end; returns what goes back. The new deposit looks at the rate from the start alone."""
        stream = self.stream(stream_id)
        self._check_terms_changeable(stream)
        if stream.irrevocable:
            raise ContractError(2)
        kept = max(stream.rate_per_second * (end - stream.start_time), accrued(stream, self.now))
        refund = stream.deposit_amount - kept
        if not max(self.now, stream.cliff_time) < end < stream.end_time or refund < 0:
            raise ContractError(3)
        changed = self._edit(stream_id)
        changed.end_time = end
        changed.deposit_amount = kept
        self._emit_stream(
            self._begin(),
            "end_shrt",
            stream_id,
            old_end_time=stream.end_time,
            new_end_time=end,
            refund_amount=refund,
        )
        return refund

    def extend(self, stream_id: int, end: int) -> None:
        """A later end that the deposit still covers at the current rate from the start."""
        stream = self.stream(stream_id)
        self._check_terms_changeable(stream)
        if end <= stream.end_time:
            raise ContractError(3)
        if stream.rate_per_second * (end - stream.start_time) > stream.deposit_amount:
            raise ContractError(10)
        self._edit(stream_id).end_time = end
        self._emit_stream(self._begin(), "end_ext", stream_id, old_end_time=stream.end_time, new_end_time=end)

    def top_up(self, stream_id: int, amount: int) -> None:
        """A larger deposit; the end stays."""
        stream = self.stream(stream_id)
        self._check_running(stream)
        if stream.decommissioned or self.globals.emergency_paused:
            raise ContractError(2)
        if amount <= 0:
            raise ContractError(3)
        changed = self._edit(stream_id)
        changed.deposit_amount += amount
        self._emit_stream(
            self._begin(),
            "top_up",
            stream_id,
            top_up_amount=amount,
            new_deposit_amount=changed.deposit_amount,
            new_end_time=changed.end_time,
        )

    # -- who -----------------------------------------------------------------------------------------------------------

    def update_recipient(self, stream_id: int, recipient: str) -> None:
        """The proposed recipient accepts (accept_recipient_update): the stream is theirs."""
        stream = self.stream(stream_id)
        self._check_running(stream)
        self._edit(stream_id).recipient = recipient
        self._emit_stream(self._begin(), "recp_upd", stream_id, old_recipient=stream.recipient, new_recipient=recipient)

    def transfer_claim(self, stream_id: int, owner: str) -> None:
        """transfer_claim_ownership."""
        stream = self.stream(stream_id)
        self._check_running(stream)
        self._edit(stream_id).claim_owner = owner
        self._emit_stream(self._begin(), "claim_own", stream_id, old_owner=stream.claim_owner, new_owner=owner)

    def delegate_share(self, stream_id: int, delegatee: str, *, share_bps: int) -> int:
        """Split a share of what is still to come into a child stream for `delegatee` and return its id.

        The child has no `created` event of its own.
        """
        parent = self.stream(stream_id)
        self._check_changeable(parent)
        if parent.kind != LINEAR or parent.status != ACTIVE or not 0 < share_bps < 10_000:
            raise ContractError(3)
        if parent.delegation_depth >= MAX_DELEGATION_DEPTH:
            raise ContractError(44)
        earned = accrued(parent, self.now)
        child_rate = parent.rate_per_second * share_bps // 10_000
        parent_rate = parent.rate_per_second - child_rate
        parent_deposit = earned + parent_rate * (parent.end_time - self.now)
        if child_rate == 0 or parent_deposit >= parent.deposit_amount:
            raise ContractError(10)
        child = Stream(
            stream_id=self._next_id(),
            sender=parent.sender,
            recipient=delegatee,
            deposit_amount=parent.deposit_amount - parent_deposit,
            rate_per_second=child_rate,
            start_time=self.now,
            cliff_time=max(parent.cliff_time, self.now),
            end_time=parent.end_time,
            checkpointed_at=self.now,
            withdraw_dust_threshold=parent.withdraw_dust_threshold,
            memo=parent.memo,
            metadata=parent.metadata,
            kind=parent.kind,
            irrevocable=parent.irrevocable,
            witness=parent.witness,
            delegation_depth=parent.delegation_depth + 1,
            parent_stream_id=stream_id,
        )
        changed = self._edit(stream_id)
        changed.checkpointed_amount, changed.checkpointed_at = earned, self.now
        changed.rate_per_second, changed.deposit_amount = parent_rate, parent_deposit
        self._put(child, "Stream", child.stream_id)
        self._emit_struct(
            self._begin(),
            "del_share",
            stream_id,
            parent_stream_id=stream_id,
            child_stream_id=child.stream_id,
            delegator=parent.recipient,
            delegatee=delegatee,
            share_bps=share_bps,
            new_parent_rate=parent_rate,
            child_rate=child_rate,
        )
        return child.stream_id

    def decommission(self, stream_id: int, *, decommissioned: bool = True) -> None:
        """set_stream_decommissioned: no more rate changes, top-ups, extensions and clones."""
        self.stream(stream_id)
        self._edit(stream_id).decommissioned = decommissioned
        self._emit_stream(self._begin(), "decomm", stream_id, decommissioned=decommissioned)


class AdminCalls(ContractState):
    """Contract-wide calls: their events concern no stream."""

    def set_emergency_pause(self, *, paused: bool) -> None:
        """set_global_emergency_paused."""
        self._set(emergency_paused=paused)
        self._emit_struct(self._begin(), "gl_pause", paused=paused)

    def global_resume(self) -> None:
        """global_resume."""
        self._set(emergency_paused=False)
        self._emit_struct(self._begin(), "gl_resume", resumed_at=self.now)

    def set_creation_pause(self, *, paused: bool) -> None:
        """set_contract_paused."""
        self._set(creation_paused=paused)
        self._emit_struct(self._begin(), "ct_pause", paused=paused)

    def pause_protocol(self, reason: str) -> None:
        """pause_protocol: the same flag as the emergency pause."""
        self._set(emergency_paused=True)
        self._emit_struct(self._begin(), "pr_pause", self.globals.admin, reason=reason, paused_at=self.now)

    def resume_protocol(self) -> None:
        """resume_protocol."""
        self._set(emergency_paused=False)
        self._emit_struct(self._begin(), "pr_resume", self.globals.admin, resumed_at=self.now)

    def sweep_excess(self, to: str, amount: int) -> None:
        """sweep_excess."""
        self._emit_struct(self._begin(), "ex_swept", to, to=to, amount=amount)

    def set_admin(self, admin: str) -> None:
        """set_admin."""
        before = self.globals.admin
        self._set(admin=admin)
        self._emit_tuple(self._begin(), "AdminUpd", before, admin)

    def upgrade(self, wasm_hash: bytes, version: int) -> None:
        """New code: the event only, this model stays what it is."""
        self._emit_struct(
            self._begin(),
            "upgraded",
            new_wasm_hash=wasm_hash,
            new_version=version,
            upgraded_at=self.now,
            upgraded_by=self.globals.admin,
        )

    def register_template(self, owner: str, *, start_delay: int, cliff_delay: int, duration: int) -> int:
        """register_stream_template."""
        template_id = self.globals.next_template_id
        self._set(next_template_id=template_id + 1)
        self._emit_struct(
            self._begin(),
            "tmpl_def",
            template_id,
            template_id=template_id,
            owner=owner,
            start_delay=start_delay,
            cliff_delay=cliff_delay,
            duration=duration,
        )
        return template_id

    def release_reservation(self, holder: str, *, start: int, count: int, consumed: int, reclaimed: int) -> None:
        """release_id_reservation."""
        self._emit_tuple(self._begin(), "res_rel", start, count, consumed, reclaimed, key=holder)
