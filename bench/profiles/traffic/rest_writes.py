"""Writes over REST: streams are registered. What is answered must be in the log once the run is over."""

from __future__ import annotations

import random
from dataclasses import dataclass

import msgspec

from bench.profiles.endpoint import request
from bench.profiles.scene import GENESIS_S, Scene
from bench.profiles.traffic.forms import Requests, Wrong, one_in

LIFETIME_S = 365 * 86_400


class RestWrites(Requests):
    """POST /api/streams, each with an idempotency key of its own."""

    name = "rest_writes"
    summary = "POST /api/streams"
    weight = 5.0
    connections = None

    def __init__(self, scene: Scene, chance: random.Random) -> None:
        self._scene = scene
        self._chance = chance

    def ask(self, due_s: float) -> _Write:  # noqa: ARG002 (a registration is the same at any moment)
        """A stream between two people."""
        scene, chance = self._scene, self._chance
        sender = one_in(chance, scene.people)
        recipient = one_in(chance, [person for person in scene.people if person != sender])
        start = GENESIS_S + int(chance.random() * LIFETIME_S)
        body = {
            "sender": sender,
            "recipient": recipient,
            "depositAmount": f"{1 + int(chance.random() * 10**6)}.0000000",
            "ratePerSecond": "0.0010000",
            "startTime": start,
            "endTime": start + LIFETIME_S,
        }
        octets = request(
            "POST",
            "/api/streams",
            host=scene.endpoint.authority,
            headers=scene.headers,
            body=msgspec.json.encode(body),
            more=f"idempotency-key: {chance.getrandbits(128):032x}\r\n",
        )
        return _Write(octets)


class _Registered(msgspec.Struct):
    id: str


@dataclass(frozen=True, slots=True)
class _Write:
    octets: bytes

    def judge(self, status: int, body: bytes) -> tuple[str, ...]:
        if status != 201:
            raise Wrong(f"status {status}")
        try:
            return (msgspec.json.decode(body, type=_Registered).id,)
        except msgspec.MsgspecError as error:
            raise Wrong("a body that is no stream") from error
