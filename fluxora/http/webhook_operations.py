"""What each route of webhooks and of the admin log is, for the OpenAPI document."""

from __future__ import annotations

from fluxora.http import webhook_replies as shown
from fluxora.http.operations import Answered, Operation
from fluxora.http.webhook_models import (
    AdminLog,
    DeadLetters,
    DeliveryId,
    EndpointDeliveries,
    EndpointId,
    NewWebhookEndpoint,
    Replay,
    SecretRotation,
    WebhookEndpointChange,
)

_TAG = "Webhooks"
_ENDPOINT = {"id": EndpointId}
_DELIVERY = {"id": DeliveryId}
_NEW = {"url": "https://example.com/hooks/fluxora", "events": ["stream.created", "stream.cancelled"]}

LIST_ENDPOINTS = Operation(
    id="listWebhookEndpoints",
    tag=_TAG,
    summary="List endpoints",
    description="All of them, in the order of their creation.",
    replies={200: Answered(description="Without their secrets", body=shown.WebhookEndpoints)},
    refusals=(404,),
)

CREATE_ENDPOINT = Operation(
    id="createWebhookEndpoint",
    tag=_TAG,
    summary="Create an endpoint",
    description=(
        "It gets every event that is recorded from now on and matches its filters, at least once. The secret that its "
        "deliveries are signed with is in this answer and in no other. Where there are as many as there may be (1,000, "
        "unless the operator says otherwise), the answer is a conflict."
    ),
    body=NewWebhookEndpoint,
    example=_NEW,
    replies={
        201: Answered(
            description="It is created",
            body=shown.CreatedWebhookEndpoint,
            headers=("Location",),
            links=(
                "getWebhookEndpoint",
                "changeWebhookEndpoint",
                "rotateWebhookSecret",
                "testWebhookEndpoint",
                "listWebhookDeliveries",
                "replayWebhookEvents",
                "deleteWebhookEndpoint",
            ),
        )
    },
    refusals=(404, 409),
)

GET_ENDPOINT = Operation(
    id="getWebhookEndpoint",
    tag=_TAG,
    summary="One endpoint",
    path=_ENDPOINT,
    replies={200: Answered(description="Without its secret", body=shown.WebhookEndpoint)},
    refusals=(404,),
)

CHANGE_ENDPOINT = Operation(
    id="changeWebhookEndpoint",
    tag=_TAG,
    summary="Change, enable or disable an endpoint",
    description=(
        "Members that are absent stay as they are. Filters hold for what is recorded from now on; what is pending goes "
        "where the URL says from now on. A disabled endpoint keeps what is pending and misses what is recorded "
        "meanwhile; a replay sends that."
    ),
    path=_ENDPOINT,
    body=WebhookEndpointChange,
    example={"enabled": False},
    replies={200: Answered(description="The endpoint after it", body=shown.WebhookEndpoint)},
    refusals=(404,),
)

DELETE_ENDPOINT = Operation(
    id="deleteWebhookEndpoint",
    tag=_TAG,
    summary="Delete an endpoint",
    description="With all of its deliveries. What is on its way may still arrive.",
    path=_ENDPOINT,
    replies={204: Answered(description="It is gone")},
    refusals=(404,),
)

ROTATE_SECRET = Operation(
    id="rotateWebhookSecret",
    tag=_TAG,
    summary="Give an endpoint a new secret",
    description=(
        "While the grace lasts, `webhook-signature` has a signature by the previous secret too. `x-fluxora-signature` "
        "is by the new one from now on: a receiver that checks nothing else needs it at once. Without a body the grace "
        "is a day."
    ),
    path=_ENDPOINT,
    body=SecretRotation,
    body_required=False,
    example={"graceSeconds": 86_400},
    replies={200: Answered(description="The new secret, this once", body=shown.RotatedSecret)},
    refusals=(404,),
)

TEST_ENDPOINT = Operation(
    id="testWebhookEndpoint",
    tag=_TAG,
    summary="Send an endpoint a test delivery",
    description=(
        "At once, whether it is enabled or not, and signed like any other. It is no event of the log, and it is not "
        "repeated."
    ),
    path=_ENDPOINT,
    replies={200: Answered(description="What came back, also where that is a failure", body=shown.WebhookTest)},
    refusals=(404,),
)

LIST_DELIVERIES = Operation(
    id="listWebhookDeliveries",
    tag=_TAG,
    summary="Deliveries to one endpoint",
    path=_ENDPOINT,
    query=EndpointDeliveries,
    replies={200: Answered(description="A page, newest first", body=shown.DeliveryPage)},
    refusals=(404,),
)

REPLAY = Operation(
    id="replayWebhookEvents",
    tag=_TAG,
    summary="Send a part of the log to an endpoint again",
    description=(
        "Deliveries keep their ids, so a receiver that has one already knows it. A long part is done in pieces: while "
        "`hasMore`, ask again with `after` = `through`."
    ),
    path=_ENDPOINT,
    body=Replay,
    example={"after": "1042", "until": "2042", "only": "failed"},
    replies={202: Answered(description="They are pending", body=shown.Replayed)},
    refusals=(404,),
)

DEAD_LETTERS = Operation(
    id="listDeadLetters",
    tag=_TAG,
    summary="Deliveries that were given up",
    query=DeadLetters,
    replies={200: Answered(description="A page, newest first", body=shown.DeliveryPage)},
    refusals=(404,),
)

GET_DELIVERY = Operation(
    id="getWebhookDelivery",
    tag=_TAG,
    summary="One delivery with its attempts",
    path=_DELIVERY,
    replies={200: Answered(description="The delivery", body=shown.DeliveryDetail)},
    refusals=(404,),
)

REDELIVER = Operation(
    id="redeliverWebhook",
    tag=_TAG,
    summary="Send one delivery again",
    description=(
        "With all of its attempts before it, under the same id, whatever has become of it: at once, or when a disabled "
        "endpoint is enabled."
    ),
    path=_DELIVERY,
    replies={202: Answered(description="It is pending", body=shown.Delivery)},
    refusals=(404,),
)

ADMIN_LOG = Operation(
    id="getAdminLog",
    tag="Administration",
    summary="What was done by whom",
    query=AdminLog,
    replies={200: Answered(description="A page, oldest first", body=shown.AdminLogPage)},
    refusals=(404,),
)
