"""`python -m bench.fuzz TARGET --runs N`: fuzz one parser, or `all` of them one after the other; exit 1 on a finding.

With atheris (PyPI) installed the mutations are guided by coverage; without it they are blind, and keep what the parser
takes for the next ones. Either way the corpus is where they begin.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from bench.child import ROOT
from bench.fuzz import atheris_engine, plain_engine
from bench.fuzz.corpus import TARGETS

FAILURES = Path(__file__).parent / "failures"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz", description=__doc__)
    parser.add_argument("target", choices=[*TARGETS, "all"], help="what to fuzz")
    parser.add_argument("--runs", type=int, default=100_000, help="executions of each target")
    parser.add_argument("--seed", type=int, default=1, help="of the mutations; the same one gives the same run")
    parser.add_argument(
        "--engine",
        choices=("atheris", "plain"),
        default="atheris" if find_spec("atheris") else "plain",
        help="default: atheris where it is installed",
    )
    parser.add_argument("--jobs", type=int, default=1, help="targets at a time, for `all`")
    parser.add_argument("--failures", type=Path, default=FAILURES, help="where inputs that are findings are kept")
    options = parser.parse_args()
    if options.target == "all":
        return _every(options)
    engine = atheris_engine if options.engine == "atheris" else plain_engine
    status: int = engine.fuzz(options.target, runs=options.runs, seed=options.seed, failures=options.failures)
    return status


def _every(options: argparse.Namespace) -> int:
    """A process for each target."""
    passed_on = ["--runs", str(options.runs), "--seed", str(options.seed), "--engine", options.engine]

    def fuzz(target: str) -> int:
        command = [sys.executable, "-m", "bench.fuzz", target, *passed_on, "--failures", str(options.failures)]
        return subprocess.run(command, cwd=ROOT, check=False).returncode

    with ThreadPoolExecutor(options.jobs) as pool:
        return max(pool.map(fuzz, TARGETS))


if __name__ == "__main__":
    sys.exit(main())
