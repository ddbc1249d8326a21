"""Replies in the shapes that clients rely on: JSON bodies, the one error shape, the headers of every answer."""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Sequence
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any

import msgspec

from fluxora.errors import FluxoraError, LeaseLost, MethodNotAllowed, RequestError, Unavailable
from fluxora.http.exchange import Reply, joined

RETRY_AFTER_S = 2
_JSON = ("content-type", "application/json")
_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

# A route may set its own content-security-policy or cache-control; all the rest is the same on every answer.
SECURITY_HEADERS: tuple[tuple[str, str], ...] = (
    ("content-security-policy", "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"),
    ("strict-transport-security", "max-age=31536000; includeSubDomains"),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("x-dns-prefetch-control", "off"),
    ("x-permitted-cross-domain-policies", "none"),
    (
        "permissions-policy",
        "accelerometer=(), camera=(), geolocation=(), gyroscope=(), magnetometer=(), microphone=(), payment=(), usb=()",
    ),
    ("cache-control", "no-store"),
)

# Codes for what is refused before there is a request to route.
_TRANSPORT_REFUSALS: dict[int, tuple[str, str]] = {
    400: ("VALIDATION_ERROR", "The bytes are not an HTTP/1.1 request"),
    408: ("REQUEST_TIMEOUT", "The request head did not arrive in time"),
    431: ("REQUEST_HEADER_FIELDS_TOO_LARGE", "The request head is larger than 64 KiB"),
    500: ("INTERNAL_ERROR", "Internal error"),
    501: ("NOT_IMPLEMENTED", "The transfer coding is not supported"),
    503: ("SERVICE_UNAVAILABLE", "Too many connections"),
    505: ("HTTP_VERSION_NOT_SUPPORTED", "Only HTTP/1.0 and HTTP/1.1 are spoken here"),
}

_OVERRIDABLE = frozenset(name for name, _ in SECURITY_HEADERS)
_WITHOUT_LENGTH = frozenset((101, 204, 304))  # for a 304 it would name the length of another representation
_SECURITY = "".join(f"{name}: {value}\r\n" for name, value in SECURITY_HEADERS)
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}


class _Detail(msgspec.Struct):
    field: str
    code: str
    message: str


class _Error(msgspec.Struct, rename={"request_id": "requestId"}, omit_defaults=True, kw_only=True):
    error: str
    message: str
    details: list[_Detail] | None = None
    request_id: str


