"""A subscriber that was live and could not take all of a commit at once: it is told from the log until it is back.

A commit may be larger than what may wait for one connection, however fast that is read. So whoever takes something of
what it has stays: what waits for it is bounded as ever, and the rest is read when it has gone. It is dropped when it
takes nothing for a while, or has not come back to the hub for a long one.
"""

from __future__ import annotations

import trio

from fluxora.actors.audience import Audience, Subscriber
from fluxora.actors.parties import Parties
from fluxora.actors.retelling import Live, Retelling
from fluxora.protocol.sockets import Selector

STUCK_S = 10.0  # in which a subscriber must take something
BEHIND_S = 300.0  # in which it must be where the hub is
STREAMS = 256  # of which it is remembered whose they are: it is a short way, and there may be many on it


class Lag(Retelling):
    """Offers what any live subscription matches above `after`, as far as the hub has come. `ended`: it is over."""

    __slots__ = ("_notice", "ended")

    def __init__(self, hub: Live, audience: Audience, subscriber: Subscriber, after: int) -> None:
        super().__init__(hub, audience, subscriber, after)
        self.ended = trio.Event()
        self._notice: bytes | None = None

    def remember(self, notice: bytes) -> None:
        """An announcement that was not taken: the newest one is offered as soon as there is room."""
        self._notice = notice

    async def run(self) -> None:
        """Bring it back to the hub, or drop it. Whoever runs this is done with it when the subscriber is."""
        try:
            with trio.move_on_after(BEHIND_S):
                await self._keep_up()
            if not self._over:
                self._hub.drop(self._subscriber)
        finally:
            self.ended.set()

    @property
    def _over(self) -> bool:
        return self._member.lag is not self or super()._over

    async def _keep_up(self) -> None:
        parties = Parties(self._hub.store, streams=STREAMS)
        while await self._pace():
            if self._notice is not None and self._subscriber.offer(self._notice):
                self._notice = None
            if self.told < self._hub.head:
                await self._tell(parties, await self._read(parties))
            if not self._over and self._notice is None and self.told >= self._hub.head:
                self._audience.rejoin(self._subscriber)

    async def _drained(self) -> bool:
        while True:
            taken = self._subscriber.taken
            with trio.move_on_after(STUCK_S):
                return await self._subscriber.drained()
            if self._subscriber.taken == taken:
                return False

    @property
    def _by_address(self) -> bool:
        return any(selector.kind in {"sender", "recipient"} for selector in self._member.live)

    def _wants(self, position: int, selectors: tuple[Selector, ...]) -> bool:
        live = self._member.live
        return any(live.get(selector, position) < position for selector in selectors)
