from __future__ import annotations

import argparse

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.profiles.endpoint import Endpoint, Malformed, answer, parse, request


@pytest.mark.parametrize(
    ("text", "endpoint", "authority"),
    [
        ("http://127.0.0.1:3000", Endpoint("127.0.0.1", 3000), "127.0.0.1:3000"),
        ("https://streams.example/", Endpoint("streams.example", 443, tls=True), "streams.example:443"),
        ("http://[::1]:80", Endpoint("::1", 80), "[::1]:80"),
    ],
)
def test_a_server_is_named_by_its_url(text, endpoint, authority):
    assert parse(text) == endpoint
    assert endpoint.authority == authority


@pytest.mark.parametrize(
    "text", ["localhost:3000", "ftp://a", "http://", "http://a/path", "http://a?b", "http://u:p@a", "http://a:x"]
)
def test_what_names_no_server_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="http://HOST"):
        parse(text)


@given(st.integers(200, 599).filter(lambda status: status != 304), st.binary(max_size=300), st.booleans(), st.data())
def test_an_answer_is_read_as_h11_writes_it_and_only_when_it_is_whole(status, body, chunked, data):
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    connection.next_event()
    if status == 204:
        body = b""
    framing = ("transfer-encoding", "chunked") if chunked else ("content-length", str(len(body)))
    body = body.hex().encode()[: len(body)]  # what is in chunks is text
    octets = connection.send(h11.Response(status_code=status, headers=[framing]))
    cut = data.draw(st.integers(0, len(body)))
    octets += connection.send(h11.Data(data=body[:cut])) + connection.send(h11.Data(data=body[cut:]))
    octets += connection.send(h11.EndOfMessage())
    for end in range(len(octets)):
        assert answer(bytearray(octets[:end])) is None or status == 204
    assert answer(bytearray(octets)) == (status, body, True)


def test_a_request_is_what_h11_reads():
    octets = request("POST", "/api/streams", host="a:1", headers={"x-api-key": "k"}, body=b"{}", more="x-more: 1\r\n")
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(octets)
    head, body = connection.next_event(), connection.next_event()
    assert (head.method, head.target, bytes(body.data)) == (b"POST", b"/api/streams", b"{}")
    assert {b"x-api-key", b"x-more", b"host", b"content-length"} < dict(head.headers).keys()


@pytest.mark.parametrize(
    "octets",
    [
        b"HTTP/2 200\r\n\r\n",
        b"SSH-2.0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
    ],
)
def test_what_is_no_answer_is_none(octets):
    with pytest.raises(Malformed):
        answer(bytearray(octets))
