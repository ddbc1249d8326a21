"""POST /internal/indexer/contract-events: events pushed by a trusted worker.

The whole batch is checked before any of it is handed on, and it is stored as one or not at all. The route does not
exist until its token is configured.
"""

from __future__ import annotations

import hmac
from typing import Any

import msgspec

from fluxora.errors import BadRequest, Unauthorized, Unavailable, UnsupportedMediaType
from fluxora.http import strict_json
from fluxora.http.backend import Backend, Pushed
from fluxora.http.exchange import Reply, Request
from fluxora.http.pushed_event import MAX_EVENTS, Batch, read_batch
from fluxora.http.replies import json_reply

TOKEN_HEADER = "x-indexer-worker-token"  # noqa: S105 (the header's name)


class _Reorg(msgspec.Struct, rename="camel"):
    from_ledger: int
    rolled_back: int


class _Outcome(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    outcome: str
    inserted_count: int
    duplicate_count: int
    inserted_event_ids: list[str]
    duplicate_event_ids: list[str]
    position: str
    reorg: _Reorg | None = None


def is_open(backend: Backend) -> bool:
    """True once a token is configured; until then the route answers 404."""
    return backend.config.indexer_worker_token is not None


async def contract_events(request: Request, backend: Backend) -> Reply:
    """Record a batch; answers after its commit. Sending the same batch again changes nothing and says so.

    Raises:
        Unauthorized, UnsupportedMediaType, InvalidJson, BadRequest: the request is refused, nothing is stored.
        Unavailable, StorageUnavailable: nothing is half stored; the batch may be sent again as it is.
    """
    _authorize(request, backend)
    _check_media_type(request)
    batch = _read(strict_json.read(request.body))
    if backend.push is None:
        raise Unavailable("This replica takes no pushed events")
    pushed = await backend.push.submit(batch.events, batch.hashes)
    return json_reply(_outcome(pushed))


def _authorize(request: Request, backend: Backend) -> None:
    expected = backend.config.indexer_worker_token
    assert expected is not None  # the route is closed otherwise
    given = request.header(TOKEN_HEADER)
    if given is None:
        raise Unauthorized(f"The {TOKEN_HEADER} header is needed")
    if not hmac.compare_digest(given.encode(), expected.encode()):
        raise Unauthorized(f"The {TOKEN_HEADER} header is not right")


def _check_media_type(request: Request) -> None:
    media_type, _, parameters = (request.header("content-type") or "").partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if media_type.strip().lower() != "application/json" or charset not in {"", "utf-8"}:
        raise UnsupportedMediaType("The body must be application/json in UTF-8")


def _read(value: Any) -> Batch:
    if not isinstance(value, dict):
        raise BadRequest("The body is not valid", details=[("", "INVALID_TYPE", "An object is needed")])
    events = value.get("events")
    if not isinstance(events, list):
        code = "INVALID_TYPE" if "events" in value else "REQUIRED"
        raise BadRequest("The body is not valid", details=[("events", code, "A list of events is needed")])
    if not 1 <= len(events) <= MAX_EVENTS:
        message = f"1 to {MAX_EVENTS} events are needed, got {len(events)}"
        raise BadRequest("The body is not valid", details=[("events", "OUT_OF_RANGE", message)])
    return read_batch(events)


def _outcome(pushed: Pushed) -> _Outcome:
    reorg = None
    if pushed.rolled_back_from is not None:
        reorg = _Reorg(from_ledger=pushed.rolled_back_from, rolled_back=pushed.rolled_back)
    return _Outcome(
        outcome="persisted",
        inserted_count=len(pushed.inserted),
        duplicate_count=len(pushed.duplicates),
        inserted_event_ids=list(pushed.inserted),
        duplicate_event_ids=list(pushed.duplicates),
        position=str(pushed.position),
        reorg=reorg,
    )
