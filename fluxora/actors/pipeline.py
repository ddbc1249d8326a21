"""The ingest pipeline as one group: lease, recorder, deduplicator, guard and what fetches; fresh channels each time.

::

    ingester ─┐
    push ─────┼─► guard ─► dedup ─► recorder ─► the log
    corrector ┘

Whatever crashes takes the whole group down, and the next incarnation goes on from the stored cursor. So nothing in
flight is ever lost, and whatever comes a second time is seen to be recorded.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from math import inf

import trio

from fluxora import logs
from fluxora.actors.corrector import Corrector
from fluxora.actors.dedup import Deduplicator
from fluxora.actors.guard import Guard, Probe
from fluxora.actors.ingester import Ingester
from fluxora.actors.lease import LeaseKeeper
from fluxora.actors.parcel import Parcel, Rewind
from fluxora.actors.progress import Progress
from fluxora.actors.recorder import Recorder
from fluxora.actors.sources import Source
from fluxora.actors.sources.push import PushSource
from fluxora.actors.supervisor import ChildSpec
from fluxora.config import Config
from fluxora.errors import SourceUnavailable, StorageUnavailable
from fluxora.protocol.chain import KnownChain
from fluxora.storage.store import Appended, IngestState, Store

_INBOX = 2  # parcels; one is up to a page of 1,000 events
_LAST_INBOX = 5  # the recorder's, since what waits there becomes one transaction
_RETRY_S = 0.5


@dataclass
class _Incarnation:
    """What the actors of one incarnation share: its channels, and the state read from the database under its lease."""

    rewind: Rewind = field(default_factory=Rewind)
    granted: trio.Event = field(default_factory=trio.Event)
    lease: int = 0
    state: IngestState | None = None

    def __post_init__(self) -> None:
        self.to_guard, self.guard_inbox = trio.open_memory_channel[Parcel](_INBOX)
        self.to_dedup, self.dedup_inbox = trio.open_memory_channel[Parcel](_INBOX)
        self.to_recorder, self.recorder_inbox = trio.open_memory_channel[Parcel](_LAST_INBOX)

    async def begin(self) -> IngestState:
        """Wait for the lease; the state to go on from."""
        await self.granted.wait()
        assert self.state is not None
        return self.state


class Pipeline:
    """Makes the group's children. `source` is pulled from, `push` takes what is handed in; either may be None."""

    def __init__(
        self,
        *,
        config: Config,
        store: Store,
        source: Source | None,
        push: PushSource | None,
        entries: Source | None,
        publish: Callable[[Appended], None],
    ) -> None:
        self.progress = Progress(safety_margin=config.pipeline.safety_margin)
        self._config = config
        self._store = store
        self._source = source
        self._push = push
        self._entries = entries
        self._publish = publish
        self._wanted = trio.Event()
        self._log = logs.get("pipeline")

    def children(self) -> Sequence[ChildSpec]:
        """A fresh incarnation, in start order; stopped in reverse, so that what is in flight drains into the log."""
        shared = _Incarnation()
        specs = [self._lease(shared), self._recorder(shared), self._dedup(shared), self._guard(shared)]
        if self._source is not None:
            specs.append(self._ingester(shared, self._source))
        if self._push is not None:
            specs.append(self._door(shared, self._push))
        if self._entries is not None:
            specs.append(self._corrector(shared, self._entries))
        shared.to_guard.close()  # each producer has its own clone, so the guard ends when the last of them does
        return specs

    # The children; each waits for the lease before it touches anything.

    def _lease(self, shared: _Incarnation) -> ChildSpec:
        async def granted(number: int) -> None:
            shared.state = await self._load()
            shared.lease = number
            shared.granted.set()

        keeper = LeaseKeeper(self._store, progress=self.progress, granted=granted)
        return ChildSpec(keeper.name, keeper.run, drain=keeper.drain)

    def _recorder(self, shared: _Incarnation) -> ChildSpec:
        async def start(*, task_status: trio.TaskStatus[None]) -> None:
            task_status.started()
            await shared.begin()
            recorder = Recorder(
                shared.recorder_inbox,
                store=self._store,
                lease=shared.lease,
                progress=self.progress,
                publish=self._committed,
                events_per_transaction=self._config.pipeline.events_per_transaction,
            )
            await recorder.run()

        return _child(Recorder.name, start, shared.recorder_inbox, shared)

    def _dedup(self, shared: _Incarnation) -> ChildSpec:
        async def start(*, task_status: trio.TaskStatus[None]) -> None:
            task_status.started()
            state = await shared.begin()
            dedup = Deduplicator(
                shared.dedup_inbox,
                shared.to_recorder,
                epoch=state.epoch,
                entries=self._config.pipeline.dedup_entries,
            )
            await dedup.run()

        return _child(Deduplicator.name, start, shared.dedup_inbox, shared)

    def _guard(self, shared: _Incarnation) -> ChildSpec:
        async def start(*, task_status: trio.TaskStatus[None]) -> None:
            task_status.started()
            state = await shared.begin()
            guard = Guard(
                shared.guard_inbox,
                shared.to_dedup,
                chain=KnownChain(state.headers),
                rewind=shared.rewind,
                progress=self.progress,
                probe=None if self._source is None else _probe(self._source),
                complete_through=state.complete_through,
            )
            await guard.run()

        return _child(Guard.name, start, shared.guard_inbox, shared)

    def _ingester(self, shared: _Incarnation, source: Source) -> ChildSpec:
        outbox = shared.to_guard.clone()

        async def work(task_status: trio.TaskStatus[None]) -> None:
            task_status.started()
            state = await shared.begin()
            ingester = Ingester(
                outbox,
                source=source,
                config=self._config.source,
                progress=self.progress,
                rewind=shared.rewind,
                complete_through=state.complete_through,
                headers=state.headers,
                epoch=state.epoch,
            )
            await ingester.run()

        return _cancellable(Ingester.name, work, outbox)

    def _door(self, shared: _Incarnation, push: PushSource) -> ChildSpec:
        outbox = shared.to_guard.clone()

        async def work(task_status: trio.TaskStatus[None]) -> None:
            task_status.started()
            await shared.begin()
            push.open(outbox)
            try:
                await trio.sleep_forever()
            finally:
                push.close()

        return _cancellable(PushSource.name, work, outbox)

    def _corrector(self, shared: _Incarnation, entries: Source) -> ChildSpec:
        outbox = shared.to_guard.clone()

        async def work(task_status: trio.TaskStatus[None]) -> None:
            task_status.started()
            await shared.begin()
            corrector = Corrector(
                outbox,
                source=entries,
                store=self._store,
                progress=self.progress,
                rewind=shared.rewind,
                reads_per_minute=self._config.pipeline.entry_reads_per_minute,
                wanted=lambda: self._wanted,
            )
            await corrector.run()

        return _cancellable(Corrector.name, work, outbox)

    # What they share

    def _committed(self, appended: Appended) -> None:
        self._publish(appended)
        if appended.events:
            self._wanted.set()
            self._wanted = trio.Event()

    async def _load(self) -> IngestState:
        """The stored cursor and headers; waited for, since there is nothing to do without them."""
        while True:
            try:
                state = await self._store.ingest_state()
            except StorageUnavailable as error:
                self._log.warning("pipeline.database_unavailable", error=str(error))
                await trio.sleep(_RETRY_S)
                continue
            self.progress.resumed(state.complete_through, state.headers[-1] if state.headers else None)
            self._log.info("pipeline.resumed", epoch=state.epoch, complete_through=state.complete_through)
            return state


