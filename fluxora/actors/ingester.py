"""The ingester: asks a source for what is missing and hands it down the pipeline, ledger by ledger.

Rules
- Progress is the ledger: after a restart everything above the stored `complete_through` is fetched again.
- Headers come before events: the header of the round's last ledger is fetched first, and looked at again in a later
  round. Were the events in between of another history, that second look would show it.
- Nothing is skipped. Pruned history, another network or a gap stop ingest loudly; it goes on when a node can serve.
- A node that is behind is waited for; whether it is a lagging replica or a new history is for its headers to say.
"""

from __future__ import annotations

import random
from contextlib import aclosing

import msgspec
import trio
from structlog.contextvars import bind_contextvars

from fluxora import logs, tracing
from fluxora.actors.parcel import Parcel, Rewind, new_round
from fluxora.actors.progress import Progress
from fluxora.actors.sources import Source, Tip
from fluxora.config import SourceConfig
from fluxora.errors import ChainDiverged, DecodeError, HistoryLost, LedgerGap, SourceError
from fluxora.protocol.chain import LedgerBatch, LedgerHeader

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0
_LEDGERS_PER_ROUND = 10_000  # what one getEvents scan covers
_HEADERS_PER_ROUND = 400  # where every header is wanted, a round stays this short
_LAG_LIMIT = 720  # a node further behind than this (an hour) without a ledger in common serves a new history


