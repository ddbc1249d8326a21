"""A rollback of very many streams leaves the storage thread time for others: for the pings that the lease hangs on."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from chain_script import check_log
from hooked import opened
from scripted import batch, created, query, withdrew

from fluxora.config import StorageConfig
from fluxora.storage import rewind, rows, writer
from fluxora.storage.slots import Slot

STREAMS = 2_500
AT_ONCE = 1_024
STAGES: tuple[tuple[Any, str], ...] = (
    (Slot, "read"),
    (Slot, "restore"),
    (rewind, "Retraction"),
    (rewind, "reverted_payload"),
    (rows, "changing"),
)


class Turns:
    """Counts the turns of the thread's loop, and how often each stage's function was called within one."""

    def __init__(self) -> None:
        self.calls: dict[str, Counter[int]] = {name: Counter() for _, name in STAGES}
        self._now = 0

    async def run(self) -> None:
        while True:
            self._now += 1
            await asyncio.sleep(0)

    def watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self.calls[name][self._now] += 1
            return function(*args)

        return call


async def test_no_stage_of_a_rollback_keeps_the_thread_from_other_work(
    storage_config: StorageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = range(STREAMS)
    async with opened(storage_config) as (store, lease):
        await store.append([batch([created(10, nth, nth) for nth in streams], 10)], lease=lease.number)
        await store.append([batch([withdrew(30, nth, nth) for nth in streams], 30)], lease=lease.number)
    turns = Turns()
    async with opened(storage_config) as (store, lease):  # which has none of them in memory
        store._bridge.spawn(turns.run)
        for owner, name in STAGES:
            watched = turns.watched(name, getattr(owner, name))
            monkeypatch.setattr(owner, name, staticmethod(watched) if name == "read" else watched)
        monkeypatch.setattr(writer, "UPDATED_AT_ONCE", 700)
        rolled = await store.append([batch((), rollback_to=20)], lease=lease.number)
        await check_log(store.url)
        restored = await query(store.url, "SELECT position FROM streams ORDER BY position")
    assert [row["position"] for row in restored] == [row.position for row in rolled.events]
    assert rolled.outcomes[0].rolled_back == STREAMS
    for name, calls in turns.calls.items():
        assert calls.total() >= STREAMS, f"{name} is not what is called"
        assert max(calls.values()) <= AT_ONCE, name
