"""The log, read back over REST when the load is over: the truth that what was stored and told is held against."""

from __future__ import annotations

import http.client
import ssl
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from bench.profiles.endpoint import Endpoint
from bench.profiles.followers_process import Story
from bench.stories import Flaws, judge

PAGE = 1_000
WITHIN_S = 60.0
T = TypeVar("T")


class Unreadable(Exception):
    """The server's answer is not what can be gone on with; carries its status and beginning."""


class Row(msgspec.Struct, rename="camel"):
    """An event, as far as it is looked at."""

    event_id: str
    stream_id: str | None
    position: str
    action: str


class Page(msgspec.Struct, rename="camel"):
    """A page of the log; `position` is where the log ends."""

    events: list[Row]
    has_more: bool
    position: str


class Reader:
    """Reads from a server with the standard library's client, one connection."""

    def __init__(self, endpoint: Endpoint, headers: Mapping[str, str]) -> None:
        self._headers = dict(headers)
        if endpoint.tls:
            context = ssl.create_default_context()
            self._connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                endpoint.host, endpoint.port, timeout=WITHIN_S, context=context
            )
        else:
            self._connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=WITHIN_S)

    def get(self, path: str, form: type[T]) -> T:
        """The answer to a GET.

        Raises:
            Unreadable: it was not 200, or is not of that form.
            OSError: the server cannot be reached.
        """
        self._connection.request("GET", path, headers=self._headers)
        answer = self._connection.getresponse()
        body = answer.read()
        if answer.status != http.HTTPStatus.OK:
            raise Unreadable(f"GET {path}: {answer.status} {body[:300]!r}")
        try:
            return msgspec.json.decode(body, type=form)
        except msgspec.MsgspecError as error:
            raise Unreadable(f"GET {path}: {error}") from error

    def get_any(self, path: str) -> dict[str, Any]:
        """The JSON object of whatever answer there is, {} where there is none in it.

        Raises:
            OSError, http.client.HTTPException: the server cannot be reached; the next call connects anew.
        """
        try:
            self._connection.request("GET", path, headers=self._headers)
            body = self._connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            raise
        try:
            return msgspec.json.decode(body, type=dict[str, Any])
        except msgspec.MsgspecError:
            return {}

    def get_text(self, path: str) -> str:
        """The body of whatever answer there is, "" where there is none.

        The next call connects anew where the server could not be reached.
        """
        try:
            self._connection.request("GET", path, headers=self._headers)
            return self._connection.getresponse().read().decode(errors="replace")
        except (OSError, http.client.HTTPException):
            self._connection.close()
            return ""

    def position(self) -> int:
        """Where the log ends."""
        return int(self.get("/api/events?limit=1", Page).position)

    def log(self, after: int) -> list[Row]:
        """Everything behind a position."""
        rows: list[Row] = []
        while True:
            page = self.get(f"/api/events?after={after}&limit={PAGE}", Page)
            rows += page.events
            if not page.has_more or not page.events:
                return rows
            after = int(page.events[-1].position)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def lasts(rows: Sequence[Row]) -> dict[str, int]:
    """The last position of each stream, and of all ("*")."""
    found: dict[str, int] = {}
    for row in rows:
        found["*"] = int(row.position)
        if row.stream_id is not None:
            found[row.stream_id] = int(row.position)
    return found


def of_writes(stored: Sequence[str], rows: Sequence[Row]) -> Flaws:
    """What was answered as stored, against the log: each once. (Streams stand there by their creation.)"""
    found: Counter[str] = Counter()
    for row in rows:
        found[row.event_id.partition("-")[2]] += 1
        if row.action == "created" and row.stream_id is not None:
            found[row.stream_id] += 1
    doubled = sum(count - 1 for count in Counter(row.event_id for row in rows).values())
    twice = sum(count - 1 for name, count in found.items() if name.startswith("stream-"))
    return Flaws(lost=sum(name not in found for name in set(stored)), doubled=doubled + twice)


def of_followers(stories: Sequence[Story], rows: Sequence[Row]) -> Flaws:
    """What followers were told, against the log. Who left earlier was due what came up to what it was told last."""
    of: dict[str, list[int]] = {"*": [int(row.position) for row in rows]}
    for row in rows:
        if row.stream_id is not None:
            of.setdefault(row.stream_id, []).append(int(row.position))
    flaws = Flaws()
    for story in stories:
        told = [position for first, last in story.runs for position in range(first, last + 1)]
        positions = of.get(story.follows, [])
        end = len(positions) if story.whole else bisect_right(positions, max(told, default=story.start))
        flaws.add(judge(told, positions[bisect_right(positions, story.start) : end]))
    return flaws
