"""Followers over Server-Sent Events: each listens to one stream, or to all."""

from __future__ import annotations

from collections.abc import Iterator

from bench.profiles.endpoint import request
from bench.profiles.scene import Scene
from bench.profiles.traffic.forms import Followers, Message, Sort, Wrong

_EVENT_ID = b'"eventId":"'


class SseFollowers(Followers):
    """Listeners of /api/events/stream."""

    name = "sse_followers"
    summary = "event streams at /api/events/stream"
    weight = 20.0
    latency = "sse_delivery_latency"
    pong = b""

    def hello(self, scene: Scene, follows: str) -> bytes:
        """The one request."""
        path = "/api/events/stream" + ("" if follows == "*" else f"?streamId={follows}")
        return request("GET", path, host=scene.endpoint.authority, headers=scene.headers)

    def welcome(self, head: bytes, follows: str) -> bytes:  # noqa: ARG002 (it was said in the request)
        """Nothing more."""
        if not head.startswith(b"HTTP/1.1 200 "):
            raise Wrong(f"refused with {head[9:12].decode('latin-1')}")
        return b""

    def messages(self, octets: bytearray) -> Iterator[Message]:
        """Events, each a chunk of the body."""
        start = 0
        while (line := octets.find(b"\r\n", start)) >= 0:
            size = int(octets[start:line], 16)
            end = line + 2 + size + 2
            if end > len(octets):
                return
            yield _read(bytes(octets[line + 2 : end - 2]), end) if size else Message(Sort.END, end)
            start = end


def _read(text: bytes, end: int) -> Message:
    """The first `id` without an event says where the stream begins."""
    position, named = -1, False
    for line in text.split(b"\n"):
        if line.startswith(b"id: "):
            position = int(line[4:])
        elif line == b"event: reset":
            return Message(Sort.END, end)
        elif line.startswith(b"event: "):
            named = True
    if position < 0:
        return Message(Sort.OTHER, end)
    if not named:
        return Message(Sort.START, end, position)
    found = text.find(_EVENT_ID) + len(_EVENT_ID)
    return Message(Sort.EVENT, end, position, text[found : text.find(b'"', found)])
