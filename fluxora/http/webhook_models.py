"""What operators send about webhooks: endpoints, which deliveries are wanted, what is to be sent again.

Types and models stand together here; they are made as those in `fields` and `models` are. Whether a URL may be a target
is not judged here: that depends on the configuration.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from fluxora.http.fields import (
    EXAMPLE_SENDER,
    EXAMPLE_STREAM_ID,
    Address,
    EventName,
    Flag,
    Invalid,
    Position,
    StreamId,
    integer,
    list_of,
    of_text,
    one_of,
    reader_of,
    text_that,
)
from fluxora.http.reading import Draft
from fluxora.protocol.signing import parse_delivery_id
from fluxora.protocol.targets import MAX_URL, TargetRefused, check_url
from fluxora.storage.webhook_records import DEFAULT_MAX_IN_FLIGHT

MAX_DESCRIPTION = 500
_ANYWHERE = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))
MAX_FILTER = 100  # streams, or addresses, that one endpoint may name
MAX_RATE = 10_000
MAX_IN_FLIGHT = 1_000
DEFAULT_GRACE_S, MAX_GRACE_S = 86_400, 30 * 86_400
ENDPOINT_ID = re.compile(r"default|we_[0-9a-f]{32}")
DELIVERY_ID = re.compile(r"msg_(default|we_[0-9a-f]{32})_[1-9][0-9]{0,18}_[0-9a-f]{12}")
EXAMPLE_ENDPOINT_ID = "we_0197f3c58b6e7c21a5d49e03b7f1c864"
EXAMPLE_DELIVERY_ID = "msg_we_0197f3c58b6e7c21a5d49e03b7f1c864_1042_5f3a9c0be81d"


def _url_text(text: str) -> str:
    """The URL as it is, where its form is that of one; what it names is another matter."""
    try:
        check_url(text, _ANYWHERE)
    except TargetRefused as error:
        raise Invalid(error.code, error.message[:1].upper() + error.message[1:]) from error
    return text


def _description(text: str) -> str:
    if len(text) > MAX_DESCRIPTION:
        raise Invalid("OUT_OF_RANGE", f"At most {MAX_DESCRIPTION} characters are taken")
    if "\0" in text or not text.isprintable():
        raise Invalid("INVALID_FORMAT", "One line of printable characters is needed")
    return text


def _is_delivery_id(text: str) -> bool:
    return DELIVERY_ID.fullmatch(text) is not None and parse_delivery_id(text) is not None


EndpointId = Annotated[
    str,
    Meta(
        pattern=f"^({ENDPOINT_ID.pattern})$",
        description="An endpoint's id.",
        examples=[EXAMPLE_ENDPOINT_ID],
        extra_json_schema={"format": "webhook-endpoint-id"},
        extra={"read": text_that(ENDPOINT_ID.fullmatch, "INVALID_FORMAT", "An endpoint's id (we_... or default)")},
    ),
]
DeliveryId = Annotated[
    str,
    Meta(
        pattern=f"^{DELIVERY_ID.pattern}$",
        description="A delivery's id: that of `webhook-id` and `x-fluxora-delivery-id`.",
        examples=[EXAMPLE_DELIVERY_ID],
        extra_json_schema={"format": "webhook-delivery-id"},
        extra={"read": text_that(_is_delivery_id, "INVALID_FORMAT", "A delivery's id (msg_...)")},
    ),
]
TargetUrl = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_URL,
        description="Where deliveries are sent to: https, of a public host, without a user. Networks that the operator "
        "has allowed may be private, and may be sent to by http.",
        examples=["https://example.com/hooks/fluxora"],
        extra_json_schema={"format": "webhook-url"},
        extra={"read": of_text(_url_text, "A URL")},
    ),
]
Description = Annotated[
    str,
    Meta(
        max_length=MAX_DESCRIPTION,
        description="For people: one line.",
        extra_json_schema={"format": "one-line"},
        extra={"read": of_text(_description, "Text")},
    ),
]
EventNames = Annotated[
    tuple[EventName, ...],
    Meta(
        max_length=5,
        description="Only events of these names; all where it is empty.",
        extra_json_schema={"uniqueItems": True},
        extra={"read": list_of(reader_of(EventName), 5, "event names")},
    ),
]
StreamIds = Annotated[
    tuple[StreamId, ...],
    Meta(
        max_length=MAX_FILTER,
        description="Only events of these streams; of all where it is empty.",
        examples=[[EXAMPLE_STREAM_ID]],
        extra_json_schema={"uniqueItems": True},
        extra={"read": list_of(reader_of(StreamId), MAX_FILTER, "stream ids")},
    ),
]
Addresses = Annotated[
    tuple[Address, ...],
    Meta(
        max_length=MAX_FILTER,
        description="Only events of streams that one of these sends or receives; of all where it is empty.",
        examples=[[EXAMPLE_SENDER]],
        extra_json_schema={"uniqueItems": True},
        extra={"read": list_of(reader_of(Address), MAX_FILTER, "addresses")},
    ),
]
RateLimit = Annotated[
    int,
    Meta(
        ge=0,
        le=MAX_RATE,
        description="The most deliveries a second; 0: as many as there are.",
        extra={"read": integer(0, MAX_RATE)},
    ),
]
InFlight = Annotated[
    int,
    Meta(
        ge=1,
        le=MAX_IN_FLIGHT,
        description="The most deliveries on their way at a time.",
        extra={"read": integer(1, MAX_IN_FLIGHT)},
    ),
]
GraceSeconds = Annotated[
    int,
    Meta(
        ge=0,
        le=MAX_GRACE_S,
        description="Seconds for which deliveries are signed with the previous secret as well.",
        extra={"read": integer(0, MAX_GRACE_S)},
    ),
]
DeliveryStatus = Annotated[
    Literal["pending", "delivered", "dead"],
    Meta(
        description="`dead`: every attempt failed, and none follows by itself.",
        extra={"read": one_of(("pending", "delivered", "dead"))},
    ),
]
Which = Annotated[
    Literal["failed", "all"],
    Meta(
        description="`failed`: what was dead-lettered or never recorded for the endpoint; `all`: also what arrived.",
        extra={"read": one_of(("failed", "all"))},
    ),
]
PageLimit = Annotated[
    int,
    Meta(ge=1, le=100, description="The greatest number of entries in the page.", extra={"read": integer(1, 100)}),
]
Ordered = Annotated[
    Flag,
    Meta(
        description="Events of one stream are delivered in the order of their positions: one that fails holds back the "
        "later ones of its stream, until it is delivered or dead-lettered."
    ),
]
Enabled = Annotated[Flag, Meta(description="false: nothing is sent, and nothing is recorded to be sent.")]


class NewWebhookEndpoint(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """An endpoint to create. Filters that are given must all hold; what is recorded from now on counts.

    A member that is null counts as absent: none of them is None once it is read.
    """

    url: TargetUrl
    description: Description | None = ""
    events: EventNames | None = ()
    stream_ids: StreamIds | None = ()
    addresses: Addresses | None = ()
    ordered: Ordered | None = False
    rate_limit: RateLimit | None = 0
    max_in_flight: InFlight | None = DEFAULT_MAX_IN_FLIGHT
    enabled: Enabled | None = True


class WebhookEndpointChange(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """What is to be different about an endpoint; members that are absent stay as they are."""

    url: TargetUrl | None = None
    description: Description | None = None
    events: EventNames | None = None
    stream_ids: StreamIds | None = None
    addresses: Addresses | None = None
    ordered: Ordered | None = None
    rate_limit: RateLimit | None = None
    max_in_flight: InFlight | None = None
    enabled: Enabled | None = None

    @classmethod
    def check(cls, draft: Draft) -> None:
        """At least one member."""
        if not draft.values and not draft.problems.found:
            draft.refuse("", "REQUIRED", "At least one member is needed")


class SecretRotation(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """How a new secret takes over."""

    grace_seconds: GraceSeconds | None = DEFAULT_GRACE_S

    @property
    def grace_ms(self) -> int:
        """The same in milliseconds."""
        return 1000 * (DEFAULT_GRACE_S if self.grace_seconds is None else self.grace_seconds)


class Replay(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """A part of the log that is to be sent to an endpoint again, as far as its filters take it."""

    after: (
        Annotated[Position, Meta(description="Events behind this position; from the log's beginning if absent.")] | None
    ) = None
    until: Annotated[Position, Meta(description="Events up to this position; to the log's end if absent.")] | None = (
        None
    )
    only: Which | None = "failed"

    @classmethod
    def check(cls, draft: Draft) -> None:
        """`after` is below `until`."""
        after, until = draft.get("after") or 0, draft.get("until")
        if until is not None and not draft.failed("after") and until <= after:
            draft.fail("until", "OUT_OF_RANGE", "until must be above after")


class EndpointDeliveries(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The page of one endpoint's deliveries that is wanted, newest first."""

    status: Annotated[DeliveryStatus, Meta(description="Only deliveries of this status.")] | None = None
    before: Annotated[DeliveryId, Meta(description="Only deliveries behind this one in the list.")] | None = None
    limit: PageLimit = 20


class DeadLetters(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The page of dead-lettered deliveries that is wanted, newest first."""

    endpoint_id: Annotated[EndpointId, Meta(description="Only deliveries to this endpoint.")] | None = None
    before: Annotated[DeliveryId, Meta(description="Only deliveries behind this one in the list.")] | None = None
    limit: PageLimit = 20


class AdminLog(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The page of the admin log that is wanted, oldest first."""

    after: Annotated[Position, Meta(description="Only entries behind this `nextAfter`.")] = 0
    limit: PageLimit = 100
