"""GET /docs: the OpenAPI document as a page, and the files that the page is made of.

The viewer is vendored (static/docs/swagger-ui/VENDORED.md): the page loads nothing from elsewhere, and its policy lets
it load nothing from elsewhere. Every file that can be had is in a dictionary in memory, so no path is ever opened for
a client.
"""

from __future__ import annotations

import gzip
import hashlib
from importlib import resources

import msgspec

from fluxora.errors import NotFound
from fluxora.http.backend import Backend
from fluxora.http.entity_tags import is_named
from fluxora.http.exchange import Reply, Request

# Scripts and styles are files of ours, none is inline; the viewer's style sheet has its icons as data.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
# Asked for again each time, and then mostly answered 304: a file's name outlives its content, and while replicas are
# replaced one by one either content may come, so neither is kept unasked.
_KEPT = ("cache-control", "no-cache")
_FOLDER = resources.files("fluxora.http").joinpath("static", "docs")
_TEXT = "text/plain; charset=utf-8"


class _Coded(msgspec.Struct, frozen=True):
    """A content in one coding, with the headers of a reply that has it or says that the client has it (304)."""

    body: bytes
    etag: str
    headers: tuple[tuple[str, str], ...]


class _File(msgspec.Struct, frozen=True):
    """One file; `compressed` is None where it is too small to be worth it."""

    content_type: str
    plain: _Coded
    compressed: _Coded | None = None


def _small(path: str, content_type: str, *headers: tuple[str, str]) -> _File:
    body = _FOLDER.joinpath(path).read_bytes()
    return _File(content_type, _coded(body, *headers))


def _large(path: str, content_type: str) -> _File:
    """A file that is stored compressed."""
    body = _FOLDER.joinpath(f"{path}.gz").read_bytes()
    vary = ("vary", "accept-encoding")
    return _File(
        content_type,
        _coded(gzip.decompress(body), vary),
        _coded(body, vary, ("content-encoding", "gzip")),
    )


def _coded(body: bytes, *headers: tuple[str, str]) -> _Coded:
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    return _Coded(body, etag, (("etag", etag), _KEPT, *headers))


# 2.4 MB in all, read once: a file that is missing from an installation stops the start, not a request.
_PAGE = _small("index.html", "text/html; charset=utf-8", ("content-security-policy", POLICY))
_FILES = {
    "start.js": _small("start.js", "text/javascript; charset=utf-8"),
    "swagger-ui-bundle.js": _large("swagger-ui/swagger-ui-bundle.js", "text/javascript; charset=utf-8"),
    "swagger-ui.css": _large("swagger-ui/swagger-ui.css", "text/css; charset=utf-8"),
    "swagger-ui-bundle.js.LICENSE.txt": _small("swagger-ui/swagger-ui-bundle.js.LICENSE.txt", _TEXT),
    "LICENSE": _small("swagger-ui/LICENSE", _TEXT),
    "NOTICE": _small("swagger-ui/NOTICE", _TEXT),
}


def page(request: Request, _backend: Backend) -> Reply:
    """The page; what it shows is /openapi.json."""
    return _reply(request, _PAGE)


def asset(request: Request, _backend: Backend) -> Reply:
    """A file of the page.

    Raises:
        NotFound: the page has no such file.
    """
    file = _FILES.get(request.params["file"])
    if file is None:
        raise NotFound("The documentation has no such file")
    return _reply(request, file)


def _reply(request: Request, file: _File) -> Reply:
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
