"""`fluxora doctor`: tries everything that a start needs, and says what to do about what fails.

It changes nothing in the database, and serves nothing. Exit code 0 where nothing fails; warnings do not count.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import msgspec
import trio

from fluxora.actors.sources.stellar_rpc import StellarRpcSource
from fluxora.config import Config
from fluxora.errors import ConfigError, FluxoraError, StorageUnavailable
from fluxora.storage.inspection import OLDEST_VERSION, DatabaseFacts
from fluxora.storage.pg_programs import installed
from fluxora.storage.store import open_store

if sys.platform != "win32":
    import resource

ASK_S = 15.0
MOST_SKEW_S = 5.0
SPARE_CONNECTIONS = 5
SPARE_BYTES = 1 << 30
STALE_S = 120
RESERVED_FILES = 256

Verdict = Literal["ok", "warn", "fail"]


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that was tried; `fix` is what to do where it is not well."""

    check: str
    verdict: Verdict
    found: str
    fix: str | None = None


async def examine(environ: Mapping[str, str]) -> AsyncIterator[Finding]:
    """Try everything, in the order in which a start needs it."""
    try:
        config = Config.from_env(environ)
    except ConfigError as error:
        yield Finding(
            "configuration", "fail", str(error), "correct the variable; `fluxora serve --help` lists them all"
        )
        return
    yield Finding("configuration", "ok", f"source {config.source.kind}, {len(config.contracts)} contracts")
    for local in (_files(config), _data(config), _programs()):
        yield local
    yield await _port(config)
    async for finding in _database(config):
        yield finding
    async for finding in _network(config):
        yield finding


def _files(config: Config) -> Finding:
    wanted = config.http.max_connections + RESERVED_FILES
    if sys.platform == "win32":
        return Finding("open files", "ok", "no limit")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= wanted:
        return Finding("open files", "ok", f"room for {config.http.max_connections} connections")
    most = max(1, hard - RESERVED_FILES)
    return Finding(
        "open files", "warn", f"room for {most} connections", f"raise the hard limit (ulimit -n) to {wanted}"
    )


