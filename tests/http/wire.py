"""Answers as bytes, read by h11: a client that is none of ours, and that refuses what is not HTTP/1.1."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import chain, repeat
from typing import Any, NamedTuple

import h11
import httpx

from fluxora.http.replies import SECURITY_HEADERS


class Answer(NamedTuple):
    """One answer: its final status, its headers in order (names lower case), its body, and the 1xx before it."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    informational: tuple[int, ...]

    def header(self, name: str) -> str | None:
        """The header's value; a header that stands twice fails the test."""
        values = [value for key, value in self.headers if key == name]
        assert len(values) <= 1, f"{name} stands more than once"
        return values[0] if values else None

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def read_answers(data: bytes, methods: Iterable[str] = ()) -> list[Answer]:
    """Every answer in `data`, all that a connection received. `methods` are those of the requests; the rest are GET.

    h11 raises where the bytes are no answers, where they end in the middle of one, and where something follows an
    answer that announced the end of the connection.
    """
    answers: list[Answer] = []
    if not data:
        return answers
    connection = h11.Connection(h11.CLIENT)
    connection.receive_data(data)
    connection.receive_data(b"")
    for method in chain(methods, repeat("GET")):
        connection.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
        connection.send(h11.EndOfMessage())
        answers.append(_next(connection))
        if not connection.trailing_data[0]:
            break
        connection.start_next_cycle()
    return answers


def _next(connection: h11.Connection) -> Answer:
    informational: list[int] = []
    while isinstance(event := connection.next_event(), h11.InformationalResponse):
        informational.append(event.status_code)
    assert isinstance(event, h11.Response), event
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers]
    body = b""
    while isinstance(part := connection.next_event(), h11.Data):
        body += part.data
    assert isinstance(part, h11.EndOfMessage), part
    return Answer(event.status_code, headers, body, tuple(informational))


def assert_common(answer: Answer) -> None:
    """What every answer carries, whoever made it; and what none does."""
    assert answer.header("x-request-id")
    assert answer.header("date")
    for name, value in SECURITY_HEADERS:
        if name not in {"content-security-policy", "cache-control"}:
            assert answer.header(name) == value, name
    assert answer.header("content-security-policy")
    assert answer.header("cache-control")
    assert not {"server", "x-powered-by"} & {name for name, _ in answer.headers}


def assert_error(answer: Answer, status: int, code: str) -> dict[str, Any]:
    """An error of the one shape, with everything that an answer carries; its body."""
    assert_common(answer)
    error: dict[str, Any] = answer.json
    assert (answer.status, error["error"]) == (status, code)
    assert answer.header("content-type") == "application/json"
    assert {"error", "message", "requestId"} <= set(error) <= {"error", "message", "details", "requestId"}
    assert error["requestId"] == answer.header("x-request-id")
    assert isinstance(error["message"], str)
    assert error["message"]
    for detail in error.get("details", ()):
        assert set(detail) == {"field", "code", "message"}
    return error


def assert_refused(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """As `assert_error`, of an answer that httpx has read."""
    error: dict[str, Any] = answer.json()
    assert (answer.status_code, error["error"]) == (status, code), answer.text
    assert error["requestId"] == answer.headers["x-request-id"]
    return error
