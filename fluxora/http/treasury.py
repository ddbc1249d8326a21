"""GET /api/treasury/{address}: what one address has in streams, for each contract, as sender and as recipient."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from fluxora.errors import Unavailable
from fluxora.http.backend import Backend
from fluxora.http.exchange import Reply, Request
from fluxora.http.fields import Address, UnixSeconds
from fluxora.http.reading import read_query
from fluxora.http.replies import json_reply
from fluxora.http.reply_models import AmountText, ChainSeconds, Count, PositionText, Seconds
from fluxora.protocol.amounts import format_amount
from fluxora.protocol.messages import STATUS_NAMES
from fluxora.protocol.treasury import Holding, Totals


class TreasuryQuery(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The second that totals are wanted for."""

    as_of: Annotated[UnixSeconds | None, Meta(description="Unix seconds that amounts are for; now if absent.")] = None


class _Asked(TreasuryQuery, frozen=True, kw_only=True, rename="camel"):
    """With the part of the path, so that one answer names everything that is wrong."""

    address: Address


class StatusCounts(msgspec.Struct):
    """How many streams have each status."""

    active: Count
    paused: Count
    completed: Count
    cancelled: Count


class _Totals(msgspec.Struct, rename="camel", kw_only=True):
    deposited: AmountText
    streamed: Annotated[AmountText, Meta(description="What has accrued to the recipients.")]
    withdrawn: AmountText
    withdrawable: Annotated[AmountText, Meta(description="What the recipients could withdraw.")]
    remaining: Annotated[AmountText, Meta(description="What is still to be streamed.")]
    streams: StatusCounts
    next_depletion: Annotated[
        ChainSeconds | None, Meta(description="The earliest second after `asOf` at which a live stream has run out.")
    ]


class SenderTotals(_Totals, rename="camel", kw_only=True):
    """Sums over the streams that the address sends."""

    outflow_per_second: Annotated[AmountText, Meta(description="The rates of those that accrue at `asOf`.")]


class RecipientTotals(_Totals, rename="camel", kw_only=True):
    """Sums over the streams that the address receives."""

    inflow_per_second: Annotated[AmountText, Meta(description="The rates of those that accrue at `asOf`.")]


class ContractTotals(msgspec.Struct, rename="camel"):
    """One address in one contract's streams."""

    contract_id: Annotated[str | None, Meta(description="null: streams that are registered with this API.")]
    decimals: Annotated[Count, Meta(description="Fraction digits of these amounts.")]
    as_sender: SenderTotals
    as_recipient: RecipientTotals


class TreasuryReply(msgspec.Struct, rename="camel"):
    """What one address has in streams. Contracts are sorted by id; streams of none come last."""

    address: str
    as_of: Annotated[Seconds, Meta(description="Unix seconds that the amounts are for.")]
    position: Annotated[PositionText, Meta(description="Everything up to it is in the totals.")]
    contracts: list[ContractTotals]


async def treasury(request: Request, backend: Backend) -> Reply:
    """Totals at `asOf` (now where absent) over every stream of the address, as recorded at `position`.

    An address without streams has no contracts. Streams of an earlier network epoch do not count.

    Raises:
        BadRequest: the address or a parameter is wrong.
        Unavailable: the address has more streams than can be added up in time.
        StorageUnavailable: the database cannot answer.
    """
    asked = read_query(_Asked, (("address", request.params["address"]), *request.query))
    as_of = int(backend.clock()) if asked.as_of is None else asked.as_of
    portfolio = await backend.store.portfolio(asked.address, as_of)
    if portfolio is None:
        raise Unavailable(
            "This address has too many streams to add up in one answer: "
            "take them from /api/export/streams.csv, by sender and by recipient"
        )
    return json_reply(
        TreasuryReply(
            address=asked.address,
            as_of=as_of,
            position=str(portfolio.position),
            contracts=[_in_contract(holding) for holding in portfolio.holdings],
        )
    )


def _in_contract(holding: Holding) -> ContractTotals:
    decimals, sent, received = holding.decimals, holding.as_sender, holding.as_recipient
    return ContractTotals(
        contract_id=holding.contract_id,
        decimals=decimals,
        as_sender=SenderTotals(outflow_per_second=format_amount(sent.rate, decimals), **_amounts(sent, decimals)),
        as_recipient=RecipientTotals(
            inflow_per_second=format_amount(received.rate, decimals), **_amounts(received, decimals)
        ),
    )


def _amounts(totals: Totals, decimals: int) -> dict[str, Any]:
    """The members that both sides have."""
    return {
        "deposited": format_amount(totals.deposited, decimals),
        "streamed": format_amount(totals.streamed, decimals),
        "withdrawn": format_amount(totals.withdrawn, decimals),
        "withdrawable": format_amount(totals.withdrawable, decimals),
        "remaining": format_amount(totals.remaining, decimals),
        "streams": StatusCounts(**dict(zip(STATUS_NAMES, totals.streams, strict=True))),
        "next_depletion": totals.next_depletion,
    }
