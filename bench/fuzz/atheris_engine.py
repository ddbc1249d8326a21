"""Fuzzing guided by coverage, with atheris (libFuzzer for Python): `pip install atheris`; no dependency of ours."""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path

from bench.fuzz import corpus
from bench.fuzz.findings import keep

MAX_BYTES = 4096
LIMIT_S = 10  # for one input


def fuzz(name: str, *, runs: int, seed: int, failures: Path) -> int:
    """Execute `runs` inputs; libFuzzer ends the process, with an exit status other than 0 on the first finding.

    Raises:
        ModuleNotFoundError: atheris is not installed.
    """
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["fluxora"]):
        target = corpus.load(name)
    failures.mkdir(parents=True, exist_ok=True)

    def execute(data: bytes) -> None:
        try:
            target.execute(data)
        except Exception as error:
            keep(failures, name, data, error)
            raise

    with tempfile.TemporaryDirectory(prefix="fluxora-fuzz-") as folder:
        begin = Path(folder, "corpus")
        begin.mkdir()
        for number, data in enumerate(corpus.inputs(name)):
            (begin / str(number)).write_bytes(data)
        tokens = Path(folder, "tokens")
        lines = ('"' + "".join(f"\\x{byte:02x}" for byte in token) + '"\n' for token in corpus.tokens(name))
        tokens.write_text("".join(lines), encoding="ascii")
        options = [f"-runs={runs}", f"-seed={seed}", f"-max_len={MAX_BYTES}", f"-timeout={LIMIT_S}", f"-dict={tokens}"]
        atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={failures}/{name}-", str(begin)], execute)
        atheris.Fuzz()
    return 0
