from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxora.http.client_address import MAX_HOPS, ClientAddress

TRUSTED = [ip_network(text) for text in ("10.0.0.0/8", "fd00::/8", "203.0.113.7")]
PROXY = "10.0.0.1"

addresses = st.one_of(
    st.ip_addresses(v=4, network="10.0.0.0/8"),
    st.ip_addresses(v=6, network="fd00::/8"),
    st.ip_addresses(v=4, network="198.51.100.0/24"),
    st.ip_addresses(v=6, network="2001:db8::/32"),
)
spaces = st.sampled_from(["", " ", "\t ", "  "])


def is_trusted(address):
    return any(address in network for network in TRUSTED)


@given(addresses, st.lists(addresses, max_size=MAX_HOPS), spaces)
def test_the_rightmost_that_is_not_trusted(peer, chain, space):
    """Each entry was appended by the hop to its right, so only what a trusted hop wrote is believed."""
    hops = [*chain, peer]
    while len(hops) > 1 and is_trusted(hops[-1]):
        hops.pop()
    expected = str(hops[-1])
    assert ClientAddress(TRUSTED).of(str(peer), f"{space},{space}".join(map(str, chain)) or None) == expected


@given(addresses, st.text(max_size=200))
def test_whatever_a_client_writes_the_answer_is_an_address(peer, text):
    assert ip_address(ClientAddress(TRUSTED).of(str(peer), text))


@given(st.text(max_size=80), st.text(max_size=80))
def test_without_trusted_proxies_the_header_is_nothing(peer, text):
    assert ClientAddress([]).of(peer, text) == peer


def test_an_untrusted_peer_is_itself_whatever_it_claims():
    assert ClientAddress(TRUSTED).of("198.51.100.1", "192.0.2.9") == "198.51.100.1"
    assert ClientAddress(TRUSTED).of("", "192.0.2.9") == ""


@pytest.mark.parametrize(
    ("forwarded_for", "client"),
    [
        ("192.0.2.9", "192.0.2.9"),
        ("1.1.1.1, 192.0.2.9, 203.0.113.7", "192.0.2.9"),
        ("192.0.2.9, unknown, 10.0.0.2", "10.0.0.2"),
        ("192.0.2.9, , 10.0.0.2", "10.0.0.2"),
        ("192.0.2.9, " + "1" * 100_000, PROXY),
        ("garbage", PROXY),
        ("", PROXY),
        ("192.0.2.9:4711", "192.0.2.9"),
        ("192.0.2.9:", PROXY),
        ("192.0.2.9:x", PROXY),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1", PROXY),
        ("[2001:db8::1]443", PROXY),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("::ffff:192.0.2.9", "192.0.2.9"),
        ("192.0.2.9, ::ffff:10.0.0.2", "192.0.2.9"),
        ("192.0.2.09", PROXY),
        ("\u0661.1.1.1", PROXY),
    ],
)
def test_forms_of_the_header(forwarded_for, client):
    assert ClientAddress(TRUSTED).of(PROXY, forwarded_for) == client


def test_a_peer_on_a_socket_for_both_families_is_known_as_ipv4():
    assert ClientAddress(TRUSTED).of("::ffff:10.0.0.1", "192.0.2.9") == "192.0.2.9"


@pytest.mark.parametrize("number", [MAX_HOPS, MAX_HOPS + 1, 1_000])
def test_the_walk_is_bounded(number):
    proxies = [f"10.1.{n >> 8}.{n & 255}" for n in range(number)]
    assert ClientAddress(TRUSTED).of(PROXY, ", ".join(["192.0.2.9", *proxies])) == proxies[-MAX_HOPS]
    assert ClientAddress(TRUSTED).of(PROXY, ", ".join(["192.0.2.9", *proxies[1 - MAX_HOPS :]])) == "192.0.2.9"
