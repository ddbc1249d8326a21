"""The local source: a simulated Stellar network in this process, read through its RPC port like any other.

There is no second way in: what works here works against a real node.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from fluxora.actors.sources.stellar_rpc import StellarRpcSource
from fluxora.config import LOCALNET_PASSPHRASE, SourceConfig

if TYPE_CHECKING:
    from fluxora.localnet import Network

LEDGER_EVERY_S = 1.0


class LocalSource(StellarRpcSource):
    """A `Source` over a local network that lives as long as it does; `network` takes orders for forks and faults."""

    network: Network

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        config: SourceConfig,
        contracts: Sequence[str],
        *,
        seed: int = 0,
        ledger_every_s: float | None = LEDGER_EVERY_S,
    ) -> AsyncIterator[LocalSource]:
        """Start a network on a free port with `contracts` and accounts that use them; it ends with the block.

        Each start is a new network: what an earlier one recorded is another epoch. Without `ledger_every_s` ledgers
        close only on `network.close_ledger()`. The endpoints and the passphrase of `config` are not used.
        """
        # Loaded only here: its encoder, stellar_sdk, takes 36 MB that following a real node has no use for.
        from fluxora.localnet import Script, open_localnet  # noqa: PLC0415

        failure: Exception | None = None
        async with open_localnet(
            seed=seed, contracts=contracts, script=Script(seed), ledger_every_s=ledger_every_s
        ) as network:
            local = replace(config, rpc_urls=(network.url,), network_passphrase=LOCALNET_PASSPHRASE)
            source = cls(local, contracts)
            source.network = network
            try:
                yield source
            except Exception as error:  # noqa: BLE001 - raised below: the network's nursery would wrap it in a group
                failure = error
            finally:
                source.close()
        if failure is not None:
            raise failure
