"""POST /internal/indexer/contract-events: events pushed by a trusted worker.

The whole batch is checked before any of it is handed on, and it is stored as one or not at all. The route does not
exist until its token is configured.
"""

from __future__ import annotations

import hmac
from typing import Any

from msgspec import UNSET

from fluxora.errors import BadRequest, TooManyRequests, Unauthorized, Unavailable
from fluxora.http.backend import Backend, Pushed
from fluxora.http.exchange import Headers, Reply, Request, joined
from fluxora.http.json_body import read_json
from fluxora.http.pushed_event import MAX_EVENTS, Batch, read_batch
from fluxora.http.replies import json_reply
from fluxora.http.reply_models import IngestReply, Reorg

TOKEN_HEADER = "x-indexer-worker-token"  # noqa: S105 (the header's name)


def is_open(backend: Backend) -> bool:
    """True once a token is configured; until then the route answers 404."""
    return backend.config.indexer_worker_token is not None


async def contract_events(request: Request, backend: Backend) -> Reply:
    """Record a batch; answers after its commit. Sending the same batch again changes nothing and says so.

    Raises:
        UnsupportedMediaType, InvalidJson, BadRequest: the request is refused, nothing is stored.
        Unavailable, StorageUnavailable: nothing is half stored; the batch may be sent again as it is.
    """
    batch = _read(read_json(request))
    if backend.push is None:
        raise Unavailable("This replica takes no pushed events")
    pushed = await backend.push.submit(batch.events, batch.hashes)
    return json_reply(_outcome(pushed))


def authorize(headers: Headers, client: str, backend: Backend) -> None:
    """By the token alone. Guesses are limited by the guesser's address, as failed credentials elsewhere.

    Raises:
        Unauthorized: the token is missing or wrong. TooManyRequests: too many from there were.
    """
    expected = backend.config.indexer_worker_token
    assert expected is not None  # the route is closed otherwise
    given = joined(headers, TOKEN_HEADER)
    if given is not None and hmac.compare_digest(given.encode(), expected.encode()):
        return
    grant = backend.limiter.take_failure(client)
    if grant is not None and not grant.allowed:
        raise TooManyRequests(f"Too many wrong tokens; try again in {grant.retry_after_s} s", headers=grant.headers)
    if given is None:
        raise Unauthorized(f"The {TOKEN_HEADER} header is needed")
    raise Unauthorized(f"The {TOKEN_HEADER} header is not right")


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


def _outcome(pushed: Pushed) -> IngestReply:
    undone = pushed.rolled_back_from
    return IngestReply(
        outcome="persisted",
        inserted_count=len(pushed.inserted),
        duplicate_count=len(pushed.duplicates),
        inserted_event_ids=list(pushed.inserted),
        duplicate_event_ids=list(pushed.duplicates),
        position=str(pushed.position),
        reorg=UNSET if undone is None else Reorg(from_ledger=undone, rolled_back=pushed.rolled_back),
    )
