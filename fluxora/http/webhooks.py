"""/api/admin/webhooks: endpoints, their deliveries, and sending again; and /api/admin/log, which says who did what.

Every change is in the admin log, in the transaction that makes it. A secret leaves in two answers only: the creation of
its endpoint, and its rotation.
"""

from __future__ import annotations

import os
from functools import partial

import msgspec

from fluxora.errors import BadRequest, Conflict, NotFound, TooManyEndpoints, Unavailable
from fluxora.http import webhook_replies as shown
from fluxora.http.backend import Backend
from fluxora.http.exchange import Pending, Reply, Request
from fluxora.http.json_body import read_json
from fluxora.http.models import NoParameters
from fluxora.http.reading import read_body, read_query
from fluxora.http.replies import json_reply
from fluxora.http.webhook_models import (
    DELIVERY_ID,
    ENDPOINT_ID,
    AdminLog,
    DeadLetters,
    EndpointDeliveries,
    NewWebhookEndpoint,
    Replay,
    SecretRotation,
    WebhookEndpointChange,
)
from fluxora.protocol.signing import ENTROPY_BYTES, Secret
from fluxora.protocol.targets import TargetRefused, check_url
from fluxora.storage.webhook_records import DeliveryQuery, EndpointChanges, NewEndpoint


def list_endpoints(request: Request, backend: Backend) -> Pending:
    """Every endpoint, in the order of their creation."""
    read_query(NoParameters, request.query)
    return partial(_list_endpoints, backend)


async def _list_endpoints(backend: Backend) -> Reply:
    endpoints = await backend.store.webhooks.endpoints()
    return json_reply(shown.WebhookEndpoints(endpoints=[shown.endpoint(each) for each in endpoints]))


def create_endpoint(request: Request, backend: Backend) -> Pending:
    """Create an endpoint with a secret of its own, which this answer shows and no other.

    Raises:
        BadRequest, UnsupportedMediaType, InvalidJson: the request is refused, or the URL may not be a target.
        Conflict: there are as many endpoints as there may be.
    """
    read_query(NoParameters, request.query)
    wanted = read_body(NewWebhookEndpoint, read_json(request))
    _check_target(wanted.url, backend)
    return partial(_create_endpoint, wanted, request.principal.id, backend)


async def _create_endpoint(wanted: NewWebhookEndpoint, actor: str, backend: Backend) -> Reply:
    secret = _new_secret()
    new, most = NewEndpoint(**msgspec.structs.asdict(wanted)), backend.webhooks.max_endpoints
    try:
        made = await backend.store.webhooks.create(new, secret, actor, most=most)
    except TooManyEndpoints as error:
        raise Conflict(str(error)) from error
    location = ("location", f"/api/admin/webhooks/endpoints/{made.id}")
    return json_reply(shown.created_endpoint(made, secret), status=201, headers=(location,))


def get_endpoint(request: Request, backend: Backend) -> Pending:
    """One endpoint, without its secret.

    Raises:
        NotFound: no such endpoint.
    """
    read_query(NoParameters, request.query)
    return partial(_get_endpoint, _endpoint_id(request), backend)


async def _get_endpoint(endpoint_id: str, backend: Backend) -> Reply:
    found = await backend.store.webhooks.endpoint(endpoint_id)
    if found is None:
        raise _no_endpoint()
    return json_reply(shown.endpoint(found))


def change_endpoint(request: Request, backend: Backend) -> Pending:
    """Change what is given about an endpoint. What is pending already stays so, and goes where it says from now on.

    Raises:
        BadRequest, UnsupportedMediaType, InvalidJson: the request is refused, or the URL may not be a target.
        NotFound: no such endpoint.
    """
    read_query(NoParameters, request.query)
    wanted = read_body(WebhookEndpointChange, read_json(request))
    if wanted.url is not None:
        _check_target(wanted.url, backend)
    return partial(_change_endpoint, _endpoint_id(request), wanted, request.principal.id, backend)


async def _change_endpoint(endpoint_id: str, wanted: WebhookEndpointChange, actor: str, backend: Backend) -> Reply:
    given = {name: value for name, value in msgspec.structs.asdict(wanted).items() if value is not None}
    changed = await backend.store.webhooks.update(endpoint_id, EndpointChanges(**given), actor)
    if changed is None:
        raise _no_endpoint()
    return json_reply(shown.endpoint(changed))


def delete_endpoint(request: Request, backend: Backend) -> Pending:
    """Delete an endpoint with all of its deliveries.

    Raises:
        NotFound: no such endpoint.
    """
    read_query(NoParameters, request.query)
    return partial(_delete_endpoint, _endpoint_id(request), request.principal.id, backend)


async def _delete_endpoint(endpoint_id: str, actor: str, backend: Backend) -> Reply:
    if not await backend.store.webhooks.delete(endpoint_id, actor):
        raise _no_endpoint()
    return Reply(204)


def rotate_secret(request: Request, backend: Backend) -> Pending:
    """A new secret for an endpoint; the previous one goes on signing beside it while its grace lasts.

    Raises:
        BadRequest, UnsupportedMediaType, InvalidJson: the request is refused.
        NotFound: no such endpoint.
    """
    read_query(NoParameters, request.query)
    wanted = read_body(SecretRotation, read_json(request)) if request.body else SecretRotation()
    return partial(_rotate_secret, _endpoint_id(request), wanted, request.principal.id, backend)


async def _rotate_secret(endpoint_id: str, wanted: SecretRotation, actor: str, backend: Backend) -> Reply:
    secret = _new_secret()
    rotated = await backend.store.webhooks.rotate(endpoint_id, secret, wanted.grace_ms, actor)
    if rotated is None:
        raise _no_endpoint()
    return json_reply(shown.rotated_secret(rotated, secret))


