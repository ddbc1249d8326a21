"""The dispatcher: claims deliveries that are due, sends them, and tells the store how each attempt ended.

Promises
- A delivery is settled after its attempt, never before; what was on its way when the process died is sent again, under
  the same id, once the process is known to be dead.
- The store decides what is claimed: in-flight caps, rates and order hold over all replicas. Here is only what needs no
  agreement: how many attempts run at a time, and the breakers, which leave alone what keeps failing.
- An endpoint that hangs costs the others nothing: an attempt that takes longer than `SLOW_S` gives its place to the
  next, up to a bound on all of them; the store gives nobody more than half of what is free.
- Nobody waits for a timer that need not: the log's bell, an attempt's end and the next due time each begin a turn.

A shift is what a worker's life is to the store: it enlists, renews that it lives, takes turns, retires. Where nobody
knows whether a turn was committed, there may be claims that this process does not know of: that shift claims no more,
settles what it has and retires, which frees them, while the next one goes on. A shift that was taken for dead is cut
off, for others have its deliveries by then. After an outage of the database every worker is overdue; so what has ended
is settled and every shift renewed before anything is claimed, or they would take each other for dead. A process that
starts then knows nothing of the outage: it takes nobody for dead before those that live had time to speak.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress
from math import inf

import trio
from structlog.contextvars import bind_contextvars

from fluxora import logs, tracing
from fluxora.actors.breaker import Breakers
from fluxora.actors.deliveries import DispatcherStatus, Tally, result_of, tell
from fluxora.actors.retention import PURGE_EVERY_S, purge_now_and_then
from fluxora.actors.shift import Shift
from fluxora.actors.webhook_sender import TEST_EVENT, Sent, WebhookSender, sign
from fluxora.config import WebhookConfig
from fluxora.errors import StorageUnavailable
from fluxora.storage.store import Store
from fluxora.storage.webhook_records import Backlog, Due, Turn

LIFE_S = 15.0
RENEW_EVERY_S = 3.0
POLL_S = 5.0
IDLE_S = 0.02
SLOW_S = 1.0
SLOW_FACTOR = 4
OUTAGE_S = 5.0
QUIET_S = 2.0
PATIENCE_S = 5.0  # in which whoever lives renews, and what fails is tried again
BACKLOG_EVERY_S = 2.0
_RETRY_S = 0.5
_RETIRE_S = 2.0
_MOST_SHIFTS = 3


class Dispatcher:
    """`draw` draws from [0, 1): it varies the delays, so that what failed together does not come back together.

    `life_s` is how long the store believes that this process lives without word from it. A database that did not answer
    for `outage_s` was away, and nothing is claimed for two seconds after that. Nobody is taken for dead for the first
    `patience_s`.
    """

    name = "dispatcher"

    def __init__(
        self,
        store: Store,
        sender: WebhookSender,
        config: WebhookConfig,
        *,
        draw: Callable[[], float] = random.random,
        life_s: float = LIFE_S,
        renew_every_s: float = RENEW_EVERY_S,
        poll_s: float = POLL_S,
        slow_s: float = SLOW_S,
        outage_s: float = OUTAGE_S,
        patience_s: float = PATIENCE_S,
        purge_every_s: float = PURGE_EVERY_S,
    ) -> None:
        self._store = store.webhooks
        self._sender = sender
        self._config = config
        self._draw = draw
        self._life_ms = round(life_s * 1000)
        self._renew_every_s = renew_every_s
        self._poll_s = poll_s
        self._slow_s = slow_s
        self._outage_s = outage_s
        self._patience_s = patience_s
        self._purge_every_s = purge_every_s
        self._breakers = Breakers()
        self._tally = Tally()
        self._shifts: list[Shift] = []
        self._draining = trio.Event()
        self._unanswered = False  # the last question to the database
        self._answered_at = -inf
        self._quiet_until = -inf
        self._burying_from = inf
        self._backlog = Backlog(0, None, 0)
        self._backlog_at = -inf
        self._log = logs.get(self.name)

    @property
    def in_flight(self) -> int:
        """Attempts that are being made."""
        return sum(len(shift.in_flight) for shift in self._shifts)

    @property
    def status(self) -> DispatcherStatus:
        """For health and metrics. What waits was counted a few seconds ago; its age is that of now."""
        backlog, oldest_ms = self._backlog, self._backlog.oldest_pending_ms
        if oldest_ms is not None:
            oldest_ms += round((trio.current_time() - self._backlog_at) * 1000)
        return DispatcherStatus(
            pending=backlog.pending,
            oldest_pending_ms=oldest_ms,
            dead_lettered=backlog.dead_lettered,
            in_flight=self.in_flight,
            breakers_open=len(self._breakers.open(trio.current_time())),
            attempts=dict(self._tally.attempts),
            latencies=self._tally.latencies,
            concurrency=self._config.concurrency,
        )

    def ring(self) -> None:
        """Something was recorded, or something about the endpoints has changed."""
        for shift in self._shifts:
            shift.bell.set()

    def drain(self) -> None:
        """Claim no more, and end once what is on its way has arrived and is settled."""
        self._draining.set()
        for shift in self._shifts:
            shift.closing.set()
        self.ring()

    async def test(self, endpoint_id: str) -> Sent | None:
        """Send a test event to an endpoint, at once and once; None where there is no such endpoint.

        Nothing of it is stored. Where it gets through, what waits there goes on at once.

        Raises:
            StorageUnavailable: the database cannot answer; nothing was sent.
        """
        target = await self._store.target(endpoint_id)
        if target is None:
            return None
        with tracing.attempt(endpoint_id, TEST_EVENT) as span:
            sent = await self._sender.test(target, span)
        if sent.delivered:
            self._breakers.succeeded(endpoint_id)
            self.ring()
        return sent

    # -- the actor -------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Deliver until drained; the database being away is waited out. May be run again after a crash."""
        self._draining = trio.Event()
        self._shifts.clear()
        self._answered_at, self._burying_from = trio.current_time(), inf
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._count_backlog)
                nursery.start_soon(purge_now_and_then, self._store, self._config, self._purge_every_s, self._draw)
                task_status.started()
                await self._work()
                nursery.cancel_scope.cancel(reason="the dispatcher has drained")
        finally:
            self._sender.close()

    async def _work(self) -> None:
        """One shift after the other, the next one as soon as the one before claims no more."""
        async with trio.open_nursery() as shifts:
            while not self._draining.is_set():
                shift = Shift()
                self._shifts.append(shift)
                shifts.start_soon(self._live, shift)
                await shift.closing.wait()
                if len(self._shifts) >= _MOST_SHIFTS:
                    await self._shifts[0].ended.wait()

    async def _live(self, shift: Shift) -> None:
        """Enlist, take turns until the shift is closing and all that it claimed is settled, retire."""
        try:
            with shift.lost:
                await self._enlist(shift)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._keep_alive, shift)
                    await self._take_turns(shift, nursery)
                    nursery.cancel_scope.cancel(reason="all that was claimed is settled")
        finally:
            shift.closing.set()
            self._shifts.remove(shift)
            with trio.move_on_after(_RETIRE_S, shield=True):  # when cut short, too: what is finished is settled
                await self._retire(shift)
            shift.ended.set()

    async def _enlist(self, shift: Shift) -> None:
        while not shift.closing.is_set():
            try:
                for older in self._shifts[: self._shifts.index(shift)]:
                    await self._renew(older)  # or this one would take them for dead
                await self._store.enlist(shift.worker, self._life_ms)
            except StorageUnavailable as error:
                self._not_answered(error)
                with trio.move_on_after(_RETRY_S):
                    await shift.closing.wait()
            else:
                self._answered()
                return

    async def _renew(self, shift: Shift) -> None:
        if not await self._store.renew(shift.worker, self._life_ms):
            self._lose(shift)

    async def _retire(self, shift: Shift) -> None:
        try:
            if shift.results and not shift.lost.cancel_called:
                await self._store.turn(shift.worker, shift.take_results(), 0, (), ())
            await self._store.retire(shift.worker)
        except StorageUnavailable as error:
            self._log.info("dispatcher.retired_silently", error=str(error), taken_for_dead_in_ms=self._life_ms)

    async def _keep_alive(self, shift: Shift) -> None:
        while True:
            await trio.sleep(self._renew_every_s)
            try:
                await self._renew(shift)
            except StorageUnavailable as error:
                self._not_answered(error)
            else:
                self._answered()

    def _not_answered(self, error: StorageUnavailable) -> None:
        self._unanswered = True
        self._log.info("dispatcher.database_unavailable", error=str(error))

    def _answered(self) -> None:
        """The database is there. Where it was away, the other processes are given time to say that they live."""
        now = trio.current_time()
        if self._unanswered and now - self._answered_at > self._outage_s:
            self._quiet_until = now + QUIET_S
        if self._burying_from == inf:
            self._burying_from = now + self._patience_s
        self._unanswered, self._answered_at = False, now

    def _lose(self, shift: Shift) -> None:
        """Others have its deliveries: what is still on its way here is cut off, and the next shift begins."""
        if not shift.lost.cancel_called:
            self._log.warning("dispatcher.taken_for_dead", in_flight=len(shift.in_flight))
        shift.closing.set()
        shift.lost.cancel(reason="the worker was taken for dead")

    # -- turns -----------------------------------------------------------------------------------------------------

    async def _take_turns(self, shift: Shift, nursery: trio.Nursery) -> None:
        while not shift.closing.is_set() or shift.in_flight or shift.results:
            shift.bell = bell = trio.Event()
            began = trio.current_time()
            room = 0 if shift.closing.is_set() else self._room(began)
            turn: Turn | None = None
            if room or shift.results:
                turn = await self._take_turn(shift, room)
                if turn is None:
                    await trio.sleep(_RETRY_S)
                    continue
                for due in turn.deliveries:
                    nursery.start_soon(self._attempt, shift, shift.begin(trio.current_time()), due)
            with trio.move_on_at(self._next_turn_at(shift, turn, room, began)):
                await bell.wait()

    async def _take_turn(self, shift: Shift, room: int) -> Turn | None:
        """Settle what has ended and claim up to `room` more; None where nobody knows whether that was done."""
        results = shift.take_results()
        now = trio.current_time()
        try:
            turn = await self._store.turn(
                shift.worker,
                results,
                room,
                self._breakers.open(now),
                self._breakers.half_open(now),
                burying=now >= self._burying_from,
            )
        except StorageUnavailable as error:
            self._not_answered(error)
            shift.results[:0] = results  # given twice, they count once
            if room:
                shift.closing.set()
            return None
        except BaseException:
            shift.results[:0] = results  # cut short: the end of the shift settles them
            raise
        self._answered()
        if not turn.alive:
            self._lose(shift)
        if turn.settled and shift.closing.is_set():
            self.ring()  # what its deliveries held back is the next shift's to claim
        for endpoint_id in turn.disabled:
            self._log.warning("dispatcher.endpoint_disabled", endpoint=endpoint_id)
        return turn

    def _room(self, now: float) -> int:
        """How many attempts may begin: of those that have run for long, only the bound on all of them counts."""
        if now < self._quiet_until:
            return 0
        quick = sum(began > now - self._slow_s for shift in self._shifts for began in shift.in_flight.values())
        concurrency = self._config.concurrency
        return max(0, min(concurrency - quick, concurrency * SLOW_FACTOR - self.in_flight))

    def _next_turn_at(self, shift: Shift, turn: Turn | None, room: int, began: float) -> float:
        """When the next turn begins, if no bell rings before; `began` is when this one did."""
        now = trio.current_time()
        if shift.closing.is_set():
            return now + self._poll_s
        # What happened while the turn was taken has passed by now, and the next one begins at once.
        changes = [self._breakers.next_change(began), self._quiet_until, self._burying_from]
        changes += [since + self._slow_s for each in self._shifts for since in each.in_flight.values()]
        at = min([now + self._poll_s, *(change for change in changes if change > began)])
        taken = 0 if turn is None else len(turn.deliveries)
        if taken < room and turn is not None and turn.next_due_ms is not None:
            # What is due and was not given is on its way elsewhere: a moment, so as not to ask without a pause.
            idle_s = 0.0 if taken or turn.settled else IDLE_S
            at = min(at, now + max(turn.next_due_ms / 1000, idle_s))
        return at

    # -- attempts --------------------------------------------------------------------------------------------------

    async def _attempt(self, shift: Shift, number: int, due: Due) -> None:
        # Of this task: whatever is logged on the way of one attempt says whose it is.
        bind_contextvars(delivery=due.id, endpoint=due.endpoint_id, position=due.event.position)
        with tracing.attempt(due.endpoint_id, due.event.event, due.event.position, made=due.attempts) as span:
            await self._make_attempt(shift, number, due, span)

    async def _make_attempt(self, shift: Shift, number: int, due: Due, span: tracing.Span) -> None:
        began = trio.current_time()
        try:
            message = sign(due.id, due.event, due.secrets, now_s=int(time.time()))
            sent = await self._sender.send(due.url, message, span)
        except Exception as error:  # noqa: BLE001 (one delivery that cannot be made must not keep all others)
            self._log.exception("dispatcher.attempt_crashed")
            latency_ms = round((trio.current_time() - began) * 1000)
            sent = Sent(None, f"the attempt failed inside Fluxora: {type(error).__name__}", latency_ms)
        result = result_of(due, sent, self._draw())
        self._tally.count(result)
        self._judge(due, sent, began)
        tell(self._log, due, result)
        shift.end(number, result)

    def _judge(self, due: Due, sent: Sent, began: float) -> None:
        """Tell the endpoint's breaker."""
        if sent.hopeless:
            return  # which says nothing about the endpoint
        if sent.delivered:
            self._breakers.succeeded(due.endpoint_id)
        elif self._breakers.failed(due.endpoint_id, began=began, now=trio.current_time()):
            self._log.info("dispatcher.breaker_opened", status=sent.status, error=sent.error)

    # -- beside them -----------------------------------------------------------------------------------------------

    async def _count_backlog(self) -> None:
        while True:
            with suppress(StorageUnavailable):  # the turns say so in the log; what waits gets older meanwhile
                self._backlog, self._backlog_at = await self._store.backlog(), trio.current_time()
            self._breakers.forget_old(trio.current_time())
            await trio.sleep(BACKLOG_EVERY_S)
