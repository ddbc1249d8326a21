"""What is shipped for containers must fit the program: variables, metrics, locked dependencies."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from fluxora.actors.backups import BackupStatus
from fluxora.actors.deliveries import DispatcherStatus
from fluxora.actors.hub import Hub
from fluxora.actors.progress import Progress
from fluxora.actors.registrar import WriteTally
from fluxora.actors.sources.call_tally import CallTally
from fluxora.actors.status import (
    ActorStatus,
    DatabaseStatus,
    Dependencies,
    HealthReport,
    IndexerStatus,
    RpcStatus,
    WebhookStatus,
)
from fluxora.actors.stream_cache import StreamCache
from fluxora.config import HttpConfig
from fluxora.http.backend import Backend
from fluxora.storage.bridge import BridgeStatus
from fluxora.storage.pool import PoolStatus
from fluxora.tallies import Histogram
from fluxora.variables import VARIABLES

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
_METRIC = re.compile(r"\bfluxora_[a-z_]+\b")


def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return json.loads((DEPLOY / "grafana/dashboards/fluxora.json").read_text(encoding="utf-8"))["panels"]


def exposed() -> Iterator[str]:
    """Every sample's name, as a fresh server with everything to say exposes it."""
    report = HealthReport(
        status="ok",
        version="1",
        timestamp="2026-01-01T00:00:00.000Z",
        indexer=IndexerStatus(
            status="healthy", summary="", lag_ms=1, lag_ledgers=1, last_ledger=1, last_safe_ledger=1, reorgs=0
        ),
        dependencies=Dependencies(
            database=DatabaseStatus(status="ok", latency_ms=1.0),
            stellar_rpc=RpcStatus(status="ok", failures={"throttled": 1}),
        ),
        webhooks=WebhookStatus(pending=1, oldest_pending_ms=1, dead_lettered=1),
        actors=[ActorStatus(name="feed", state="running", inbox=1, inbox_size=2)],
    )
    calls = CallTally()
    calls.count("getHealth", "ok", 0.1)
    backend = Backend(
        config=HttpConfig(),
        store=SimpleNamespace(
            pool_status=PoolStatus(4, open=1, in_use=1, waiting=0, acquired=1, given_up=0),
            bridge_status=BridgeStatus(1, waiting=0, timeouts=0, abandoned=0, durations=Histogram()),
        ),
        push=None,
        hub=Hub(None, None),
        health=lambda: report,
        version="1",
        cache=StreamCache(None, trusted=lambda: True),
        writes=None,
        dispatcher=SimpleNamespace(
            status=DispatcherStatus(
                pending=1,
                oldest_pending_ms=1,
                dead_lettered=1,
                in_flight=1,
                breakers_open=1,
                attempts={"delivered": 1},
                latencies=Histogram(),
            )
        ),
        backups=SimpleNamespace(status=BackupStatus(newest_s=1.0)),
        feed=SimpleNamespace(head=1, kept=1, in_touch=lambda: True),
        progress=Progress(lease=1),
        calls=calls,
        write_tally=WriteTally(),
    )
    for family in text_string_to_metric_families(backend.exposition.render().decode()):
        for sample in family.samples:
            yield sample.name
        if family.type == "histogram":  # of routes that nobody has asked for yet
            yield from (f"{family.name}_{part}" for part in ("bucket", "count", "sum"))
        if family.type == "counter":
            yield f"{family.name}_total"


def test_every_metric_that_is_looked_at_exists() -> None:
    known = set(exposed())
    for rule in rules():
        assert set(_METRIC.findall(rule["expr"])) <= known, rule["alert"]
    for panel in panels():
        for target in panel["targets"]:
            assert set(_METRIC.findall(target["expr"])) <= known, panel["title"]


def test_every_alert_says_what_to_do() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        assert rule["labels"]["severity"] in {"page", "warn", "info"}
        assert rule["annotations"]["summary"]
        assert len(rule["annotations"]["runbook"]) > 40


def test_compose_passes_on_every_variable_but_those_of_the_image() -> None:
    told = compose()["services"]["app"]["environment"]
    libraries = {name for name in told if name.startswith(("AWS_", "OTEL_"))}
    assert set(told) - libraries == {variable.name for variable in VARIABLES} - {"HOST", "PORT", "FLUXORA_DATA_DIR"}
    for name in set(told) - {"DATABASE_URL", "FLUXORA_TRUSTED_PROXIES"}:
        assert told[name] == (None if name in libraries else f"${{{name}:-}}")


def test_the_app_runs_hardened_behind_the_proxy() -> None:
    services = compose()["services"]
    app = services["app"]
    assert app["read_only"] is True
    assert app["cap_drop"] == ["ALL"]
    assert "ports" not in app, "it would not scale"
    assert app["depends_on"]["postgres"]["condition"] == "service_healthy"
    assert services["postgres"]["healthcheck"]["test"][0] == "CMD"
    assert {name for name, one in services.items() if "profiles" in one} == {"prometheus", "grafana"}


def test_everything_that_is_depended_on_is_locked_with_its_hash() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    wanted = [*project["project"]["dependencies"], *extras["s3"], *extras["otel"]]
    for file, names in {
        "requirements.lock": [re.split(r"[<>=;\[ ]", line)[0].lower() for line in wanted],
        "requirements-build.lock": [re.split(r"[<>=]", line)[0] for line in project["build-system"]["requires"]],
    }.items():
        blocks = re.split(r"\n(?=\S)", (ROOT / file).read_text(encoding="utf-8").strip())
        locked = {re.match(r"[a-z0-9.-]+", block)[0]: block for block in blocks if not block.startswith("#")}
        assert set(names) <= set(locked), f"run `make lock`: {file}"
        for name, block in locked.items():
            assert "--hash=sha256:" in block, name
