"""The backlog: what comes out is what went in, in blocks, and takes no more memory than its bytes and a few."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from fluxora.http import backlog
from fluxora.http.backlog import BLOCK, Backlog

SIZES = st.one_of(
    st.integers(0, 2_000),
    st.integers(0, 3 * BLOCK),
    st.builds(lambda blocks, more: blocks * BLOCK + more, st.integers(1, 2), st.integers(-1, 1)),
)


@given(st.lists(st.one_of(SIZES, st.none()), max_size=30))
def test_what_comes_out_is_what_went_in(steps: list[int | None]) -> None:
    waiting, held, whole, taken = Backlog(), 0, b"", b""
    for nth, size in enumerate(steps):
        if size is None:
            block = waiting.take()
            assert len(block) == min(held, BLOCK)
            held -= len(block)
            taken += block
        else:
            data = bytes([nth]) * size
            waiting.add(data)
            held += size
            whole += data
        assert len(waiting) == held
        assert bool(waiting) == (held > 0)
    while waiting:
        taken += waiting.take()
    assert taken == whole
    assert waiting.take() == b""


def test_it_takes_hardly_more_memory_than_its_bytes() -> None:
    tracemalloc.start()
    try:
        waiting = Backlog()
        for _ in range(1_000):
            waiting.add(b"x" * 1_000)
            assert allocated() < len(waiting) + BLOCK // 4
        while len(waiting) > BLOCK:
            waiting.take()
            assert allocated() < len(waiting) + BLOCK // 4
        waiting.clear()
        assert len(waiting) == 0
        assert allocated() < 1_000
    finally:
        tracemalloc.stop()


def allocated() -> int:
    found = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, backlog.__file__)])
    return sum(trace.size for trace in found.traces)
