"""Imports run one way only; this holds the arrows that ARCHITECTURE.md draws."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fluxora

ROOT = Path(fluxora.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

# room -> the rooms of ours that it may import; errors, logs, tallies and tracing are open to all
ROOMS = {
    "errors": set(),
    "logs": set(),
    "tallies": set(),
    "tracing": set(),
    "collector": set(),
    "protocol": {"protocol"},
    "variables": {"protocol"},
    "config": {"variables", "protocol"},
    "storage": {"storage", "protocol", "config"},
    "localnet": {"localnet", "protocol", "config"},
    "actors": {"actors", "storage", "protocol", "config", "localnet"},
    "http": {"http", "actors", "storage", "protocol", "config"},
    "runtime": {"collector", "http", "actors", "storage", "protocol", "config"},
    "replay": {"runtime", "http", "actors", "config"},
    "client": {"client", "variables", "protocol"},
    "backup_commands": {"storage", "config"},
    "status_command": set(),
    "doctor": {"actors", "storage", "config"},
    "webhooks": set(),  # it may be copied into a consumer's project
    "webhook_listener": {"webhooks"},
    "webhook_arguments": {"http"},
    "webhook_tables": {"http", "protocol"},
    "webhook_commands": {
        *("webhook_arguments", "webhook_tables", "webhook_listener"),
        *("http", "actors", "storage", "protocol", "config"),
    },
    "__main__": {
        *("runtime", "replay", "client", "backup_commands", "status_command", "doctor", "webhook_commands"),
        *("webhook_listener", "http", "localnet", "storage", "config", "variables", "protocol"),
    },
    "__init__": {"runtime", "config", "webhooks"},
}
# framework -> the rooms that may import it
FRAMEWORKS = {
    "asyncio": {"storage"},
    "asyncpg": {"storage"},
    "uvloop": {"storage"},
    "quart": {"http"},
    "quart_trio": {"http"},
    "hypercorn": {"http"},
    "stellar_sdk": {"localnet"},
    "trio_websocket": {"client"},
    "opentelemetry": {"tracing", "collector"},
}
PURE = {"protocol", "variables", "config", "errors"}
IMPURE = {"trio", "socket", "time", "random", "os", "threading", "subprocess"}


def room(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else path.stem


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            if node.module == "fluxora":
                found.update(f"fluxora.{alias.name}" for alias in node.names)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path: Path) -> None:
    here = room(path)
    assert here in ROOMS, f"{here} has no place in the architecture"
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "fluxora" and rest and not rest[0].startswith("__"):
            target = rest[0]
            assert target in ROOMS[here] | {"errors", "logs", "tallies", "tracing"}, f"{here} must not import {name}"
        assert here in FRAMEWORKS.get(top, {here}), f"{here} must not import {name}"
        if here in PURE:
            assert top not in IMPURE, f"{here} is pure and must not import {name}"


def test_every_room_exists() -> None:
    assert {room(path) for path in MODULES} == set(ROOMS)