def _child(
    name: str,
    start: Callable[..., Awaitable[object]],
    inbox: trio.MemoryReceiveChannel[Parcel],
    shared: _Incarnation,
) -> ChildSpec:
    """An actor in the middle: it ends by itself when its input does, or at once while it has not begun."""
    scope = trio.CancelScope()

    async def live(*, task_status: trio.TaskStatus[None]) -> None:
        with scope:
            await start(task_status=task_status)

    def drain() -> None:
        if not shared.granted.is_set():
            scope.cancel(reason=f"{name} never began")

    return ChildSpec(
        name,
        live,
        drain=drain,
        inbox=lambda: inbox.statistics().current_buffer_used,
        inbox_size=int(inbox.statistics().max_buffer_size),
    )


def _cancellable(
    name: str,
    work: Callable[[trio.TaskStatus[None]], Awaitable[None]],
    outbox: trio.MemorySendChannel[Parcel],
) -> ChildSpec:
    """A producer: it has no input that ends, so it drains by cancellation, which closes its clone of the channel."""
    scope = trio.CancelScope()

    async def start(*, task_status: trio.TaskStatus[None]) -> None:
        with scope, outbox:
            await work(task_status)

    return ChildSpec(name, start, start_timeout_s=inf, drain=lambda: scope.cancel(reason=f"{name} is stopping"))


def _probe(source: Source) -> Probe:
    """Ask the node for one ledger's hash: None where pruned, SourceUnavailable where the node is not there yet."""

    async def probe(sequence: int) -> str | None:
        headers = await source.headers(sequence, sequence)
        if headers:
            return headers[0].hash
        tip = await source.tip()
        if sequence >= tip.oldest:
            raise SourceUnavailable("node_behind", f"the node cannot show ledger {sequence} yet")
        return None

    return probe
