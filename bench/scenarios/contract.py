"""Requests made from the OpenAPI document against a real server: whatever they are, the answer is one that it says.

Nothing is timed. Schemathesis makes requests that fit the document and such that do not, alone and in sequences, and
holds each answer against it: the status, the headers, the body, what has to be taken and what has to be refused.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import tempfile
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

from bench import fuzzed_process, schemathesis_run, tables
from bench.child import Child
from bench.harness import Run
from bench.schemathesis_run import PHASES, Found
from fluxora.storage.embedded import EmbeddedServer

START_S = 120.0
MOST_PER_OPERATION = 200  # requests in one round; then a new seed goes on
OPERATIONS = 50  # phases times operations, about: what one request for each of them comes to


class ContractScenario:
    """The REST API against its own document."""

    name = "contract"
    summary = "generated requests against the OpenAPI document: no answer that it does not say"

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """How many, and which."""
        parser.add_argument("--examples", type=int, default=1_000, help="requests at least (10000 for the real thing)")
        parser.add_argument("--phases", nargs="+", choices=PHASES, default=PHASES, help="of schemathesis")
        parser.add_argument("--seed", type=int, default=None, help="of the first round; random if absent")

    def run(self, run: Run) -> None:
        """Round after round, each with its seed, until there were enough requests."""
        if find_spec("schemathesis") is None:
            run.skip("schemathesis is not installed")
            return
        first = secrets.randbelow(2**31) if run.options.seed is None else run.options.seed
        found: list[Found] = []
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fluxora-bench-")))
            folder.chmod(0o755)  # the server runs as a user of its own when this one is root
            key, entry = schemathesis_run.new_key()
            with run.stage("serve"):
                server = EmbeddedServer(folder / "data")
                server.open()
                stack.callback(server.close)
                url = asyncio.run(tables.create_database(server.url, "served"))
                task = fuzzed_process.Task(database_url=url, admin_key=entry)
                child = stack.enter_context(Child(fuzzed_process.__name__, task, log=folder / "server.log"))
                port: int = child.read(within_s=START_S)["port"]
            most = min(MOST_PER_OPERATION, max(1, run.options.examples // OPERATIONS))
            while sum(one.test_cases.generated for one in found) < run.options.examples:
                seed = first + len(found)
                with run.stage(f"seed {seed}"):
                    found.append(
                        schemathesis_run.run(
                            port, key=key, folder=folder, examples=most, seed=seed, phases=run.options.phases
                        )
                    )
                if found[-1].excerpt:
                    run.note(f"seed {seed}: {found[-1].excerpt}")
            child.alive()
        _judge(run, found)


def _judge(run: Run, found: list[Found]) -> None:
    run.figure("requests", sum(one.test_cases.generated for one in found), "1")
    run.equal("rounds that came to their end", sum(one.complete for one in found), len(found))
    run.equal("requests with a failure", sum(one.test_cases.with_failures for one in found), 0)
    run.equal("errors", sum(len(one.errors) for one in found), 0)
