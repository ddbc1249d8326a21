"""The rate limit, against a simulation of its bucket and in the store."""

from __future__ import annotations

from random import Random

from hooked import (
    HOUR_MS,
    claim,
    endpoint,
    enlisted,
    opened,
    pass_time,
    positions,
    record,
)
from scripted import execute

from fluxora.config import StorageConfig
from fluxora.storage import webhook_pacing as pacing
from fluxora.storage.webhook_records import EndpointChanges


async def test_a_rate_is_kept(storage_config: StorageConfig) -> None:
    """The bucket itself is tested below; here the clock is moved, since it is PostgreSQL's."""
    async with opened(storage_config) as (store, _):
        made = await endpoint(store, rate_limit=20)
        await record(store, 30)
        await enlisted(store, "w")
        seen = positions(await claim(store))
        assert len(seen) == 2
        await execute(store.url, ["UPDATE webhook_endpoints SET paced_us = paced_us + 3600000000"])
        turn = await claim(store)
        assert turn.deliveries == []
        assert turn.next_due_ms is not None
        assert HOUR_MS - 60_000 < turn.next_due_ms <= HOUR_MS + 1_000
        await pass_time(store)
        seen += positions(await claim(store))
        assert seen == [1, 2, 3, 4]
        await store.webhooks.update(made.id, EndpointChanges(rate_limit=0), "test")
        assert len(positions(await claim(store))) == 26


def test_the_bucket_is_that_of_a_slow_simulation() -> None:
    random = Random(7)
    for limit in (1, 3, 7, 10, 25, 100, 999, 10_000):
        burst, each = max(1, limit // 10), -(-1_000_000 // limit)
        level, full_us, now = burst * each, 0, 1_000_000_000  # the level in microseconds' worth of tokens
        for _ in range(300):
            passed = random.choice([0, 1, each // 2, each, 3 * each, 10**6])
            now, level = now + passed, min(burst * each, level + passed)
            assert pacing.allowed(limit, full_us, now) == level // each
            wait_us = max(0, each - level)
            assert pacing.wait_ms(limit, full_us, now) == -(-wait_us // 1000)
            count = random.randint(0, level // each)
            level -= count * each
            full_us = pacing.taken(limit, full_us, now, count) if count else full_us
    assert pacing.allowed(0, 10**18, 5) == pacing.UNLIMITED
    assert (pacing.wait_ms(0, 10**18, 5), pacing.taken(0, 3, 5, 9)) == (0, 3)
