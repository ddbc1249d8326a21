"""A webhook's URL that passed is one host to every reader: parsers, resolvers, and the client that connects."""

from __future__ import annotations

import socket
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

import h11
import httpx
import pytest
import trio
from hypothesis import assume, example, given
from hypothesis import strategies as st

from fluxora.actors.http_client import HttpClient, Target
from fluxora.protocol.targets import TargetRefused, check_url

LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
PIECES = st.sampled_from(
    [
        *(
            "https://",
            "http://",
            "//",
            "/",
            "\\",
            "@",
            ":",
            "#",
            "?",
            "%",
            ".",
            "..",
            "-",
            "_",
            "[",
            "]",
            "0x",
            "0",
            "1",
        ),
        *("127", "255", "443", "8443", "a", "example", "com", "localhost", "xn--", "::", "ffff", "2606:4700::1111"),
        *("%31", "%2f", "\t", "\n", "\x00", " ", "。", "ⓐ", "ß", "é", "\u200b", "+", "~", "!", ";", "&"),
    ]
)
NAMES = st.from_regex(r"[A-Za-z0-9_-]{1,4}(\.[A-Za-z0-9_x-]{1,4}){0,4}", fullmatch=True)
URLS = st.one_of(
    st.lists(PIECES, max_size=8).map(lambda parts: "https://" + "".join(parts)),
    st.builds(
        "https://{}{}{}".format, NAMES, st.sampled_from(["", ":8443", ":443"]), st.sampled_from(["", "/", "/a?b=%20"])
    ),
    st.ip_addresses(v=4).map(lambda four: f"https://{four}/"),
    st.ip_addresses(v=6).map(lambda six: f"https://[{six.exploded}]/"),
    st.text(max_size=30).map(lambda text: f"https://{text}"),
)
EVERYWHERE = (ip_network("0.0.0.0/0"), ip_network("::/0"))


@given(URLS)
@example("https://0x7f.0x1/")
@example("https://a.127.1/")
@example("https://1.2.3.4:8443/a")
@example("https://[::ffff:1.2.3.4]/a")
@example("https://xn--a/")
@example("https://a?")
@example("https://a/b??c")
def test_what_passes_is_one_host_to_every_parser(text):
    try:
        url = check_url(text, EVERYWHERE)
    except TargetRefused:
        return
    assert check_url(url.text, EVERYWHERE) == url
    for form in (text, url.text):
        parts = urlsplit(form)
        target = Target.parse(form)
        assert (target.scheme, target.port, target.path, target.authorization) == (url.scheme, url.port, url.path, None)
        assert (parts.port or 443, parts.username, parts.password, parts.fragment) == (url.port, None, None, "")
        if url.literal is None:
            assert parts.hostname == target.host == url.host
        else:
            assert ip_address(parts.hostname) == ip_address(target.host) == url.literal
    if not any(label.startswith("xn--") for label in url.host.split(".")):  # which httpx decodes, and may refuse
        assert httpx.URL(url.text).host == url.host
    if url.literal is None:
        # No resolver takes the name for an address, in whatever notation.
        with pytest.raises(socket.gaierror):
            socket.getaddrinfo(url.host, url.port, flags=socket.AI_NUMERICHOST)
        with pytest.raises(OSError, match="illegal"):
            socket.inet_aton(url.host)
    else:
        [address] = {each[4][0] for each in socket.getaddrinfo(url.host, 1, flags=socket.AI_NUMERICHOST)}
        assert ip_address(address) == url.literal


@given(NAMES, st.sampled_from(["", "/", "/a//b?c=[%20]&d"]))
async def test_the_client_asks_the_checked_host_at_the_pinned_address(name, path):
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    try:
        url = check_url(f"http://{name}:{port}{path}", LOOPBACK)
    except TargetRefused:
        await listener.aclose()
        assume(False)
        return
    seen: list[h11.Request] = []

    async def consumer() -> None:
        async with listener, await listener.accept() as stream:
            protocol = h11.Connection(h11.SERVER)
            while (event := protocol.next_event()) is h11.NEED_DATA:
                protocol.receive_data(await stream.receive_some())
            assert isinstance(event, h11.Request)
            seen.append(event)
            await stream.send_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")

    client = HttpClient()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(consumer)
            target = Target(url.scheme, url.host, url.port, url.path, address="127.0.0.1")
            assert (await client.request("POST", target)).status == 204
    client.close()
    [request] = seen
    assert dict(request.headers)[b"host"] == f"{name.lower()}:{port}".encode()
    assert request.target == (path or "/").encode()
