"""What operators get about webhooks: the shapes of the admin API, which the command line prints as JSON too.

A secret is in two of them alone, those that say what was just made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from fluxora.actors.webhook_sender import Sent
from fluxora.http.reply_models import Count, PositionText, Timestamp
from fluxora.http.webhook_models import EXAMPLE_DELIVERY_ID, EXAMPLE_ENDPOINT_ID
from fluxora.protocol.messages import timestamp_text
from fluxora.protocol.signing import Secret
from fluxora.storage import webhook_records as records

EndpointText = Annotated[str, Meta(description="An endpoint's id.", examples=[EXAMPLE_ENDPOINT_ID])]
DeliveryText = Annotated[
    str,
    Meta(
        description="A delivery's id, the same on every attempt: that of `webhook-id` and `x-fluxora-delivery-id`.",
        examples=[EXAMPLE_DELIVERY_ID],
    ),
]
SecretText = Annotated[str, Meta(description="The secret. It is shown this once.", examples=["whsec_…"])]
HttpStatus = Annotated[int | None, Meta(description="The answer's status; null where there was none.")]
Failure = Annotated[str | None, Meta(description="Why there is no complete answer; null where there is one.")]
Milliseconds = Annotated[int, Meta(ge=0, description="From the look-up of the host to the end of the answer.")]


class WebhookEndpoint(msgspec.Struct, rename="camel", kw_only=True):
    """An endpoint. Of the log it gets what is behind `createdPosition` and matches its filters."""

    id: EndpointText
    url: str
    description: str
    events: list[str]
    stream_ids: list[str]
    addresses: list[str]
    ordered: bool
    rate_limit: Annotated[int, Meta(ge=0, description="Deliveries a second; 0: as many as there are.")]
    max_in_flight: Annotated[int, Meta(ge=1, description="Deliveries on their way at a time.")]
    enabled: bool
    disabled_reason: Annotated[
        Literal["operator", "gone", "failing"] | None,
        Meta(
            description="`operator`: somebody asked for it; `gone`: it answered 410; `failing`: nothing but failures "
            "for five days; null while it is enabled."
        ),
    ]
    created_at: Timestamp
    updated_at: Timestamp
    created_position: PositionText
    failing_since: Annotated[Timestamp | None, Meta(description="The first failure since the last success.")]
    last_success_at: Timestamp | None
    previous_secret_until: Annotated[
        Timestamp | None, Meta(description="Until then deliveries are signed with the previous secret as well.")
    ]


class CreatedWebhookEndpoint(WebhookEndpoint, rename="camel", kw_only=True):
    """A new endpoint, and the secret that its receiver needs."""

    secret: SecretText


class WebhookEndpoints(msgspec.Struct, rename="camel", kw_only=True):
    """Every endpoint, in the order of their creation."""

    endpoints: list[WebhookEndpoint]


class RotatedSecret(msgspec.Struct, rename="camel", kw_only=True):
    """A new secret; deliveries are signed with both until `previousSecretUntil`."""

    id: EndpointText
    secret: SecretText
    previous_secret_until: Timestamp | None


class WebhookTest(msgspec.Struct, rename="camel", kw_only=True):
    """What became of a test delivery. It is kept nowhere, and not repeated."""

    delivered: bool
    status: HttpStatus
    error: Failure
    latency_ms: Milliseconds
    response: Annotated[str, Meta(description="The first KiB of the answer's body.")]


class Delivery(msgspec.Struct, rename="camel", kw_only=True):
    """One event on its way to one endpoint."""

    id: DeliveryText
    endpoint_id: EndpointText
    position: PositionText
    event: str
    stream_id: str | None
    status: Literal["pending", "delivered", "dead"]
    attempt_count: Annotated[Count, Meta(description="Attempts made, since it was last sent again by hand.")]
    due_at: Annotated[Timestamp | None, Meta(description="When the next attempt may be made; null if none follows.")]
    created_at: Timestamp
    finished_at: Timestamp | None
    last_status: HttpStatus
    last_error: Failure


class DeliveryPage(msgspec.Struct, rename="camel", kw_only=True):
    """A page of deliveries, newest first."""

    deliveries: list[Delivery]
    has_more: bool
    next_before: Annotated[str | None, Meta(description="Give it as `before` for the next page; null on the last one.")]


class DeliveryAttempt(msgspec.Struct, rename="camel", kw_only=True):
    """One attempt that came to an end."""

    number: Annotated[int, Meta(ge=1)]
    at: Timestamp
    status: HttpStatus
    error: Failure
    latency_ms: Milliseconds
    response: Annotated[str, Meta(description="The first KiB of the answer's body.")]


class DeliveryDetail(Delivery, rename="camel", kw_only=True):
    """A delivery with its attempts, oldest first."""

    attempts: list[DeliveryAttempt]


class Replayed(msgspec.Struct, rename="camel", kw_only=True):
    """What a replay has set going. With more, ask again with `after` = `through`."""

    count: Annotated[Count, Meta(description="Deliveries that are pending (again) by it.")]
    uncertain: Annotated[
        Count,
        Meta(
            description="How many of them may have arrived before: the endpoint has no delivery of them, and they lie "
            "where deliveries that had arrived have been purged. It is none where nothing was purged yet."
        ),
    ]
    through: Annotated[PositionText, Meta(description="The log was looked through up to here.")]
    has_more: bool


class AdminLogEntry(msgspec.Struct, rename="camel", kw_only=True):
    """Something that was done, by an operator or by Fluxora itself."""

    id: PositionText
    at: Timestamp
    actor: Annotated[str, Meta(description="A credential's id, cli:<user>, or fluxora.", examples=["key:ops"])]
    action: Annotated[str, Meta(examples=["webhook.created"])]
    subject: Annotated[str, Meta(description="What it was done to.", examples=[EXAMPLE_ENDPOINT_ID])]
    detail: Annotated[dict[str, str], Meta(description="More about it; no secret.")]


class AdminLogPage(msgspec.Struct, rename="camel", kw_only=True):
    """A page of the admin log, oldest first."""

    entries: list[AdminLogEntry]
    has_more: bool
    next_after: PositionText


def endpoint(stored: records.Endpoint) -> WebhookEndpoint:
    """An endpoint as it is shown."""
    return WebhookEndpoint(**_endpoint_members(stored))


def created_endpoint(stored: records.Endpoint, secret: Secret) -> CreatedWebhookEndpoint:
    """A new endpoint as it is shown, once."""
    return CreatedWebhookEndpoint(**_endpoint_members(stored), secret=secret.reveal())


def _endpoint_members(stored: records.Endpoint) -> dict[str, Any]:
    return {
        "id": stored.id,
        "url": stored.url,
        "description": stored.description,
        "events": list(stored.events),
        "stream_ids": list(stored.stream_ids),
        "addresses": list(stored.addresses),
        "ordered": stored.ordered,
        "rate_limit": stored.rate_limit,
        "max_in_flight": stored.max_in_flight,
        "enabled": stored.enabled,
        "disabled_reason": stored.disabled_reason,
        "created_at": timestamp_text(stored.created_ms),
        "updated_at": timestamp_text(stored.updated_ms),
        "created_position": str(stored.created_position),
        "failing_since": _time(stored.failing_since_ms),
        "last_success_at": _time(stored.last_success_ms),
        "previous_secret_until": _time(stored.secret_rotates_until_ms),
    }


def rotated_secret(stored: records.Endpoint, secret: Secret) -> RotatedSecret:
    """A new secret as it is shown, once."""
    return RotatedSecret(
        id=stored.id, secret=secret.reveal(), previous_secret_until=_time(stored.secret_rotates_until_ms)
    )


def tested(sent: Sent) -> WebhookTest:
    """What became of a test delivery."""
    return WebhookTest(
        delivered=sent.delivered,
        status=sent.status,
        error=sent.error,
        latency_ms=sent.latency_ms,
        response=sent.response,
    )


def delivery(stored: records.Delivery) -> Delivery:
    """A delivery as it is shown in a list."""
    return Delivery(**_delivery_members(stored))


def delivery_detail(stored: records.DeliveryDetail) -> DeliveryDetail:
    """A delivery as it is shown by itself."""
    attempts = [
        DeliveryAttempt(
            number=attempt.number,
            at=timestamp_text(attempt.at_ms),
            status=attempt.status,
            error=attempt.error,
            latency_ms=attempt.latency_ms,
            response=attempt.response,
        )
        for attempt in stored.attempts
    ]
    return DeliveryDetail(**_delivery_members(stored.delivery), attempts=attempts)


def _delivery_members(stored: records.Delivery) -> dict[str, Any]:
    return {
        "id": stored.id,
        "endpoint_id": stored.endpoint_id,
        "position": str(stored.position),
        "event": stored.event,
        "stream_id": stored.stream_id,
        "status": stored.status,
        "attempt_count": stored.attempts,
        "due_at": _time(stored.due_ms),
        "created_at": timestamp_text(stored.created_ms),
        "finished_at": _time(stored.finished_ms),
        "last_status": stored.last_status,
        "last_error": stored.last_error,
    }


def delivery_page(found: Sequence[records.Delivery], limit: int) -> DeliveryPage:
    """A page of `limit`, of which one more was asked for to know whether there are more."""
    page = [delivery(each) for each in found[:limit]]
    has_more = len(found) > limit
    return DeliveryPage(deliveries=page, has_more=has_more, next_before=page[-1].id if has_more else None)


def replayed(piece: records.Replayed) -> Replayed:
    """What one piece of a replay did."""
    return Replayed(count=piece.count, uncertain=piece.uncertain, through=str(piece.through), has_more=piece.has_more)


def admin_log_page(found: Sequence[records.AdminEntry], after: int, limit: int) -> AdminLogPage:
    """A page of `limit`, of which one more was asked for; `after` is where it began."""
    entries = [
        AdminLogEntry(
            id=str(each.id),
            at=timestamp_text(each.at_ms),
            actor=each.actor,
            action=each.action,
            subject=each.subject,
            detail=each.detail,
        )
        for each in found[:limit]
    ]
    next_after = found[len(entries) - 1].id if entries else after
    return AdminLogPage(entries=entries, has_more=len(found) > limit, next_after=str(next_after))


def _time(unix_ms: int | None) -> str | None:
    return None if unix_ms is None else timestamp_text(unix_ms)
