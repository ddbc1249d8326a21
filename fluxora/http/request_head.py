"""The head of an HTTP/1.x request, read by one grammar (RFC 9112) for every carrier.

Nothing ambiguous passes, so nothing in front of this server can disagree with it about where a request ends: a bare LF
or CR, a folded line, a space before a colon, two lengths, a length beside chunks, an unknown coding, two Hosts. Whoever
frames the message behind the head can go by `content_length` and `chunked` alone.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

import msgspec

from fluxora.errors import DecodeError

MAX_HEAD_BYTES: Final = 1 << 16
END_OF_HEAD: Final = re.compile(rb"\n\r?\n")
"""Where a head ends; with a bare LF in it, so that such a head is refused as it comes, not waited for."""

# Possessive quantifiers: no byte is tried twice, so that no head is slow to refuse.
_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_HEAD: Final = re.compile(
    rb"(" + _TOKEN + rb") ([\x21-\x7e]++) HTTP/1\.([01])\r\n"
    rb"((?:" + _TOKEN + rb":[\t\x20-\x7e\x80-\xff]*+\r\n)*+)\r\n"
)
_VERSION: Final = re.compile(rb"[^\r\n]* HTTP/(?!1\.[01]\r)[0-9](?:\.[0-9])?\r\n")
_LENGTH: Final = re.compile(r"[0-9]{1,18}")
_OF_FRAMING: Final = frozenset(("host", "content-length", "transfer-encoding", "connection", "expect", "upgrade"))


class Malformed(DecodeError):
    """The bytes are no request that could be read in one way only. `status` is the answer's: 400, 501 or 505."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class RequestHead(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A request line and its headers: names lower case, values without the space around them, both in latin-1.

    `raw_path` and `query_string` are still percent-encoded. `size` is the number of bytes that the head took
    (0 where another server read it).
    `content_length` is 0 where there is no body; with `chunked` it says nothing. `persistent`: another
    request may follow on the connection (never in HTTP/1.0). `waits`: it sends its body only after "100 Continue".
    `upgrade`: it asks to go on as a WebSocket (a GET of HTTP/1.1 without a body, on a connection that is to stay);
    `handshaken`: another server has found that so, and makes the handshake.
    """

    method: str
    raw_path: str
    query_string: str
    headers: tuple[tuple[str, str], ...]
    size: int = 0
    content_length: int = 0
    chunked: bool = False
    persistent: bool = True
    waits: bool = False
    upgrade: bool = False
    handshaken: bool = False


def parse(data: bytes) -> RequestHead:
    """Read the head at the beginning of `data`, which holds at least all of it.

    Raises:
        Malformed: it is not one, or it could be read in two ways; the connection cannot go on.
    """
    match = _HEAD.match(data)
    if match is None:
        if _VERSION.match(data):
            raise Malformed("the version is not HTTP/1.0 or HTTP/1.1", 505)
        raise Malformed("not a request head")
    method, target, minor, fields = match.groups()
    headers: list[tuple[str, str]] = []
    framing: dict[str, str] = {}
    for line in fields.decode("latin-1").split("\r\n")[:-1]:
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip(" \t")
        headers.append((name, value))
        if name in _OF_FRAMING:
            if name not in framing:
                framing[name] = value
            elif name in {"connection", "expect", "upgrade"}:
                framing[name] += "," + value
            else:
                raise Malformed(f"the header {name} stands twice")
    path, _, query = origin_form(target.decode("latin-1")).partition("?")
    modern = minor == b"1"
    if modern and "host" not in framing:
        raise Malformed("the header host is missing")
    plain = len(framing) == modern  # a Host and nothing else of interest, as in most requests
    message = _PLAIN if plain else _framed(framing, modern=modern)
    return RequestHead(
        method=method.decode("ascii"),
        raw_path=path,
        query_string=query,
        headers=tuple(headers),
        size=match.end(),
        content_length=message.content_length,
        chunked=message.chunked,
        persistent=modern and message.persistent,
        waits=modern and message.waits,
        upgrade=modern and message.upgrade and method == b"GET",
    )


class _Message(msgspec.Struct, frozen=True, gc=False):
    """What the headers say of the body and of the connection."""

    content_length: int = 0
    chunked: bool = False
    persistent: bool = True
    waits: bool = False
    upgrade: bool = False


_PLAIN: Final = _Message()


def _framed(framing: dict[str, str], *, modern: bool) -> _Message:
    """The message behind a head. `modern`: HTTP/1.1, not 1.0."""
    length, coding = framing.get("content-length"), framing.get("transfer-encoding")
    if coding is not None:
        if length is not None:
            raise Malformed("content-length beside transfer-encoding")
        if not modern:
            raise Malformed("transfer-encoding in HTTP/1.0")
        if coding.lower() != "chunked":
            raise Malformed("the transfer coding is not supported", 501)
    if length is not None and not _LENGTH.fullmatch(length):
        raise Malformed("content-length is not a number")
    options = _options(framing.get("connection", ""))
    persistent, size = "close" not in options, int(length or 0)
    asks = "upgrade" in options and "websocket" in _options(framing.get("upgrade", ""))
    return _Message(
        content_length=size,
        chunked=coding is not None,
        persistent=persistent,
        waits="expect" in framing,
        upgrade=asks and persistent and not size and coding is None,
    )


def _options(listed: str) -> set[str]:
    """The members of a header that is a list, lower case."""
    return {part.strip(" \t").lower() for part in listed.split(",")}


def origin_form(target: str) -> str:
    """The path and query of a target: itself, or part of a whole URL, which clients send to proxies (RFC 9112 3.2.2).

    "" for what has no path.
    """
    if target.startswith("/"):
        return target
    try:
        parts = urlsplit(target)
    except ValueError:
        return ""  # is nowhere
    if not parts.scheme or not parts.netloc:
        return ""
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
