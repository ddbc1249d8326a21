"""Where webhooks may go: every special block of addresses, and every trick with a URL."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxora.protocol.targets import MAX_URL, TargetRefused, check_url, judge

# The IPv4 and IPv6 special-purpose address registries of IANA, and what is multicast or reserved beside them.
REGISTERED = """
    0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.0.0/29
    192.0.0.8/32 192.0.0.9/32 192.0.0.10/32 192.0.0.170/32 192.0.0.171/32 192.0.2.0/24 192.31.196.0/24 192.52.193.0/24
    192.88.99.0/24 192.88.99.2/32 192.168.0.0/16 192.175.48.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24
    224.0.0.0/4 233.252.0.0/24 240.0.0.0/4 255.255.255.255/32 168.63.129.16/32
    ::/128 ::1/128 ::/96 64:ff9b:1::/48 100::/64 100:0:0:1::/64 2001::/23 2001::/32 2001:1::1/128
    2001:1::2/128 2001:1::3/128 2001:2::/48 2001:3::/32 2001:4:112::/48 2001:10::/28 2001:20::/28 2001:30::/28
    2001:db8::/32 2002::/16 2620:4f:8000::/48 3fff::/20 5f00::/16 fc00::/7 fe80::/10 fec0::/10 ff00::/8
    ::ffff:0:0:0/96 200::/7 400::/6 800::/5 1000::/4 4000::/3 6000::/3 8000::/3 a000::/3 c000::/3 e000::/4 f000::/5
    f800::/6 fe00::/9
""".split()  # noqa: SIM905 (as a list it would fill a screen)
# Just outside of a block on either side, and well-known servers.
PUBLIC = """
    1.0.0.0 1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 168.63.129.15
    168.63.129.17 169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 191.255.255.255 192.0.1.0 192.0.3.0
    192.31.195.255 192.31.197.0 192.88.98.255 192.88.100.0 192.167.255.255 192.169.0.0 198.17.255.255 198.20.0.0
    198.51.99.255 198.51.101.0 203.0.112.255 203.0.114.0 223.255.255.255
    2001:200:: 2001:4860:4860::8888 2001:db7:ffff:: 2001:db9:: 2003:: 2606:4700::1111 2620:4f:7fff:: 2620:4f:8001::
    3ffe:ffff:: 3fff:1000:: 64:ff9b::8.8.8.8 ::ffff:8.8.8.8
