"""The admin API of webhooks over a real store: what is created, shown once, changed, listed, sent again, and logged."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import httpx
import pytest
import trio
from front import Server
from schemas import response, validator
from spoken import KEYS, READER, ROOT, WRITER
from story import ALICE, BOB, CAROL, batch, created, event, stream

from fluxora.actors.dispatcher import Dispatcher
from fluxora.actors.webhook_sender import WebhookSender
from fluxora.config import AccessConfig, WebhookConfig
from fluxora.http.routes import ROUTES
from fluxora.protocol.signing import Secret, delivery_id
from fluxora.storage.store import Store
from fluxora.storage.webhook_records import Result
from fluxora.webhooks import verify

ENDPOINTS = "/api/admin/webhooks/endpoints"
DEAD_LETTERS = "/api/admin/webhooks/dead-letters"
URL = "https://consumer.example/hook"
UNKNOWN = "we_" + "0" * 32
LOCAL = WebhookConfig(allowed_networks=(ip_network("127.0.0.0/8"),))
ADMIN = {"x-api-key": ROOT}
MINE = [route for route in ROUTES if "webhooks" in route.pattern or route.pattern == "/api/admin/log"]


class Desk:
    """A front with an admin at it. What it answers is held against the OpenAPI document."""

    def __init__(self, server: Server, client: httpx.AsyncClient) -> None:
        self.server = server
        self.client = client

    async def ask(self, method: str, path: str, status: int, operation_id: str, **options: Any) -> Any:
        answer = await self.client.request(method, path, headers=ADMIN, **options)
        assert answer.status_code == status, answer.text
        said = response(operation_id, status)
        if "content" not in said:
            assert answer.content == b""
            return None
        value = answer.json()
        validator(said["content"]["application/json"]["schema"], closed=status < 400).validate(value)
        return value

    async def create(self, **members: Any) -> dict[str, Any]:
        made = await self.ask("POST", ENDPOINTS, 201, "createWebhookEndpoint", json={"url": URL, **members})
        assert isinstance(made, dict)
        return made

    async def page(self, endpoint_id: str, **query: str | int) -> dict[str, Any]:
        path = f"{ENDPOINTS}/{endpoint_id}/deliveries"
        page = await self.ask("GET", path, 200, "listWebhookDeliveries", params=query)
        assert isinstance(page, dict)
        return page


@pytest.fixture
async def desk(start: Callable[..., Awaitable[Server]], store: Store) -> AsyncIterator[Desk]:
    sender = WebhookSender(LOCAL)
    server = await start(
        store=store,
        access=AccessConfig(api_keys=KEYS.api_keys),
        webhooks=LOCAL,
        dispatcher=Dispatcher(store, sender, LOCAL),
    )
    async with server.client() as client:
        yield Desk(server, client)
    sender.close()


def path_of(pattern: str) -> str:
    return pattern.replace("{id}", UNKNOWN if "endpoints" in pattern else f"msg_{UNKNOWN}_1_{'0' * 12}")


# who may ask


@pytest.mark.parametrize("route", MINE, ids=lambda route: f"{route.method} {route.pattern}")
async def test_nothing_of_it_exists_until_somebody_can_be_admin(start, route):
    server = await start(access=AccessConfig(api_keys=KEYS.api_keys[:2]))
    answer = await server.request(route.method, path_of(route.pattern), headers={"x-api-key": READER})
    assert answer.status_code == 404


async def test_it_is_for_the_scope_admin_alone(start):
    server = await start(access=AccessConfig(api_keys=KEYS.api_keys))
    assert len(MINE) == 13
    async with server.client() as client:
        for route in MINE:
            for headers, status in (({}, 401), ({"x-api-key": READER}, 403), ({"x-api-key": WRITER}, 403)):
                answer = await client.request(route.method, path_of(route.pattern), headers=headers)
                assert answer.status_code == status, route


# endpoints


async def test_a_new_endpoint_shows_its_secret_once(desk):
    made = await desk.create(
        description="books",
        events=["stream.created"],
        streamIds=[stream(0)],
        addresses=[ALICE, BOB],
        ordered=True,
        rateLimit=50,
        maxInFlight=4,
    )
    secret = made.pop("secret")
    assert Secret.parse(secret).reveal().startswith("whsec_")
    assert len(secret) == len("whsec_") + 44
    assert made["id"].startswith("we_")
    assert made | {"id": "", "createdAt": "", "updatedAt": ""} == {
        "id": "",
        "url": URL,
        "description": "books",
        "events": ["stream.created"],
        "streamIds": [stream(0)],
        "addresses": [ALICE, BOB],
        "ordered": True,
        "rateLimit": 50,
        "maxInFlight": 4,
        "enabled": True,
        "disabledReason": None,
        "createdAt": "",
        "updatedAt": "",
        "createdPosition": "0",
        "failingSince": None,
        "lastSuccessAt": None,
        "previousSecretUntil": None,
    }
    assert await desk.ask("GET", f"{ENDPOINTS}/{made['id']}", 200, "getWebhookEndpoint") == made
    other = await desk.create()
    assert other["secret"] != secret
    listed = await desk.ask("GET", ENDPOINTS, 200, "listWebhookEndpoints")
    assert [each["id"] for each in listed["endpoints"]] == [made["id"], other["id"]]
    assert secret not in str(listed)
    log = await desk.ask("GET", "/api/admin/log", 200, "getAdminLog")
    assert secret not in str(log)


async def test_the_location_is_that_of_the_endpoint(desk):
    answer = await desk.client.post(ENDPOINTS, headers=ADMIN, json={"url": URL})
    assert answer.headers["location"] == f"{ENDPOINTS}/{answer.json()['id']}"
    assert (await desk.client.get(answer.headers["location"], headers=ADMIN)).status_code == 200


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"url": None}, "url", "REQUIRED"),
    ({"url": 5}, "url", "INVALID_TYPE"),
    ({"url": ""}, "url", "INVALID_URL"),
    ({"url": "https://" + "a" * 2_050}, "url", "TOO_LONG"),
    ({"url": "https://user:pass@consumer.example/"}, "url", "INVALID_URL"),
    ({"url": "ftp://consumer.example/"}, "url", "SCHEME_NOT_ALLOWED"),
    ({"url": "https://10.0.0.1/"}, "url", "ADDRESS_NOT_ALLOWED"),
    ({"url": "https://[::ffff:169.254.169.254]/"}, "url", "ADDRESS_NOT_ALLOWED"),
    ({"url": "https://0x7f.1/"}, "url", "INVALID_HOST"),
    ({"description": "two\nlines"}, "description", "INVALID_FORMAT"),
    ({"description": "a" * 501}, "description", "OUT_OF_RANGE"),
    ({"events": "stream.created"}, "events", "INVALID_TYPE"),
    ({"events": ["stream.created", "stream.renamed"]}, "events", "INVALID_VALUE"),
    ({"events": ["stream.created", "stream.created"]}, "events", "INVALID_VALUE"),
    ({"streamIds": ["4"]}, "streamIds", "INVALID_FORMAT"),
    ({"streamIds": [f"stream-{n}" for n in range(101)]}, "streamIds", "OUT_OF_RANGE"),
    ({"addresses": [ALICE[:-1] + "A"]}, "addresses", "INVALID_ADDRESS"),
    ({"addresses": [5]}, "addresses", "INVALID_TYPE"),
    ({"ordered": "yes"}, "ordered", "INVALID_TYPE"),
    ({"ordered": 1}, "ordered", "INVALID_TYPE"),
    ({"rateLimit": -1}, "rateLimit", "OUT_OF_RANGE"),
    ({"rateLimit": 1.5}, "rateLimit", "INVALID_TYPE"),
    ({"maxInFlight": 0}, "maxInFlight", "OUT_OF_RANGE"),
    ({"enabled": None, "secret": "mine"}, "secret", "UNKNOWN_FIELD"),
]


async def test_a_wrong_field_is_named_and_nothing_is_created(desk):
    for members, field, code in WRONG:
        body = await desk.ask("POST", ENDPOINTS, 400, "createWebhookEndpoint", json={"url": URL, **members})
        assert [(detail["field"], detail["code"]) for detail in body["details"]] == [(field, code)]
    assert (await desk.ask("GET", ENDPOINTS, 200, "listWebhookEndpoints"))["endpoints"] == []


async def test_a_change_of_the_url_is_judged_too(desk):
    made = await desk.create()
    path = f"{ENDPOINTS}/{made['id']}"
    for url, code in (("https://192.168.0.1/", "ADDRESS_NOT_ALLOWED"), ("https://a_b..c/", "INVALID_HOST")):
        body = await desk.ask("PATCH", path, 400, "changeWebhookEndpoint", json={"url": url})
        assert [(detail["field"], detail["code"]) for detail in body["details"]] == [("url", code)]
    assert (await desk.ask("GET", path, 200, "getWebhookEndpoint"))["url"] == URL
    changed = await desk.ask("PATCH", path, 200, "changeWebhookEndpoint", json={"url": "http://127.0.0.1:9/x"})
    assert changed["url"] == "http://127.0.0.1:9/x", "allowed by configuration"


async def test_a_change_leaves_what_it_does_not_name(desk):
    made = await desk.create(events=["stream.created"], rateLimit=5, description="one")
    path = f"{ENDPOINTS}/{made['id']}"
    changed = await desk.ask("PATCH", path, 200, "changeWebhookEndpoint", json={"rateLimit": 0, "events": []})
    assert (changed["rateLimit"], changed["events"], changed["description"]) == (0, [], "one")
    changed = await desk.ask("PATCH", path, 200, "changeWebhookEndpoint", json={"enabled": False, "url": None})
    assert (changed["enabled"], changed["disabledReason"], changed["url"]) == (False, "operator", URL)
    changed = await desk.ask("PATCH", path, 200, "changeWebhookEndpoint", json={"enabled": True})
    assert (changed["enabled"], changed["disabledReason"]) == (True, None)
    body = await desk.ask("PATCH", path, 400, "changeWebhookEndpoint", json={})
    assert [(detail["field"], detail["code"]) for detail in body["details"]] == [("", "REQUIRED")]


async def test_what_is_not_there_is_404(desk):
    for method, tail, operation_id, body in (
        ("GET", "", "getWebhookEndpoint", None),
        ("PATCH", "", "changeWebhookEndpoint", {"enabled": False}),
        ("DELETE", "", "deleteWebhookEndpoint", None),
        ("POST", "/rotate", "rotateWebhookSecret", None),
        ("POST", "/test", "testWebhookEndpoint", None),
        ("GET", "/deliveries", "listWebhookDeliveries", None),
        ("POST", "/replay", "replayWebhookEvents", {}),
    ):
        for endpoint_id in (UNKNOWN, "default", "we_x", "%00"):
            await desk.ask(method, f"{ENDPOINTS}/{endpoint_id}{tail}", 404, operation_id, json=body)
    for name in (f"msg_{UNKNOWN}_1_{'0' * 12}", f"msg_{UNKNOWN}_9223372036854775808_{'0' * 12}", "msg_x", "1"):
        path = f"/api/admin/webhooks/deliveries/{name}"
        await desk.ask("GET", path, 404, "getWebhookDelivery")
        await desk.ask("POST", f"{path}/redeliver", 404, "redeliverWebhook")


async def test_there_may_be_so_many_and_no_more(start, store):
    few = replace(LOCAL, max_endpoints=2)
    server = await start(store=store, access=AccessConfig(api_keys=KEYS.api_keys), webhooks=few)
    async with server.client() as client:
        desk = Desk(server, client)
        first = await desk.create()
        await desk.create()
        refused = await desk.ask("POST", ENDPOINTS, 409, "createWebhookEndpoint", json={"url": URL})
        assert refused["error"] == "CONFLICT"
        assert "2 webhook endpoints" in refused["message"]
        assert "FLUXORA_WEBHOOK_MAX_ENDPOINTS" in refused["message"]
        await desk.ask("DELETE", f"{ENDPOINTS}/{first['id']}", 204, "deleteWebhookEndpoint")
        await desk.create()


async def test_a_deleted_endpoint_is_gone_with_its_deliveries(desk, record):
    made = await desk.create()
    await record(batch(created(0, ledger=10)))
    [delivery] = (await desk.page(made["id"]))["deliveries"]
    await desk.ask("GET", f"/api/admin/webhooks/deliveries/{delivery['id']}", 200, "getWebhookDelivery")
    await desk.ask("GET", f"/api/admin/webhooks/deliveries/{delivery['id'][:-12]}{'0' * 12}", 404, "getWebhookDelivery")
    path = f"{ENDPOINTS}/{made['id']}"
    await desk.ask("DELETE", path, 204, "deleteWebhookEndpoint")
    await desk.ask("DELETE", path, 404, "deleteWebhookEndpoint")
    await desk.ask("GET", f"/api/admin/webhooks/deliveries/{delivery['id']}", 404, "getWebhookDelivery")
    assert (await desk.ask("GET", ENDPOINTS, 200, "listWebhookEndpoints"))["endpoints"] == []


# secrets and tests


class Consumer:
    """Takes one request a connection, keeps it and answers with `status`."""

    def __init__(self) -> None:
        self.status = 200
        self.received: list[tuple[list[tuple[str, str]], bytes]] = []

    async def serve(self, connection: trio.SocketStream) -> None:
        async with connection:
            data = b""
            while b"\r\n\r\n" not in data:
                data += await connection.receive_some()
            head, _, body = data.partition(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")[1:]
            headers = [(name.lower(), value) for name, value in (line.split(": ", 1) for line in lines)]
            while len(body) < int(dict(headers)["content-length"]):
                body += await connection.receive_some()
            self.received.append((headers, body))
            await connection.send_all(b"HTTP/1.1 %d Said\r\nContent-Length: 5\r\n\r\nheard" % self.status)


@pytest.fixture
async def consumer(nursery: trio.Nursery) -> AsyncIterator[tuple[Consumer, str]]:
    made = Consumer()
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, made.serve, [listener])
    return made, f"http://127.0.0.1:{listener.socket.getsockname()[1]}/hook"


async def test_a_test_delivery_is_signed_like_any_other_and_told_of(desk, consumer):
    heard, url = consumer
    made = await desk.create(url=url, enabled=False)
    path = f"{ENDPOINTS}/{made['id']}/test"
    told = await desk.ask("POST", path, 200, "testWebhookEndpoint")
    assert told["latencyMs"] >= 0
    assert told | {"latencyMs": 0} == {
        "delivered": True,
        "status": 200,
        "error": None,
        "latencyMs": 0,
        "response": "heard",
    }
    [(headers, body)] = heard.received
    delivery = verify(body, headers, secret=made["secret"])
    assert delivery.json()["event"] == dict(headers)["x-fluxora-event"]
    heard.status = 503
    told = await desk.ask("POST", path, 200, "testWebhookEndpoint")
    assert (told["delivered"], told["status"]) == (False, 503)
    assert (await desk.page(made["id"]))["deliveries"] == []


async def test_a_test_that_nobody_hears_says_why(desk):
    made = await desk.create(url="http://127.0.0.1:1/")
    told = await desk.ask("POST", f"{ENDPOINTS}/{made['id']}/test", 200, "testWebhookEndpoint")
    assert (told["delivered"], told["status"]) == (False, None)
    assert told["error"]


async def test_a_process_that_sends_none_says_so(start, store):
    server = await start(store=store, access=KEYS, webhooks=LOCAL)
    answer = await server.request("POST", f"{ENDPOINTS}/{UNKNOWN}/test", headers=ADMIN)
    assert answer.status_code == 503
    assert answer.headers["retry-after"]


@pytest.mark.parametrize(
    ("body", "grace"), [(None, True), ({}, True), ({"graceSeconds": 60}, True), ({"graceSeconds": 0}, False)]
)
async def test_a_rotated_secret_is_shown_once_and_the_previous_signs_on(desk, consumer, body, grace):
    heard, url = consumer
    made = await desk.create(url=url)
    path = f"{ENDPOINTS}/{made['id']}"
    rotated = await desk.ask("POST", f"{path}/rotate", 200, "rotateWebhookSecret", json=body)
    assert rotated["secret"] != made["secret"]
    assert (rotated["previousSecretUntil"] is not None) == grace
    shown = await desk.ask("GET", path, 200, "getWebhookEndpoint")
    assert shown["previousSecretUntil"] == rotated["previousSecretUntil"]
    assert rotated["secret"] not in str(shown)
    await desk.ask("POST", f"{path}/test", 200, "testWebhookEndpoint")
    [(headers, raw)] = heard.received
    verify(raw, headers, secret=rotated["secret"])
    assert dict(headers)["webhook-signature"].count("v1,") == (2 if grace else 1)


async def test_a_grace_out_of_range_is_named(desk):
    made = await desk.create()
    path = f"{ENDPOINTS}/{made['id']}/rotate"
    body = await desk.ask("POST", path, 400, "rotateWebhookSecret", json={"graceSeconds": 2_592_001})
    assert [detail["field"] for detail in body["details"]] == ["graceSeconds"]


# deliveries


async def sent(store: Store, endpoint_id: str, *, outcome: str, status: int | None = 500, **more: Any) -> None:
    """A worker takes all that is due at the endpoint, and each attempt ends like that."""
    await store.webhooks.enlist("worker", 60_000)
    turn = await store.webhooks.turn("worker", [], 1_000, [], [])
    assert {due.endpoint_id for due in turn.deliveries} == {endpoint_id}
    results = [
        Result(
            endpoint_id=due.endpoint_id,
            position=due.event.position,
            outcome=outcome,  # type: ignore[arg-type]
            status=status,
            latency_ms=7,
            **({"error": None} | more),
        )
        for due in turn.deliveries
    ]
    assert (await store.webhooks.turn("worker", results, 0, [], [])).settled == len(results)
    await store.webhooks.retire("worker")


async def test_deliveries_are_listed_newest_first_page_by_page(desk, record):
    made = await desk.create(addresses=[CAROL])
    await record(
        batch(
            *(created(number, ledger=10, index=number, recipient=CAROL) for number in range(5)),
            created(9, ledger=11),
        )
    )
    page = await desk.page(made["id"])
    assert [item["position"] for item in page["deliveries"]] == ["5", "4", "3", "2", "1"]
    assert (page["hasMore"], page["nextBefore"]) == (False, None)
    [*_, first] = page["deliveries"]
    assert first == {
        "id": delivery_id(made["id"], 1, f"1-{created(0, ledger=10).id}"),
        "endpointId": made["id"],
        "position": "1",
        "event": "stream.created",
        "streamId": stream(0),
        "status": "pending",
        "attemptCount": 0,
        "dueAt": first["createdAt"],
        "createdAt": first["createdAt"],
        "finishedAt": None,
        "lastStatus": None,
        "lastError": None,
    }
    seen, before = [], {}
    while True:
        page = await desk.page(made["id"], limit=2, status="pending", **before)
        seen += [item["position"] for item in page["deliveries"]]
        if not page["hasMore"]:
            break
        before = {"before": page["nextBefore"]}
    assert seen == ["5", "4", "3", "2", "1"]
    assert (await desk.page(made["id"], status="dead"))["deliveries"] == []


async def test_a_wrong_parameter_is_named(desk):
    made = await desk.create()
    for query in ("limit=0", "limit=101", "status=lost", "before=1", "before=msg_we_1_1", "after=1"):
        answer = await desk.client.get(f"{ENDPOINTS}/{made['id']}/deliveries?{query}", headers=ADMIN)
        assert answer.status_code == 400
        assert [detail["field"] for detail in answer.json()["details"]] == [query.partition("=")[0]]


async def test_a_delivery_shows_its_attempts_and_can_be_sent_again(desk, store, record):
    made = await desk.create()
    await record(batch(created(0, ledger=10)))
    await sent(store, made["id"], outcome="retry", delay_ms=0, response="<b>no</b>")
    await sent(store, made["id"], outcome="dead", status=None, error="no complete answer within 15 s")
    [dead] = (await desk.ask("GET", DEAD_LETTERS, 200, "listDeadLetters"))["deliveries"]
    path = f"/api/admin/webhooks/deliveries/{dead['id']}"
    detail = await desk.ask("GET", path, 200, "getWebhookDelivery")
    attempts = detail.pop("attempts")
    assert detail == dead
    assert (dead["status"], dead["attemptCount"], dead["dueAt"]) == ("dead", 2, None)
    assert (dead["lastStatus"], dead["lastError"]) == (None, "no complete answer within 15 s")
    assert dead["finishedAt"] is not None
    assert [attempt | {"at": ""} for attempt in attempts] == [
        {"number": 1, "at": "", "status": 500, "error": None, "latencyMs": 7, "response": "<b>no</b>"},
        {
            "number": 2,
            "at": "",
            "status": None,
            "error": "no complete answer within 15 s",
            "latencyMs": 7,
            "response": "",
        },
    ]
    again = await desk.ask("POST", f"{path}/redeliver", 202, "redeliverWebhook")
    assert (again["id"], again["status"], again["attemptCount"]) == (dead["id"], "pending", 0)
    assert (await desk.ask("GET", DEAD_LETTERS, 200, "listDeadLetters"))["deliveries"] == []
    await sent(store, made["id"], outcome="delivered", status=200)
    detail = await desk.ask("GET", path, 200, "getWebhookDelivery")
    assert (detail["status"], len(detail["attempts"])) == ("delivered", 3)
    shown = await desk.ask("GET", f"{ENDPOINTS}/{made['id']}", 200, "getWebhookEndpoint")
    assert shown["lastSuccessAt"] is not None


async def test_dead_letters_of_one_endpoint(desk, store, record):
    ones = [await desk.create(streamIds=[stream(number)]) for number in range(2)]
    for number, made in enumerate(ones):
        await record(batch(created(number, ledger=10 + number)))
        await sent(store, made["id"], outcome="dead")
    every = await desk.ask("GET", DEAD_LETTERS, 200, "listDeadLetters")
    assert {item["endpointId"] for item in every["deliveries"]} == {made["id"] for made in ones}
    page = await desk.ask("GET", f"{DEAD_LETTERS}?endpointId={ones[0]['id']}", 200, "listDeadLetters")
    assert [item["endpointId"] for item in page["deliveries"]] == [ones[0]["id"]]
    page = await desk.ask("GET", f"{DEAD_LETTERS}?limit=1", 200, "listDeadLetters")
    rest = await desk.ask("GET", f"{DEAD_LETTERS}?limit=1&before={page['nextBefore']}", 200, "listDeadLetters")
    assert [*page["deliveries"], *rest["deliveries"]] == every["deliveries"]
    assert not rest["hasMore"]


async def test_a_replay_sends_what_was_missed_or_all(desk, store, record):
    await record(batch(created(0, ledger=10), created(1, ledger=10, index=1)))  # before there is an endpoint
    made = await desk.create()
    await record(batch(event("paused", {"stream_id": 0, "reason": "Operational"}, ledger=11)))
    await sent(store, made["id"], outcome="delivered", status=200)
    path = f"{ENDPOINTS}/{made['id']}/replay"
    whole = {"after": "0", "until": "3"}
    done = await desk.ask("POST", path, 202, "replayWebhookEvents", json=whole)
    assert done == {"count": 2, "uncertain": 0, "through": "3", "hasMore": False}
    assert {item["position"] for item in (await desk.page(made["id"], status="pending"))["deliveries"]} == {"1", "2"}
    done = await desk.ask("POST", path, 202, "replayWebhookEvents", json=whole | {"only": "all"})
    assert done["count"] == 1
    assert len((await desk.page(made["id"], status="pending"))["deliveries"]) == 3
    assert (await desk.ask("POST", path, 202, "replayWebhookEvents", json={}))["count"] == 0


async def test_a_wrong_replay_is_named(desk):
    made = await desk.create()
    for members, field in (
        ({"after": 1}, "after"),
        ({"until": "0"}, "until"),
        ({"after": "5", "until": "5"}, "until"),
        ({"only": "some"}, "only"),
        ({"from": "1"}, "from"),
    ):
        body = await desk.ask("POST", f"{ENDPOINTS}/{made['id']}/replay", 400, "replayWebhookEvents", json=members)
        assert [detail["field"] for detail in body["details"]] == [field]


# the log


async def test_what_an_admin_does_is_logged_with_its_name(desk, store, record):
    made = await desk.create(description="books", url="http://127.0.0.1:1/")
    path = f"{ENDPOINTS}/{made['id']}"
    await record(batch(created(0, ledger=10)))
    [delivery] = (await desk.page(made["id"]))["deliveries"]
    await desk.ask("PATCH", path, 200, "changeWebhookEndpoint", json={"rateLimit": 7})
    rotated = await desk.ask("POST", f"{path}/rotate", 200, "rotateWebhookSecret", json={"graceSeconds": 5})
    await desk.ask("POST", f"/api/admin/webhooks/deliveries/{delivery['id']}/redeliver", 202, "redeliverWebhook")
    await desk.ask("POST", f"{path}/replay", 202, "replayWebhookEvents", json={})
    await desk.ask("POST", f"{path}/test", 200, "testWebhookEndpoint")
    await desk.ask("DELETE", path, 204, "deleteWebhookEndpoint")
    for whose in ({"streamId": stream(0)}, {"principal": "jwt:bob"}, {"all": True}):
        await desk.ask("POST", "/api/admin/ws/disconnect", 200, "disconnectWebSockets", json=whose)
    log = await desk.ask("GET", "/api/admin/log", 200, "getAdminLog")
    done = [entry["action"].removeprefix("webhook.") for entry in log["entries"]]
    of_webhooks = ["created", "updated", "rotated", "redelivered", "replayed", "tested", "deleted"]
    assert done == [*of_webhooks, *["sockets.disconnected"] * 3]
    changing = [route for route in ROUTES if route.access.scope == "admin" and route.access.kind == "write"]
    assert len(changing) == len(set(done)), "each route that does something"
    assert {entry["actor"] for entry in log["entries"]} == {"key:root"}
    assert all(made["id"] in entry["subject"] for entry in log["entries"][:-3])
    assert [entry["subject"] for entry in log["entries"][-3:]] == [stream(0), "jwt:bob", "all"]
    assert log["entries"][-1]["detail"] == {"disconnected": "0"}
    assert made["secret"] not in str(log)
    assert rotated["secret"] not in str(log)
    assert not log["hasMore"]
    first = await desk.ask("GET", "/api/admin/log?limit=4", 200, "getAdminLog")
    rest = await desk.ask("GET", f"/api/admin/log?after={first['nextAfter']}", 200, "getAdminLog")
    assert [*first["entries"], *rest["entries"]] == log["entries"]
    assert first["hasMore"]
    empty = await desk.ask("GET", f"/api/admin/log?after={log['nextAfter']}", 200, "getAdminLog")
    assert empty == {"entries": [], "hasMore": False, "nextAfter": log["nextAfter"]}
