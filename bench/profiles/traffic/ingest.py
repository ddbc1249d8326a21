"""Ingest: a worker pushes the events of the chain, a few at a time and in order, the next push after the last answer.

So its rate has a bound, whatever the server could do for several of them: that of one push after the other.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import msgspec

from bench.profiles.endpoint import request
from bench.profiles.scene import Scene, pushed
from bench.profiles.traffic.forms import Requests, Wrong

EVENTS = 10  # of a push
PATH = "/internal/indexer/contract-events"


class Ingest(Requests):
    """POST /internal/indexer/contract-events: withdrawals from the hot streams, one after the other."""

    name = "ingest"
    summary = f"push {EVENTS} contract events at a time, in order"
    weight = 5.0
    connections = 1

    def __init__(self, scene: Scene, chance: random.Random) -> None:  # noqa: ARG002 (every event is of the next stream)
        self._scene = scene
        self._next = 0

    def ask(self, due_s: float) -> _Push:
        """The next streams' withdrawals."""
        scene, events = self._scene, []
        for nth in range(EVENTS):
            at = self._next % len(scene.hot_numbers)
            self._next += 1
            payload = {"stream_id": scene.hot_numbers[at], "recipient": scene.people[-1], "amount": "1"}
            events.append(pushed(scene, due_s, nth, "withdrew", payload))
        return push(scene, events)


class Outcome(msgspec.Struct, rename="camel"):
    """The answer to a push."""

    inserted_event_ids: list[str]
    position: str


@dataclass(frozen=True, slots=True)
class _Push:
    octets: bytes
    ids: tuple[str, ...]

    def judge(self, status: int, body: bytes) -> tuple[str, ...]:
        if status != 200:
            raise Wrong(f"status {status}")
        try:
            inserted = msgspec.json.decode(body, type=Outcome).inserted_event_ids
        except msgspec.MsgspecError as error:
            raise Wrong("a body that tells no outcome") from error
        if sorted(inserted) != sorted(self.ids):
            raise Wrong("other events recorded than were pushed")
        return self.ids


def push(scene: Scene, events: list[dict[str, object]]) -> _Push:
    """The request that pushes these events."""
    octets = request(
        "POST",
        PATH,
        host=scene.endpoint.authority,
        headers=scene.headers,
        body=msgspec.json.encode({"events": events}),
        more=f"x-indexer-worker-token: {scene.worker_token}\r\n",
    )
    return _Push(octets, tuple(str(event["eventId"]) for event in events))
