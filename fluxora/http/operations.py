"""What each route is, for the OpenAPI document: one value for each line of the routing table.

An operation says what is its own. What follows from the route (who may ask, the limits) and what holds everywhere (the
error shape, the headers of every reply) is added where the document is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from fluxora.actors.status import HealthReport
from fluxora.http import reply_models as shown
from fluxora.http.admin import AccessReport, Disconnected
from fluxora.http.exports import ExportEvents, ExportStreams
from fluxora.http.fields import EXAMPLE_RECIPIENT, EXAMPLE_SENDER, Address, StreamId
from fluxora.http.models import (
    AllEvents,
    Disconnect,
    FollowAll,
    FollowOne,
    ListStreams,
    NewStream,
    OneStream,
    StatusChange,
    StreamEvents,
)
from fluxora.http.pushed_event import IngestRequest
from fluxora.http.treasury import TreasuryQuery, TreasuryReply


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """A reply that is no refusal: what it means, the type of its body (None: it has none), and headers of its own.

    `headers` name what is always there. `links` are the ids of operations that take the body's `id`.
    """

    description: str
    body: Any = None
    media_type: str = "application/json"
    headers: tuple[str, ...] = ()
    links: tuple[str, ...] = ()


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One method of one path. `path` are the types of the path's parts, `query` and `body` the models that read them.

    `headers` name request headers that it heeds, `refusals` the error statuses that do not follow from the rest.
    `example` is a whole body, which may be left out unless `body_required`. `token` is for the route that has a
    credential of its own.
    """

    id: str
    tag: str
    summary: str
    description: str = ""
    path: Mapping[str, Any] = {}
    query: type[msgspec.Struct] | None = None
    headers: tuple[str, ...] = ()
    body: type[msgspec.Struct] | None = None
    body_required: bool = True
    example: Mapping[str, Any] | None = None
    replies: Mapping[int, Answered]
    refusals: tuple[int, ...] = ()
    token: bool = False


TAGS = {
    "Streams": "What each stream is worth at any second.",
    "Events": "The append-only log: every change, in the order of its commit.",
    "Treasury": "What one address has in streams.",
    "Exports": "Whole lists, sent while they are read.",
    "Webhooks": "Events sent to receivers by HTTP, signed; these routes are for operators, as Administration is.",
    "Service": "The service itself.",
    "Administration": "For operators; not there until a credential with the scope `admin` is configured.",
    "Ingest": "For the worker that pushes events; not there until its token is configured.",
}
_STREAM_ID = {"id": StreamId}

INDEX = Operation(
    id="getIndex",
    tag="Service",
    summary="Name, version and links",
    replies={200: Answered(description="What this service is", body=shown.ServiceIndex)},
)

HEALTH = Operation(
    id="getHealth",
    tag="Service",
    summary="The whole health report",
    description="Nothing is asked of the database for it.",
    replies={
        200: Answered(description="The service is `ok` or `degraded`", body=HealthReport),
        503: Answered(description="The service is `unavailable`, or shutting down", body=HealthReport),
    },
)

LIVE = Operation(
    id="getLive",
    tag="Service",
    summary="Whether the process serves requests",
    replies={200: Answered(description="It does", body=shown.Alive)},
)

READY = Operation(
    id="getReady",
    tag="Service",
    summary="Whether the database answers",
    replies={200: Answered(description="It does, and the service is not stopping", body=shown.Ready)},
)

METRICS = Operation(
    id="getMetrics",
    tag="Service",
    summary="Metrics for Prometheus",
    replies={200: Answered(description="The Prometheus text format", body=str, media_type="text/plain")},
)

OPENAPI = Operation(
    id="getOpenApi",
    tag="Service",
    summary="This document",
    replies={200: Answered(description="OpenAPI 3.1", body=dict[str, Any])},
)

DOCS = Operation(
    id="getDocs",
    tag="Service",
    summary="This document as a page",
    replies={200: Answered(description="A page that needs nothing from elsewhere", body=str, media_type="text/html")},
)

LIVE_PAGE = Operation(
    id="getLivePage",
    tag="Service",
    summary="The newest events in a browser, as they come",
    replies={200: Answered(description="A page that needs nothing from elsewhere", body=str, media_type="text/html")},
)

LIST_STREAMS = Operation(
    id="listStreams",
    tag="Streams",
    summary="List streams",
    description=(
        "In the order of their creation. Filters apply before the page is cut. A cursor belongs to the filters and the "
        "order of its list; `limit` and `asOf` may change from page to page."
    ),
    query=ListStreams,
    replies={200: Answered(description="A page; empty where nothing matches", body=shown.StreamPage)},
)

CREATE_STREAM = Operation(
    id="createStream",
    tag="Streams",
    summary="Register a stream",
    description=(
        "A stream of origin `api`: it is kept and valued like those of the ledger, and no contract stands behind it. "
        "With an `Idempotency-Key`, a repetition within 24 hours changes nothing and gets the first answer again."
    ),
    headers=("Idempotency-Key",),
    body=NewStream,
    example={
        "sender": EXAMPLE_SENDER,
        "recipient": EXAMPLE_RECIPIENT,
        "depositAmount": "1000.0000000",
        "ratePerSecond": "0.0000116",
        "startTime": 1_767_225_600,
        "endTime": 1_798_761_600,
    },
    replies={
        201: Answered(
            description="It is registered",
            body=shown.Stream,
            headers=("Location",),
            links=("getStream", "changeStreamStatus", "cancelStream", "listEventsOfStream"),
        )
    },
    refusals=(409, 422),
)

