"""A list of streams walked page by page over HTTP, with the standard library's client and one connection."""

from __future__ import annotations

import http.client
import json
from typing import Any

LIMIT = 20
PATH = f"/api/streams?limit={LIMIT}"
TIMEOUT_S = 30.0


class UnexpectedAnswer(Exception):
    """The answer is not what the benchmark stands on; carries its status and beginning."""


def walk(port: int, *, first: int = LIMIT) -> tuple[list[dict[str, Any]], list[str]]:
    """Every stream in the order of the list, and the paths of the pages of 20 behind its `first` streams.

    Raises:
        UnexpectedAnswer: one was not 200.
        OSError: the server cannot be reached.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        streams: list[dict[str, Any]] = []
        paths: list[str] = []
        page = _get(connection, f"/api/streams?limit={first}")
        while True:
            streams += page["streams"]
            if not page["hasMore"]:
                return streams, paths
            paths.append(f"{PATH}&cursor={page['nextCursor']}")
            page = _get(connection, paths[-1])
    finally:
        connection.close()


def distinct(port: int) -> list[str]:
    """The paths of pages of 20, no two of them the same: one for each fifth stream.

    Raises:
        UnexpectedAnswer, OSError: as `walk`.
    """
    return [path for first in range(5, LIMIT + 1, 5) for path in walk(port, first=first)[1]]


def _get(connection: http.client.HTTPConnection, path: str) -> dict[str, Any]:
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != http.HTTPStatus.OK:
        raise UnexpectedAnswer(f"GET {path}: {answer.status} {body[:300]!r}")
    page: dict[str, Any] = json.loads(body)
    return page
