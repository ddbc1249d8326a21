"""A JSON body: its media type first, then its text, both before anything is made of it."""

from __future__ import annotations

from typing import Any

from fluxora.errors import UnsupportedMediaType
from fluxora.http import strict_json
from fluxora.http.exchange import Request


def read_json(request: Request) -> Any:
    """The body as JSON.

    Raises:
        UnsupportedMediaType: it is not declared as application/json in UTF-8.
        InvalidJson: it is not JSON within the bounds.
    """
    media_type, _, parameters = (request.header("content-type") or "").partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if media_type.strip().lower() != "application/json" or charset not in {"", "utf-8"}:
        raise UnsupportedMediaType("The body must be application/json in UTF-8")
    return strict_json.read(request.body)
