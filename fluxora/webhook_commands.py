"""`fluxora webhooks`: endpoints and deliveries by hand, in the database that the configuration names.

It works beside a running server, which is told of each change, and without one: then what it sets going is sent by the
next server that starts. What it changes is in the admin log, under the name of whoever is logged in.
"""

from __future__ import annotations

import argparse
import getpass
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from fluxora import webhook_arguments as arguments_of
from fluxora import webhook_listener
from fluxora.actors.dispatcher import Dispatcher
from fluxora.actors.webhook_sender import WebhookSender
from fluxora.config import Config
from fluxora.errors import BadRequest, ConfigError, NotFound
from fluxora.http import webhook_replies as shown
from fluxora.http.reading import M, read_body, read_query
from fluxora.http.webhook_models import (
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
from fluxora.storage.migrate import migrate
from fluxora.storage.store import Store, open_store
from fluxora.storage.webhook_records import (
    DeliveryQuery,
    DeliveryStatus,
    Endpoint,
    EndpointChanges,
    NewEndpoint,
    Replayed,
)
from fluxora.webhook_tables import (
    attempt_table,
    delivery_lines,
    delivery_table,
    endpoint_lines,
    endpoint_table,
    secret_lines,
    table,
    test_lines,
)


@dataclass(frozen=True)
class Desk:
    """What an action works with: the database, the configuration, what was asked for, and in whose name."""

    store: Store
    config: Config
    asked: argparse.Namespace
    actor: str


@dataclass(frozen=True)
class Printed:
    """What an action says: `value` for --json, `lines` for people. `code` is the exit code."""

    value: Any
    lines: Sequence[str]
    code: int = 0


@dataclass(frozen=True)
class Action:
    """One of `fluxora webhooks ...`."""

    name: str
    help: str
    run: Callable[[Desk], Awaitable[Printed]]
    arguments: Callable[[argparse.ArgumentParser], None] = lambda _parser: None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The actions and their arguments; `listen` is that of webhook_listener, which `run` has no part in."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for action in ACTIONS:
        subparser = actions.add_parser(action.name, help=action.help, description=action.help)
        action.arguments(subparser)
        subparser.add_argument("--json", action="store_true", help="print JSON, as the API of the same name answers")
        subparser.set_defaults(action=action)
    what = "receive deliveries here, verify each and print a line for it; needs no database"
    listen = actions.add_parser("listen", help=what, description=what)
    webhook_listener.add_arguments(listen)
    listen.set_defaults(action=None)


async def run(config: Config, asked: argparse.Namespace) -> tuple[str, int]:
    """Carry out one action: what it says, and its exit code.

    Raises:
        ConfigError: an argument is wrong.
        NotFound: there is no such endpoint or delivery.
        TooManyEndpoints: there are as many as there may be.
        StorageUnavailable: PostgreSQL cannot be reached.
    """
    action: Action = asked.action
    async with open_store(config.storage, decimals=config.decimals, wakeup=None) as store:
        await migrate(store)
        printed = await action.run(Desk(store, config, asked, f"cli:{_user()}"))
    if asked.json:
        return msgspec.json.format(msgspec.json.encode(printed.value), indent=2).decode(), printed.code
    return "\n".join(printed.lines), printed.code


# endpoints


def _members(asked: argparse.Namespace) -> dict[str, Any]:
    """What was given about an endpoint, by its name on the wire."""
    given = {
        "url": asked.url,
        "description": asked.description,
        "events": asked.event,
        "streamIds": asked.stream,
        "addresses": asked.address,
        "ordered": asked.ordered,
        "rateLimit": asked.rate_limit,
        "maxInFlight": asked.max_in_flight,
    }
    return {name: value for name, value in given.items() if value is not None}


async def _add(desk: Desk) -> Printed:
    members = _members(desk.asked) | ({"enabled": False} if desk.asked.disabled else {})
    wanted = _read(NewWebhookEndpoint, members)
    _check_target(wanted.url, desk)
    secret = Secret.from_bytes(os.urandom(ENTROPY_BYTES))
    new, most = NewEndpoint(**msgspec.structs.asdict(wanted)), desk.config.webhooks.max_endpoints
    made = await desk.store.webhooks.create(new, secret, desk.actor, most=most)
    value = shown.created_endpoint(made, secret)
    return Printed(value, [*endpoint_lines(value), "", *secret_lines(secret)])


async def _list(desk: Desk) -> Printed:
    endpoints = [shown.endpoint(each) for each in await desk.store.webhooks.endpoints()]
    if not endpoints:
        return Printed(shown.WebhookEndpoints(endpoints=[]), ["no endpoints; `fluxora webhooks add URL` makes one"])
    return Printed(shown.WebhookEndpoints(endpoints=endpoints), endpoint_table(endpoints))


async def _show(desk: Desk) -> Printed:
    return _one(await desk.store.webhooks.endpoint(desk.asked.endpoint))


async def _change(desk: Desk) -> Printed:
    members = _members(desk.asked)
    if not members:
        raise ConfigError("webhooks change: say what is to be different; --help lists what can be")
    return await _changed(desk, members)


async def _enable(desk: Desk) -> Printed:
    return await _changed(desk, {"enabled": True})


async def _disable(desk: Desk) -> Printed:
    return await _changed(desk, {"enabled": False})


async def _changed(desk: Desk, members: dict[str, Any]) -> Printed:
    wanted = _read(WebhookEndpointChange, members)
    if wanted.url is not None:
        _check_target(wanted.url, desk)
    given = {name: value for name, value in msgspec.structs.asdict(wanted).items() if value is not None}
    return _one(await desk.store.webhooks.update(desk.asked.endpoint, EndpointChanges(**given), desk.actor))


async def _delete(desk: Desk) -> Printed:
    endpoint = desk.asked.endpoint
    if not desk.asked.yes:
        raise ConfigError(f"webhooks delete: --yes is needed: {endpoint} goes with all of its deliveries")
    if not await desk.store.webhooks.delete(endpoint, desk.actor):
        raise _no_endpoint()
    return Printed({"deleted": endpoint}, [f"{endpoint} is gone, with its deliveries"])


async def _rotate(desk: Desk) -> Printed:
    wanted = _read(SecretRotation, {"graceSeconds": desk.asked.grace})
    secret = Secret.from_bytes(os.urandom(ENTROPY_BYTES))
    rotated = await desk.store.webhooks.rotate(desk.asked.endpoint, secret, wanted.grace_ms, desk.actor)
    if rotated is None:
        raise _no_endpoint()
    value = shown.rotated_secret(rotated, secret)
    until = value.previous_secret_until
    lines = [] if until is None else [f"Until {until} deliveries are signed with the previous one too.", ""]
    return Printed(value, [*lines, *secret_lines(secret)])


async def _test(desk: Desk) -> Printed:
    sender = WebhookSender(desk.config.webhooks)
    sent = await Dispatcher(desk.store, sender, desk.config.webhooks).test(desk.asked.endpoint)
    sender.close()
    if sent is None:
        raise _no_endpoint()
    await desk.store.webhooks.note(desk.actor, "webhook.tested", desk.asked.endpoint, {"delivered": sent.delivered})
    value = shown.tested(sent)
    return Printed(value, test_lines(value), code=0 if sent.delivered else 1)


# deliveries


async def _deliveries(desk: Desk) -> Printed:
    asked = desk.asked
    wanted = _read_options(EndpointDeliveries, status=asked.status, before=asked.before, limit=asked.limit)
    if await desk.store.webhooks.endpoint(asked.endpoint) is None:
        raise _no_endpoint()
    return await _page(desk, asked.endpoint, wanted.status, wanted)


async def _dead_letters(desk: Desk) -> Printed:
    asked = desk.asked
    wanted = _read_options(DeadLetters, endpointId=asked.endpoint, before=asked.before, limit=asked.limit)
    return await _page(desk, wanted.endpoint_id, "dead", wanted)


async def _page(
    desk: Desk, endpoint_id: str | None, status: DeliveryStatus | None, wanted: EndpointDeliveries | DeadLetters
) -> Printed:
    query = DeliveryQuery(endpoint_id=endpoint_id, status=status, before=wanted.before, limit=wanted.limit + 1)
    page = shown.delivery_page(await desk.store.webhooks.deliveries(query), wanted.limit)
    if not page.deliveries:
        return Printed(page, ["no deliveries"])
    more = [f"more: --before {page.next_before}"] if page.has_more else []
    return Printed(page, [*delivery_table(page.deliveries), *more])


async def _delivery(desk: Desk) -> Printed:
    found = await desk.store.webhooks.delivery(desk.asked.delivery)
    if found is None:
        raise _no_delivery()
    value = shown.delivery_detail(found)
    attempts = ["", *attempt_table(value.attempts)] if value.attempts else []
    return Printed(value, [*delivery_lines(value), *attempts])


async def _redeliver(desk: Desk) -> Printed:
    pending = await desk.store.webhooks.redeliver(desk.asked.delivery, desk.actor)
    if pending is None:
        raise _no_delivery()
    value = shown.delivery(pending)
    return Printed(value, delivery_lines(value))


async def _replay(desk: Desk) -> Printed:
    asked = desk.asked
    wanted = _read(Replay, {"after": asked.after, "until": asked.until, "only": asked.only})
    after, only, count, uncertain = wanted.after or 0, wanted.only or "failed", 0, 0
    while True:
        piece = await desk.store.webhooks.replay(asked.endpoint, after, wanted.until, only, desk.actor)
        if piece is None:
            raise _no_endpoint()
        after, count, uncertain = piece.through, count + piece.count, uncertain + piece.uncertain
        if not piece.has_more:
            whole = Replayed(count, uncertain, piece.through, has_more=False)
            lines = [f"{count} deliveries are pending, of the log up to {piece.through}"]
            if uncertain:
                lines.append(f"{uncertain} of them may have arrived before: what was delivered there has been purged")
            return Printed(shown.replayed(whole), lines)


async def _log(desk: Desk) -> Printed:
    wanted = _read_options(AdminLog, after=desk.asked.after, limit=desk.asked.limit)
    found = await desk.store.webhooks.admin_log(wanted.after, wanted.limit + 1)
    page = shown.admin_log_page(found, wanted.after, wanted.limit)
    rows = [
        (each.id, each.at, each.actor, each.action, each.subject, " ".join(f"{k}={v}" for k, v in each.detail.items()))
        for each in page.entries
    ]
    more = [f"more: --after {page.next_after}"] if page.has_more else []
    return Printed(page, [*table(("#", "AT", "WHO", "DID", "TO", "MORE"), rows), *more])


# what the actions share


def _one(found: Endpoint | None) -> Printed:
    if found is None:
        raise _no_endpoint()
    value = shown.endpoint(found)
    return Printed(value, endpoint_lines(value))


def _read(model: type[M], members: dict[str, Any]) -> M:
    """Members as the API takes them.

    Raises:
        ConfigError: one is wrong; one line for all.
    """
    try:
        return read_body(model, members)
    except BadRequest as error:
        raise _misused(error) from error


def _read_options(model: type[M], **options: str | None) -> M:
    """Parameters as the API takes them; raises as `_read`."""
    try:
        return read_query(model, [(name, text) for name, text in options.items() if text is not None])
    except BadRequest as error:
        raise _misused(error) from error


def _misused(error: BadRequest) -> ConfigError:
    return ConfigError("webhooks: " + "; ".join(f"{field}: {message}" for field, _, message in error.details or ()))


def _check_target(url: str, desk: Desk) -> None:
    try:
        check_url(url, desk.config.webhooks.allowed_networks)
    except TargetRefused as error:
        raise ConfigError(f"webhooks: url: {error}") from error


def _no_endpoint() -> NotFound:
    return NotFound("there is no such webhook endpoint; `fluxora webhooks list` shows all")


def _no_delivery() -> NotFound:
    return NotFound("there is no such delivery")


def _user() -> str:
    """Who is logged in; a container may know no name for its user."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return str(os.getuid())


ACTIONS = (
    Action("add", "create an endpoint and show its secret, this once", _add, arguments_of.add),
    Action("list", "list the endpoints", _list),
    Action("show", "show one endpoint", _show, arguments_of.endpoint),
    Action("change", "change an endpoint; what is not given stays as it is", _change, arguments_of.change),
    Action("rotate", "give an endpoint a new secret and show it, this once", _rotate, arguments_of.rotate),
    Action("enable", "send to an endpoint again", _enable, arguments_of.endpoint),
    Action("disable", "send nothing to an endpoint, and record nothing for it", _disable, arguments_of.endpoint),
    Action("delete", "delete an endpoint with all of its deliveries", _delete, arguments_of.delete),
    Action("test", "send an endpoint a test delivery now, from here", _test, arguments_of.endpoint),
    Action("deliveries", "list the deliveries to an endpoint, newest first", _deliveries, arguments_of.deliveries),
    Action("delivery", "show one delivery with its attempts", _delivery, arguments_of.delivery),
    Action("redeliver", "send one delivery again", _redeliver, arguments_of.delivery),
    Action("replay", "send a part of the log to an endpoint again", _replay, arguments_of.replay),
    Action(
        "dead-letters", "list the deliveries that were given up, newest first", _dead_letters, arguments_of.dead_letters
    ),
    Action("log", "show what was done by whom, oldest first", _log, arguments_of.log),
)
