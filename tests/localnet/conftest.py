from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from contract_bench import Bench

from fluxora.localnet import EmittedEvent, Network, Script, contract_address, open_localnet


@pytest.fixture
async def net() -> AsyncIterator[Network]:
    async with open_localnet(seed=5, first_ledger=100) as network:
        yield network


@pytest.fixture
async def busy() -> AsyncIterator[Network]:
    """A network with 30 ledgers of scripted life."""
    async with open_localnet(seed=5, first_ledger=100, script=Script(5, streams_per_ledger=2)) as network:
        await network.close_ledgers(30)
        yield network


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=10) as client:
        yield client


@pytest.fixture
def foreign() -> EmittedEvent:
    """An event of a contract that is not ours, without any topic."""
    return EmittedEvent(contract_id=contract_address(5, 77), topics=(), value=b"\x00\x00\x00\x01")


@pytest.fixture
def bench() -> Bench:
    return Bench()
