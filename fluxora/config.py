"""Configuration: frozen dataclasses, built once. `Config.from_env(mapping)` alone knows the names of variables.

Every variable stands in `VARIABLES` with its parser and its meaning; the documentation and `.env.example` are checked
against that table. An unknown FLUXORA_* variable is an error, for a typo must not silently mean the default. An empty
value counts as unset. Secrets and URLs with passwords are hidden from repr.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from fluxora.errors import ConfigError
from fluxora.logs import LEVELS
from fluxora.protocol.addresses import is_account_or_contract

TESTNET_PASSPHRASE = "Test SDF Network ; September 2015"  # noqa: S105 (a public name, not a secret)
LOCALNET_PASSPHRASE = "Fluxora Localnet ; 2026"  # noqa: S105 (the same)
MAX_CONTRACTS = 1_000  # each 25 of them cost a walk of their own over the same ledgers
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
class HttpConfig:
    """The one port. `port` 0 takes any free one. Internal routes exist only while `indexer_worker_token` is set."""

    host: str = "127.0.0.1"
    port: int = 3000
    indexer_worker_token: str | None = field(default=None, repr=False)
    max_body_bytes: int = 262_144
    request_timeout_s: float = 30.0
    read_head_timeout_s: float = 10.0
    max_connections: int = 10_000
    drain_s: float = 10.0


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
class Config:
    """Everything a runtime needs to know. The defaults serve REST on 127.0.0.1:3000 from embedded PostgreSQL."""

    contracts: tuple[Contract, ...] = ()
    storage: StorageConfig = StorageConfig()
    http: HttpConfig = HttpConfig()
    source: SourceConfig = SourceConfig()
    pipeline: PipelineConfig = PipelineConfig()
    log_level: str = "info"

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
            if name.startswith("FLUXORA_") and name not in _BY_NAME:
                raise ConfigError(f"{name}: unknown variable; those known are listed by `fluxora serve --help`")
        given = {
            name: variable.parse(name, text)
            for name, variable in _BY_NAME.items()
            if (text := environ.get(name, "").strip())
        }
        if given.get("FLUXORA_SOURCE") == "push" and "INDEXER_WORKER_TOKEN" not in given:
            raise ConfigError("INDEXER_WORKER_TOKEN: required where FLUXORA_SOURCE is push")
        return cls(
            contracts=given.get("FLUXORA_CONTRACTS", ()),
            storage=StorageConfig(**_section(given, StorageConfig)),
            http=HttpConfig(**_section(given, HttpConfig)),
            source=SourceConfig(**{"kind": _default_source(given), **_section(given, SourceConfig)}),
            pipeline=PipelineConfig(**_section(given, PipelineConfig)),
            log_level=given.get("LOG_LEVEL", "info"),
        )


@dataclass(frozen=True)
class Variable:
    """One environment variable: its name, the dataclass and field it sets, how it is read, and what it means."""

    name: str
    section: type | None
    field: str
    parse: Callable[[str, str], Any]
    help: str


def _default_source(given: Mapping[str, Any]) -> SourceKind:
    if "STELLAR_RPC_URL" in given and "FLUXORA_CONTRACTS" in given:
        return "rpc"
    return "push" if "INDEXER_WORKER_TOKEN" in given else "none"


def _section(given: Mapping[str, Any], section: type) -> dict[str, Any]:
    return {v.field: given[v.name] for v in VARIABLES if v.section is section and v.name in given}


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


def _milliseconds(low: int, high: int) -> Callable[[str, str], float]:
    whole = _integer(low, high)

    def parse(name: str, text: str) -> float:
        return whole(name, text) / 1000

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
    return text


def _database_url(name: str, text: str) -> str:
    return _url(("postgresql", "postgres"), name, text)


def _http_url(name: str, text: str) -> str:
    return _url(("https", "http"), name, text)


def _http_urls(name: str, text: str) -> tuple[str, ...]:
    return tuple(_http_url(name, part) for part in text.replace(",", " ").split())


def _contracts(name: str, text: str) -> tuple[Contract, ...]:
    contracts: dict[str, Contract] = {}
    for part in text.replace(",", " ").split():
        contract_id, _, decimals = part.partition(":")
        if not (contract_id.startswith("C") and is_account_or_contract(contract_id)):
            raise ConfigError(
                f"{name}: {contract_id[:60]!r} is not a contract id (C..., 56 characters, valid checksum)"
            )
        places = _integer(0, 38)(name, decimals) if decimals else 7
        contracts[contract_id] = Contract(id=contract_id, decimals=places)
    return tuple(contracts.values())


def _token(name: str, text: str) -> str:
    if len(text) < 16:
        raise ConfigError(f"{name}: at least 16 characters are needed")
    return text


VARIABLES: tuple[Variable, ...] = (
    Variable("PORT", HttpConfig, "port", _integer(0, 65_535), "port for HTTP (0: any free one)"),
    Variable("HOST", HttpConfig, "host", _text, "address to listen on; 0.0.0.0 for every interface"),
    Variable("LOG_LEVEL", None, "log_level", _one_of(*LEVELS), f"one of {', '.join(LEVELS)}"),
    Variable("DATABASE_URL", StorageConfig, "database_url", _database_url, "PostgreSQL 14 or newer; unset: embedded"),
    Variable("FLUXORA_DATA_DIR", StorageConfig, "data_dir", _path, "where embedded PostgreSQL keeps its data"),
    Variable("FLUXORA_DB_POOL_SIZE", StorageConfig, "pool_size", _integer(2, 100), "connections to PostgreSQL"),
    Variable(
        "FLUXORA_SOURCE",
        SourceConfig,
        "kind",
        _one_of("none", "rpc", "push", "local"),
        "where ledgers come from; unset: rpc where STELLAR_RPC_URL and FLUXORA_CONTRACTS are set, else push where "
        "INDEXER_WORKER_TOKEN is, else none",
    ),
    Variable("STELLAR_RPC_URL", SourceConfig, "rpc_urls", _http_urls, "Stellar RPC endpoints, separated by commas"),
    Variable("HORIZON_URL", None, "horizon_url", _http_url, "accepted for compatibility and not used"),
    Variable(
        "NETWORK_PASSPHRASE", SourceConfig, "network_passphrase", _text, "the network that the endpoints must serve"
    ),
    Variable(
        "FLUXORA_CONTRACTS", None, "contracts", _contracts, "contracts to follow: C...[:decimals], separated by commas"
    ),
    Variable(
        "FLUXORA_START_LEDGER",
        SourceConfig,
        "start_ledger",
        _integer(1, 2**32 - 1),
        "first ledger to read where nothing is recorded yet; unset: the oldest that the node keeps",
    ),
    Variable(
        "FLUXORA_HEADER_EVERY", SourceConfig, "header_every", _integer(1, 100_000), "ledgers between header checks"
    ),
    Variable(
        "FLUXORA_POLL_INTERVAL_MS",
        SourceConfig,
        "poll_interval_s",
        _milliseconds(10, 600_000),
        "wait between polls at the tip",
    ),
    Variable(
        "FLUXORA_RPC_TIMEOUT_MS",
        SourceConfig,
        "request_timeout_s",
        _milliseconds(100, 600_000),
        "longest wait for one RPC answer",
    ),
    Variable("FLUXORA_RPC_PAGE_LIMIT", SourceConfig, "page_limit", _integer(1, 10_000), "events asked for in one page"),
    Variable(
        "FLUXORA_SAFETY_MARGIN",
        PipelineConfig,
        "safety_margin",
        _integer(0, 10_000),
        "ledgers below the tip that do not count as safe",
    ),
    Variable(
        "INDEXER_WORKER_TOKEN",
        HttpConfig,
        "indexer_worker_token",
        _token,
        "secret of the ingest endpoint; unset: the endpoint does not exist",
    ),
    Variable(
        "INDEXER_STALL_THRESHOLD_MS",
        PipelineConfig,
        "stall_threshold_s",
        _milliseconds(100, 86_400_000),
        "time without a new ledger after which the indexer counts as stalled",
    ),
)
_BY_NAME = {variable.name: variable for variable in VARIABLES}
