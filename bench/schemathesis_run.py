"""One run of schemathesis against a server: its four phases, every check that holds for this API, and what it found."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench import fuzzed_process
from bench.child import ROOT
from fluxora.protocol.api_keys import make

# DELETE cancels a stream, and it can be read for ever: a resource that is gone after it does not exist here.
NOT_HELD = "use_after_free"
PHASES = ("examples", "coverage", "fuzzing", "stateful")
EXCERPT, LONGEST_LINE = 8_000, 1_000  # characters; a body may be of megabytes
_BEGINS = "=========="  # the heading of what went wrong
_CONFIG = """
hooks = "bench.schemathesis_hooks"

[auth.openapi.ApiKey]
api_key = "{key}"

[auth.openapi.WorkerToken]
api_key = "{token}"

[checks.positive_data_acceptance]
expected-statuses = ["2xx", "304", "401", "404", "409"]  # the caller, or the resource, may not be what is needed

[[operations]]  # its links are templates, which schemathesis takes for paths to follow
include-operation-id = "getIndex"

[operations.phases.stateful]
enabled = false

[[operations]]  # answers without an end; tests/http/test_sse.py has them
include-operation-id = ["followEvents", "followStream"]
enabled = false

[[operations]]  # how large a batch is as a whole is no property of any of its values
include-operation-id = "pushContractEvents"

[operations.checks.positive_data_acceptance]
expected-statuses = ["2xx", "401", "413"]

[operations.checks.negative_data_rejection]
expected-statuses = ["400", "401", "413", "415"]
"""


class Counts(msgspec.Struct):
    """Requests that were made from the document, and those that showed a failure."""

    generated: int
    with_failures: int
    errored: int


class Found(msgspec.Struct):
    """What one run found; `excerpt` is how each failure and error can be had again, empty where there is none."""

    complete: bool
    test_cases: Counts
    failures: list[dict[str, Any]]
    errors: list[dict[str, Any]]
    excerpt: str = ""


class RunFailed(Exception):
    """Schemathesis ended without a report; carries the end of what it wrote."""


def new_key() -> tuple[str, str]:
    """A key with the scope admin: its text, and the entry for the server."""
    text, key = make("fuzz", ["admin"], entropy=os.urandom(48))
    return text, key.entry


def run(port: int, *, key: str, folder: Path, examples: int, seed: int, phases: Sequence[str] = PHASES) -> Found:
    """Throw up to `examples` requests at each operation in each phase; `key` is taken by the server.

    Everything that schemathesis writes is in `folder`.

    Raises:
        RunFailed: it did not come to an end.
    """
    config, report, output = folder / "schemathesis.toml", folder / "report.json", folder / "output.txt"
    config.write_text(_CONFIG.format(key=key, token=fuzzed_process.TOKEN), encoding="utf-8")
    report.unlink(missing_ok=True)
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "--no-color", "run"),
        *("--checks", "all", "--exclude-checks", NOT_HELD, "--continue-on-failure"),
        *(
            "--phases",
            ",".join(phases),
            "--max-examples",
            str(examples),
            "--seed",
            str(seed),
            "--generation-database",
            "none",
        ),
        *("--report", "json", "--report-json-path", str(report)),
        f"http://127.0.0.1:{port}/openapi.json",
    ]
    with output.open("wb") as written:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run(command, cwd=folder, env=environment, stdout=written, stderr=written, check=False)
    text = output.read_text(encoding="utf-8", errors="replace")
    try:
        found = msgspec.json.decode(report.read_bytes(), type=Found)
    except (OSError, msgspec.MsgspecError) as error:
        raise RunFailed(text[-EXCERPT:]) from error
    if found.failures or found.errors:
        lines = [line[:LONGEST_LINE] for line in text.splitlines()]
        found.excerpt = "\n".join(lines[next(i for i, line in enumerate(lines) if _BEGINS in line) :])[:EXCERPT]
    return found
