"""The parts of the OpenAPI document that no model says: refusals, headers, security schemes, the words at its head."""

from __future__ import annotations

from typing import Any

from fluxora.http.ingest import TOKEN_HEADER

INFO: dict[str, Any] = {
    "title": "Fluxora API",
    "summary": "Token streams on Stellar: what each is worth at any second, and everything that ever happened to it.",
    "description": (
        "Amounts are decimal strings, positions strings of digits: both outgrow a JSON number. Every request is "
        "checked as a whole: an answer with status 400 names each failing field in `details`.\n\n"
        "Beside what each operation says: HEAD is answered wherever GET is, without a body. A path that is served, "
        "asked with another method, answers 405 with an `Allow` header; any other path 404. A request id that the "
        "client sends as `x-request-id` (1 to 128 of `A-Z a-z 0-9 . _ : -`) comes back, else a new one is made. A "
        "request head over 64 KiB answers 431. All of these have the body of every other error. Access without a "
        "credential can be closed by the operator; then 401 answers it. Rate limits can be off, and their headers are "
        "missing then.\n\n"
        "Events come over WebSocket, too: at `/ws/streams`, which a document of this kind cannot describe. Its "
        "positions are those of `/api/events`; the README says what is sent."
    ),
    "license": {"name": "MIT", "identifier": "MIT"},
}

SECURITY_SCHEMES: dict[str, Any] = {
    "ApiKey": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "A key that `fluxora keys new` made. Scopes: streams:read, streams:write, admin (implies both).",
    },
    "Bearer": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "HS256, with `exp`, `sub` and `scope` (the scopes, with spaces between).",
    },
    "WorkerToken": {
        "type": "apiKey",
        "in": "header",
        "name": TOKEN_HEADER,
        "description": "The secret that the operator shares with the worker.",
    },
}

# status -> (name of its response, what it means, the codes of its `error`)
REFUSALS: dict[int, tuple[str, str, tuple[str, ...]]] = {
    400: (
        "BadRequest",
        "The request is wrong; `details` names every failing field",
        ("VALIDATION_ERROR", "INVALID_JSON"),
    ),
    401: ("Unauthorized", "A credential is missing or wrong", ("UNAUTHORIZED",)),
    403: ("Forbidden", "The credential has not the scope", ("FORBIDDEN",)),
    404: ("NotFound", "There is no such resource", ("NOT_FOUND",)),
    405: ("MethodNotAllowed", "The path is served, but not with this method", ("METHOD_NOT_ALLOWED",)),
    406: ("NotAcceptable", "The media type is none of those in Accept", ("NOT_ACCEPTABLE",)),
    408: ("RequestTimeout", "The body did not arrive in time", ("REQUEST_TIMEOUT",)),
    409: ("Conflict", "The resource is not in a state that allows this", ("CONFLICT", "CHAIN_MANAGED")),
    413: ("PayloadTooLarge", "The body is larger than the service takes", ("PAYLOAD_TOO_LARGE",)),
    415: ("UnsupportedMediaType", "The body is not application/json in UTF-8", ("UNSUPPORTED_MEDIA_TYPE",)),
    422: ("IdempotencyConflict", "The key was used with another request", ("IDEMPOTENCY_CONFLICT",)),
    429: ("TooManyRequests", "Over the caller's limit", ("RATE_LIMIT_EXCEEDED",)),
    500: ("InternalError", "A defect of the service", ("INTERNAL_ERROR",)),
    503: ("Unavailable", "The service cannot answer now; the request may be repeated", ("SERVICE_UNAVAILABLE",)),
}
_OF_REFUSAL = {401: ("WWW-Authenticate",), 405: ("Allow",), 429: ("Retry-After",), 503: ("Retry-After",)}


def _header(description: str, schema: dict[str, Any], *, always: bool = False) -> dict[str, Any]:
    return {"description": description, "required": always, "schema": schema}


_TEXT = {"type": "string"}
_NUMBER = {"type": "integer", "minimum": 0}

REPLY_HEADERS: dict[str, Any] = {
    "x-request-id": _header(
        "The client's own, or a new one.", {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"}, always=True
    ),
    "ETag": _header(
        "Weak: the state's version and the second.", {"type": "string", "pattern": '^W/".+"$'}, always=True
    ),
    "Location": _header("The path of what is new.", {"type": "string", "format": "uri-reference"}, always=True),
    "Idempotency-Replayed": _header("This is the first answer again.", {"type": "string", "const": "true"}),
    "Content-Disposition": _header("The name of the file.", _TEXT, always=True),
    "Retry-After": _header("Seconds to wait.", _NUMBER, always=True),
    "Allow": _header("The methods that can be used here.", _TEXT, always=True),
    "WWW-Authenticate": _header("The schemes that can be used.", _TEXT),
}

LIMIT_HEADERS: dict[str, Any] = {
    "RateLimit-Policy": _header("The caller's policy: its quota `q` in a window of `w` seconds.", _TEXT),
    "RateLimit": _header("What is left, `r`, and in how many seconds the quota is whole again, `t`.", _TEXT),
    "X-RateLimit-Limit": _header("The quota of a minute.", _NUMBER),
    "X-RateLimit-Remaining": _header("What is left of it.", _NUMBER),
    "X-RateLimit-Reset": _header("The Unix second by which it is whole again.", _NUMBER),
}

REQUEST_HEADERS: dict[str, Any] = {
    "Idempotency-Key": {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "The caller's name for this request: repeated, it is not done again.",
        "required": False,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9:_-]{1,128}$", "examples": ["payroll-2026-01"]},
    },
    "Last-Event-ID": {
        "name": "Last-Event-ID",
        "in": "header",
        "description": "The `id` of the last event that the client has; it counts before `after`.",
        "required": False,
        "schema": {"type": "string", "pattern": "^[0-9]{1,19}$", "examples": ["1042"]},
    },
    "If-None-Match": {
        "name": "If-None-Match",
        "in": "header",
        "description": "An ETag that the client has: if it still holds, the answer is 304.",
        "required": False,
        "schema": _TEXT,
    },
}


def refusal(status: int) -> dict[str, Any]:
    """The response of an error status: the one error shape with the codes that this status has."""
    _, description, codes = REFUSALS[status]
    names = ("x-request-id", *_OF_REFUSAL.get(status, ()), *(LIMIT_HEADERS if status == 429 else ()))
    return {
        "description": description,
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in names},
        "content": {
            "application/json": {
                "schema": {
                    "allOf": [{"$ref": "#/components/schemas/Error"}],
                    "properties": {"error": {"enum": list(codes)}},
                }
            }
        },
    }
