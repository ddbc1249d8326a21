"""Where a request ends: whatever could be read in two ways is refused, and nothing behind it is ever served.

Each attack is sent with a good request behind it, the one that an attacker would smuggle past a proxy. Counted are the
answers: one for each request in front of the attack, and one for the attack.
"""

from __future__ import annotations

import pytest
import trio
from front import read_to_end
from wire import assert_common, assert_error, read_answers

BEHIND = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /api/streams HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
OK = b'{"status":"ok"}'

CODES = {400: "VALIDATION_ERROR", 501: "NOT_IMPLEMENTED", 505: "HTTP_VERSION_NOT_SUPPORTED"}
HEADS = {
    "length and chunked": (POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "chunked and length": (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400),
    "two lengths": (POST + b"Content-Length: 5\r\nContent-Length: 0\r\n\r\nhello", 400),
    "the same length twice": (POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 400),
    "a list of lengths": (POST + b"Content-Length: 5, 5\r\n\r\nhello", 400),
    "a list of other lengths": (POST + b"Content-Length: 0,5\r\n\r\nhello", 400),
    "a signed length": (POST + b"Content-Length: +5\r\n\r\nhello", 400),
    "a negative length": (POST + b"Content-Length: -5\r\n\r\n", 400),
    "a hexadecimal length": (POST + b"Content-Length: 0x5\r\n\r\nhello", 400),
    "a length with a space in it": (POST + b"Content-Length: 1 0\r\n\r\nhello", 400),
    "an empty length": (POST + b"Content-Length:\r\n\r\n", 400),
    "a length that no number holds": (POST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n", 400),
    "a length in other digits": (POST + b"Content-Length: \xd9\xa5\r\n\r\nhello", 400),
    "bare LF": (b"GET / HTTP/1.1\nHost: x\n\n", 400),
    "bare LF in a header": (GET + b"A: b\nContent-Length: 5\r\n\r\n", 400),
    "bare LF at the end": (b"GET / HTTP/1.1\r\nHost: x\r\n\n", 400),
    "bare CR in a header": (GET + b"A: b\rContent-Length: 5\r\n\r\n", 400),
    "bare CR in the target": (b"GET /\r HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "a folded line": (GET + b"A: b\r\n Content-Length: 5\r\n\r\n", 400),
    "a folded first line": (b"GET / HTTP/1.1\r\n Host: x\r\nHost: x\r\n\r\n", 400),
    "space before the colon": (POST + b"Content-Length : 5\r\n\r\nhello", 400),
    "tab before the colon": (POST + b"Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n", 400),
    "NUL in a value": (GET + b"A: \x00\r\n\r\n", 400),
    "NUL in a name": (GET + b"A\x00: b\r\n\r\n", 400),
    "NUL in the target": (b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "a control character in a value": (GET + b"A: \x0b\r\n\r\n", 400),
    "two Hosts": (GET + b"Host: y\r\n\r\n", 400),
    "no Host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "chunked twice": (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "a list with chunked twice": (POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 501),
    "xchunked": (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
    "chunked, identity": (POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 501),
    "identity": (POST + b"Transfer-Encoding: identity\r\n\r\n", 501),
    "gzip, chunked": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    "chunked in quotes": (POST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n', 501),
    "chunked behind a vertical tab": (POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400),
    "no coding": (POST + b"Transfer-Encoding:\r\n\r\n0\r\n\r\n", 501),
    "chunked in 1.0": (b"POST /api/streams HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\nHost: x\r\n\r\n", 505),
    "HTTP/2.0": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400),
    "two spaces": (b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "a space in the target": (b"GET / HTTP/1.1 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "octets beyond ASCII in the target": (b"GET /\xe9 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "a line that is none": (GET + b"nonsense\r\n\r\n", 400),
    "an empty name": (GET + b": x\r\n\r\n", 400),
    "an empty line in front": (b"\r\n" + GET + b"\r\n", 400),
}
BODIES = {
    "a hexadecimal prefix": b"0x5\r\nhello\r\n0\r\n\r\n",
    "a sign": b"+5\r\nhello\r\n0\r\n\r\n",
    "a negative size": b"-5\r\nhello\r\n0\r\n\r\n",
    "letters behind the size": b"5g\r\nhello\r\n0\r\n\r\n",
    "a second size": b"5 5\r\nhello\r\n0\r\n\r\n",
    "a space before the size": b" 5\r\nhello\r\n0\r\n\r\n",
    "an underscore": b"0_5\r\nhello\r\n0\r\n\r\n",
    "a comma": b"5,\r\nhello\r\n0\r\n\r\n",
    "no size": b"\r\nhello\r\n0\r\n\r\n",
    "a size that no number holds": b"0" * 40 + b"5\r\nhello\r\n0\r\n\r\n",
    "more than the size": b"5\r\nhello!\r\n0\r\n\r\n",
    "nothing behind the data": b"5\r\nhello0\r\n\r\n",
    "bare LF behind the size": b"5\nhello\r\n0\r\n\r\n",
    "bare LF behind the data": b"5\r\nhello\n0\r\n\r\n",
    "bare CR behind the data": b"5\r\nhello\r0\r\n\r\n",
    "bare CR behind the size": b"5\rhello\r\n0\r\n\r\n",
    "bare LF in an extension": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "bare CR in an extension": b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    "bare LF behind the last chunk": b"0\n\r\n",
    "bare LF at the end": b"0\r\n\n",
    "bare LF behind a trailer": b"0\r\nA: b\n\r\n",
    "a trailer that is none": b"0\r\nnonsense\r\n\r\n",
    "a folded trailer": b"0\r\nA: b\r\n c\r\n\r\n",
    "space before a trailer's colon": b"0\r\nA : b\r\n\r\n",
    "NUL in a trailer": b"0\r\nA: \x00\r\n\r\n",
}


@pytest.mark.parametrize("fragments", [False, True], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("name", HEADS)
async def test_a_head_that_could_be_read_in_two_ways_ends_the_connection(start, name, fragments):
    server = await start()
    attack, status = HEADS[name]
    answers = read_answers(await sent(server, BEHIND + attack + BEHIND + LAST, fragments=fragments))
    assert [answer.status for answer in answers] == [200, status], "one for each request, and none behind the attack"
    assert_error(answers[1], status, CODES[status])
    assert answers[1].header("connection") == "close"


@pytest.mark.parametrize("fragments", [False, True], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("name", BODIES)
async def test_chunks_that_could_be_read_in_two_ways_end_the_connection(start, name, fragments):
    server = await start()
    answers = read_answers(await sent(server, BEHIND + CHUNKED + BODIES[name] + BEHIND + LAST, fragments=fragments))
    assert [answer.status for answer in answers] == [200, 400], "one for each request, and none behind the attack"
    assert_error(answers[1], 400, "VALIDATION_ERROR")
    assert answers[1].header("connection") == "close"


async def sent(server, data: bytes, *, fragments: bool) -> bytes:
    """All that is received where `data` is sent at once, or each byte by itself; the server may close in between."""
    async with await server.connect() as stream, trio.open_nursery() as nursery:

        async def send() -> None:
            try:
                for part in [data[i : i + 1] for i in range(len(data))] if fragments else [data]:
                    await stream.send_all(part)
                    if fragments:
                        await trio.lowlevel.checkpoint()
            except trio.BrokenResourceError:
                return  # it has heard enough

        stream.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
        nursery.start_soon(send)
        return await read_to_end(stream)


@pytest.mark.parametrize(
    "body",
    [
        b"0\r\n\r\n",
        b"5\r\nhello\r\n0\r\n\r\n",
        b"005\r\nhello\r\n00\r\n\r\n",
        b"a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n",
        b"5;name=value\r\nhello\r\n0;last\r\n\r\n",
        b'5;a="b;c"\r\nhello\r\n0\r\n\r\n',
        b"5\r\nhello\r\n0\r\nX-Checksum: 1\r\nContent-Length: 100\r\n\r\n",
        b"1\r\n\r\r\n1\r\n\n\r\n0\r\n\r\n",
    ],
)
async def test_chunks_extensions_and_trailers_end_where_they_end(start, body):
    """Trailers and extensions are allowed and mean nothing; the request behind them is served."""
    server = await start()
    for fragments in (False, True):
        answers = read_answers(await sent(server, CHUNKED + body + LAST, fragments=fragments))
        assert [answer.status for answer in answers] == [415, 200]
        assert answers[1].body == OK
        for answer in answers:
            assert_common(answer)


@pytest.mark.parametrize("expect", [b"", b"Expect: 100-continue\r\n"])
@pytest.mark.parametrize("length", [b"Content-Length: 2", b"Transfer-Encoding: chunked"])
async def test_a_body_that_is_not_read_ends_the_connection_or_is_passed_over(start, expect, length):
    """A route that refuses before it reads: what is behind the body is served or not, but the body never is."""
    server = await start()
    body = BEHIND if length.startswith(b"Content") else b"%x\r\n%b\r\n0\r\n\r\n" % (len(BEHIND), BEHIND)
    head = b"POST /nowhere HTTP/1.1\r\nHost: x\r\n%b%b\r\n\r\n" % (expect, length.replace(b"2", b"%d" % len(BEHIND)))
    for fragments in (False, True):
        answers = read_answers(await sent(server, head + body + LAST, fragments=fragments))
        assert answers[0].status == 404
        assert [answer.status for answer in answers[1:]] in ([], [200])
        assert (answers[0].header("connection") == "close") == (len(answers) == 1)


async def test_a_body_of_requests_is_a_body(start):
    """Requests in the body of another are never taken for requests."""
    server = await start()
    inner = BEHIND * 50
    head = POST + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(inner)
    for fragments in (False, True):
        answers = read_answers(await sent(server, (head + inner) * 2 + LAST, fragments=fragments))
        assert [answer.status for answer in answers] == [400, 400, 200]
        assert_error(answers[0], 400, "INVALID_JSON")
