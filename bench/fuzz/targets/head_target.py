"""http/request_head.parse, against h11: whatever ours takes, h11 takes too, and frames in the same way.

Ours is the stricter one, so a refusal needs no reason here. What it must never do is read a message's end elsewhere
than another reader of the same bytes: that is how requests are smuggled.
"""

from __future__ import annotations

import h11

from bench.fuzz.findings import demand
from fluxora.http.request_head import Malformed, RequestHead, parse


def execute(data: bytes) -> bool:
    """The beginning of a connection's bytes."""
    try:
        head = parse(data)
    except Malformed as error:
        demand(error.status in {400, 501, 505}, f"refused with {error.status}")
        return False
    end = data.index(b"\r\n\r\n") + 4
    demand(head.size == end, f"took {head.size} bytes of a head of {end}")
    lines = data[: end - 4].split(b"\r\n")
    target = lines[0].split(b" ")[1]
    if all(0x21 <= byte < 0x7F for byte in target):  # ours takes the bytes above, h11 does not
        _compare(head, data[:end], target)
    demand(len(head.headers) == len(lines) - 1, "headers were lost or made up")
    return True


def _compare(head: RequestHead, data: bytes, target: bytes) -> None:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    try:
        theirs = connection.next_event()
    except h11.RemoteProtocolError as error:
        demand(holds=False, text=f"taken, and h11 refuses it: {error}")
        return
    if not isinstance(theirs, h11.Request):
        demand(holds=False, text=f"taken, and for h11 it is {theirs!r}")
        return
    demand(theirs.method == head.method.encode("latin-1"), "another method")
    demand(theirs.target == target, "another target")
    headers = [_as_h11_has_it(name, value) for name, value in head.headers]
    demand(list(theirs.headers) == headers, "other headers")
    named = dict(headers)
    chunked = b"transfer-encoding" in named
    demand(head.chunked == chunked, "h11 has another transfer coding")
    demand(chunked or head.content_length == int(named.get(b"content-length", b"0")), "another length")
    demand(head.persistent == _is_persistent(theirs), "another opinion of whether a request may follow")


def _as_h11_has_it(name: str, value: str) -> tuple[bytes, bytes]:
    """A header in bytes; h11 gives transfer codings in lower case."""
    return name.encode("latin-1"), (value.lower() if name == "transfer-encoding" else value).encode("latin-1")


def _is_persistent(request: h11.Request) -> bool:
    """By RFC 9112 9.3, and never in HTTP/1.0, where ours does not take part in keep-alive."""
    options = [
        part.strip().lower() for name, value in request.headers if name == b"connection" for part in value.split(b",")
    ]
    return request.http_version == b"1.1" and b"close" not in options
