"""Configuration: frozen dataclasses, built once. `Config.from_env(mapping)` alone knows the names of variables.

Every variable stands in `variables.VARIABLES` with its parser and its meaning; the documentation and `.env.example`
are checked against that table. An unknown FLUXORA_* variable is an error, for a typo must not silently mean the
default. An empty value counts as unset. Secrets and URLs with passwords are hidden from repr.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from fluxora.errors import ConfigError
from fluxora.protocol.api_keys import ApiKey
from fluxora.protocol.signing import Secret
from fluxora.protocol.targets import TargetRefused, check_url
from fluxora.variables import CLIENT_VARIABLES, VARIABLES

TESTNET_PASSPHRASE = "Test SDF Network ; September 2015"  # noqa: S105 (a public name, not a secret)
LOCALNET_PASSPHRASE = "Fluxora Localnet ; 2026"  # noqa: S105 (the same)
MAX_CONTRACTS = 1_000  # each 25 of them cost a walk of their own over the same ledgers
MIN_JWT_SECRET_BYTES = 32  # as many as the hash has; a shorter one is the weakest part of every token
SourceKind = Literal["none", "rpc", "push", "local"]


@dataclass(frozen=True, kw_only=True)
class Contract:
    """A stream contract to follow; `decimals` are those of its token."""

    id: str
    decimals: int = 7


@dataclass(frozen=True, kw_only=True)
class StorageConfig:
    """PostgreSQL. Without `database_url` one is started from the installed wheel, its data under `data_dir`.

    A read is answered or fails within `read_deadline_s`, a write within `write_deadline_s`.
    """

    database_url: str | None = field(default=None, repr=False)
    data_dir: Path = Path(".fluxora")
    pool_size: int = 8
    connect_timeout_s: float = 5.0
    statement_timeout_s: float = 10.0
    read_deadline_s: float = 1.5
    write_deadline_s: float = 30.0


@dataclass(frozen=True, kw_only=True)
class AccessConfig:
    """Credentials that are taken: API keys, and bearer tokens where `jwt_secret` is set.

    `required` closes writes and WebSockets to callers without one.
    """

    api_keys: tuple[ApiKey, ...] = field(default=(), repr=False)
    jwt_secret: str | None = field(default=None, repr=False)
    required: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot work, with the words of the variables that set it."""
        names = sorted(key.name for key in self.api_keys)
        for name, following in pairwise(names):
            if name == following:
                raise ConfigError(f"FLUXORA_API_KEYS: two keys have the name {name}; each needs its own")
        secret = self.jwt_secret
        if secret is not None and len(secret.encode("utf-8", "surrogateescape")) < MIN_JWT_SECRET_BYTES:
            raise ConfigError(f"JWT_SECRET: at least {MIN_JWT_SECRET_BYTES} bytes are needed")
        if self.required and not self.api_keys and secret is None:
            raise ConfigError(
                "FLUXORA_AUTH: required lets nobody write without a credential to check; set FLUXORA_API_KEYS "
                "(`fluxora keys new` makes a key) or JWT_SECRET"
            )


@dataclass(frozen=True, kw_only=True)
class LimitConfig:
    """Requests per minute: of one address without a credential, of one key or token, of one with the scope admin."""

    enabled: bool = True
    anonymous_read: int = 100
    anonymous_write: int = 20
    key: int = 500
    admin: int = 2_000

    def __post_init__(self) -> None:
        """Refuse a limit that lets nothing through."""
        if min(self.anonymous_read, self.anonymous_write, self.key, self.admin) < 1:
            raise ConfigError("FLUXORA_RATE_LIMIT_*: at least 1 a minute is needed; FLUXORA_RATE_LIMIT=0 turns all off")


