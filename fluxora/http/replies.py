"""Replies in the shapes that clients rely on: JSON bodies, the one error shape, the headers of every answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from email.utils import formatdate
from http import HTTPStatus
from typing import Any
from uuid import uuid4

import msgspec

from fluxora.errors import FluxoraError, LeaseLost, MethodNotAllowed, RequestError, Unavailable
from fluxora.http.exchange import Reply

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
}


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


def transport_refusal(status: int, request_id: str | None = None) -> Reply:
    """The complete answer to what never became a request: malformed, oversized or slow heads, too many connections."""
    if status not in _TRANSPORT_REFUSALS:
        status = 400
    code, message = _TRANSPORT_REFUSALS[status]
    request_id = request_id or str(uuid4())
    headers = (("retry-after", str(RETRY_AFTER_S)),) if status == 503 else ()
    return finished(_error(status, code, message, request_id, headers=headers), request_id)


def method_not_allowed(allowed: Sequence[str]) -> MethodNotAllowed:
    """405 with its Allow header."""
    allow = ", ".join(allowed)
    return MethodNotAllowed(f"Only {allow} can be used here", headers=(("allow", allow),))


def finished(reply: Reply, request_id: str) -> Reply:
    """The reply with the headers that every answer carries; those that the route set win."""
    present = {name for name, _ in reply.headers}
    added = [pair for pair in SECURITY_HEADERS if pair[0] not in present]
    return Reply(reply.status, (*reply.headers, *added, ("x-request-id", request_id)), reply.body)


def request_id_from(given: str | None) -> str:
    """The client's request id where it is sane, else a new UUID."""
    if given is not None and _SANE_REQUEST_ID.fullmatch(given):
        return given
    return str(uuid4())


def rendered(reply: Reply) -> bytes:
    """A finished reply as HTTP/1.1 bytes that end the connection."""
    lines = [f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in reply.headers]
    lines += [f"content-length: {len(reply.body)}", f"date: {formatdate(usegmt=True)}", "connection: close", "", ""]
    return "\r\n".join(lines).encode("latin-1") + reply.body


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
