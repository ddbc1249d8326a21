"""What the README shows must be so: its example runs, its commands and variables exist."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from fluxora import __version__
from fluxora.__main__ import COMMANDS
from fluxora.config import VARIABLES
from fluxora.http.routes import document

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
(EMBEDDED,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_embedding_example_runs() -> None:
    # A short path, for PostgreSQL's socket lies below the working directory's .fluxora.
    with tempfile.TemporaryDirectory(prefix="fx-") as place:
        done = subprocess.run(
            [sys.executable, "-c", EMBEDDED],
            cwd=place,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line[:1].isdigit()]
    assert [int(line[0]) for line in lines[:3]] == [1, 2, 3]
    assert lines[0][1] == "created"
    assert lines[0][2].startswith("stream-")


def test_every_command_is_in_the_table_and_every_one_in_the_table_exists() -> None:
    shown = re.findall(r"^\| `fluxora (\w+)", README, re.MULTILINE)
    assert shown == [command.name for command in COMMANDS]


def test_every_variable_in_the_tables_exists() -> None:
    section = README.partition("## Configure it")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([A-Z_]+)`", row)}
    assert named
    assert named <= {variable.name for variable in VARIABLES}


def test_the_openapi_document_in_the_repository_is_the_one_that_is_served() -> None:
    stored = json.loads((ROOT / "openapi.json").read_text(encoding="utf-8"))
    assert stored == json.loads(document(__version__)), "run `make openapi`"


def test_the_page_of_variables_is_what_the_program_reads() -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import write_configuration
    finally:
        sys.path.pop(0)
    assert write_configuration.PLACE.read_text(encoding="utf-8") == write_configuration.page(), (
        "run `make configuration`"
    )


def test_links_between_documents_lead_somewhere() -> None:
    for document_ in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document_.read_text(encoding="utf-8")):
            assert (document_.parent / target).exists(), f"{document_.name} names {target}"
