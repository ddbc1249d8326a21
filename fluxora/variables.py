"""Every environment variable: its name, where its value goes, how it is read, and what it means.

A parser gets the variable's name and its text, without space around it and never empty, and returns the value or raises
ConfigError with one line that starts with the name. What may be a secret is never repeated there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fluxora.errors import ConfigError, DecodeError
from fluxora.logs import LEVELS
from fluxora.protocol.addresses import is_account_or_contract
from fluxora.protocol.api_keys import ApiKey, parse_entry
from fluxora.protocol.signing import Secret

_IPV4_MAPPED = IPv6Network("::ffff:0:0/96")
_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
)
_DECIMAL = re.compile(r"[0-9]{1,3}(\.[0-9]{1,9})?", re.ASCII)
_OWN_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Variable:
    """One environment variable. `field` is the path of what it sets in Config, as "http.port"; None for nothing."""

    name: str
    field: str | None
    parse: Callable[[str, str], Any]
    help: str


def _text(_name: str, text: str) -> str:
    return text


def _path(_name: str, text: str) -> Path:
    return Path(text).expanduser()


def _integer(low: int, high: int) -> Callable[[str, str], int]:
    def parse(name: str, text: str) -> int:
        if len(text) > 20 or not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise ConfigError(f"{name}: a whole number from {low} to {high} is needed, got {text[:40]!r}")
        return int(text)

    return parse


def _part(name: str, text: str) -> float:
    if not _DECIMAL.fullmatch(text) or not 0 <= float(text) <= 1:
        raise ConfigError(f"{name}: a number from 0 to 1 is needed, such as 0.01, got {text[:40]!r}")
    return float(text)


def _milliseconds(low: int, high: int) -> Callable[[str, str], float]:
    whole = _integer(low, high)

    def parse(name: str, text: str) -> float:
        return whole(name, text) / 1000

    return parse


def _hours(low: int, high: int) -> Callable[[str, str], float]:
    whole = _integer(low, high)

    def parse(name: str, text: str) -> float:
        return whole(name, text) * 3600.0

    return parse


def _one_of(*choices: str) -> Callable[[str, str], str]:
    def parse(name: str, text: str) -> str:
        if text.lower() not in choices:
            raise ConfigError(f"{name}: one of {', '.join(choices)} is needed, got {text[:40]!r}")
        return text.lower()

    return parse


def _url(schemes: tuple[str, ...], name: str, text: str) -> str:
    try:
        parts = urlsplit(text)
        usable = parts.scheme in schemes and (parts.hostname or parts.scheme.startswith("postgres"))
        _ = parts.port  # raises where it is not a port
    except ValueError:
        usable = False
    if not usable:
        # The value may hold a password, so it is not repeated.
        raise ConfigError(f"{name}: a URL that starts with {' or '.join(s + '://' for s in schemes)} is needed")
    if parts.netloc and "@" not in parts.netloc and "@" in f"{parts.path}{parts.query}{parts.fragment}":
        # Of a user or password with such a character in it, the beginning would be taken for the host, and shown.
        raise ConfigError(f"{name}: what stands before @ must have its /, ? and # percent-encoded, as must any other @")
    return text


def _database_url(name: str, text: str) -> str:
    return _url(("postgresql", "postgres"), name, text)


def _http_url(name: str, text: str) -> str:
    return _url(("https", "http"), name, text)


def _http_urls(name: str, text: str) -> tuple[str, ...]:
    return tuple(_http_url(name, part) for part in text.replace(",", " ").split())


def _contracts(name: str, text: str) -> dict[str, int]:
    """Decimals of the token by contract id."""
    contracts: dict[str, int] = {}
    for part in text.replace(",", " ").split():
        contract_id, _, decimals = part.partition(":")
        if not (contract_id.startswith("C") and is_account_or_contract(contract_id)):
            raise ConfigError(
                f"{name}: {contract_id[:60]!r} is not a contract id (C..., 56 characters, valid checksum)"
            )
        contracts[contract_id] = _integer(0, 38)(name, decimals) if decimals else 7
    return contracts


def _token(name: str, text: str) -> str:
    if len(text) < 16:
        raise ConfigError(f"{name}: at least 16 characters are needed")
    return text


def _credential(name: str, text: str) -> str:
    """What goes into a header as it is. It is not repeated."""
    if not (text.isascii() and text.isprintable()) or " " in text or len(text) > 8_192:
        raise ConfigError(f"{name}: up to 8192 printable ASCII characters without a space are needed")
    return text


def _switch(name: str, text: str) -> bool:
    return bool(_integer(0, 1)(name, text))


def _required(name: str, text: str) -> bool:
    return _one_of("open", "required")(name, text) == "required"


def _on(name: str, text: str) -> bool:
    return _one_of("on", "off")(name, text) == "on"


def _api_keys(name: str, text: str) -> tuple[ApiKey, ...]:
    keys = []
    for number, part in enumerate(text.replace(",", " ").split(), start=1):
        try:
            keys.append(parse_entry(part))
        except DecodeError as error:
            # An entry may be a key by mistake, so it is not repeated.
            raise ConfigError(
                f"{name}: entry {number} cannot be used: {error}; `fluxora keys new` makes a key and its entry"
            ) from error
    return tuple(keys)


def _webhook_secret(name: str, text: str) -> Secret:
    try:
        return Secret.parse(text)
    except DecodeError as error:
        raise ConfigError(f"{name}: {error}") from error


def _networks(name: str, text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    networks = []
    for part in text.replace(",", " ").split():
        try:
            network = ip_network(part)
        except ValueError as error:
            raise ConfigError(
                f"{name}: {part[:60]!r} is not an address or a network such as 10.0.0.0/8 or fd00::/8"
            ) from error
        if isinstance(network, IPv6Network) and network.subnet_of(_IPV4_MAPPED):
            raise ConfigError(f"{name}: {part[:60]!r} stands for IPv4 addresses; write it as such")
        networks.append(network)
    return tuple(networks)


def _origins(name: str, text: str) -> tuple[str, ...]:
    """Origins as browsers send them: lower case, without the scheme's own port."""
    origins: dict[str, None] = {}
    for part in text.replace(",", " ").split():
        match = _ORIGIN.fullmatch(part.lower())
        if match is None or int(match["port"] or 0) > 65_535:
            raise ConfigError(
                f"{name}: {part[:60]!r} is not an origin; scheme://host[:port] is needed, without a path and without *"
            )
        scheme, host, port = match["scheme"], match["host"], match["port"]
        given_port = "" if port is None or int(port) == _OWN_PORTS.get(scheme) else f":{int(port)}"
        origins[f"{scheme}://{host}{given_port}"] = None
    return tuple(origins)


