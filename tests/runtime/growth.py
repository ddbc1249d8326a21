"""A chain that does not stand still."""

from __future__ import annotations

from random import Random

import trio

from fluxora.localnet import Network

EVERY_S = 0.05


async def grow(net: Network, rng: Random) -> None:
    """A ledger now and then until cancelled; once in a while the last few are taken back."""
    due = trio.current_time()
    while True:
        due = max(due + EVERY_S, trio.current_time())
        await trio.sleep_until(due)
        await net.close_ledger()
        if rng.random() < 0.02:
            await net.fork(rng.randint(1, 6))
