"""Write docs/configuration.md: every variable, its default and its meaning, from the table that reads them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from fluxora.config import Config
from fluxora.variables import VARIABLES, Variable

PLACE = Path(__file__).parent.parent / "docs" / "configuration.md"
_HEAD = """\
# Configuration

By environment. An empty value counts as unset; an unknown `FLUXORA_*` variable or a bad value stops the start with one
line that names it, and exit code 2. This page is made from the program by `make configuration`.

| Variable | Default | Meaning |
|---|---|---|
"""


def page() -> str:
    """The whole page."""
    return _HEAD + "".join(f"| `{one.name}` | {_default(one)} | {_escaped(one.help)} |\n" for one in VARIABLES)


def _default(variable: Variable) -> str:
    """As the variable would have to say it; nothing where there is none."""
    value: Any = Config()
    for name in (variable.field or "").split("."):
        value = getattr(value, name, None)
    if variable.name == "FLUXORA_AUTH":
        return "`open`"
    if variable.name == "FLUXORA_TRACING":
        return "`off`"
    if value is None or value == () or variable.name == "FLUXORA_SOURCE":
        return ""
    if isinstance(value, bool):
        return f"`{int(value)}`"
    if variable.name.endswith("_MS"):
        return f"`{round(value * 1000)}`"
    if variable.name.endswith("_HOURS"):
        return f"`{round(value / 3600)}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _escaped(text: str) -> str:
    return re.sub(r"([|<>])", r"\\\1", text)


if __name__ == "__main__":
    PLACE.write_text(page(), encoding="utf-8")
    sys.exit(0)
