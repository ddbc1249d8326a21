"""The one grammar of request heads: held against h11's, and where the two may differ it is the stricter one.

What is accepted is what h11 reads: the same method, target, headers, framing and persistence. What h11 refuses is
refused. So the framework's carrier, which reads every head once more with h11, never disagrees with this one.
"""

from __future__ import annotations

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fluxora.http.request_head import Malformed, RequestHead, origin_form, parse

GET = b"GET / HTTP/1.1\r\nHost: x\r\n"

METHODS = [
    b"GET",
    b"POST",
    b"get",
    b"M-SEARCH",
    b"!#$%&'*+-.^_`|~09",
    b"CONNECT",
    b"G ET",
    b"",
    b"G\tET",
    b"G(T",
    b"G\xe9T",
]
TARGETS = [b"/", b"/a?b=c", b"/?", b"*", b"http://h/p?q", b"http://h", b"h:80", b"//x", b"/%00", b"/\x7f", b"/a b", b""]
VERSIONS = [
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"HTTP/1.2",
    b"HTTP/2.0",
    b"http/1.1",
    b"HTTP/1.10",
    b"HTTP/11",
    b"HTTP/1.1 ",
    b"",
]
KNOWN_NAMES = [b"Host", b"HOST", b"Content-Length", b"content-length", b"Transfer-Encoding", b"Connection", b"Expect"]
OTHER_NAMES = [b"Upgrade", b"X-A", b"", b"X A", b"X\tA", b"Host ", b"X\x00", b"X\xe9", b"X:", b" X", b"\tX"]
LENGTHS = [b"", b"0", b"5", b"+5", b"-5", b"5, 5", b"5,6", b"0x5", b"5 5", b"\xb2", b"00005", b"9" * 18, b"9" * 30]
CODINGS = [b"chunked", b"CHUNKED", b"xchunked", b"chunked, identity", b"gzip, chunked", b"identity"]
OPTIONS = [b"close", b"keep-alive", b"close, x", b"Upgrade, close", b"100-continue", b"websocket"]
OTHER_VALUES = [b"x", b"a\xe9", b"a\x00b", b"a\x0bb", b"a\x7fb", b"a\tb", b" x\t", b"a\rb", b"a\nb", b"a\r\n b"]

methods = st.sampled_from(METHODS)
targets = st.sampled_from(TARGETS) | st.binary(max_size=6).map(lambda octets: b"/" + octets)
versions = st.sampled_from(VERSIONS)
names = st.sampled_from(KNOWN_NAMES) | st.sampled_from(OTHER_NAMES)
values = st.sampled_from(LENGTHS) | st.sampled_from(CODINGS) | st.sampled_from(OPTIONS) | st.sampled_from(OTHER_VALUES)
line_ends = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\r\r\n", b"\r\n\r\n", b" \r\n"])
fields = st.tuples(names, st.sampled_from([b":", b": ", b":\t ", b" :", b""]), values, line_ends).map(b"".join)
PLAIN_FIELDS = [b"Host: x\r\n", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n"]
plain_fields = st.sampled_from([*PLAIN_FIELDS, b"Expect: 100-continue\r\n", b"X: a\xe9 b\r\n", b"upgrade: h2c\r\n"])
heads = st.builds(
    lambda method, target, version, end, lines: b"%b %b %b%b%b\r\n" % (method, target, version, end, b"".join(lines)),
    methods,
    targets,
    versions,
    line_ends,
    st.lists(fields | plain_fields, max_size=5),
)
plain_heads = st.builds(
    lambda method, target, version, lines: b"%b %b %b\r\n%b\r\n" % (method, target, version, b"".join(lines)),
    st.sampled_from([b"GET", b"POST", b"HEAD"]),
    st.sampled_from([b"/", b"/a?b=c", b"*", b"http://h/p?q"]),
    st.sampled_from([b"HTTP/1.1", b"HTTP/1.0"]),
    st.lists(plain_fields, min_size=1, max_size=4),
)


@st.composite
def bent_heads(draw: st.DrawFn) -> bytes:
    """Heads that are good but for some bytes that were put in, taken out or put in the place of others."""
    head = bytearray(draw(plain_heads))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(head)))
        length = draw(st.integers(0, 2))
        head[at : at + length] = draw(st.sampled_from([b"", *(bytes([n]) for n in range(256)), b"\r\n", b"\r\n "]))
    return bytes(head) + b"\r\n\r\n"


