"""`python -m bench SCENARIO [options]`: run one scenario, or `smoke` for all in short; exit 1 when one fails."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from bench.harness import Run
from bench.report import save, table
from bench.scenarios import SCENARIOS
from fluxora import logs


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="scenario", required=True, metavar="SCENARIO")
    every = commands.add_parser("smoke", help="every scenario with its defaults (the smoke form)")
    _add_output(every)
    for scenario in SCENARIOS.values():
        command = commands.add_parser(scenario.name, help=scenario.summary, description=scenario.summary)
        scenario.add_options(command)
        _add_output(command)
    options = parser.parse_args()
    logs.configure("warning", human=False)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a stopped benchmark, too, stops its PostgreSQL
    if options.scenario != "smoke":
        return 0 if _run(options.scenario, options) else 1
    passed = [_run(name, parser.parse_args([name, *_passed_on(options)])) for name in SCENARIOS]
    return 0 if all(passed) else 1


def _run(name: str, options: argparse.Namespace) -> bool:
    print(f"{name}: {SCENARIOS[name].summary}", file=sys.stderr)
    run = Run(name, options)
    try:
        SCENARIOS[name].run(run)
    finally:
        print(table(run.report))
        if options.json is not None:
            print(f"written to {save(run.report, options.json)}")
        print(flush=True)
    return run.report.passed


def _passed_on(options: argparse.Namespace) -> list[str]:
    return [*(["--json", str(options.json)] if options.json else []), *(["--strict"] if options.strict else [])]


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--strict", action="store_true", help="fail where a goal of speed is missed, too")
    parser.add_argument("--json", type=Path, metavar="FOLDER", help="also write the report there as JSON")


if __name__ == "__main__":
    sys.exit(main())
