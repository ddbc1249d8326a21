"""Fuzzing with nothing but Python: mutate, execute, count."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from bench.fuzz import corpus
from bench.fuzz.findings import keep, place
from bench.fuzz.mutate import Mutator

MOST_FINDINGS = 20  # of different places; then it is time to mend them
SLOW_S = 5.0  # an input that takes so long, of at most 4 KiB, is a finding by itself
TELL_EVERY_S = 10.0
STRIDE = 1_000  # executions between two looks at the clock


class TooSlow(Exception):
    """One input took longer than SLOW_S."""


def fuzz(name: str, *, runs: int, seed: int, failures: Path) -> int:
    """Execute `runs` inputs, the corpus first; 1 where there was a finding, else 0."""
    target, begin = corpus.load(name), corpus.inputs(name)
    mutator = Mutator(begin, corpus.tokens(name), seed)
    places: set[tuple[str, str]] = set()
    execute, keep_input = target.execute, mutator.keep
    taken = done = 0
    began = told = time.perf_counter()
    while done < runs and len(places) < MOST_FINDINGS:
        batch = begin[:runs] if not done else [mutator() for _ in range(min(STRIDE, runs - done))]
        at = time.perf_counter()
        for data in batch:
            try:
                if execute(data):
                    taken += 1
                    keep_input(data)
            except Exception as error:  # noqa: BLE001 (whatever is raised here is what this looks for)
                _found(failures, name, data, error, places)
        done += len(batch)
        now = time.perf_counter()
        if now - at > SLOW_S:
            _slow(failures, name, batch, places)
        if now - told >= TELL_EVERY_S:
            told = now
            print(_line(name, done, taken, places, now - began), file=sys.stderr, flush=True)
    print(_line(name, done, taken, places, time.perf_counter() - began), flush=True)
    return 1 if places else 0


def _found(failures: Path, name: str, data: bytes, error: Exception, places: set[tuple[str, str]]) -> None:
    where = place(error)
    if where not in places:
        places.add(where)
        keep(failures, name, data, error)


def _slow(failures: Path, name: str, batch: list[bytes], places: set[tuple[str, str]]) -> None:
    """Find the input that made the batch slow; none where the machine only had other things to do."""
    target = corpus.load(name)
    for data in batch:
        began = time.thread_time()
        try:
            target.execute(data)
        except Exception:  # noqa: BLE001 (a finding already)
            continue
        if time.thread_time() - began > SLOW_S:
            _found(failures, name, data, TooSlow(f"more than {SLOW_S} s"), places)


def _line(name: str, done: int, taken: int, places: set[tuple[str, str]], seconds: float) -> str:
    return (
        f"{name}: {done:,} executions, {taken / max(1, done):.0%} taken, {len(places)} findings, "
        f"{done / max(seconds, 1e-9):,.0f} a second"
    )