class Oracle:
    """What h11 makes of the same bytes; `request` is None where it takes them for no whole request."""

    def __init__(self, data: bytes) -> None:
        self.connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        self.connection.receive_data(data)
        try:
            event = self.connection.next_event()
        except h11.RemoteProtocolError:
            event = h11.NEED_DATA
        self.request = event if isinstance(event, h11.Request) else None

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        assert self.request is not None
        return tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in self.request.headers)


def accepted(data: bytes) -> RequestHead | None:
    try:
        return parse(data)
    except Malformed as error:
        assert error.status in {400, 501, 505}  # noqa: PT017 (an answer either way; its status is judged elsewhere)
        return None


@settings(max_examples=1500, deadline=None)
@given(heads | plain_heads | bent_heads() | st.binary(max_size=40))
@example(b"GET /\xe9 HTTP/1.1\r\nHost: x\r\n\r\n")
@example(b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5, 5\r\n\r\n")
@example(b"GET / HTTP/1.1\nHost: x\n\n")
def test_what_is_accepted_is_what_h11_reads_and_what_h11_refuses_is_refused(data: bytes) -> None:
    head, oracle = accepted(data), Oracle(data)
    if head is None:
        return
    assert oracle.request is not None, "h11 refuses it"
    path, _, query = origin_form(oracle.request.target.decode("latin-1")).partition("?")
    assert head.method == oracle.request.method.decode("ascii")
    assert (head.raw_path, head.query_string) == (path, query)
    assert head.headers == oracle.headers
    assert head.size == len(data) - len(oracle.connection.trailing_data[0])
    assert head.waits >= oracle.connection.they_are_waiting_for_100_continue


@settings(max_examples=400, deadline=None)
@given(plain_heads | bent_heads(), st.binary(max_size=20))
def test_the_message_ends_where_h11_sees_its_end(data: bytes, behind: bytes) -> None:
    """The body is as long as h11 takes it to be, and another request may follow where h11 says so."""
    head = accepted(data)
    if head is None or head.content_length > 1000:
        return
    body = b"3\r\nabc\r\n0\r\n\r\n" if head.chunked else b"x" * head.content_length
    oracle = Oracle(data[: head.size] + body + behind)
    received = 0
    while isinstance(event := oracle.connection.next_event(), h11.Data):
        received += len(event.data)
    assert isinstance(event, h11.EndOfMessage)
    assert received == (3 if head.chunked else head.content_length)
    assert oracle.connection.trailing_data[0] == behind
    oracle.connection.send(h11.Response(status_code=404, headers=[("content-length", "0")]))
    oracle.connection.send(h11.EndOfMessage())
    assert head.persistent == (oracle.connection.their_state is h11.DONE)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (GET + b"\r\n", {"method": "GET", "raw_path": "/", "query_string": "", "headers": (("host", "x"),)}),
        (GET + b"\r\nmore", {"size": len(GET) + 2, "persistent": True, "waits": False, "content_length": 0}),
        (GET + b"Content-Length: 007\r\n\r\n", {"content_length": 7, "chunked": False}),
        (GET + b"Transfer-Encoding: Chunked\r\n\r\n", {"content_length": 0, "chunked": True}),
        (GET + b"Connection: keep-alive, Close\r\n\r\n", {"persistent": False}),
        (GET + b"Connection: x\r\nConnection: close\r\n\r\n", {"persistent": False}),
        (GET + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n", {"waits": True}),
        (b"GET / HTTP/1.0\r\n\r\n", {"persistent": False, "headers": ()}),
        (b"GET /a%20b?c=d?e HTTP/1.1\r\nHOST:\tx \r\n\r\n", {"raw_path": "/a%20b", "query_string": "c=d?e"}),
        (b"GET http://h:1/a?b HTTP/1.1\r\nHost: x\r\n\r\n", {"raw_path": "/a", "query_string": "b"}),
        (b"GET http://h HTTP/1.1\r\nHost: x\r\n\r\n", {"raw_path": "/", "query_string": ""}),
        (GET + b"X: a:b \xe9\r\nx:\r\n\r\n", {"headers": (("host", "x"), ("x", "a:b \xe9"), ("x", ""))}),
    ],
)
def test_what_a_head_says(data: bytes, expected: dict[str, object]) -> None:
    head = parse(data)
    assert {name: getattr(head, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (GET + b"Host: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (GET + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n", 400),
        (GET + b"Content-Length: 5, 5\r\n\r\n", 400),
        (GET + b"Content-Length: \xb2\r\n\r\n", 400),  # a digit to str.isdigit
        (GET + b"Content-Length:\r\n\r\n", 400),
        (GET + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (GET + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (GET + b"Transfer-Encoding: xchunked\r\n\r\n", 501),
        (GET + b"Transfer-Encoding: chunked, identity\r\n\r\n", 501),
        (GET + b"Transfer-Encoding:\r\n\r\n", 501),
        (b"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.2\r\nHost: x\r\n\r\n", 505),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"GET / HTTP/3\r\nHost: x\r\n\r\n", 505),
        (b"GET / HTTP/1.1\nHost: x\n\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\nC: d\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n Host: x\r\n\r\n", 400),
        (GET + b"A: b\r\n c\r\n\r\n", 400),
        (GET + b"A : b\r\n\r\n", 400),
        (GET + b"A\x00: b\r\n\r\n", 400),
        (GET + b"A: \x00\r\n\r\n", 400),
        (GET + b": b\r\n\r\n", 400),
        (GET + b"nonsense\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / x HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET\t/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /\r\nHost: x\r\n\r\n", 400),
        (b"\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"", 400),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(data: bytes, status: int) -> None:
    with pytest.raises(Malformed) as raised:
        parse(data)
    assert raised.value.status == status


def test_a_head_of_any_shape_is_refused_in_linear_time() -> None:
    """Heads on which an expression that tries every split would not come back."""
    for piece in (b"a", b"a:", b"a: b\r", b"a: b\r\n", b" ", b"a: \r\n", b"\t", b"GET "):
        for lead in (b"GET / HTTP/1.1\r\n", b"GET /", b""):
            assert accepted(lead + piece * 100_000) is None


@pytest.mark.parametrize(
    ("line", "fields", "asks"),
    [
        (b"GET / HTTP/1.1", b"Connection: Upgrade\r\nUpgrade: websocket", True),
        (b"GET / HTTP/1.1", b"Connection: a\r\nConnection: b, upgrade\r\nUpgrade: h2c\r\nUpgrade: WebSocket", True),
        (b"GET / HTTP/1.1", b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0", True),
        (b"GET / HTTP/1.1", b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 1", False),
        (b"GET / HTTP/1.1", b"Connection: Upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked", False),
        (b"GET / HTTP/1.1", b"Connection: Upgrade, close\r\nUpgrade: websocket", False),
        (b"GET / HTTP/1.1", b"Connection: Upgrade\r\nUpgrade: websocket2", False),
        (b"GET / HTTP/1.1", b"Connection: Upgraded\r\nUpgrade: websocket", False),
        (b"GET / HTTP/1.1", b"Upgrade: websocket", False),
        (b"GET / HTTP/1.1", b"Connection: Upgrade", False),
        (b"GET / HTTP/1.0", b"Connection: Upgrade\r\nUpgrade: websocket", False),
        (b"POST / HTTP/1.1", b"Connection: Upgrade\r\nUpgrade: websocket", False),
        (b"get / HTTP/1.1", b"Connection: Upgrade\r\nUpgrade: websocket", False),
    ],
)
def test_a_websocket_is_asked_for_by_both_headers_of_a_get_without_a_body(line, fields, asks):
    assert parse(line + b"\r\nHost: x\r\n" + fields + b"\r\n\r\n").upgrade is asks
