"""A local network in one object: a chain, its contracts, the accounts that use them, and the nodes that serve it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from fluxora import logs
from fluxora.config import LOCALNET_PASSPHRASE
from fluxora.localnet.accounts import Script, account, contract_address
from fluxora.localnet.chain import DEFAULT_RETENTION, Chain, EmittedEvent, Ledger
from fluxora.localnet.contract import Contract
from fluxora.localnet.faults import Faults
from fluxora.localnet.rpc import Endpoint, serve_endpoint

log = logs.get("localnet")


class Node:
    """One running RPC endpoint of the network."""

    def __init__(self, endpoint: Endpoint, host: str, port: int) -> None:
        self.endpoint = endpoint
        self.port = port
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def faults(self) -> Faults:
        """What is wrong with this node."""
        return self.endpoint.faults


class Network:
    """A chain with contracts on it. Ledgers close when told to, or by `run` at a steady pace.

    Forks and resets take the contracts along; whatever calls were made on the open ledger are lost with them.
    """

    def __init__(self, chain: Chain, contracts: Sequence[Contract] = (), script: Script | None = None) -> None:
        self.chain = chain
        self.contracts = list(contracts)
        self.script = script
        self.nodes: list[Node] = []

    @property
    def contract(self) -> Contract:
        """The first contract."""
        return self.contracts[0]

    @property
    def url(self) -> str:
        """The first node's URL."""
        return self.nodes[0].url

    @property
    def faults(self) -> Faults:
        """The first node's faults."""
        return self.nodes[0].faults

    async def close_ledger(self, events: Sequence[EmittedEvent] = (), *, closed_at: int | None = None) -> Ledger:
        """Let the scripted accounts act, then close the ledger with all that the contracts emitted, then `events`.

        Set `closed_at` before making calls of your own (`chain.next_closed_at`), not here, or they see another time.
        """
        await trio.lowlevel.checkpoint()
        return self.close_ledger_nowait(events, closed_at=closed_at)

    async def close_ledgers(self, count: int) -> Ledger:
        """Close `count` ledgers and return the last."""
        for _ in range(count):
            ledger = await self.close_ledger()
        return ledger

    def close_ledger_nowait(self, events: Sequence[EmittedEvent] = (), *, closed_at: int | None = None) -> Ledger:
        """`close_ledger` without a checkpoint."""
        if closed_at is not None:
            self.chain.next_closed_at = closed_at
        emitted: list[EmittedEvent] = []
        entries: dict[str, str | None] = {}
        for contract in self.contracts:
            if self.script is not None:
                self.script.act(contract)
            own_events, own_entries = contract.drain()
            emitted += own_events
            entries |= own_entries
        return self.chain.close_ledger([*emitted, *events], entries=entries)

    async def fork(self, depth: int, *, repeat: bool = False, regrow: bool = True) -> None:
        """Undo the last `depth` ledgers.

        With `regrow` (default) as many close at once on the new branch, with what the accounts do there, so that the
        tip does not go back; with `repeat` the same content closes under other hashes.
        """
        self.chain.fork(depth, repeat=repeat)
        if regrow and not repeat:
            await self.close_ledgers(depth)

    async def reset(self) -> None:
        """Begin the network anew."""
        self.chain.reset()
        await trio.lowlevel.checkpoint()

    async def open_node(self, nursery: trio.Nursery, *, host: str = "127.0.0.1", port: int = 0) -> Node:
        """Start a node that serves this network, with faults of its own, in `nursery`."""
        endpoint = Endpoint(self.chain, Faults(), self)
        bound: int = await nursery.start(
            lambda task_status: serve_endpoint(  # a lambda, for start passes no keywords
                endpoint, host=host, port=port, task_status=task_status
            )
        )
        node = Node(endpoint, host, bound)
        self.nodes.append(node)
        return node

    async def run(self, every_s: float) -> None:
        """Close a ledger every `every_s` seconds until cancelled, at the wall clock's time."""
        due = trio.current_time()
        while True:
            due += every_s
            await trio.sleep_until(due)
            self.chain.next_closed_at = max(self.chain.latest.closed_at, int(time.time()))
            ledger = self.close_ledger_nowait()
            log.debug("localnet.ledger_closed", ledger=ledger.sequence, hash=ledger.hash.hex()[:16])


@asynccontextmanager
async def open_localnet(
    *,
    seed: int = 0,
    host: str = "127.0.0.1",
    port: int = 0,
    nodes: int = 1,
    ledger_every_s: float | None = None,
    script: Script | None = None,
    contracts: int | Sequence[str] = 1,
    first_ledger: int = 2,
    start_time: int | None = None,
    passphrase: str = LOCALNET_PASSPHRASE,
    retention: int | None = DEFAULT_RETENTION,
    cooldown_ledgers: int = 17,
) -> AsyncIterator[Network]:
    """A running local network: `nodes` endpoints over one chain, the first on `port`, the others on free ports.

    With `ledger_every_s` ledgers close by themselves, at the wall clock's time; without, on `await net.close_ledger()`,
    five seconds apart on the seeded clock. `contracts` is a number of them or their ids.
    """
    clock = {} if start_time is None and ledger_every_s is None else {"start_time": start_time or int(time.time())}
    chain = Chain(seed, first_ledger=first_ledger, passphrase=passphrase, retention=retention, **clock)
    ids = [contract_address(seed, i) for i in range(contracts)] if isinstance(contracts, int) else contracts
    deployed = [
        Contract(
            chain,
            contract_id,
            admin=account(seed, "admin"),
            token=contract_address(seed, -1),
            cooldown_ledgers=cooldown_ledgers,
        )
        for contract_id in ids
    ]
    network = Network(chain, deployed, script)
    async with trio.open_nursery() as nursery:
        for i in range(nodes):
            await network.open_node(nursery, host=host, port=port if i == 0 else 0)
        if ledger_every_s is not None:
            nursery.start_soon(network.run, ledger_every_s)
        yield network
        nursery.cancel_scope.cancel()
