"""`python -m bench WHAT [options]`: run a scenario, a profile of load on the whole system, or `smoke`, which is all
scenarios and a mixed load in short; or compare two reports. Exit 0 when everything passed, 1 when something failed,
130 when it was interrupted.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

from bench import comparison, html_report
from bench.child import ChildFailed
from bench.harness import Run
from bench.profiles.readback import Unreadable
from bench.profiles.traffic.forms import Wrong
from bench.report import line, save, table
from bench.scenarios import PROFILES, SCENARIOS
from fluxora import logs

REPORTS = Path(__file__).parent / "reports"
SMOKE = (
    "decode --events 5000",
    "ingest --events 10000",
    "contract --examples 100 --phases fuzzing stateful",  # the tests have the others
    "slow_clients --seconds 0.3 --bound 3 --connections 200",
    "rest --rounds 1 --streams 2000 --connections 64 --cases id create",
    "ws_connections --sockets 200 --ping 1",
    # The tests have its stalled reader, who must be silent for 20 s.
    "ws_fanout --rounds 1 --sockets 200 --shapes twenty --healthy 0 --seconds 0.2",
    "sse --rounds 1 --streams 200 --shapes all --seconds 0.2",
    "webhooks --deliveries 1000 --seconds 0.5",
    "load --stages 1s:60,5s:60 --followers 40 --streams 500 --correctness-only",
)
INTERRUPTED = 130


def main() -> int:
    parser = _parser()
    options = parser.parse_args()
    if options.scenario == "compare":
        return _compare(options)
    logs.configure("warning", human=False)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a stopped benchmark, too, stops its PostgreSQL
    if options.scenario != "smoke":
        return _run(options)
    codes = []
    for words in SMOKE:
        chosen = parser.parse_args(words.split())
        chosen.json, chosen.output, chosen.strict = options.json, options.output, options.strict
        codes.append(_run(chosen, brief=not options.verbose))
        if codes[-1] == INTERRUPTED:
            break
    return max(codes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="scenario", required=True, metavar="WHAT")
    every = commands.add_parser("smoke", help="every scenario in short, and a short mixed load")
    every.add_argument("--verbose", action="store_true", help="the whole report of each, not only of one that fails")
    _add_output(every, None)
    for listed, folder in ((SCENARIOS, None), (PROFILES, REPORTS)):
        for scenario in listed.values():
            command = commands.add_parser(scenario.name, help=scenario.summary, description=scenario.summary)
            scenario.add_options(command)
            _add_output(command, folder)
    compare = commands.add_parser("compare", help="what has changed from one report (JSON) to another")
    compare.add_argument("before", type=Path, metavar="A.json")
    compare.add_argument("after", type=Path, metavar="B.json")
    return parser


def _run(options: argparse.Namespace, *, brief: bool = False) -> int:
    """The exit code. In brief, a line is said of what passed, and everything of what did not."""
    scenario = {**SCENARIOS, **PROFILES}[options.scenario]
    if not brief:
        print(f"{scenario.name}: {scenario.summary}", file=sys.stderr)
    run, began = Run(scenario.name, options, quiet=brief), time.monotonic()
    try:
        scenario.run(run)
    except KeyboardInterrupt:
        run.interrupt()
    except (ChildFailed, Unreadable, Wrong, OSError) as error:
        run.equal("it came to its end", f"{type(error).__name__}: {error}", "yes")
    finally:
        brief = brief and run.report.passed and not run.report.interrupted
        print(line(run.report, time.monotonic() - began) if brief else table(run.report))
        for folder in {options.json, options.output} - {None}:
            print(f"written to {save(run.report, folder)}")
        if options.output is not None:
            print(f"written to {html_report.save(run.report, options.output)}")
        print(end="" if brief else "\n", flush=True)
    return INTERRUPTED if run.report.interrupted else 0 if run.report.passed else 1


def _compare(options: argparse.Namespace) -> int:
    try:
        print(comparison.text(comparison.read(options.before), comparison.read(options.after)))
    except comparison.Unreadable as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _add_output(parser: argparse.ArgumentParser, folder: Path | None) -> None:
    parser.add_argument("--strict", action="store_true", help="fail where a goal of speed is missed, too")
    parser.add_argument("--json", type=Path, metavar="FOLDER", help="also write the report there as JSON")
    where = "none" if folder is None else "bench/reports"
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        default=folder,
        help=f"write the report there, as a page with plots and as JSON (default: {where})",
    )


if __name__ == "__main__":
    sys.exit(main())
