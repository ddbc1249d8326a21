"""Idempotency-Key, and many callers at once: however often and from how many sides a write is asked for, it is one."""

from __future__ import annotations

from collections import Counter
from typing import Any

import httpx
import pytest
import trio
from registering import NEW, NOW, URL, details, post, registered
from spoken import KEYS, READER, ROOT, WRITER, token
from story import CAROL

from fluxora.actors.registrar import Registrar


@pytest.fixture
async def server(start, store, cache, writes):
    return await start(store=store, cache=cache, writes=writes, clock=lambda: NOW + 0.5)


@pytest.fixture
async def front(start):
    """A server for what is refused before anything could be written: it has nothing to write with."""
    return await start(clock=lambda: NOW + 0.5)


# -- Idempotency-Key ----------------------------------------------------------------------------------------------


async def test_the_same_key_and_body_get_the_first_answer(server, store):
    first = await post(server, key="k:1")
    position = await store.position()
    assert (await server.request("DELETE", first.headers["location"])).status_code == 200
    again = await post(server, key="k:1")
    assert (again.status_code, again.content, again.headers["location"]) == (
        201,
        first.content,
        first.headers["location"],
    )
    assert again.headers["idempotency-replayed"] == "true"
    assert await store.position() == position + 1, "the cancellation, and nothing else"


async def test_the_same_key_with_another_body_is_422(server, store):
    await post(server, key="k")
    position = await store.position()
    for other in ({**NEW, "depositAmount": "2"}, dict(reversed(NEW.items()))):  # the raw body counts, not its meaning
        answer = await post(server, other, key="k")
        assert (answer.status_code, answer.json()["error"]) == (422, "IDEMPOTENCY_CONFLICT")
    assert await store.position() == position


async def test_without_a_key_or_with_another_each_request_registers(server):
    keys = [None, None, "a", "b"]
    assert len({(await post(server, key=key)).json()["id"] for key in keys}) == len(keys)


@pytest.mark.parametrize("key", ["", "a" * 129, "a b", "a,b", "\u00e9", "a/b"])
async def test_a_key_of_another_form_is_refused(front, key):
    answer = await front.request("POST", URL, json=NEW, headers=[(b"idempotency-key", key.encode("latin-1"))])
    assert details(answer) == {"Idempotency-Key": "INVALID_FORMAT"}


async def test_a_key_of_128_characters_is_one(server):
    key = ("Az09:_-" * 19)[:128]
    assert (await post(server, key=key)).json() == (await post(server, key=key)).json()


async def test_two_keys_in_one_request_are_none(front):
    headers = [("idempotency-key", "a"), ("idempotency-key", "b")]
    assert details(await front.request("POST", URL, json=NEW, headers=headers)) == {"Idempotency-Key": "INVALID_FORMAT"}


async def test_a_refused_request_does_not_use_its_key_up(server):
    assert (await post(server, {**NEW, "depositAmount": "0"}, key="k")).status_code == 400
    assert (await post(server, key="k")).status_code == 201


async def test_a_key_is_its_callers_own(start, store, cache, writes):
    from ipaddress import ip_network

    server = await start(
        store=store, cache=cache, writes=writes, access=KEYS, trusted_proxies=(ip_network("127.0.0.0/8"),)
    )
    bearer = token(scope="streams:write", exp=4_000_000_000).partition(": ")[2]
    callers = [
        {},
        {"x-forwarded-for": "192.0.2.1"},
        {"x-forwarded-for": "192.0.2.2"},
        {"x-api-key": WRITER},
        {"x-api-key": ROOT},
        {"authorization": bearer},
    ]
    made = {}
    for number, headers in enumerate(callers):
        answer = await post(server, {**NEW, "depositAmount": str(number + 1)}, key="k", **headers)
        assert answer.status_code == 201, answer.text
        made[number] = answer.json()["id"]
    assert len(set(made.values())) == len(callers)
    for number, headers in enumerate(callers):
        again = await post(server, {**NEW, "depositAmount": str(number + 1)}, key="k", **headers)
        assert (again.json()["id"], again.headers["idempotency-replayed"]) == (made[number], "true")
    elsewhere = await post(server, {**NEW, "depositAmount": "4"}, key="k", **callers[3], **callers[1])
    assert elsewhere.json()["id"] == made[3], "a credential is one caller wherever it comes from"
    assert (await post(server, key="k", **{"x-api-key": READER})).status_code == 403


async def test_a_key_in_flight_is_409(start, store, cache, nursery):
    class Gate:
        def __init__(self) -> None:
            self.asked, self.open = trio.Event(), trio.Event()

        async def register(self, commands):
            self.asked.set()
            await self.open.wait()
            return await store.register(commands)

    gate = Gate()
    registrar = Registrar(gate, publish=lambda appended: cache.take_over(appended.streams))
    await nursery.start(registrar.run)
    server = await start(store=store, cache=cache, writes=registrar)
    answers = []

    async def first() -> None:
        answers.append(await post(server, key="k"))

    async with trio.open_nursery() as waiting:
        waiting.start_soon(first)
        await gate.asked.wait()
        for body in (NEW, {**NEW, "depositAmount": "2"}):
            answer = await post(server, body, key="k")
            assert (answer.status_code, answer.json()["error"]) == (409, "CONFLICT")
        gate.open.set()
    assert answers[0].status_code == 201
    assert (await post(server, key="k")).content == answers[0].content


# -- many at once -------------------------------------------------------------------------------------------------


async def at_once(server, count: int, method: str, url: str, **options: Any) -> list[httpx.Response]:
    """So many of the same request, all under way before the first is answered."""
    answers: list[httpx.Response] = []
    limits = httpx.Limits(max_connections=count)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=30, limits=limits) as client:

        async def one() -> None:
            answers.append(await client.request(method, url, **options))

        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(one)
    return answers


async def test_200_registrations_with_one_key_make_one_stream(server, store):
    answers = await at_once(server, 200, "POST", URL, json=NEW, headers={"idempotency-key": "k"})
    made = [answer for answer in answers if answer.status_code == 201]
    assert made
    assert {answer.status_code for answer in answers} <= {201, 409}
    assert all(answer.json()["error"] == "CONFLICT" for answer in answers if answer.status_code == 409)
    assert len({answer.content for answer in made}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in made) == 1
    assert await store.position() == 1
    assert (await post(server, key="k")).content == made[0].content


async def test_200_cancellations_cancel_once(server, store):
    url = await registered(server)
    answers = await at_once(server, 200, "DELETE", url)
    assert Counter(answer.status_code for answer in answers) == {200: 1, 409: 199}
    assert {answer.json()["error"] for answer in answers if answer.status_code == 409} == {"CONFLICT"}
    assert await store.position() == 2


async def test_200_registrations_without_a_key_make_200_streams_that_are_read_at_once(server, store):
    answers = await at_once(server, 200, "POST", URL, json={**NEW, "sender": CAROL})
    ids = {answer.json()["id"] for answer in answers}
    assert len(ids) == 200
    listed: set[str] = set()
    cursor = ""
    while True:
        page = (await server.get(f"{URL}?limit=100&sender={CAROL}{cursor}")).json()
        listed |= {one["id"] for one in page["streams"]}
        if not page["hasMore"]:
            break
        cursor = f"&cursor={page['nextCursor']}"
    assert listed == ids
    positions = sorted(int(answer.json()["position"]) for answer in answers)
    assert positions == list(range(1, 201))