def send_test(request: Request, backend: Backend) -> Pending:
    """Send an endpoint one event that is none, signed like any other, and say what came back.

    Raises:
        NotFound: no such endpoint.
        Unavailable: this process sends no webhooks.
    """
    read_query(NoParameters, request.query)
    return partial(_send_test, _endpoint_id(request), request.principal.id, backend)


async def _send_test(endpoint_id: str, actor: str, backend: Backend) -> Reply:
    if backend.dispatcher is None:
        raise Unavailable("This process sends no webhooks")
    sent = await backend.dispatcher.test(endpoint_id)
    if sent is None:
        raise _no_endpoint()
    await backend.store.webhooks.note(actor, "webhook.tested", endpoint_id, {"delivered": sent.delivered})
    return json_reply(shown.tested(sent))


def list_deliveries(request: Request, backend: Backend) -> Pending:
    """Deliveries to one endpoint, newest first.

    Raises:
        BadRequest: a parameter is wrong.
        NotFound: no such endpoint.
    """
    wanted = read_query(EndpointDeliveries, request.query)
    return partial(_list_deliveries, _endpoint_id(request), wanted, backend)


async def _list_deliveries(endpoint_id: str, wanted: EndpointDeliveries, backend: Backend) -> Reply:
    store = backend.store.webhooks
    query = DeliveryQuery(endpoint_id=endpoint_id, status=wanted.status, before=wanted.before, limit=wanted.limit + 1)
    found = await store.deliveries(query)
    if not found and await store.endpoint(endpoint_id) is None:
        raise _no_endpoint()
    return json_reply(shown.delivery_page(found, wanted.limit))


def list_dead_letters(request: Request, backend: Backend) -> Pending:
    """Deliveries that were given up, newest first.

    Raises:
        BadRequest: a parameter is wrong.
    """
    return partial(_list_dead_letters, read_query(DeadLetters, request.query), backend)


async def _list_dead_letters(wanted: DeadLetters, backend: Backend) -> Reply:
    query = DeliveryQuery(endpoint_id=wanted.endpoint_id, status="dead", before=wanted.before, limit=wanted.limit + 1)
    return json_reply(shown.delivery_page(await backend.store.webhooks.deliveries(query), wanted.limit))


def get_delivery(request: Request, backend: Backend) -> Pending:
    """One delivery with its attempts.

    Raises:
        NotFound: no such delivery.
    """
    read_query(NoParameters, request.query)
    return partial(_get_delivery, _delivery_id(request), backend)


async def _get_delivery(delivery_id: str, backend: Backend) -> Reply:
    found = await backend.store.webhooks.delivery(delivery_id)
    if found is None:
        raise _no_delivery()
    return json_reply(shown.delivery_detail(found))


def redeliver(request: Request, backend: Backend) -> Pending:
    """Send a delivery again, at once and with all of its attempts before it, whatever has become of it.

    Raises:
        NotFound: no such delivery.
    """
    read_query(NoParameters, request.query)
    return partial(_redeliver, _delivery_id(request), request.principal.id, backend)


async def _redeliver(delivery_id: str, actor: str, backend: Backend) -> Reply:
    pending = await backend.store.webhooks.redeliver(delivery_id, actor)
    if pending is None:
        raise _no_delivery()
    return json_reply(shown.delivery(pending), status=202)


def replay(request: Request, backend: Backend) -> Pending:
    """Send a part of the log to an endpoint again.

    Raises:
        BadRequest, UnsupportedMediaType, InvalidJson: the request is refused.
        NotFound: no such endpoint.
    """
    read_query(NoParameters, request.query)
    wanted = read_body(Replay, read_json(request))
    return partial(_replay, _endpoint_id(request), wanted, request.principal.id, backend)


async def _replay(endpoint_id: str, wanted: Replay, actor: str, backend: Backend) -> Reply:
    after, only = wanted.after or 0, wanted.only or "failed"
    replayed = await backend.store.webhooks.replay(endpoint_id, after, wanted.until, only, actor)
    if replayed is None:
        raise _no_endpoint()
    return json_reply(shown.replayed(replayed), status=202)


def admin_log(request: Request, backend: Backend) -> Pending:
    """What was done by whom, oldest first.

    Raises:
        BadRequest: a parameter is wrong.
    """
    return partial(_admin_log, read_query(AdminLog, request.query), backend)


async def _admin_log(wanted: AdminLog, backend: Backend) -> Reply:
    entries = await backend.store.webhooks.admin_log(wanted.after, wanted.limit + 1)
    return json_reply(shown.admin_log_page(entries, wanted.after, wanted.limit))


def _new_secret() -> Secret:
    return Secret.from_bytes(os.urandom(ENTROPY_BYTES))


def _check_target(url: str, backend: Backend) -> None:
    try:
        check_url(url, backend.webhooks.allowed_networks)
    except TargetRefused as error:
        message = error.message[:1].upper() + error.message[1:]
        raise BadRequest("The body is not valid", details=[("url", error.code, message)]) from error


def _endpoint_id(request: Request) -> str:
    endpoint_id = request.params["id"]
    if not ENDPOINT_ID.fullmatch(endpoint_id):
        raise _no_endpoint()
    return endpoint_id


def _delivery_id(request: Request) -> str:
    delivery_id = request.params["id"]
    if not DELIVERY_ID.fullmatch(delivery_id):
        raise _no_delivery()
    return delivery_id


def _no_endpoint() -> NotFound:
    return NotFound("There is no such webhook endpoint")


def _no_delivery() -> NotFound:
    return NotFound("There is no such delivery")
