"""Where a webhook may be sent: the form of its URL, and which addresses are the public Internet.

A URL is taken in one form only, the one that every parser reads alike: what could be read in two ways (an address in
octal, a backslash, a name in other letters than ASCII) is refused instead of interpreted, so that the host that was
checked is the host that is connected to. A name is judged by the addresses that it has when a delivery is sent, each
time anew, and the connection is made to an address that passed.

Networks that the operator allows are admitted whatever they are, and by plain http too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final

import msgspec

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAX_URL: Final = 2_048

_PORTS: Final = {"http": 80, "https": 443}
_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^#]*)(#?)", re.DOTALL)
_AUTHORITY: Final = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(?::(.*))?", re.DOTALL)
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}")
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PATH: Final = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/?\[\]-]|%[0-9A-Fa-f]{2})*")
_MAX_NAME: Final = 253

# The special-purpose registries of IANA, what is reserved for good, and one address that only a cloud's guests reach.
# What a registry calls globally reachable (relays and sinks of DNS) is in as well: no consumer lives there.
_SPECIAL: Final[tuple[tuple[Network, str], ...]] = tuple(
    (ip_network(network), kind)
    for network, kind in (
        ("0.0.0.0/8", "unspecified"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "carrier-grade NAT"),
        ("127.0.0.0/8", "loopback"),
        ("168.63.129.16/32", "a cloud platform's own"),
        ("169.254.0.0/16", "link-local"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved for protocols"),
        ("192.0.2.0/24", "documentation"),
        ("192.31.196.0/24", "reserved for AS112"),
        ("192.52.193.0/24", "reserved for AMT"),
        ("192.88.99.0/24", "reserved for 6to4 relays"),
        ("192.168.0.0/16", "private"),
        ("192.175.48.0/24", "reserved for AS112"),
        ("198.18.0.0/15", "benchmarking"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("::/96", "IPv4-compatible"),
        ("::ffff:0:0:0/96", "IPv4-translated"),
        ("64:ff9b:1::/48", "local NAT64"),
        ("100::/64", "discard-only"),
        ("2001::/32", "Teredo"),
        ("2001:2::/48", "benchmarking"),
        ("2001::/23", "reserved for protocols"),
        ("2001:db8::/32", "documentation"),
        ("2002::/16", "6to4"),
        ("2620:4f:8000::/48", "reserved for AS112"),
        ("3fff::/20", "documentation"),
        ("5f00::/16", "segment routing"),
        ("fc00::/7", "private"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "site-local"),
        ("ff00::/8", "multicast"),
    )
)
_LOOPBACK: Final = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))
_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")  # all that is assigned so far; the rest of IPv6 is reserved
_NAT64: Final = IPv6Network("64:ff9b::/96")


class TargetRefused(Exception):
    """No webhook is sent there. `code` is for machines, `message` says what is wrong and what to do."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class WebhookUrl(msgspec.Struct, frozen=True):
    """A URL that passed. `host` is a lower-case name or an address in its canonical form, without brackets.

    `path` begins with a slash and has the query; `literal` is the address where the host is one.
    """

    scheme: str
    host: str
    port: int
    path: str
    literal: Address | None = None

    @property
    def text(self) -> str:
        """The URL in the one form that it has."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.path}"


def check_url(text: str, allowed: Sequence[Network]) -> WebhookUrl:
    """Read a webhook's URL. `allowed` are the networks that the operator admits.

    Raises:
        TargetRefused: it is not in the form that a webhook's URL has, or its host is an address that is refused.
    """
    if len(text) > MAX_URL:
        raise TargetRefused("TOO_LONG", f"the URL has more than {MAX_URL} characters")
    match = _URL.fullmatch(text)
    if match is None:
        raise TargetRefused("INVALID_URL", "the URL must be of the form https://host/path")
    scheme, authority, path = match[1].lower(), match[2], match[3]
    if scheme not in _PORTS:
        raise TargetRefused("SCHEME_NOT_ALLOWED", "the URL must begin with https://")
    if match[4]:
        raise TargetRefused("INVALID_URL", "the URL must have no fragment (#): it is never sent")
    host, port = _authority(authority, scheme)
    literal = _literal(host)
    name = _name(host) if literal is None else str(literal)
    if not _PATH.fullmatch(path):
        problem = "path and query may have letters, digits and URL punctuation only; percent-encode the rest"
        raise TargetRefused("INVALID_URL", problem)
    if literal is not None:
        judge(literal, allowed, scheme=scheme)
    else:
        _judge_name(name, allowed, scheme)
    place, _, query = path.partition("?")
    return WebhookUrl(scheme, name, port, (place or "/") + (f"?{query}" if query else ""), literal)


def judge(address: Address, allowed: Sequence[Network], *, scheme: str) -> None:
    """Decide whether a webhook of `scheme` may be sent to `address`.

    An IPv6 address that stands for an IPv4 one (mapped, or of the well-known NAT64 prefix) is judged as that. The
    prefix of a network's own NAT64 cannot be told from other addresses.

    Raises:
        TargetRefused: it may not.
    """
    meant = _embedded(address) or address
    if any(address in network or meant in network for network in allowed):
        return
    kind = _special(meant)
    if kind is not None:
        text = (
            f"{address} is not on the public Internet ({kind}); "
            "FLUXORA_WEBHOOK_ALLOWED_NETWORKS admits networks that are meant"
        )
        raise TargetRefused("ADDRESS_NOT_ALLOWED", text)
    if scheme != "https":
        raise _plain(str(address))


def _authority(authority: str, scheme: str) -> tuple[str, int]:
    """Host (an IPv6 address in its brackets) and port."""
    if "@" in authority:
        raise TargetRefused("INVALID_URL", "the URL must have no user or password: deliveries are signed instead")
    match = _AUTHORITY.fullmatch(authority)
    if match is None or not match[1]:
        raise TargetRefused("INVALID_HOST", "the URL must have a host, a name or an address (IPv6 in brackets)")
    host, port = match.groups()
    if port is None:
        return host, _PORTS[scheme]
    if not _PORT.fullmatch(port) or int(port) > 65_535:
        raise TargetRefused("INVALID_PORT", "the port must be a number from 1 to 65535")
    return host, int(port)


def _literal(host: str) -> Address | None:
    """The address that the host is; None where it is a name."""
    try:
        if host.startswith("["):
            if "%" in host:
                raise TargetRefused("INVALID_HOST", "the address must have no zone: it means another host elsewhere")
            return IPv6Address(host[1:-1])
        if _NUMBER.fullmatch(host.rpartition(".")[2].lower()):  # what some resolvers take for an address
            return IPv4Address(host)
    except ValueError as error:
        raise TargetRefused("INVALID_HOST", "the host must be a name or an address such as 192.0.2.1") from error
    return None


def _name(host: str) -> str:
    """The name in lower case."""
    if not host.isascii():
        raise TargetRefused("INVALID_HOST", "the host must be in ASCII; write an international name as xn--...")
    name = host.lower()
    if name.endswith("."):
        raise TargetRefused("INVALID_HOST", "the host must not end with a dot")
    if len(name) > _MAX_NAME or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise TargetRefused("INVALID_HOST", "the host must be a name of letters, digits, hyphens and dots")
    return name


def _judge_name(name: str, allowed: Sequence[Network], scheme: str) -> None:
    """What can be said before the name is resolved."""
    if scheme != "https" and not allowed:
        raise _plain(name)
    local = name == "localhost" or name.endswith(".localhost")  # loopback by definition (RFC 6761)
    if local and not any(network.overlaps(each) for network in allowed for each in _LOOPBACK if _same(network, each)):
        text = f"{name} is this machine; FLUXORA_WEBHOOK_ALLOWED_NETWORKS=127.0.0.0/8 admits it for development"
        raise TargetRefused("ADDRESS_NOT_ALLOWED", text)


def _plain(host: str) -> TargetRefused:
    text = f"plain http to {host} is refused: use https://, or admit its network by FLUXORA_WEBHOOK_ALLOWED_NETWORKS"
    return TargetRefused("SCHEME_NOT_ALLOWED", text)


def _embedded(address: Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 one stands for."""
    if isinstance(address, IPv4Address):
        return None
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped


@lru_cache(maxsize=4_096)  # the same few consumers, again and again
def _special(address: Address) -> str | None:
    """What an address is that is not one of the public Internet; None where it is."""
    for network, kind in _SPECIAL:
        if address.version == network.version and address in network:
            return kind
    return "reserved" if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST else None


def _same(one: Network, other: Network) -> bool:
    return one.version == other.version
