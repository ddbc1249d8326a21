"""Followers over WebSocket: each has one subscription, answers pings, and says nothing else."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator

from bench.profiles.endpoint import request
from bench.profiles.scene import Scene
from bench.profiles.traffic.forms import Followers, Message, Sort, Wrong

TEXT, CLOSE, PING = 0x81, 0x88, 0x89
_ID, _POSITION = b'"eventId":"', b'"position":"'
_UPDATE, _ACK = b'{"type":"stream_update"', b'{"type":"ack"'


class WsFollowers(Followers):
    """Sockets at /ws/streams."""

    name = "ws_followers"
    summary = "WebSockets at /ws/streams, each with one subscription"
    weight = 80.0
    latency = "ws_delivery_latency"
    pong = b"\x8a\x80\0\0\0\0"

    def hello(self, scene: Scene, follows: str) -> bytes:  # noqa: ARG002 (that is said once it is open)
        """The upgrade."""
        key = base64.b64encode(os.urandom(16)).decode()
        upgrade = (
            f"upgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: {key}\r\n"
        )
        return request("GET", "/ws/streams", host=scene.endpoint.authority, headers=scene.headers, more=upgrade)

    def welcome(self, head: bytes, follows: str) -> bytes:
        """The subscription, in a frame whose mask is zero."""
        if not head.startswith(b"HTTP/1.1 101 "):
            raise Wrong(f"refused with {head[9:12].decode('latin-1')}")
        payload = json.dumps({"type": "subscribe", "streamId": follows, "ref": "f"}).encode()
        assert len(payload) <= 125
        return b"\x81" + bytes((0x80 | len(payload),)) + b"\0\0\0\0" + payload

    def messages(self, octets: bytearray) -> Iterator[Message]:
        """Frames, as servers send them: whole and not masked."""
        start, size = 0, len(octets)
        while start + 2 <= size:
            length, begin = octets[start + 1], start + 2
            if length >= 126:
                begin += 2 if length == 126 else 8
                if begin > size:
                    return
                length = int.from_bytes(octets[start + 2 : begin], "big")
            end = begin + length
            if end > size:
                return
            yield _read(octets, octets[start], begin, end)
            start = end


def _read(octets: bytearray, opcode: int, begin: int, end: int) -> Message:
    if opcode == PING:
        return Message(Sort.PING, end)
    if opcode == CLOSE:
        return Message(Sort.END, end)
    if opcode != TEXT or not octets.startswith((_UPDATE, _ACK), begin):
        return Message(Sort.OTHER, end)
    position = int(_quoted(octets, octets.rfind(_POSITION, begin, end) + len(_POSITION), end))
    if octets.startswith(_ACK, begin):
        return Message(Sort.START, end, position)
    return Message(Sort.EVENT, end, position, _quoted(octets, octets.find(_ID, begin, end) + len(_ID), end))


def _quoted(octets: bytearray, begin: int, end: int) -> bytes:
    return bytes(octets[begin : octets.find(b'"', begin, end)])
