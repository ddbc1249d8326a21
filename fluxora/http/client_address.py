"""Whose request it is: the peer of the connection, or, behind proxies that the operator trusts, whom they name.

Each proxy appends the address that it was called from to X-Forwarded-For, so only the right end of that list is worth
anything, and only as far as each entry is itself a trusted proxy. The walk goes from the right to the first address
that is not trusted; whatever stands further left was written by that client, and may be anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Network = IPv4Network | IPv6Network
MAX_HOPS = 32
_MAX_LENGTH = 64  # characters of an entry: an IPv6 address in brackets, with a zone and a port


class ClientAddress:
    """Finds the client's address. `trusted` are the networks of proxies that tell the truth; IPv4 ones as IPv4."""

    def __init__(self, trusted: Sequence[Network]) -> None:
        self._trusted = tuple(trusted)
        self._judged = lru_cache(maxsize=1 << 13)(self._judge)

    def of(self, peer: str, forwarded_for: str | None) -> str:
        """The client's address without port; `forwarded_for` is the header, a repeated one joined with commas.

        An entry that is no address, and more than 32 proxies, end the walk at the last good one.
        """
        if not self._trusted or forwarded_for is None:
            return peer
        last_good, trusted = self._judged(peer)
        if not trusted:
            return peer
        entries = forwarded_for.rsplit(",", MAX_HOPS)[-MAX_HOPS:]
        for entry in reversed(entries):
            address, trusted = self._judged(entry.strip(" \t")[: _MAX_LENGTH + 1])
            if not address:
                break
            last_good = address
            if not trusted:
                break
        return last_good

    def _judge(self, text: str) -> tuple[str, bool]:
        """The address in its usual form and whether it is trusted; "" for what is none."""
        address = _address(text)
        if address is None:
            return "", False
        return str(address), any(address in network for network in self._trusted)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """An address without its zone; also with a port, as some proxies write it: 192.0.2.1:80, [2001:db8::1]:80."""
    if len(text) > _MAX_LENGTH:
        return None
    if text.startswith("["):
        text, bracket, port = text[1:].partition("]")
        if not bracket or not (port == "" or _is_port(port)):
            return None
    elif text.count(":") == 1:
        text, colon, port = text.partition(":")
        if not _is_port(colon + port):
            return None
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_port(text: str) -> bool:
    """True for a colon and the digits of a port."""
    return text[:1] == ":" and text[1:].isascii() and text[1:].isdigit()
