"""GET /: what this service is and where its resources are."""

from __future__ import annotations

from fluxora.http.backend import Backend
from fluxora.http.exchange import Reply, Request
from fluxora.http.replies import json_reply

LINKS = {
    "self": "/",
    "health": "/health",
    "live": "/health/live",
    "ready": "/health/ready",
    "streams": "/api/streams{?status,sender,recipient,contractId,limit,cursor,order,asOf}",
    "stream": "/api/streams/{id}{?asOf}",
    "streamEvents": "/api/streams/{id}/events{?after,limit}",
    "events": "/api/events{?after,limit,streamId,event,contractId,ledgerFrom,ledgerTo}",
    "followStream": "/api/streams/{id}/stream{?after}",
    "followEvents": "/api/events/stream{?after,streamId,sender,recipient}",
    "treasury": "/api/treasury/{address}{?asOf}",
    "exportStreams": "/api/export/streams.csv{?status,sender,recipient,contractId,order,asOf}",
    "exportEvents": "/api/export/events.ndjson{?after,streamId,event,contractId,ledgerFrom,ledgerTo}",
    "webSocket": "/ws/streams{?token}",
    "metrics": "/metrics",
    "openapi": "/openapi.json",
    "docs": "/docs",
    "watch": "/live",
}


def index(_request: Request, backend: Backend) -> Reply:
    """The service's name, version and links; those with parameters are URI templates (RFC 6570)."""
    return json_reply({"name": "Fluxora API", "version": backend.version, "links": LINKS})