class Ingester:
    """Follows one source from `complete_through` on. `anchor` is the newest ledger whose header is stored."""

    name = "ingester"

    def __init__(
        self,
        outbox: trio.MemorySendChannel[Parcel],
        *,
        source: Source,
        config: SourceConfig,
        progress: Progress,
        rewind: Rewind,
        complete_through: int | None,
        headers: list[LedgerHeader],
        epoch: int,
    ) -> None:
        self._outbox = outbox
        self._source = source
        self._config = config
        self._progress = progress
        self._rewind = rewind
        self._done = complete_through
        self._anchors = [header.sequence for header in headers]  # ascending; the last one is the anchor
        self._begin_at_oldest = epoch > 1  # the configured start is one of the first epoch
        self._generation = rewind.generation
        self._wait_s = _FIRST_WAIT_S
        self._round_id = ""
        self._log = logs.get(self.name)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the ledger until cancelled; failures of the source are waited out, never raised."""
        async with self._outbox:
            task_status.started()
            while True:
                try:
                    with tracing.span("ingester.round"):
                        idle = await self._round()
                except (HistoryLost, ChainDiverged) as error:
                    self._halt(error)
                    await self._pause()
                except (SourceError, DecodeError) as error:
                    await self._back_off(error)
                else:
                    self._wait_s = _FIRST_WAIT_S
                    self._progress.halted = None
                    if idle:
                        await self._pause()

    async def _round(self) -> bool:
        """Fetch up to the tip, at most one window; True where there was nothing to fetch."""
        self._round_id = new_round()
        bind_contextvars(round=self._round_id)  # the source's lines carry it too
        self._obey_rewind()
        tip = await self._source.tip()
        self._progress.tip = tip.latest
        if self._done is not None and tip.latest < self._done:
            return await self._look_back(tip)
        first = self._first(tip)
        if first > tip.latest:
            return await self._recheck_at_rest(tip)
        last = min(tip.latest, first + self._span - 1)
        if first < tip.oldest:
            await self._explain_pruned(first, tip)
            return False
        await self._send_headers(first, last, tip.oldest)
        async with aclosing(self._source.events(first, last)) as pages:
            async for page in pages:
                if self._rewind.generation != self._generation:
                    break
                batch = LedgerBatch(events=page.events, complete_through=page.complete_through, tip=tip.latest)
                await self._send(batch)
                self._done = page.complete_through
        if self._done == tip.latest and tip.closed_at is not None:
            self._progress.closed_at = tip.closed_at
        return self._done == tip.latest

    @property
    def _span(self) -> int:
        return _HEADERS_PER_ROUND if self._config.header_every == 1 else _LEDGERS_PER_ROUND

    def _first(self, tip: Tip) -> int:
        """The first ledger that is missing; on an empty database the configured start, else the oldest there is."""
        if self._done is not None:
            return self._done + 1
        if self._config.start_ledger is not None and not self._begin_at_oldest:
            return self._config.start_ledger
        return tip.oldest

    def _obey_rewind(self) -> None:
        if self._generation == self._rewind.generation:
            return
        self._generation, to = self._rewind.generation, self._rewind.to
        self._done = self._rewind.complete_through
        if to is None:
            self._anchors, self._begin_at_oldest = [], True
        else:
            self._anchors = [sequence for sequence in self._anchors if sequence <= to]

    async def _send(self, batch: LedgerBatch) -> None:
        if self._generation:
            batch = msgspec.structs.replace(batch, generation=self._generation)
        await self._outbox.send(Parcel(batch, round=self._round_id))

    # Headers

    async def _send_headers(self, first: int, last: int, oldest: int) -> None:
        """The header of `last` where one is due, or of each ledger up to it, and the anchor's once more before it.

        An anchor that the node has pruned (`oldest` is the first ledger that it has) cannot be looked at again.
        """
        every = self._config.header_every
        anchor = self._anchors[-1] if self._anchors else None
        if every > 1 and anchor is not None and last - anchor < every:
            return
        if every == 1:
            headers = await self._fetch_headers(first if anchor is None else max(min(anchor, first), oldest), last)
        else:
            known = [] if anchor is None else await self._source.headers(anchor, anchor)
            headers = [*known, *(await self._fetch_headers(last, last))]
        await self._send(LedgerBatch(headers=tuple(headers)))
        self._anchors = [
            *self._anchors[-4096:],
            *(h.sequence for h in headers if anchor is None or h.sequence > anchor),
        ]

    async def _fetch_headers(self, first: int, last: int) -> list[LedgerHeader]:
        headers = await self._source.headers(first, last)
        if len(headers) != last - first + 1:
            missing = sorted({*range(first, last + 1)} - {header.sequence for header in headers})
            raise LedgerGap("ledger_gap", f"the node lacks the headers of {len(missing)} ledgers from {missing[0]} on")
        return headers

    async def _recheck_at_rest(self, tip: Tip) -> bool:
        """Nothing new: look at the tip again where each header counts, since a fork may have the same height."""
        if self._config.header_every == 1:
            await self._recheck(tip.oldest, tip.latest)
        return True

    async def _recheck(self, low: int, high: int) -> bool:
        """Hand the guard the newest header in [low, high] that should be known; False where there is none."""
        known = next((sequence for sequence in reversed(self._anchors) if low <= sequence <= high), None)
        if known is None:
            return False
        headers = await self._source.headers(known, known)
        await self._send(LedgerBatch(headers=tuple(headers)))
        return bool(headers)

    # A node that does not have what we need

    async def _look_back(self, tip: Tip) -> bool:
        """The node's tip is below what is recorded. Its headers tell a lagging replica from a new history."""
        assert self._done is not None
        if not await self._recheck(tip.oldest, tip.latest) and self._done - tip.latest > _LAG_LIMIT:
            await self._start_over(tip)
        self._log.info("ingester.node_behind", tip=tip.latest, complete_through=self._done)
        return True

    async def _explain_pruned(self, first: int, tip: Tip) -> None:
        """What is needed next is gone. Where the node still has a ledger that we know, the guard checks whose it is.

        Raises:
            HistoryLost: unless there has been a rewind meanwhile.
        """
        self._obey_rewind()
        generation = self._generation
        await self._recheck(tip.oldest, tip.latest)
        if self._rewind.generation == generation:
            message = f"ledgers {first} to {tip.oldest - 1} are pruned; a node with older history is needed"
            raise HistoryLost("history_pruned", message)

    async def _start_over(self, tip: Tip) -> None:
        self._log.warning("ingester.network_reset", tip=tip.latest, complete_through=self._done)
        self._progress.fork_found(None)
        self._rewind.back_to(None, complete_through=None)
        self._obey_rewind()
        await self._send(LedgerBatch(new_epoch=True, tip=tip.latest))

    # Waiting

    def _halt(self, error: SourceError) -> None:
        if self._progress.halted != error.failure:
            self._log.error("ingester.halted", failure=error.failure, message=str(error))
        self._progress.halted = error.failure

    async def _back_off(self, error: SourceError | DecodeError) -> None:
        failure = error.failure if isinstance(error, SourceError) else "malformed_response"
        asked = error.retry_after_s if isinstance(error, SourceError) else None
        wait_s = max(asked or 0.0, self._wait_s * random.uniform(0.5, 1.0))  # noqa: S311 (jitter, not a secret)
        self._log.warning("ingester.source_failed", failure=failure, message=str(error), wait_s=round(wait_s, 2))
        self._wait_s = min(self._wait_s * 2, _LONGEST_WAIT_S)
        await trio.sleep(wait_s)

    async def _pause(self) -> None:
        """Until the next poll, or at once after a rewind."""
        changed = self._rewind.changed
        if self._rewind.generation == self._generation:
            with trio.move_on_after(self._config.poll_interval_s):
                await changed.wait()
