"""Registrations over a socket, as the tests of the writes send them, and how their refusals are read."""

from __future__ import annotations

from typing import Any

import httpx
from front import Server
from story import ALICE, BOB, GENESIS_S

NOW = GENESIS_S + 250
NEW = {"sender": ALICE, "recipient": BOB, "depositAmount": "1000", "ratePerSecond": "0.5", "startTime": GENESIS_S}
URL = "/api/streams"


def details(answer: httpx.Response, code: str = "VALIDATION_ERROR", status: int = 400) -> dict[str, str]:
    assert (answer.status_code, answer.json()["error"]) == (status, code), answer.text
    return {detail["field"]: detail["code"] for detail in answer.json()["details"]}


async def post(server: Server, body: Any = None, key: str | None = None, **headers: str) -> httpx.Response:
    if key is not None:
        headers["idempotency-key"] = key
    return await server.request("POST", URL, json=NEW if body is None else body, headers=headers)


async def registered(server: Server, status: str = "active") -> str:
    """The URL of a new stream in that status."""
    url = (await post(server)).headers["location"]
    if status != "active":
        assert (await server.request("PATCH", url, json={"status": status})).status_code == 200
    return url
