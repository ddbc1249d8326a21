"""Webhooks: endpoints that the server sends events to, each signed, at least once."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from bench.profiles.endpoint import request
from bench.profiles.scene import Scene
from bench.profiles.traffic.forms import Message, Receivers, Registered, Sort, Wrong
from fluxora.webhooks import Refused, verify

PATH = "/api/admin/webhooks/endpoints"


class Webhooks(Receivers):
    """Endpoints made over the admin API: those of one stream in its order, those of everything in any."""

    name = "webhooks"
    summary = "endpoints of this machine that events are sent to"
    weight = 5.0
    latency = "webhook_delivery_latency"

    def register(self, scene: Scene, url: str, follows: str) -> bytes:
        """POST of an endpoint."""
        wanted = {"url": url, "description": "of a load"}
        only = {} if follows == "*" else {"streamIds": [follows], "ordered": True}
        return self._request(scene, "POST", PATH, msgspec.json.encode(wanted | only))

    def registered(self, status: int, body: bytes) -> Registered:
        """The endpoint, and its secret."""
        if status != 201:
            raise Wrong(f"refused with {status}")
        try:
            made = msgspec.json.decode(body, type=_Created)
        except msgspec.MsgspecError as error:
            raise Wrong("a body that is no endpoint") from error
        return Registered(made.id, int(made.created_position), made.secret)

    def remove(self, scene: Scene, endpoint: Registered) -> bytes:
        """DELETE of it."""
        return self._request(scene, "DELETE", f"{PATH}/{endpoint.id}", None)

    def event(self, headers: Sequence[tuple[str, str]], body: bytes, endpoint: Registered) -> Message:
        """The event, whose signature must be good."""
        try:
            verify(body, headers, secret=endpoint.secret)
            told = msgspec.json.decode(body, type=_Event)
        except Refused as error:
            raise Wrong(error.code) from error
        except msgspec.MsgspecError as error:
            raise Wrong("a body that is no event") from error
        return Message(Sort.EVENT, len(body), int(told.position), told.event_id.encode())

    @staticmethod
    def _request(scene: Scene, method: str, path: str, body: bytes | None) -> bytes:
        return request(method, path, host=scene.endpoint.authority, headers=scene.admin_headers or {}, body=body)


class _Created(msgspec.Struct, rename="camel"):
    id: str
    created_position: str
    secret: str


class _Event(msgspec.Struct, rename="camel"):
    event_id: str
    position: str
