"""One subscription's way from a position of the client's own to where the hub is: what it missed."""

from __future__ import annotations

from fluxora.actors.audience import Audience, Subscriber
from fluxora.actors.parties import Parties
from fluxora.actors.retelling import Live, Retelling
from fluxora.protocol.messages import LogEvent
from fluxora.protocol.sockets import Selector
from fluxora.storage.store import EventQuery

PAGE = 1_000
PAGE_BYTES = 1 << 20  # of payloads
STREAMS = 4 * PAGE


class CatchUp(Retelling):
    """Offers what matches `selector` above `after`, as far as the hub has come, and other subscriptions have not told.

    Made when it is asked for, since from then on it must know what those told that end meanwhile. It may wait for a
    long time until it is `run`, among many, so it is small until then.
    """

    __slots__ = ("_began", "_given_up", "after", "selector")

    def __init__(self, hub: Live, audience: Audience, subscriber: Subscriber, selector: Selector, after: int) -> None:
        super().__init__(hub, audience, subscriber, after)
        self.selector = selector
        self.after = after
        self._given_up = False
        self._began = self._member.ended.now

    @property
    def subscriber(self) -> Subscriber:
        """Who is caught up."""
        return self._subscriber

    @property
    def given_up(self) -> bool:
        """Whether the subscriber does not want it any more."""
        return self._given_up

    @property
    def began(self) -> int:
        """When it was asked for, as the member counts what ends."""
        return self._began

    def give_up(self) -> None:
        """The subscriber does not want it any more."""
        self._given_up = True

    @property
    def _over(self) -> bool:
        return self._given_up or super()._over

    async def run(self) -> bool:
        """Catch up; True once all up to the hub's head is offered and nobody has run since, False if it is over."""
        parties = Parties(self._hub.store, streams=STREAMS)
        if self.selector.kind == "stream" and not self._over:
            await self._read_stream(parties)
        while not self._over:
            if self._through < self._hub.head:
                await self._tell(parties, await self._read(parties))
            elif self._member.lag is not None:
                await self._member.lag.ended.wait()  # it tells what was left to it; the subscriber's end is one too
            else:
                self._audience.settle(self._subscriber)  # what was left to another in the batch on its way
                if self._member.lag is None:
                    return not self._over
        return False

    async def _read_stream(self, parties: Parties) -> None:
        """The stream's own part of the log, by its index, as far as the hub was when it was last asked for."""
        store = self._hub.store
        while not self._over:
            head = self._hub.head
            query = EventQuery(stream_id=self.selector.value, after=self._through, limit=PAGE, most_bytes=PAGE_BYTES)
            async with self._hub.reading.taken(self._subscriber.caller):
                page = await self._hub.patiently(lambda query=query: store.events(query))  # type: ignore[misc]
                await self._recall(parties, page)
            if await self._tell(parties, page) and (not query.is_full(page) or page[-1].position > head):
                self._through = max(self._through, head)
                return

    def _concerns(self, event: LogEvent) -> bool:
        return self.selector.kind != "stream" or event.stream_id == self.selector.value

    @property
    def _by_address(self) -> bool:
        member = self._member
        followed = (self.selector, *member.live, *member.ended.selectors)
        return any(selector.kind in {"sender", "recipient"} for selector in followed)

    def _wants(self, position: int, selectors: tuple[Selector, ...]) -> bool:
        """Unless another subscription has brought it, or will in this very batch."""
        if self.selector not in selectors:
            return False
        live = self._member.live
        if any(live.get(selector, position) < position for selector in selectors):
            return False
        return not self._member.ended.told(position, selectors, since=self._began)
