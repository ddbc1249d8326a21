"""Which cores a benchmark runs on: the same few for whatever is compared, load generator included."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def pinned(cores: int) -> Iterator[int]:
    """Keep this process, and what it starts in the block, on the first `cores` of its cores; yields how many it got."""
    before = os.sched_getaffinity(0)
    chosen = sorted(before)[:cores]
    os.sched_setaffinity(0, chosen)
    try:
        yield len(chosen)
    finally:
        os.sched_setaffinity(0, before)
