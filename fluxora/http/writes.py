"""POST /api/streams, PATCH and DELETE /api/streams/{id}: streams that clients register, and their status.

A reply is sent after the commit of what it says. Streams of the chain refuse every edit: the chain is the truth.
"""

from __future__ import annotations

import re
from functools import partial

import msgspec

from fluxora.errors import BadRequest, NotFound
from fluxora.http.backend import Backend
from fluxora.http.exchange import Pending, Reply, Request
from fluxora.http.fields import STREAM_ID
from fluxora.http.json_body import read_json
from fluxora.http.limits import site_of
from fluxora.http.models import NewStream, NoParameters, StatusChange
from fluxora.http.reading import read_body, read_query
from fluxora.http.replies import raw_json_reply
from fluxora.protocol import lifecycle
from fluxora.protocol.messages import encode_view
from fluxora.storage.records import IdempotencyKey, StatusName

KEY_HEADER = "idempotency-key"
_KEY = re.compile(r"[A-Za-z0-9:_-]{1,128}")


def create_stream(request: Request, backend: Backend) -> Pending:
    """Register a stream; with an Idempotency-Key the same request gets the same answer for 24 hours.

    Raises:
        BadRequest, UnsupportedMediaType, InvalidJson: the request is refused, nothing is stored.
        Conflict: a request with the same key is in flight.
        IdempotencyConflict: the key was used with another body.
        Unavailable, StorageUnavailable: nobody knows whether it is stored; with a key it may be sent again as it is.
    """
    read_query(NoParameters, request.query)
    key = _idempotency_key(request)
    # A start that is absent is the second of the first attempt, which only the registration knows.
    wanted = read_body(NewStream, read_json(request))
    return partial(_create, lifecycle.NewStream(**msgspec.structs.asdict(wanted)), key, backend)


async def _create(new: lifecycle.NewStream, key: IdempotencyKey | None, backend: Backend) -> Reply:
    created = await backend.writes.create(new, key)
    replayed = (("idempotency-replayed", "true"),) if created.replayed else ()
    location = ("location", f"/api/streams/{created.stream_id}")
    return raw_json_reply(created.body, status=201, headers=(location, *replayed))


def change_status(request: Request, backend: Backend) -> Pending:
    """Take a registered stream to another status.

    Raises:
        BadRequest, UnsupportedMediaType, InvalidJson: the request is refused.
        NotFound: no such stream.
        Conflict: that status cannot follow the one it has. ChainManaged: it is a stream of the chain.
        Unavailable, StorageUnavailable: nobody knows whether it is stored.
    """
    read_query(NoParameters, request.query)
    wanted = read_body(StatusChange, read_json(request))
    return partial(_change, _stream_id(request), wanted.status, backend)


def cancel_stream(request: Request, backend: Backend) -> Pending:
    """Cancel a registered stream. Raises as `change_status`; a body is not looked at."""
    read_query(NoParameters, request.query)
    return partial(_change, _stream_id(request), "cancelled", backend)


async def _change(stream_id: str, to: StatusName, backend: Backend) -> Reply:
    record = await backend.writes.change(stream_id, to)
    return raw_json_reply(encode_view(record, int(backend.clock())))


def _stream_id(request: Request) -> str:
    stream_id = request.params["id"]
    if not STREAM_ID.fullmatch(stream_id):
        raise NotFound("There is no such stream")
    return stream_id


def _idempotency_key(request: Request) -> IdempotencyKey | None:
    """The client's key, its own in its caller's and this route's scope.

    Nobody in particular is the site that asks, as for the limits.
    """
    given = request.header(KEY_HEADER)
    if given is None:
        return None
    if not _KEY.fullmatch(given):
        message = "1 to 128 characters of A-Z a-z 0-9 : _ - are needed"
        raise BadRequest("The headers are not valid", details=[("Idempotency-Key", "INVALID_FORMAT", message)])
    principal = request.principal
    caller = f"client:{site_of(request.client)}" if principal.is_anonymous else principal.id
    return IdempotencyKey.of(f"{caller} POST /api/streams", given, request.body)