@dataclass(frozen=True, kw_only=True)
class HttpConfig:
    """The one port. `port` 0 takes any free one; without `listen` there is none, and a server of the embedder's own
    serves `Runtime.app`. Internal routes exist only while `indexer_worker_token` is set.

    `trusted_proxies` are believed in X-Forwarded-For. `cors_origins` are exact, as browsers send them. With `direct`
    the listener serves complete small requests itself. Of `max_connections` at most `max_websockets` may be WebSockets,
    and `max_websockets_per_client` from one address; event streams count as such. A WebSocket that does not answer a
    ping, sent every `ws_ping_s`, is ended; an event stream gets a comment every `sse_comment_s`. `access_log_sample` is
    the part of the requests that went well and quickly that get a log line, from 0 to 1.
    """

    access: AccessConfig = AccessConfig()
    limits: LimitConfig = LimitConfig()
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    cors_origins: tuple[str, ...] = ()
    direct: bool = True
    listen: bool = True
    host: str = "127.0.0.1"
    port: int = 3000
    indexer_worker_token: str | None = field(default=None, repr=False)
    max_body_bytes: int = 262_144
    request_timeout_s: float = 30.0
    read_head_timeout_s: float = 10.0
    keep_alive_s: float = 30.0
    write_timeout_s: float = 30.0
    max_connections: int = 11_000
    max_websockets: int = 10_000
    max_websockets_per_client: int = 100
    ws_ping_s: float = 30.0
    sse_comment_s: float = 15.0
    drain_s: float = 10.0
    access_log_sample: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what is no part of a whole."""
        if not 0 <= self.access_log_sample <= 1:
            raise ConfigError("FLUXORA_ACCESS_LOG_SAMPLE: a number from 0 to 1 is needed")


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where ledgers come from. `header_every` is the number of ledgers between two header checks (1: each ledger).

    A header costs about 1.65 MB on mainnet, since the RPC sends the whole ledger with it; hence not every one there.
    """

    kind: SourceKind = "none"
    rpc_urls: tuple[str, ...] = field(default=(), repr=False)
    network_passphrase: str = TESTNET_PASSPHRASE
    start_ledger: int | None = None
    header_every: int = 64
    poll_interval_s: float = 2.0
    request_timeout_s: float = 30.0
    page_limit: int = 10_000


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """Bounds of the ingest pipeline; `safety_margin` ledgers below the tip count as not yet safe."""

    safety_margin: int = 1
    stall_threshold_s: float = 300.0
    dedup_entries: int = 10_000
    events_per_transaction: int = 5_000
    entry_reads_per_minute: int = 12


@dataclass(frozen=True, kw_only=True)
class WebhookConfig:
    """Deliveries of events by HTTP. `url` and `secret` make the endpoint `default` at the start; it gets every event.

    `allowed_networks` admit private targets, and plain http to them. Of all endpoints together at most `concurrency`
    deliveries are on their way at a time. Finished ones are kept for `retention_days`, entries of the admin log for
    `admin_log_days`. Where the oldest pending one has waited for longer than `backlog_alarm_s`, /health is degraded. By
    hand at most `max_endpoints` can be made.
    """

    url: str | None = field(default=None, repr=False)
    secret: Secret | None = field(default=None, repr=False)
    allowed_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    concurrency: int = 64
    max_endpoints: int = 1_000
    retention_days: int = 30
    admin_log_days: int = 400
    backlog_alarm_s: float = 300.0

    def __post_init__(self) -> None:
        """Refuse a target that nothing would ever be sent to, with the words of the variables that set it."""
        if self.url is None and self.secret is not None:
            raise ConfigError("FLUXORA_WEBHOOK_URL: required where FLUXORA_WEBHOOK_SECRET is set")
        if self.url is None:
            return
        if self.secret is None:
            raise ConfigError(
                "FLUXORA_WEBHOOK_SECRET: required where FLUXORA_WEBHOOK_URL is set, as whsec_ and base64 of 24 to 64 "
                "bytes or as any other text that the receiver has too"
            )
        try:
            check_url(self.url, self.allowed_networks)
        except TargetRefused as error:
            raise ConfigError(f"FLUXORA_WEBHOOK_URL: {error}") from error


