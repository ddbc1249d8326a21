"""Pages of the server's own and the files that they are made of, with their policy.

Every file that can be had is in memory, so no path is ever opened for a client. A page loads nothing from elsewhere,
and its policy lets it load nothing from elsewhere.
"""

from __future__ import annotations

import gzip
import hashlib
from importlib import resources

import msgspec

from fluxora.http.entity_tags import is_named
from fluxora.http.exchange import Reply, Request

# Scripts and styles are files of ours, none is inline; icons in a style sheet are data. Connections are those of HTTP
# and, on the same host and port, of WebSocket.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
# Asked for again each time, and then mostly answered 304: a file's name outlives its content, and while replicas are
# replaced one by one either content may come, so neither is kept unasked.
_KEPT = ("cache-control", "no-cache")
_FOLDER = resources.files("fluxora.http").joinpath("static")
HTML = "text/html; charset=utf-8"
JAVASCRIPT = "text/javascript; charset=utf-8"
CSS = "text/css; charset=utf-8"
TEXT = "text/plain; charset=utf-8"


class _Coded(msgspec.Struct, frozen=True):
    """A content in one coding, with the headers of a reply that has it or says that the client has it (304)."""

    body: bytes
    etag: str
    headers: tuple[tuple[str, str], ...]


class File(msgspec.Struct, frozen=True):
    """One file; `compressed` is None where it is too small to be worth it."""

    content_type: str
    plain: _Coded
    compressed: _Coded | None = None


def page(path: str) -> File:
    """An HTML page below static/."""
    return small(path, HTML, ("content-security-policy", POLICY))


def small(path: str, content_type: str, *headers: tuple[str, str]) -> File:
    """A file below static/ that is sent as it is."""
    body = _FOLDER.joinpath(path).read_bytes()
    return File(content_type, _coded(body, *headers))


def large(path: str, content_type: str) -> File:
    """A file that is stored compressed."""
    body = _FOLDER.joinpath(f"{path}.gz").read_bytes()
    vary = ("vary", "accept-encoding")
    return File(
        content_type,
        _coded(gzip.decompress(body), vary),
        _coded(body, vary, ("content-encoding", "gzip")),
    )


def _coded(body: bytes, *headers: tuple[str, str]) -> _Coded:
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    return _Coded(body, etag, (("etag", etag), _KEPT, *headers))


def answer(request: Request, file: File) -> Reply:
    """The file, compressed where the client takes that, or 304 where it has it already."""
    coded = file.plain
    if file.compressed is not None and _takes_gzip(request.header("accept-encoding")):
        coded = file.compressed
    if is_named(request.header("if-none-match"), coded.etag):
        # A cache replaces what it has by the headers of a 304, the policy among them (RFC 9111 3.2).
        return Reply(304, coded.headers)
    return Reply(200, (("content-type", file.content_type), *coded.headers), coded.body)


def _takes_gzip(accept_encoding: str | None) -> bool:
    """True where the client names gzip, or any coding, and not as refused (RFC 9110 12.5.3)."""
    weights: dict[str, bool] = {}
    for entry in (accept_encoding or "").lower().split(","):
        coding, _, parameter = entry.partition(";")
        weight = parameter.strip().removeprefix("q=")
        weights[coding.strip()] = weight == "" or weight.strip("0.") != ""
    return weights.get("gzip", weights.get("*", False))
