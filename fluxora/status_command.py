"""`fluxora status`: what GET /health says, as a table for people and as an exit code for programs.

Exit code 0: `ok` or `degraded`, 1: `unavailable`, or nobody answers.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import urllib.error
import urllib.request
from typing import Any

TIMEOUT_S = 4.0  # container engines wait for five
_MOST_BYTES = 1 << 20
_DEFAULT_PORT = "3000"
EPILOG = """\
The default URL is http://127.0.0.1 at PORT, else at 3000.
Exit code 0: ok or degraded; 1: unavailable, or nobody answers.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of `fluxora status`."""
    parser.add_argument("url", nargs="?", help="where it serves (default: this machine)")
    parser.add_argument("--json", action="store_true", help="print the report as it is")
    parser.add_argument("--quiet", action="store_true", help="print one line only where it is not well")


def run(arguments: argparse.Namespace) -> int:
    """Ask, print, judge."""
    url = arguments.url or f"http://127.0.0.1:{os.environ.get('PORT', '').strip() or _DEFAULT_PORT}"
    try:
        report = fetch(url)
    except (OSError, ValueError, http.client.HTTPException) as error:
        print(f"fluxora: {url} does not answer: {getattr(error, 'reason', None) or error}")
        return 1
    well = report.get("status") in {"ok", "degraded"}
    if arguments.json:
        print(json.dumps(report))
    elif not arguments.quiet:
        print(table(report))
    elif not well:
        print(f"fluxora: {report.get('status')}: {_of(report, 'indexer', 'summary')}")
    return 0 if well else 1


def fetch(url: str) -> dict[str, Any]:
    """The health report, whatever its status.

    Raises:
        OSError, http.client.HTTPException: nobody answers.
        ValueError: what answers is no Fluxora, or `url` is none.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError("a URL that starts with http:// or https:// is needed")
    request = urllib.request.Request(f"{url.rstrip('/')}/health", headers={"accept": "application/json"})  # noqa: S310 (checked above)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310 (as above)
            body = answer.read(_MOST_BYTES)
    except urllib.error.HTTPError as error:  # 503 is an answer as well
        body = error.read(_MOST_BYTES)
    try:
        report = json.loads(body)
    except ValueError as error:
        raise ValueError("what answers there is not Fluxora") from error
    if not isinstance(report, dict) or "status" not in report:
        raise ValueError("what answers there is not Fluxora")
    return report


def table(report: dict[str, Any]) -> str:
    """The report in lines of two columns, and one line for each actor."""
    indexer = report.get("indexer", {})
    hooks = report.get("webhooks", {})
    rows = [
        ("status", f"{report.get('status')}  (fluxora {report.get('version')}, {report.get('timestamp')})"),
        ("indexer", f"{indexer.get('status')}: {indexer.get('summary')}"),
        ("source", indexer.get("source")),
        ("last ledger", _ledger(indexer)),
        ("behind", _behind(indexer)),
        ("reorgs", f"{indexer.get('reorgs')}{', one is being taken back' if indexer.get('reorgDetected') else ''}"),
        ("database", _database(report)),
        ("stellar rpc", _rpc(report)),
        ("websockets", report.get("wsConnections")),
        ("webhooks", _webhooks(hooks)),
    ]
    lines = [f"{name:<12}  {value}" for name, value in rows if value is not None]
    actors = report.get("actors", [])
    if actors:
        width = max(len(actor["name"]) for actor in actors)
        lines.append("")
        lines += [_actor(actor, width) for actor in actors]
    return "\n".join(lines)


def _of(report: dict[str, Any], *path: str) -> Any:
    value: Any = report
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _ledger(indexer: dict[str, Any]) -> str | None:
    last, safe = indexer.get("lastLedger"), indexer.get("lastSafeLedger")
    return None if last is None else f"{last}, safe {safe}"


def _behind(indexer: dict[str, Any]) -> str | None:
    ledgers, ms = indexer.get("lagLedgers"), indexer.get("lagMs")
    if ledgers is None and ms is None:
        return None
    parts = [] if ledgers is None else [f"{ledgers} ledgers"]
    return ", ".join(parts + ([] if ms is None else [f"{ms / 1000:.1f} s"]))


def _database(report: dict[str, Any]) -> str:
    latency = _of(report, "dependencies", "database", "latencyMs")
    status = _of(report, "dependencies", "database", "status")
    return f"{status}" if latency is None else f"{status}, {latency} ms"


def _rpc(report: dict[str, Any]) -> str:
    rpc = _of(report, "dependencies", "stellarRpc") or {}
    said = [str(rpc[name]) for name in ("failure", "message", "endpoint") if rpc.get(name)]
    return ", ".join([str(rpc.get("status")), *said])


def _webhooks(hooks: dict[str, Any]) -> str:
    oldest = hooks.get("oldestPendingMs")
    age = "" if oldest is None else f", the oldest for {oldest / 1000:.0f} s"
    return f"{hooks.get('pending')} pending{age}, {hooks.get('deadLettered')} dead-lettered"


def _actor(actor: dict[str, Any], width: int) -> str:
    said = [f"{actor['name']:<{width}}", f"{actor['state']:<10}", f"restarts {actor.get('restarts', 0)}"]
    if actor.get("inbox") is not None:
        said.append(f"inbox {actor['inbox']}")
    if actor.get("lastError"):
        said.append(str(actor["lastError"]))
    return "  ".join(said)