@dataclass(frozen=True, kw_only=True)
class BackupConfig:
    """Backups that the process makes by itself, where `target` is set: a folder/ or s3://bucket/prefix/.

    One is made when the newest there is older than `every_s`; the newest `keep` stay.
    """

    target: str | None = None
    every_s: float = 86_400.0
    keep: int = 14

    def __post_init__(self) -> None:
        """Refuse what is no folder: each backup has a name of its own."""
        if self.target is not None and not self.target.endswith("/"):
            raise ConfigError("FLUXORA_BACKUP_TARGET: a folder is needed, with a / at its end, or s3://bucket/prefix/")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything a runtime needs to know. The defaults serve REST on 127.0.0.1:3000 from embedded PostgreSQL."""

    contracts: tuple[Contract, ...] = ()
    storage: StorageConfig = StorageConfig()
    http: HttpConfig = HttpConfig()
    source: SourceConfig = SourceConfig()
    pipeline: PipelineConfig = PipelineConfig()
    webhooks: WebhookConfig = WebhookConfig()
    backups: BackupConfig = BackupConfig()
    log_level: str = "info"
    tracing: bool = False

    def __post_init__(self) -> None:
        """Refuse combinations that cannot work, with the words of the variables that set them."""
        if self.source.kind == "rpc" and not self.source.rpc_urls:
            raise ConfigError("STELLAR_RPC_URL: required where the source is rpc")
        if self.source.kind == "rpc" and not self.contracts:
            raise ConfigError("FLUXORA_CONTRACTS: name the stream contracts to follow, as C...[:decimals]")
        if len(self.contracts) > MAX_CONTRACTS:
            raise ConfigError(f"FLUXORA_CONTRACTS: at most {MAX_CONTRACTS} contracts, got {len(self.contracts)}")
        prefixes = [contract.id[:12] for contract in self.contracts]
        if len(set(prefixes)) < len(prefixes):
            raise ConfigError(
                "FLUXORA_CONTRACTS: two contracts share their first 12 characters, and so would their stream ids"
            )

    @property
    def decimals(self) -> dict[str, int]:
        """Token decimals by contract id."""
        return {contract.id: contract.decimals for contract in self.contracts}

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Config:
        """Read the variables of `VARIABLES`.

        Raises:
            ConfigError: a value is wrong or a FLUXORA_* variable is unknown; one line, naming the variable.
        """
        for name in environ:
            if name.startswith("FLUXORA_") and name not in _BY_NAME and name not in _OF_CLIENTS:
                raise ConfigError(f"{name}: unknown variable; those known are listed by `fluxora serve --help`")
        given = {
            name: variable.parse(name, text)
            for name, variable in _BY_NAME.items()
            if (text := environ.get(name, "").strip())
        }
        if given.get("FLUXORA_SOURCE") == "push" and "INDEXER_WORKER_TOKEN" not in given:
            raise ConfigError("INDEXER_WORKER_TOKEN: required where FLUXORA_SOURCE is push")
        of = _by_section(given)
        contracts = of[""].pop("contracts", {})
        return cls(
            contracts=tuple(Contract(id=contract, decimals=decimals) for contract, decimals in contracts.items()),
            storage=StorageConfig(**of["storage"]),
            http=HttpConfig(
                access=AccessConfig(**of["http.access"]), limits=LimitConfig(**of["http.limits"]), **of["http"]
            ),
            source=SourceConfig(**{"kind": _default_source(given), **of["source"]}),
            pipeline=PipelineConfig(**of["pipeline"]),
            webhooks=WebhookConfig(**of["webhooks"]),
            backups=BackupConfig(**of["backups"]),
            **of[""],
        )


def _default_source(given: Mapping[str, Any]) -> SourceKind:
    if "STELLAR_RPC_URL" in given and "FLUXORA_CONTRACTS" in given:
        return "rpc"
    return "push" if "INDEXER_WORKER_TOKEN" in given else "none"


def _by_section(given: Mapping[str, Any]) -> defaultdict[str, dict[str, Any]]:
    """Values by field, those by the path of their section: {"http.access": {"required": True}}."""
    sections: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for name, value in given.items():
        path = _BY_NAME[name].field
        if path is not None:
            section, _, field_name = path.rpartition(".")
            sections[section][field_name] = value
    return sections


_BY_NAME = {variable.name: variable for variable in VARIABLES}
_OF_CLIENTS = frozenset(variable.name for variable in CLIENT_VARIABLES)