""".split()  # noqa: SIM905 (the same)
BEYOND_PYTHON = [  # that the registries call global, or that they do not know; refused all the same
    ip_network(block)
    for block in (
        *("192.0.0.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.175.48.0/24"),
        *("168.63.129.16/32", "224.0.0.0/4", "2001::/23", "2620:4f:8000::/48", "3fff::/20", "2002::/16"),
    )
]
LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
ADDRESSES = st.one_of(
    st.ip_addresses(),
    st.ip_addresses(v=4).map(lambda four: IPv6Address(0xFFFF << 32 | int(four))),
    st.ip_addresses(v=4).map(lambda four: IPv6Address(int(IPv6Address("64:ff9b::")) | int(four))),
    st.sampled_from(REGISTERED).map(lambda block: ip_network(block).network_address),
)


def refused(text: str, allowed=()) -> str:
    with pytest.raises(TargetRefused) as caught:
        check_url(text, allowed)
    assert caught.value.message
    assert len(caught.value.message) < 300 + len(text)
    return caught.value.code


def judged(address: str | IPv4Address | IPv6Address, allowed=(), scheme: str = "https") -> str | None:
    try:
        judge(ip_address(address), allowed, scheme=scheme)
    except TargetRefused as error:
        return error.code
    return None


# addresses


@pytest.mark.parametrize("block", REGISTERED)
def test_no_address_of_a_special_block_is_a_target(block):
    network = ip_network(block)
    for address in {network[0], network[-1], network[network.num_addresses // 2]}:
        assert judged(address) == "ADDRESS_NOT_ALLOWED"
        host = f"[{address}]" if address.version == 6 else str(address)
        assert refused(f"https://{host}/") == "ADDRESS_NOT_ALLOWED"


@pytest.mark.parametrize("block", [each for each in REGISTERED if ":" not in each])
@pytest.mark.parametrize("prefix", ["::ffff:", "64:ff9b::", "::", "::ffff:0:", "64:ff9b:1::", "2001:0:1234::", "2002"])
def test_no_ipv6_form_of_a_special_ipv4_address_is_a_target(block, prefix):
    four = ip_network(block)[0]
    inverted = IPv4Address(int(four) ^ 0xFFFF_FFFF)  # as Teredo hides it
    high, low = divmod(int(four), 65_536)
    text = f"2002:{high:x}:{low:x}::1" if prefix == "2002" else f"{prefix}{inverted if '2001' in prefix else four}"
    assert judged(text) == "ADDRESS_NOT_ALLOWED"
    assert refused(f"https://[{text}]/") == "ADDRESS_NOT_ALLOWED"


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_a_target_of_https_only(address):
    assert judged(address) is None
    assert judged(address, scheme="http") == "SCHEME_NOT_ALLOWED"
    assert judged(address, LOOPBACK, scheme="http") == "SCHEME_NOT_ALLOWED"
    assert judged(address, (ip_network(address),), scheme="http") is None


@given(ADDRESSES)
def test_addresses_are_judged_as_the_standard_library_does_or_more_strictly(address):
    meant = address
    if address.version == 6:
        meant = address.ipv4_mapped or address
        if address in ip_network("64:ff9b::/96"):
            meant = IPv4Address(int(address) & 0xFFFF_FFFF)
    if judged(address) is None:
        assert meant.is_global
        assert not any((meant.is_multicast, meant.is_reserved, meant.is_link_local, meant.is_loopback))
    else:
        unassigned = meant.version == 6 and meant not in ip_network("2000::/3")
        assert not meant.is_global or unassigned or any(meant in block for block in BEYOND_PYTHON)


@given(ADDRESSES, st.integers(0, 128))
def test_an_allowed_network_admits_its_addresses_by_both_schemes(address, bits):
    network = ip_network(
        (int(address), min(bits, address.max_prefixlen)) if address.version == 4 else f"{address}/{bits}", strict=False
    )
    assert judged(address, (network,)) is None
    assert judged(address, (network,), scheme="http") is None


def test_an_allowed_network_admits_what_stands_for_its_addresses_and_nothing_else():
    assert judged("::ffff:127.0.0.1", LOOPBACK, "http") is None
    assert judged("64:ff9b::10.0.0.1", (ip_network("10.0.0.0/8"),)) is None
    for address in ("10.0.0.1", "169.254.169.254", "::ffff:10.0.0.1", "fe80::1", "0.0.0.0"):
        assert judged(address, LOOPBACK) == "ADDRESS_NOT_ALLOWED"


def test_a_zone_changes_nothing():
    assert judged("fe80::1%eth0") == "ADDRESS_NOT_ALLOWED"
    assert judged("::ffff:127.0.0.1%1") == "ADDRESS_NOT_ALLOWED"


# URLs

LONGEST = ".".join(["a" * 63] * 3 + ["b" * 61])


@pytest.mark.parametrize(
    ("text", "scheme", "host", "port", "path"),
    [
        ("https://example.com", "https", "example.com", 443, "/"),
        ("https://example.com/", "https", "example.com", 443, "/"),
        ("HTTPS://Example.COM/Hook", "https", "example.com", 443, "/Hook"),
        ("https://example.com:443/x", "https", "example.com", 443, "/x"),
        ("https://example.com:8443?a=b&c[]=%20d", "https", "example.com", 8443, "/?a=b&c[]=%20d"),
        ("https://xn--bcher-kva.example/x", "https", "xn--bcher-kva.example", 443, "/x"),
        ("https://hooks.my_shop.example/a/../b//c;d=1?", "https", "hooks.my_shop.example", 443, "/a/../b//c;d=1"),
        ("https://1.1.1.1/", "https", "1.1.1.1", 443, "/"),
        ("https://1.example/", "https", "1.example", 443, "/"),
        ("https://0xyz.example-1/", "https", "0xyz.example-1", 443, "/"),
        ("https://consumer:65535/", "https", "consumer", 65535, "/"),
        ("https://[2606:4700:0:0::1111]:1/", "https", "2606:4700::1111", 1, "/"),
        (f"https://{LONGEST}/", "https", LONGEST, 443, "/"),
    ],
)  # fmt: skip
def test_a_url_in_its_form_is_read(text, scheme, host, port, path):
    url = check_url(text, ())
    assert (url.scheme, url.host, url.port, url.path) == (scheme, host, port, path)
    assert check_url(url.text, ()) == url


BAD_HOSTS = """
    2130706433 017700000001 0x7f000001 0x7f.0.0.1 0X7F.1 0177.0.0.1 127.1 127.0.1 127.0.0.01 127.0.0.1. 1.1.1.1.
    0 0x 00 1.1.1.256 1.1.1.1.1 1.1.1 example.0x7f example.1 999999999999 127.0.0.0x1 ::1 [::1 ::1] [] [:::] [1.1.1.1]
    [::1%lo] [fe80::1%25eth0] [::ffff:127.0.0.1 [2606:4700::1111]x x[2606:4700::1111] [2606:4700::g] [v1.a] [[::]]
    a..b .a a. . .. -a.b a-.b a_.-b a*b *.a a,b a;b a&b a=b a'b a!b a$b a(b) a+b a~b a%61 ex%61mple.com %31%32%37.0.0.1
    a%00b localhost. LOCALHOST.
""".split()  # noqa: SIM905 (as a list it would fill a screen)
FULLWIDTH = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}
BAD_HOSTS += [  # what some readers turn into ASCII, and what looks like it
    "127.0.0.1".translate(FULLWIDTH),
    "localhost".translate(FULLWIDTH),
    "loc\uff41lhost",
    "127\u30020\u30020\u30021",
    "example\u3002com",
    "\u2460\u2461\u2466.\u24ea.\u24ea.\u2460",
    "\u24d4xample.com",
    "ex\U0001d41ample.com",
    "e\u200bxample.com",
    "loca\u00adlhost",
    "b\u00fccher.example",
    "stra\u00dfe.example",
    "\u212a.example",
    "\u017f.example",
    "\u2100.example",
    "\u0430pple.example",
    "\u0663.example",
    "example.com\uff1a80",
    "example.com\uff0f",
    "\ud800.example",
]


@pytest.mark.parametrize("host", BAD_HOSTS)
def test_a_host_that_could_be_read_in_two_ways_is_refused(host):
    assert refused(f"https://{host}/") in {"INVALID_HOST", "INVALID_PORT"}
    assert refused(f"https://{host}:8443/x", LOOPBACK) in {"INVALID_HOST", "INVALID_PORT"}
    assert refused(f"https://{host}?x", LOOPBACK) in {"INVALID_HOST", "INVALID_PORT"}


@pytest.mark.parametrize("host", ["a" * 64, LONGEST + "a", "a." * 126 + "aa"])
def test_a_host_that_is_too_long_is_refused(host):
    assert refused(f"https://{host}/") == "INVALID_HOST"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "INVALID_URL"),
        ("example.com", "INVALID_URL"),
        ("//example.com/", "INVALID_URL"),
        ("https:example.com", "INVALID_URL"),
        ("https:/example.com", "INVALID_URL"),
        ("https:\\\\example.com\\", "INVALID_URL"),
        (" https://example.com/", "INVALID_URL"),
        ("\thttps://example.com/", "INVALID_URL"),
        ("\x00https://example.com/", "INVALID_URL"),
        ("\ufeffhttps://example.com/", "INVALID_URL"),
        ("ht\ntps://example.com/", "INVALID_URL"),
        ("\uff48ttps://example.com/", "INVALID_URL"),
        ("ftp://example.com/", "SCHEME_NOT_ALLOWED"),
        ("file:///etc/passwd", "SCHEME_NOT_ALLOWED"),
        ("gopher://example.com/_", "SCHEME_NOT_ALLOWED"),
        ("unix://var/run/docker.sock", "SCHEME_NOT_ALLOWED"),
        ("wss://example.com/", "SCHEME_NOT_ALLOWED"),
        ("http://example.com/", "SCHEME_NOT_ALLOWED"),
        ("https:///path", "INVALID_HOST"),
        ("https://", "INVALID_HOST"),
        ("https://:443/", "INVALID_HOST"),
        ("https://?x", "INVALID_HOST"),
        ("https://user@example.com/", "INVALID_URL"),
        ("https://user:word@example.com/", "INVALID_URL"),
        ("https://@example.com/", "INVALID_URL"),
        ("https://example.com@127.0.0.1/", "INVALID_URL"),
        ("https://example.com%40127.0.0.1/", "INVALID_HOST"),
        ("https://example.com:80@127.0.0.1/", "INVALID_URL"),
        ("https://example.com\\@127.0.0.1/", "INVALID_URL"),
        ("https://127.0.0.1\\.example.com/", "INVALID_HOST"),
        ("https://example.com\\/", "INVALID_HOST"),
        ("https://example.com#@127.0.0.1/", "INVALID_URL"),
        ("https://example.com/#", "INVALID_URL"),
        ("https://example.com/a#b", "INVALID_URL"),
        ("https://example.com:/", "INVALID_PORT"),
        ("https://example.com:0/", "INVALID_PORT"),
        ("https://example.com:00443/", "INVALID_PORT"),
        ("https://example.com:65536/", "INVALID_PORT"),
        ("https://example.com:99999999999999999999/", "INVALID_PORT"),
        ("https://example.com:-1/", "INVALID_PORT"),
        ("https://example.com:+443/", "INVALID_PORT"),
        ("https://example.com:\uff14\uff14\uff13/", "INVALID_PORT"),
        ("https://example.com: 443/", "INVALID_PORT"),
        ("https://example.com:443:80/", "INVALID_PORT"),
        ("https://exam ple.com/", "INVALID_HOST"),
        ("https://exam\tple.com/", "INVALID_HOST"),
        ("https://exam\nple.com/", "INVALID_HOST"),
        ("https://exam\rple.com/", "INVALID_HOST"),
        ("https://example.com\r\nHost:x/", "INVALID_PORT"),
        ("https://example.com\x00.evil/", "INVALID_HOST"),
        ("https://example.com\x7f/", "INVALID_HOST"),
        ("https://example.com\u2028/", "INVALID_HOST"),
        ("https://example.com\n", "INVALID_HOST"),
        ("https://example.com/\n", "INVALID_URL"),
        ("https://example.com/a b", "INVALID_URL"),
        ("https://example.com/ HTTP/1.1\r\nX: y", "INVALID_URL"),
        ("https://example.com/\\..\\", "INVALID_URL"),
        ("https://example.com/ü", "INVALID_URL"),
        ("https://example.com/%", "INVALID_URL"),
        ("https://example.com/%zz", "INVALID_URL"),
        ("https://example.com/\x00", "INVALID_URL"),
        ("https://example.com/<script>", "INVALID_URL"),
        ("https://example.com/" + "a" * MAX_URL, "TOO_LONG"),
        ("https://" + "a" * 10_000_000, "TOO_LONG"),
        ("https://localhost/", "ADDRESS_NOT_ALLOWED"),
        ("https://LOCALHOST:8080/", "ADDRESS_NOT_ALLOWED"),
        ("https://a.localhost/", "ADDRESS_NOT_ALLOWED"),
    ],
)
def test_a_url_in_another_form_is_refused(text, code):
    assert refused(text) == code


def test_an_allowed_network_opens_plain_http_and_local_names():
    assert check_url("http://127.0.0.1:4000/", LOOPBACK).literal == IPv4Address("127.0.0.1")
    assert check_url("http://[::1]:4000/", LOOPBACK).text == "http://[::1]:4000/"
    assert check_url("http://localhost/", LOOPBACK).port == 80
    assert check_url("https://app.localhost/", LOOPBACK[1:]).host == "app.localhost"
    # Whether a name is of an allowed network is seen when it is resolved.
    assert check_url("http://consumer:80/", (ip_network("10.0.0.0/8"),)).text == "http://consumer/"
    assert refused("http://localhost/", (ip_network("10.0.0.0/8"),)) == "ADDRESS_NOT_ALLOWED"
    assert refused("http://10.0.0.1/", LOOPBACK) == "ADDRESS_NOT_ALLOWED"
    assert refused("http://8.8.8.8/", LOOPBACK) == "SCHEME_NOT_ALLOWED"


def test_the_longest_url_is_read():
    text = "https://example.com/" + "a" * (MAX_URL - 20)
    assert check_url(text, ()).text == text
