"""The configuration of a runtime in the test's own process that follows a local network."""

from __future__ import annotations

from typing import Any

import fluxora
from fluxora.localnet import Network


def config(net: Network, url: str, *, corrected_soon: bool = False, **source: Any) -> fluxora.Config:
    """All contracts of `net`, in the database at `url`; each ledger is checked. `source`: more of SourceConfig.

    `corrected_soon`: ledger entries are read as fast as they are wanted, and not now and then.
    """
    return fluxora.Config(
        contracts=tuple(fluxora.Contract(id=contract.contract_id) for contract in net.contracts),
        storage=fluxora.StorageConfig(database_url=url, pool_size=4),
        http=fluxora.HttpConfig(port=0, limits=fluxora.LimitConfig(enabled=False)),
        source=fluxora.SourceConfig(
            kind="rpc",
            rpc_urls=(net.url,),
            network_passphrase=net.chain.passphrase,
            header_every=1,
            poll_interval_s=0.02,
            **source,
        ),
        pipeline=fluxora.PipelineConfig(entry_reads_per_minute=6000) if corrected_soon else fluxora.PipelineConfig(),
    )