GET_STREAM = Operation(
    id="getStream",
    tag="Streams",
    summary="One stream",
    description="Streams of an earlier network epoch are still found by their ids.",
    path=_STREAM_ID,
    query=OneStream,
    headers=("If-None-Match",),
    replies={
        200: Answered(description="The stream at `asOf`", body=shown.Stream, headers=("ETag",)),
        304: Answered(description="It is still what If-None-Match names", headers=("ETag",)),
    },
    refusals=(404,),
)

CHANGE_STATUS = Operation(
    id="changeStreamStatus",
    tag="Streams",
    summary="Pause, resume, complete or cancel a stream",
    description=(
        "Only of origin `api`: the ledger is the truth of all others. An active stream can be paused, cancelled or "
        "completed, a paused one resumed (`active`) or cancelled."
    ),
    path=_STREAM_ID,
    body=StatusChange,
    example={"status": "paused"},
    replies={200: Answered(description="The stream after it", body=shown.Stream)},
    refusals=(404, 409),
)

CANCEL_STREAM = Operation(
    id="cancelStream",
    tag="Streams",
    summary="Cancel a stream",
    description="The same as to change its status to `cancelled`. Nothing is deleted.",
    path=_STREAM_ID,
    replies={200: Answered(description="The stream after it", body=shown.Stream)},
    refusals=(404, 409),
)

STREAM_EVENTS = Operation(
    id="listEventsOfStream",
    tag="Events",
    summary="The log of one stream",
    description="A stream that a rollback took away keeps its log.",
    path=_STREAM_ID,
    query=StreamEvents,
    replies={200: Answered(description="A page in position order", body=shown.EventPage)},
    refusals=(404,),
)

ALL_EVENTS = Operation(
    id="listEvents",
    tag="Events",
    summary="The log",
    description="A position learned elsewhere (a webhook, a stream) works here as `after`.",
    query=AllEvents,
    replies={200: Answered(description="A page in position order", body=shown.EventPage)},
)

_LIVE = (
    "Each event has its position as `id`, its name as `event`, and the Event on one line as `data`. Behind `after` or "
    "`Last-Event-ID` (which counts where both are given) everything comes that was missed, in order, then what is new. "
    "Where that cannot be had whole, one event `reset` says so and the answer ends: read the state by REST and begin "
    "behind its `position`. The answer has no end of its own; a comment keeps it alive, and a client that reads too "
    "slowly is cut off, to come back where it was."
)
FOLLOW_EVENTS = Operation(
    id="followEvents",
    tag="Events",
    summary="The log as it grows, as Server-Sent Events",
    description=f"{_LIVE} A stream that is not there yet can be followed by `streamId`.",
    query=FollowAll,
    headers=("Last-Event-ID",),
    replies={200: Answered(description="Events, until one side leaves", body=str, media_type="text/event-stream")},
)

FOLLOW_STREAM = Operation(
    id="followStream",
    tag="Events",
    summary="The log of one stream as it grows, as Server-Sent Events",
    description=_LIVE,
    path=_STREAM_ID,
    query=FollowOne,
    headers=("Last-Event-ID",),
    replies={200: Answered(description="Events, until one side leaves", body=str, media_type="text/event-stream")},
    refusals=(404,),
)

TREASURY = Operation(
    id="getTreasury",
    tag="Treasury",
    summary="Totals of one address",
    description="For each contract, as sender and as recipient. Streams of an earlier network epoch do not count.",
    path={"address": Address},
    query=TreasuryQuery,
    replies={200: Answered(description="Totals at `asOf`; no contracts without streams", body=TreasuryReply)},
)

_FILE = ("Content-Disposition",)
EXPORT_STREAMS = Operation(
    id="exportStreams",
    tag="Exports",
    summary="Streams as CSV",
    description=(
        "RFC 4180 with a header row; the columns are the Stream's members. A cell that begins like a formula has an "
        "apostrophe in front. A failure on the way breaks the connection, so that half a list is not taken for a whole."
    ),
    query=ExportStreams,
    replies={200: Answered(description="Every stream that matches", body=str, media_type="text/csv", headers=_FILE)},
)

EXPORT_EVENTS = Operation(
    id="exportEvents",
    tag="Exports",
    summary="Events as NDJSON",
    description="One Event a line, up to the log's position at the start. A failure on the way breaks the connection.",
    query=ExportEvents,
    replies={
        200: Answered(
            description="Every event that matches", body=str, media_type="application/x-ndjson", headers=_FILE
        )
    },
)

ADMIN_ACCESS = Operation(
    id="getAccess",
    tag="Administration",
    summary="Who may do what, and how much",
    replies={200: Answered(description="Credentials without their secrets, and limits", body=AccessReport)},
    refusals=(404,),
)

ADMIN_DISCONNECT = Operation(
    id="disconnectWebSockets",
    tag="Administration",
    summary="Send WebSockets and event streams away",
    description="A WebSocket is closed with 4403, after which a client does not come back by itself. An event stream "
    "just ends, and its client comes back unless its credential was taken away. Exactly one member says which: those "
    "subscribed to one stream by its id, those of one principal, or all of this process.",
    body=Disconnect,
    example={"principal": "jwt:alice"},
    replies={200: Answered(description="How many were told to go", body=Disconnected)},
    refusals=(404,),
)

INGEST = Operation(
    id="pushContractEvents",
    tag="Ingest",
    summary="Record a batch of contract events",
    description=(
        "Stored as one or not at all, and answered after the commit; a repetition changes nothing. Each ledger has one "
        "hash in a batch, each id stands once in it. Another hash for a ledger that is stored takes its history back."
    ),
    body=IngestRequest,
    replies={200: Answered(description="What became of the batch", body=shown.IngestReply)},
    refusals=(404,),
    token=True,
)
