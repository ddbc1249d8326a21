"""Live events as Server-Sent Events, against the same loop over Node's own http: the same events, the same readers.

As `ws_fanout`, with one subscription each, which is what an event stream has.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path

from bench import fanout
from bench.cores import pinned
from bench.fanout_case import Case, add_options, modes
from bench.harness import Run
from bench.scenarios.ws_fanout import CORES, SHAPES, STREAMS, who_follows

LEAST_BURST_RATIO = 3.0  # Node's http gathers by itself what is written to a response in one turn


class Sse:
    """Deliveries per CPU second and their latency over event streams, ours and the predecessor's."""

    name = "sse"
    summary = "Server-Sent Events: deliveries per CPU second and latency, against Node's http"

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """How much, and what of it."""
        parser.add_argument(
            "--streams", nargs="+", type=int, default=[500], help="event streams (500 2000 10000 for the real thing)"
        )
        parser.add_argument(
            "--shapes", nargs="+", choices=["one", "all"], default=["one", "all"], help="who follows what"
        )
        add_options(parser)

    def run(self, run: Run) -> None:
        """Serve, open, publish, compare."""
        lacking = fanout.missing()
        if lacking is not None:
            run.skip(lacking)
            return
        options = run.options
        with ExitStack() as stack:
            run.note(f"readers, both servers and PostgreSQL share {stack.enter_context(pinned(CORES))} cores")
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fluxora-bench-")))
            folder.chmod(0o755)  # the server runs as a user of its own when this one is root
            with run.stage("serve"):
                tellers = fanout.start(stack, folder, streams=STREAMS, sockets=max(options.streams))
            for count in options.streams:
                for shape in options.shapes:
                    follows, told = who_follows(shape, count)
                    case = Case(f"{count} event streams, {SHAPES[shape]}", "sse", follows, folder, options.processes)
                    case.run(
                        run, tellers, modes(options, told, count, least_burst_ratio=LEAST_BURST_RATIO), options.rounds
                    )