_rate = _integer(1, 1_000_000)

VARIABLES: tuple[Variable, ...] = (
    Variable("PORT", "http.port", _integer(0, 65_535), "port for HTTP (0: any free one)"),
    Variable("HOST", "http.host", _text, "address to listen on; 0.0.0.0 for every interface"),
    Variable("LOG_LEVEL", "log_level", _one_of(*LEVELS), f"one of {', '.join(LEVELS)}"),
    Variable(
        "FLUXORA_ACCESS_LOG_SAMPLE",
        "http.access_log_sample",
        _part,
        "part of the requests that get a log line, from 0 to 1; failures other than 404 and what takes a second or "
        "more always do",
    ),
    Variable("DATABASE_URL", "storage.database_url", _database_url, "PostgreSQL 14 or newer; unset: embedded"),
    Variable("FLUXORA_DATA_DIR", "storage.data_dir", _path, "where embedded PostgreSQL keeps its data"),
    Variable("FLUXORA_DB_POOL_SIZE", "storage.pool_size", _integer(2, 100), "connections to PostgreSQL"),
    Variable(
        "FLUXORA_SOURCE",
        "source.kind",
        _one_of("none", "rpc", "push", "local"),
        "where ledgers come from; unset: rpc where STELLAR_RPC_URL and FLUXORA_CONTRACTS are set, else push where "
        "INDEXER_WORKER_TOKEN is, else none",
    ),
    Variable("STELLAR_RPC_URL", "source.rpc_urls", _http_urls, "Stellar RPC endpoints, separated by commas"),
    Variable("HORIZON_URL", None, _http_url, "accepted for compatibility and not used"),
    Variable("NETWORK_PASSPHRASE", "source.network_passphrase", _text, "the network that the endpoints must serve"),
    Variable("FLUXORA_CONTRACTS", "contracts", _contracts, "contracts to follow: C...[:decimals], separated by commas"),
    Variable(
        "FLUXORA_START_LEDGER",
        "source.start_ledger",
        _integer(1, 2**32 - 1),
        "first ledger to read where nothing is recorded yet; unset: the oldest that the node keeps",
    ),
    Variable("FLUXORA_HEADER_EVERY", "source.header_every", _integer(1, 100_000), "ledgers between header checks"),
    Variable(
        "FLUXORA_POLL_INTERVAL_MS",
        "source.poll_interval_s",
        _milliseconds(10, 600_000),
        "wait between polls at the tip",
    ),
    Variable(
        "FLUXORA_RPC_TIMEOUT_MS",
        "source.request_timeout_s",
        _milliseconds(100, 600_000),
        "longest wait for one RPC answer",
    ),
    Variable("FLUXORA_RPC_PAGE_LIMIT", "source.page_limit", _integer(1, 10_000), "events asked for in one page"),
    Variable(
        "FLUXORA_SAFETY_MARGIN",
        "pipeline.safety_margin",
        _integer(0, 10_000),
        "ledgers below the tip that do not count as safe",
    ),
    Variable(
        "INDEXER_WORKER_TOKEN",
        "http.indexer_worker_token",
        _token,
        "secret of the ingest endpoint; unset: the endpoint does not exist",
    ),
    Variable(
        "INDEXER_STALL_THRESHOLD_MS",
        "pipeline.stall_threshold_s",
        _milliseconds(100, 86_400_000),
        "time without a new ledger after which the indexer counts as stalled",
    ),
    Variable(
        "FLUXORA_API_KEYS",
        "http.access.api_keys",
        _api_keys,
        "entries of API keys, separated by commas; `fluxora keys new` makes a key and its entry",
    ),
    Variable(
        "JWT_SECRET",
        "http.access.jwt_secret",
        _text,
        "secret of bearer tokens (JWT, HS256), 32 bytes or more; unset: none is taken",
    ),
    Variable(
        "FLUXORA_AUTH",
        "http.access.required",
        _required,
        "open, or required: writes and WebSockets need a credential",
    ),
    Variable("FLUXORA_RATE_LIMIT", "http.limits.enabled", _switch, "0 turns every rate limit off"),
    Variable(
        "FLUXORA_RATE_LIMIT_READ", "http.limits.anonymous_read", _rate, "reads a minute from one address, anonymous"
    ),
    Variable(
        "FLUXORA_RATE_LIMIT_WRITE", "http.limits.anonymous_write", _rate, "writes a minute from one address, anonymous"
    ),
    Variable("FLUXORA_RATE_LIMIT_KEY", "http.limits.key", _rate, "requests a minute with one key or token"),
    Variable("FLUXORA_RATE_LIMIT_ADMIN", "http.limits.admin", _rate, "the same where it has the scope admin"),
    Variable(
        "FLUXORA_WS_MAX",
        "http.max_websockets",
        _integer(1, 1_000_000),
        "WebSockets and event streams that may be open at a time",
    ),
    Variable(
        "FLUXORA_WS_MAX_PER_CLIENT",
        "http.max_websockets_per_client",
        _integer(1, 1_000_000),
        "the same from one address",
    ),
    Variable(
        "FLUXORA_TRUSTED_PROXIES",
        "http.trusted_proxies",
        _networks,
        "networks of proxies whose X-Forwarded-For is believed, separated by commas",
    ),
    Variable(
        "FLUXORA_CORS_ORIGINS",
        "http.cors_origins",
        _origins,
        "origins whose web pages may read answers and open WebSockets: scheme://host[:port], separated by commas",
    ),
    Variable(
        "FLUXORA_WEBHOOK_URL",
        "webhooks.url",
        _text,
        "where every event is sent as a signed webhook: the endpoint `default`, made or changed at the start",
    ),
    Variable(
        "FLUXORA_WEBHOOK_SECRET",
        "webhooks.secret",
        _webhook_secret,
        "secret that its deliveries are signed with; needed where FLUXORA_WEBHOOK_URL is set",
    ),
    Variable(
        "FLUXORA_WEBHOOK_ALLOWED_NETWORKS",
        "webhooks.allowed_networks",
        _networks,
        "private networks that webhooks may be sent to, also by plain http, separated by commas; unset: none",
    ),
    Variable(
        "FLUXORA_WEBHOOK_MAX_ENDPOINTS",
        "webhooks.max_endpoints",
        _integer(1, 10_000),
        "endpoints that there may be, besides that of FLUXORA_WEBHOOK_URL",
    ),
    Variable(
        "FLUXORA_WEBHOOK_RETENTION_DAYS",
        "webhooks.retention_days",
        _integer(1, 3_650),
        "days for which finished deliveries are kept, with their attempts",
    ),
    Variable(
        "FLUXORA_WEBHOOK_ALARM_MS",
        "webhooks.backlog_alarm_s",
        _milliseconds(1_000, 604_800_000),
        "wait of the oldest pending delivery above which /health is degraded",
    ),
    Variable(
        "FLUXORA_ADMIN_LOG_DAYS",
        "webhooks.admin_log_days",
        _integer(1, 36_500),
        "days for which it is kept who did what (`fluxora webhooks log`)",
    ),
    Variable(
        "FLUXORA_BACKUP_TARGET",
        "backups.target",
        _text,
        "where backups are written by the process itself: a folder/ or s3://bucket/prefix/; unset: nowhere",
    ),
    Variable(
        "FLUXORA_BACKUP_EVERY_HOURS",
        "backups.every_s",
        _hours(1, 8_760),
        "age of the newest one at which the next is made",
    ),
    Variable("FLUXORA_BACKUP_KEEP", "backups.keep", _integer(1, 10_000), "archives that stay there, the newest"),
    Variable(
        "FLUXORA_TRACING",
        "tracing",
        _on,
        "on: traces go to an OpenTelemetry collector, which the variables OTEL_* name; off: none",
    ),
)

# Those of `fluxora tail`; a server has no use for them, and takes no offence.
CLIENT_VARIABLES: tuple[Variable, ...] = (
    Variable("FLUXORA_URL", "url", _text, "the server that is followed"),
    Variable("FLUXORA_KEY", "key", _credential, "an API key, as `fluxora keys new` prints it"),
    Variable("FLUXORA_TOKEN", "token", _credential, "or a bearer token"),
)