def json_reply(value: Any, *, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Reply:
    """`value` encoded by msgspec."""
    return raw_json_reply(msgspec.json.encode(value), status=status, headers=headers)


def raw_json_reply(body: bytes, *, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Reply:
    """A body that is JSON text already."""
    return Reply(status, (_JSON, *headers), body)


def error_reply(error: BaseException, request_id: str) -> Reply:
    """The answer to a failure. What is neither the client's fault nor passing is 500 and says nothing of its cause."""
    if isinstance(error, RequestError):
        headers = error.headers
        if isinstance(error, Unavailable) and all(name != "retry-after" for name, _ in headers):
            headers = (*headers, ("retry-after", str(RETRY_AFTER_S)))
        return _error(error.status, error.code, str(error), request_id, details=error.details, headers=headers)
    if isinstance(error, FluxoraError) and (error.retryable or isinstance(error, LeaseLost)):
        where = "This replica does not ingest" if isinstance(error, LeaseLost) else "The service cannot answer"
        message = f"{where} now"
        return _error(503, "SERVICE_UNAVAILABLE", message, request_id, headers=(("retry-after", str(RETRY_AFTER_S)),))
    return _error(500, "INTERNAL_ERROR", "Internal error", request_id)


def is_expected(error: BaseException) -> bool:
    """False where `error_reply` answers 500: a defect, to be logged with its traceback."""
    return isinstance(error, RequestError | LeaseLost) or (isinstance(error, FluxoraError) and error.retryable)


def transport_refusal(status: int, request_id: str) -> Reply:
    """The answer to what never became a request: malformed, oversized or slow heads, too many connections."""
    if status not in _TRANSPORT_REFUSALS:
        status = 400
    code, message = _TRANSPORT_REFUSALS[status]
    headers = (("retry-after", str(RETRY_AFTER_S)),) if status == 503 else ()
    return _error(status, code, message, request_id, headers=headers)


def method_not_allowed(allowed: Sequence[str]) -> MethodNotAllowed:
    """405 with its Allow header."""
    allow = ", ".join(allowed)
    return MethodNotAllowed(f"Only {allow} can be used here", headers=(("allow", allow),))


def headers_of(reply: Reply, request_id: str, *, close: bool) -> list[tuple[str, str]]:
    """Every header of the answer, in the order in which they are sent; those that the route set win.

    The same as `rendered` sends. `close`: the connection ends behind this answer.
    """
    present = {name for name, _ in reply.headers}
    headers = [*reply.headers, *(pair for pair in SECURITY_HEADERS if pair[0] not in present)]
    headers.append(("x-request-id", request_id))
    if reply.chunks is None and reply.opens is None and reply.status not in _WITHOUT_LENGTH:
        headers.append(("content-length", str(len(reply.body))))
    headers.append(("date", http_date()))
    if close:
        headers.append(("connection", "close"))
    return headers


def rendered(reply: Reply, request_id: str, *, close: bool, with_body: bool = True) -> bytes:
    """The answer as HTTP/1.1 bytes; for HEAD without its body."""
    own = reply.headers
    plain = not any(name in _OVERRIDABLE for name, _ in own)
    head = "".join(
        (
            _STATUS_LINES[reply.status],
            *[f"{name}: {value}\r\n" for name, value in (own if plain else headers_of(reply, request_id, close=close))],
            _tail(reply, request_id, close=close) if plain else "\r\n",
        )
    ).encode("latin-1")
    return head + reply.body if with_body else head


def _tail(reply: Reply, request_id: str, *, close: bool) -> str:
    """What follows the route's own headers, as one text."""
    length = (
        "" if reply.opens is not None or reply.status in _WITHOUT_LENGTH else f"content-length: {len(reply.body)}\r\n"
    )
    end = "connection: close\r\n\r\n" if close else "\r\n"
    return f"{_SECURITY}x-request-id: {request_id}\r\n{length}date: {http_date()}\r\n{end}"


def request_id_from(headers: tuple[tuple[str, str], ...]) -> str:
    """The client's request id where it sent one that is sane, else a new UUID."""
    given = joined(headers, "x-request-id")
    if given is not None and _SANE_REQUEST_ID.fullmatch(given):
        return given
    return new_request_id()


_entropy: deque[bytes] = deque()


def new_request_id() -> str:
    """A random UUID (version 4). The system is asked for entropy once in 256 ids: asking costs more than an id."""
    if not _entropy:
        octets = os.urandom(16 * 256)
        _entropy.extend(octets[at : at + 16] for at in range(0, len(octets), 16))
    text = _entropy.pop().hex()
    variant = "89ab"[int(text[16], 16) & 3]
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{variant}{text[17:20]}-{text[20:]}"


def http_date() -> str:
    """Now as RFC 9110 5.6.7 has it; made once a second."""
    return _dated(int(time.time()))


@lru_cache(maxsize=2)
def _dated(second: int) -> str:
    return formatdate(second, usegmt=True)


def _error(
    status: int,
    code: str,
    message: str,
    request_id: str,
    *,
    details: list[tuple[str, str, str]] | None = None,
    headers: tuple[tuple[str, str], ...] = (),
) -> Reply:
    listed = [_Detail(*detail) for detail in details] if details else None
    return json_reply(
        _Error(error=code, message=message, details=listed, request_id=request_id), status=status, headers=headers
    )
