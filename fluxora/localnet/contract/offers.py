"""Calls that make streams out of other streams and out of offers: clone, renew, offer, accept, reject."""

from __future__ import annotations

from typing import Any

from fluxora.localnet.contract.accrual import COMPLETED, LINEAR, Stream
from fluxora.localnet.contract.payments import PaymentCalls
from fluxora.localnet.contract.state import ContractError


class OfferCalls(PaymentCalls):
    """Streams with a past: copies, renewals and accepted offers."""

    def clone(self, stream_id: int, *, start: int | None = None) -> int:
        """Create a stream with the terms of another one from `start` (default now): `created`, then `cloned`."""
        source = self.stream(stream_id)
        self._check_creation()
        if source.decommissioned:
            raise ContractError(2)
        copied = self._again(source, self.now if start is None else start)
        call = self._begin()
        self._insert(call, copied)
        terms = copied.fields()
        self._emit_struct(
            call, "cloned", copied.stream_id, new_stream_id=copied.stream_id, source_stream_id=stream_id, **terms
        )
        return copied.stream_id

    def renew(self, stream_id: int) -> int:
        """Begin a completed stream anew: `created`, then `renewed`."""
        source = self.stream(stream_id)
        self._check_creation()
        if source.status != COMPLETED:
            raise ContractError(2)
        renewed = self._again(source, self.now)
        call = self._begin()
        self._insert(call, renewed)
        self._emit_struct(
            call, "renewed", stream_id, renewed.stream_id, old_stream_id=stream_id, new_stream_id=renewed.stream_id
        )
        return renewed.stream_id

    def _again(self, source: Stream, start: int) -> Stream:
        """The source's terms from `start`, refused as a new stream's would be."""
        shift = start - source.start_time
        self._check_terms(
            source.kind,
            deposit=source.deposit_amount,
            rate=source.rate_per_second,
            start=start,
            cliff=source.cliff_time + shift,
            end=source.end_time + shift,
        )
        if source.sender == source.recipient:
            raise ContractError(3)
        return Stream(
            stream_id=self._next_id(),
            sender=source.sender,
            recipient=source.recipient,
            deposit_amount=source.deposit_amount,
            rate_per_second=source.rate_per_second,
            start_time=start,
            cliff_time=source.cliff_time + shift,
            end_time=source.end_time + shift,
            checkpointed_at=start,
            withdraw_dust_threshold=source.withdraw_dust_threshold,
            memo=source.memo,
            metadata=source.metadata,
            kind=source.kind,
        )

    def create_offer(
        self,
        sender: str,
        recipient: str,
        *,
        deposit: int,
        rate: int,
        start: int,
        cliff: int,
        end: int,
        expiry: int | None = None,
        kind: int = LINEAR,
    ) -> int:
        """Offer a stream; its id comes from the counter of the streams and becomes the stream's."""
        self._check_creation()
        self._check_terms(kind, deposit=deposit, rate=rate, start=start, cliff=cliff, end=end)
        offer_id = self._next_id()
        terms: dict[str, Any] = {
            "sender": sender,
            "recipient": recipient,
            "deposit_amount": deposit,
            "rate_per_second": rate,
            "start_time": start,
            "cliff_time": cliff,
            "end_time": end,
        }
        self._put({**terms, "expiry": expiry, "kind": kind}, "Offer", offer_id)
        self._emit_struct(
            self._begin(), "offr_crt", offer_id, offer_id=offer_id, expiry_time=expiry, created_at=self.now, **terms
        )
        return offer_id

    def accept_offer(self, offer_id: int) -> int:
        """The recipient accepts: `created` under the offer's id with its times moved to begin now at the earliest."""
        offer = self._offer(offer_id)
        if offer["expiry"] is not None and self.now > offer["expiry"]:
            raise ContractError(39)
        self._check_creation()
        start = max(self.now, offer["start_time"])
        shift = start - offer["start_time"]
        stream = Stream(
            stream_id=offer_id,
            sender=offer["sender"],
            recipient=offer["recipient"],
            deposit_amount=offer["deposit_amount"],
            rate_per_second=offer["rate_per_second"],
            start_time=start,
            cliff_time=offer["cliff_time"] + shift,
            end_time=offer["end_time"] + shift,
            checkpointed_at=start,
            kind=offer["kind"],
        )
        call = self._begin()
        self._insert(call, stream)
        self._put(None, "Offer", offer_id)
        self._emit_struct(
            call, "offr_acc", offer_id, offer_id=offer_id, effective_start_time=start, recipient=stream.recipient
        )
        return offer_id

    def withdraw_offer(self, offer_id: int, *, rejected: bool = False) -> None:
        """The sender takes an offer back, or its recipient rejects it."""
        offer = self._offer(offer_id)
        self._put(None, "Offer", offer_id)
        by = offer["recipient"] if rejected else offer["sender"]
        refund = offer["deposit_amount"]
        self._emit_struct(self._begin(), "offr_cxl", offer_id, offer_id=offer_id, by=by, refund_amount=refund)

    def _offer(self, offer_id: int) -> dict[str, Any]:
        offer: dict[str, Any] | None = self._get("Offer", offer_id)
        if offer is None:
            raise ContractError(38)
        return offer
