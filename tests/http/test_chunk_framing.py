"""The framing of chunked bodies, held against h11's: what passes both ends at the same byte, however it arrives."""

from __future__ import annotations

from itertools import pairwise

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fluxora.http.chunk_framing import ChunkFraming
from fluxora.http.request_head import Malformed

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
extensions = st.sampled_from([b"", b";a", b';a="b;c"', b";a=b;c"])
chunks = st.builds(
    lambda data, extension, zeros: b"%b%x%b\r\n%b\r\n" % (b"0" * zeros, len(data), extension, data),
    st.binary(min_size=1, max_size=40),
    extensions,
    st.integers(0, 3),
)
trailers = st.lists(st.sampled_from([b"A: b\r\n", b"Content-Length: 9\r\n", b"x:\r\n"]), max_size=3)
bodies = st.builds(
    lambda parts, extension, lines: b"%b0%b\r\n%b\r\n" % (b"".join(parts), extension, b"".join(lines)),
    st.lists(chunks, max_size=4),
    extensions,
    trailers,
)


@st.composite
def bent_bodies(draw: st.DrawFn) -> bytes:
    """Bodies that are good but for a byte or two that were put in, taken out or put in the place of others."""
    body = bytearray(draw(bodies))
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, len(body)))
        body[at : at + draw(st.integers(0, 2))] = draw(st.sampled_from([b"", b"\r", b"\n", b" ", b";", b"5", b"\0"]))
    return bytes(body)


def followed(body: bytes) -> int | None:
    """Where the body ends, fed byte by byte; None where it is refused or has no end."""
    framing = ChunkFraming()
    for at in range(len(body)):
        try:
            framing.feed(body[at : at + 1])
        except Malformed:
            return None
        if framing.ended:
            return at + 1
    return None


def in_pieces(body: bytes, cuts: list[int]) -> bool:
    """True where the body ends, fed in the pieces that `cuts` make."""
    framing = ChunkFraming()
    edges = sorted({0, *(cut for cut in cuts if cut < len(body)), len(body)})
    try:
        for start, end in pairwise(edges):
            framing.feed(body[start:end])
    except Malformed:
        return False
    return framing.ended


def read_by_h11(body: bytes) -> int | None:
    """Where h11 sees the end, None where it refuses or waits."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(HEAD + body)
    try:
        while not isinstance(event := connection.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                return None
    except h11.RemoteProtocolError:
        return None
    return len(body) - len(connection.trailing_data[0])


@settings(max_examples=600, deadline=None)
@given(bodies | bent_bodies(), st.binary(max_size=10), st.lists(st.integers(1, 200), max_size=5))
@example(b"0\r\n\n", b"", [])
@example(b"0\r\nA: b\r\n c\r\n\r\n", b"", [])
@example(b"5;\r\r\nhello\r\n0\r\n\r\n", b"", [])
def test_what_passes_ends_where_h11_sees_the_end(body: bytes, behind: bytes, cuts: list[int]) -> None:
    end = followed(body + behind)
    assert in_pieces(body + behind, cuts) == (end is not None)
    if end is not None:
        seen = read_by_h11(body + behind)
        assert seen in {end, None}, "h11 may be the stricter one, but it must not see another end"


@settings(max_examples=200, deadline=None)
@given(bodies, st.binary(max_size=10))
def test_good_bodies_pass(body: bytes, behind: bytes) -> None:
    assert followed(body + behind) == read_by_h11(body + behind) == len(body)


def test_lines_are_bounded() -> None:
    """Without an end in sight, an error and not a wait for more."""
    for endless in (b"0" * 70_000, b"5;" + b"a" * 70_000, b"0\r\n" + b"a: b\r\n" * 20_000):
        with pytest.raises(Malformed):
            ChunkFraming().feed(endless)