def _data(config: Config) -> Finding:
    if config.storage.database_url is not None:
        return Finding("data directory", "ok", "not needed: DATABASE_URL is set")
    place = Path(config.storage.data_dir).absolute()
    nearest = next(path for path in (place, *place.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
        free = shutil.disk_usage(nearest).free
    except OSError as error:
        return Finding(
            "data directory", "fail", f"{nearest}: {error.strerror}", "make it writable, or set FLUXORA_DATA_DIR"
        )
    if free < SPARE_BYTES:
        return Finding("data directory", "warn", f"{place}: {free >> 20} MiB are free", "make room")
    return Finding("data directory", "ok", f"{place}: {free >> 30} GiB are free")


def _programs() -> Finding:
    found = installed()
    if not found:
        fix = "install PostgreSQL's client programs"
        return Finding("backup programs", "warn", "pg_dump and pg_restore are not installed", fix)
    return Finding("backup programs", "ok", f"of PostgreSQL {', '.join(map(str, sorted(found)))}")


async def _port(config: Config) -> Finding:
    where = f"{config.http.host}:{config.http.port}"
    try:
        for listener in await trio.open_tcp_listeners(config.http.port, host=config.http.host):
            await listener.aclose()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        return Finding(
            "port", "warn", f"{where}: {reason}", "stop what listens there (a Fluxora that runs?), or set PORT"
        )
    return Finding("port", "ok", f"{where} is free")


async def _database(config: Config) -> AsyncIterator[Finding]:
    try:
        async with open_store(config.storage, decimals=config.decimals) as store:
            latency_s = await store.ping()
            asked_s = time.time()
            facts = await store.inspect()
            skew_s = (asked_s + time.time()) / 2 - facts.clock_ms / 1000
    except (ConfigError, StorageUnavailable) as error:
        yield Finding("database", "fail", str(error), "start it, or correct DATABASE_URL, its user and its password")
        return
    yield Finding(
        "database",
        "ok" if facts.version >= OLDEST_VERSION else "fail",
        f"PostgreSQL {facts.version_text}, {facts.bytes >> 20} MiB, answers in {latency_s * 1000:.1f} ms",
        None if facts.version >= OLDEST_VERSION else f"PostgreSQL {OLDEST_VERSION} or newer is needed",
    )
    for finding in (_schema(facts), _role(facts), _connections(config, facts), _durability(facts), _clock(skew_s)):
        yield finding


def _schema(facts: DatabaseFacts) -> Finding:
    if facts.ahead:
        return Finding("schema", "fail", f"{facts.ahead[-1]} is of a newer Fluxora", "run that version or a newer one")
    if facts.behind:
        return Finding("schema", "ok", f"{len(facts.behind)} migrations to go: the next start applies them")
    return Finding("schema", "ok", "up to date")


def _role(facts: DatabaseFacts) -> Finding:
    if facts.standby:
        return Finding("role", "fail", "this server is a standby and takes no writes", "use the primary's address")
    if not facts.may_create and facts.behind:
        fix = "GRANT CREATE ON SCHEMA to the user, or run `fluxora migrate` as its owner"
        return Finding("role", "fail", "the user may not create tables", fix)
    return Finding("role", "ok", "takes writes")


def _connections(config: Config, facts: DatabaseFacts) -> Finding:
    left = facts.max_connections - facts.connections
    wanted = config.storage.pool_size + SPARE_CONNECTIONS
    said = f"{facts.connections} of {facts.max_connections} in use"
    if left >= wanted:
        return Finding("connections", "ok", said)
    return Finding("connections", "warn", said, f"this process takes up to {wanted}: raise max_connections")


def _durability(facts: DatabaseFacts) -> Finding:
    if facts.durable:
        return Finding("durability", "ok", "commits survive a crash")
    return Finding(
        "durability", "warn", "a crash can lose commits that were answered", "turn fsync and synchronous_commit on"
    )


def _clock(skew_s: float) -> Finding:
    if abs(skew_s) <= MOST_SKEW_S:
        return Finding("clock", "ok", f"{skew_s:+.1f} s against the database")
    return Finding("clock", "warn", f"{skew_s:+.0f} s against the database", "have both machines follow NTP")


async def _network(config: Config) -> AsyncIterator[Finding]:
    source = config.source
    if source.kind not in {"rpc", "push"} or not source.rpc_urls:
        said = {"none": "no source: nothing is followed", "push": "events are pushed", "local": "a local network"}
        fix = "set STELLAR_RPC_URL and FLUXORA_CONTRACTS" if source.kind == "none" else None
        yield Finding("network", "warn" if fix else "ok", said.get(source.kind, source.kind), fix)
        return
    contracts = [contract.id for contract in config.contracts]
    for number, url in enumerate(source.rpc_urls, 1):
        yield await _endpoint(replace(config, source=replace(source, rpc_urls=(url,))), contracts, number)


async def _endpoint(config: Config, contracts: list[str], number: int) -> Finding:
    check = f"endpoint {number}"
    began = trio.current_time()
    try:
        async with StellarRpcSource.open(config.source, contracts) as source:
            with trio.move_on_after(ASK_S) as asking:
                tip = await source.tip()
            said = source.status.message
    except FluxoraError as error:
        return Finding(check, "fail", str(error), "correct STELLAR_RPC_URL or NETWORK_PASSPHRASE")
    if asking.cancelled_caught:
        return Finding(
            check, "fail", said or f"no answer within {ASK_S:.0f} s", "correct STELLAR_RPC_URL, or ask its operator"
        )
    took_ms = (trio.current_time() - began) * 1000
    if tip.closed_at is not None and (age_s := time.time() - tip.closed_at) > STALE_S:
        said = f"its newest ledger {tip.latest} closed {age_s:.0f} s ago"
        return Finding(check, "warn", said, "see that this machine's clock is right; else ask its operator")
    return Finding(check, "ok", f"ledgers {tip.oldest} to {tip.latest}, answers in {took_ms:.0f} ms")


async def run(*, as_json: bool) -> int:
    """Print each finding as it comes; the exit code."""
    failed = False
    async for finding in examine(os.environ):
        failed = failed or finding.verdict == "fail"
        if as_json:
            print(json.dumps(msgspec.to_builtins(finding)), flush=True)
            continue
        print(f"{finding.verdict:<4}  {finding.check:<16}  {finding.found}", flush=True)
        if finding.fix is not None:
            print(f"{'':<24}-> {finding.fix}", flush=True)
    return 1 if failed else 0
