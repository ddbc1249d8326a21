"""Reads over REST, as a dashboard makes them: mostly single streams, now and then a list, a history, an owner."""

from __future__ import annotations

import random
from dataclasses import dataclass

from bench.profiles.endpoint import request
from bench.profiles.scene import Scene
from bench.profiles.traffic.forms import Requests, Wrong, one_in

STREAM, PAGE, HISTORY = 0.70, 0.15, 0.10  # shares; what is left asks what an address owns


class RestReads(Requests):
    """GET requests; what comes must be what was asked for."""

    name = "rest_reads"
    summary = "GET a stream, a page of them, a stream's events, what an address owns"
    weight = 90.0
    connections = None

    def __init__(self, scene: Scene, chance: random.Random) -> None:
        self._scene = scene
        self._chance = chance

    def ask(self, due_s: float) -> _Read:  # noqa: ARG002 (a read is the same at any moment)
        """One of them, by chance."""
        scene, kind = self._scene, self._chance.random()
        one = one_in(self._chance, scene.ids)
        if kind < STREAM:
            return self._get(f"/api/streams/{one}", f'"id":"{one}"')
        if kind < STREAM + PAGE:
            owner = one_in(self._chance, scene.people)
            return self._get(f"/api/streams?limit=20&sender={owner}", '"streams":[')
        if kind < STREAM + PAGE + HISTORY:
            return self._get(f"/api/streams/{one}/events?limit=20", '"events":[')
        owner = one_in(self._chance, scene.people)
        return self._get(f"/api/treasury/{owner}", f'"{owner}"')

    def _get(self, path: str, holds: str) -> _Read:
        scene = self._scene
        octets = request("GET", path, host=scene.endpoint.authority, headers=scene.headers)
        return _Read(octets, holds.encode())


@dataclass(frozen=True, slots=True)
class _Read:
    octets: bytes
    holds: bytes

    def judge(self, status: int, body: bytes) -> tuple[str, ...]:
        if status != 200:
            raise Wrong(f"status {status}")
        if self.holds not in body:
            raise Wrong("a body that is not what was asked for")
        return ()
