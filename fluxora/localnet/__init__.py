"""A local Stellar network for development, tests and benchmarks: real ledger headers, real ScVals, faults on demand.

::

    async with open_localnet(seed=7, script=Script(7, streams_per_ledger=2)) as net:
        stream_id = net.contract.create(alice, bob, deposit=1_000, rate=1, end=net.contract.now + 1_000)
        await net.close_ledger()
        net.faults.status(429, retry_after=2, html=True)
        await net.fork(3)
        ...  # any Stellar RPC client against net.url
"""

from __future__ import annotations

from fluxora.localnet.accounts import Script, account, contract_address
from fluxora.localnet.bulk import BulkHistory, bulk
from fluxora.localnet.chain import Chain, EmittedEvent, Ledger
from fluxora.localnet.contract import Contract, ContractError
from fluxora.localnet.entries import stream_entry, stream_key
from fluxora.localnet.faults import Faults, Misbehaviour
from fluxora.localnet.methods import RpcError
from fluxora.localnet.network import Network, Node, open_localnet
from fluxora.localnet.rpc import Endpoint, serve_rpc

__all__ = [
    "BulkHistory",
    "Chain",
    "Contract",
    "ContractError",
    "EmittedEvent",
    "Endpoint",
    "Faults",
    "Ledger",
    "Misbehaviour",
    "Network",
    "Node",
    "RpcError",
    "Script",
    "account",
    "bulk",
    "contract_address",
    "open_localnet",
    "serve_rpc",
    "stream_entry",
    "stream_key",
]
