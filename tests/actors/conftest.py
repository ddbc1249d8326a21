from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from hook_world import HookWorld, hook_world
from scripted_node import CONTRACT, PASSPHRASE

from fluxora.actors.sources.rotation import RetryPolicy
from fluxora.actors.sources.stellar_rpc import StellarRpcSource
from fluxora.config import SourceConfig, StorageConfig
from fluxora.storage.store import Store, open_store

FAST = RetryPolicy(attempts=3, base_s=0.002, cap_s=0.01, budget_s=5.0)


@pytest.fixture
async def make_source():
    """Sources with backoffs of milliseconds, closed at the end of the test."""
    made = []

    def make(*nodes, contracts=(CONTRACT,), policy=FAST, urls=None, max_reply_bytes=1 << 24, **settings):
        config = SourceConfig(
            kind="rpc",
            rpc_urls=tuple(urls or (node.url for node in nodes)),
            network_passphrase=PASSPHRASE,
            **{"request_timeout_s": 5.0, **settings},
        )
        source = StellarRpcSource(config, contracts, policy=policy, jitter=lambda: 0.5, max_reply_bytes=max_reply_bytes)
        made.append(source)
        return source

    yield make
    for source in made:
        source.close()


@pytest.fixture
async def store(storage_config: StorageConfig) -> AsyncIterator[Store]:
    async with open_store(storage_config, decimals={}) as opened:
        yield opened


@pytest.fixture
async def lease(store: Store) -> int:
    """The number of the newest lease, which nobody holds any more: enough to append with."""
    held = await store.try_lease()
    assert held is not None
    await held.aclose()
    return held.number


@pytest.fixture
async def world(storage_config: StorageConfig, postgres_run: Any) -> AsyncIterator[HookWorld]:
    database = (storage_config.database_url or "").partition("?")[0].rpartition("/")[2]
    async with hook_world(storage_config, lambda text: postgres_run.sql(text, database)) as made:
        yield made
