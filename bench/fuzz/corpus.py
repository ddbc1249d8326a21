"""The targets by name, what their fuzzing begins with, and what their grammar is made of.

Two files each, NAME.txt and NAME.tokens, with a Python bytes literal a line.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, cast

CORPUS = Path(__file__).parent / "corpus"
TARGETS = ("decimal", "cursor", "json", "query", "head")


class Target(Protocol):
    """One parser. `execute` takes any bytes; True where the parser took them."""

    execute: Callable[[bytes], bool]


def load(name: str) -> Target:
    """The module of a target; it is imported only here, so that an engine may have prepared for it."""
    return cast("Target", importlib.import_module(f"bench.fuzz.targets.{name}_target"))


def inputs(name: str) -> list[bytes]:
    """What its fuzzing begins with.

    Raises:
        TypeError, ValueError, SyntaxError: the file is not of the form above.
    """
    return _literals(CORPUS / f"{name}.txt")


def tokens(name: str) -> list[bytes]:
    """What is inserted where an input is mutated.

    Raises:
        ValueError, SyntaxError: as `inputs`.
    """
    return _literals(CORPUS / f"{name}.tokens")


def _literals(file: Path) -> list[bytes]:
    lines = file.read_text(encoding="ascii").splitlines()
    return [_literal(line) for line in lines if line and not line.startswith("#")]


def _literal(line: str) -> bytes:
    value = ast.literal_eval(line)
    if not isinstance(value, bytes):
        raise TypeError(f"not a bytes literal: {line[:80]}")
    return value
