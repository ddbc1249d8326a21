"""The registrar: API writes, grouped. What waits in its inbox becomes one transaction, and one flush, for all of it.

Promises
- Whoever gave a command is answered after its commit, and after the commit was published here: a next read sees it.
- Once accepted, a command is carried out whether or not anybody still waits for the answer.
- A command that fails, fails alone. Where the database cannot answer, nobody knows whether the group was committed;
  everyone in it is told so, and sending a registration again with the same Idempotency-Key is safe.
- Nobody waits for ever: when the actor ends or crashes, whoever still waits is refused.
"""

from __future__ import annotations

import os
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import chain
from uuid import UUID

import trio
from structlog.contextvars import bind_contextvars, get_contextvars

from fluxora import logs, tracing
from fluxora.errors import Conflict, IdempotencyConflict, StorageUnavailable, Unavailable
from fluxora.protocol.lifecycle import NewStream
from fluxora.protocol.messages import StreamRecord
from fluxora.protocol.streams import StreamStatus
from fluxora.storage.records import Committed, StatusName
from fluxora.storage.store import Appended, Change, Command, Create, IdempotencyKey, Outcome, Registered, Store
from fluxora.tallies import Histogram

GROUP = 256
INBOX = 4_096  # under a second's worth of commands
GATHER_S = 0.001
PURGE_EVERY_S = 600.0
_PURGED_AT_ONCE = 1_000
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class WriteTally:
    """For metrics: how commands ended, what idempotency keys did, and the size and seconds of the transactions.

    `lost`: the database did not answer, or the registrar was interrupted, so nobody knows; `failed`: by a defect;
    `turned_away`: there was no room, or no registrar.
    """

    def __init__(self) -> None:
        self.commands = dict.fromkeys(("created", "changed", "replayed", "refused", "failed", "lost", "turned_away"), 0)
        self.keys = dict.fromkeys(("replayed", "in_flight", "mismatched"), 0)
        self.sizes = Histogram(_SIZES)
        self.seconds = Histogram()

    def count(self, outcome: Outcome) -> None:
        """One more command is carried out."""
        if isinstance(outcome, Registered):
            self.commands["replayed" if outcome.replayed else "created"] += 1
            self.keys["replayed"] += outcome.replayed
        elif isinstance(outcome, StreamRecord):
            self.commands["changed"] += 1
        else:
            self.commands["refused"] += 1
            self.keys["mismatched"] += isinstance(outcome, IdempotencyConflict)


class _Errand:
    """A command, and one answer for whoever gave it.

    `request_id` is that of the request that it came with, if any; `cause` is where in a trace that was.
    """

    __slots__ = ("_result", "_settled", "cause", "command", "request_id")

    def __init__(self, command: Command) -> None:
        self.command = command
        self.cause = tracing.here()
        self.request_id: str | None = get_contextvars().get("request_id")
        self._settled = trio.Event()
        self._result: Outcome | Exception | None = None

    def settle(self, result: Outcome | Exception) -> None:
        """Once: the errand is done."""
        self._result = result
        self._settled.set()

    async def wait(self) -> Registered | StreamRecord:
        """The outcome. The caller brings the deadline.

        Raises:
            Exception: why there is none.
        """
        await self._settled.wait()
        if isinstance(self._result, Exception):
            raise self._result
        assert self._result is not None
        return self._result


class Registrar:
    """Takes commands from any task. `publish` is told of each commit before anyone is answered.

    `jitter` draws from [0, 1): replicas that started together do not purge together.
    """

    name = "registrar"

    def __init__(
        self,
        store: Store,
        *,
        publish: Callable[[Appended], None],
        group: int = GROUP,
        inbox: int = INBOX,
        purge_every_s: float = PURGE_EVERY_S,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._publish = publish
        self._group = group
        self._inbox = inbox
        self._purge_every_s = purge_every_s
        self._jitter = jitter
        self._door: trio.MemorySendChannel[_Errand] | None = None
        self._unsettled: set[_Errand] = set()
        self._keys: set[tuple[str, str]] = set()  # of the unsettled ones, by scope and key
        self.tally = WriteTally()
        self._log = logs.get(self.name)

    @property
    def room(self) -> int:
        """How many commands may wait."""
        return self._inbox

    @property
    def waiting(self) -> int:
        """Commands that wait for their group."""
        return 0 if self._door is None else self._door.statistics().current_buffer_used

    async def create(self, new: NewStream, key: IdempotencyKey | None) -> Registered:
        """Register a stream. Under a `key` that was used before with the same body, the answer is that of then.

        Raises:
            BadRequest: its times are not in order.
            Conflict: a request with this key is in flight here.
            IdempotencyConflict: the key was used with another body.
            StorageUnavailable: the database cannot answer; sending it again is safe with a key, and with a key only.
            Unavailable: too many commands wait, or the service is stopping.
        """
        if key is not None and (key.scope, key.key) in self._keys:
            self.tally.keys["in_flight"] += 1
            raise Conflict("A request with this Idempotency-Key is still in flight; wait for its answer")
        answer = await self._carried_out(Create(f"stream-{_uuid7().hex}", str(_uuid7()), new, key))
        assert isinstance(answer, Registered)
        return answer

    async def change(self, stream_id: str, to: StatusName) -> StreamRecord:
        """Take a registered stream to another status; the stream after it.

        Raises:
            NotFound: there is no such stream.
            ChainManaged: it is the chain's.
            Conflict: its status does not allow this.
            StorageUnavailable: the database cannot answer; the stream says whether it was done.
            Unavailable: too many commands wait, or the service is stopping.
        """
        answer = await self._carried_out(Change(stream_id, str(_uuid7()), StreamStatus[to.upper()]))
        assert isinstance(answer, StreamRecord)
        return answer

    def drain(self) -> None:
        """Take no more commands, and end once those that wait are done."""
        if self._door is not None:
            self._door.close()
            self._door = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry out commands until drained. May be run again after a crash."""
        self._door, inbox = trio.open_memory_channel[_Errand](self._inbox)
        try:
            async with inbox, trio.open_nursery() as nursery:
                nursery.start_soon(self._purge_now_and_then)
                task_status.started()
                expected = 1
                async for first in inbox:
                    errands = await self._gather(first, inbox, expected)
                    await self._carry_out(errands)
                    # Who was answered may well come again, beside those who have come meanwhile.
                    expected = len(errands) + inbox.statistics().current_buffer_used
                nursery.cancel_scope.cancel(reason="the registrar has drained")
        finally:
            self.drain()
            self.tally.commands["lost"] += len(self._unsettled)
            for errand in tuple(self._unsettled):
                self._settle(errand, Unavailable("The service was interrupted; look whether it was done, or try again"))

    async def _carried_out(self, command: Command) -> Registered | StreamRecord:
        if self._door is None:
            self.tally.commands["turned_away"] += 1
            raise Unavailable("The service takes no writes now")
        errand = _Errand(command)
        try:
            self._door.send_nowait(errand)
        except trio.WouldBlock:
            self.tally.commands["turned_away"] += 1
            raise Unavailable("Too many writes are waiting") from None
        self._unsettled.add(errand)
        if isinstance(command, Create) and command.key is not None:
            self._keys.add((command.key.scope, command.key.key))
        return await errand.wait()

    def _settle(self, errand: _Errand, result: Outcome | Exception) -> None:
        command = errand.command
        self._unsettled.discard(errand)
        if isinstance(command, Create) and command.key is not None:
            self._keys.discard((command.key.scope, command.key.key))
        errand.settle(result)

    async def _gather(self, first: _Errand, inbox: trio.MemoryReceiveChannel[_Errand], expected: int) -> list[_Errand]:
        """`first` and whatever else waits, up to the bound; a moment is given to as many as are `expected`.

        Without it, those who come again behind their answer would always just miss the next group, and two groups of
        half the size would take turns (PostgreSQL's commit_delay is there for the same).
        """
        errands = [first]
        _take_waiting(errands, inbox, self._group)
        if len(errands) < min(expected, self._group):
            with trio.move_on_after(GATHER_S):
                while len(errands) < min(expected, self._group):
                    try:
                        errands.append(await inbox.receive())
                    except trio.EndOfChannel:
                        break
                    _take_waiting(errands, inbox, self._group)
        return errands

    async def _carry_out(self, errands: list[_Errand]) -> None:
        """One transaction for all of them; where that fails for a reason of its own, one for each."""
        parts = deque([errands])
        while parts:
            part = parts.popleft()
            bind_contextvars(requests=_requests(part))  # of this task, and of what the transaction logs
            began = time.perf_counter()
            try:
                committed = await self._registered(part)
            except StorageUnavailable as error:
                self._refuse([*part, *chain(*parts)], error)
                return
            except Exception as error:  # noqa: BLE001 (whatever it is, it goes to whoever caused it, and to the log)
                if len(part) == 1:
                    self._log.exception(
                        "registrar.command_failed",
                        command=type(part[0].command).__name__,
                        request_id=part[0].request_id,
                    )
                    self.tally.commands["failed"] += 1
                    self._settle(part[0], error)
                else:
                    self._log.warning("registrar.group_split", commands=len(part), error=type(error).__name__)
                    parts.extend([errand] for errand in part)
            else:
                self.tally.sizes.add(len(part))
                self.tally.seconds.add(time.perf_counter() - began)
                self._publish(committed.appended)
                self._log.debug(
                    "registrar.group_committed",
                    commands=len(part),
                    events=len(committed.appended.events),
                    position=committed.appended.position,
                )
                for errand, outcome in zip(part, committed.outcomes, strict=True):
                    self.tally.count(outcome)
                    self._settle(errand, outcome)

    async def _registered(self, errands: Sequence[_Errand]) -> Committed:
        causes = [errand.cause for errand in errands]
        with tracing.caused("registrar.commit", causes, {"fluxora.commands": len(errands)}) as span:
            committed = await self._store.register([errand.command for errand in errands])
            if events := committed.appended.events:
                tracing.appended(events[0].position, events[-1].position, span)
            return committed

    def _refuse(self, errands: Sequence[_Errand], error: StorageUnavailable) -> None:
        self._log.warning(
            "registrar.database_lost", commands=len(errands), error=str(error), requests=_requests(errands)
        )
        self.tally.commands["lost"] += len(errands)
        for errand in errands:
            refusal = StorageUnavailable(str(error))  # one for each task that raises it
            refusal.__cause__ = error
            self._settle(errand, refusal)

    async def _purge_now_and_then(self) -> None:
        while True:
            await trio.sleep(self._purge_every_s * (0.75 + self._jitter() / 2))
            try:
                while await self._store.purge_idempotency_keys(_PURGED_AT_ONCE) == _PURGED_AT_ONCE:
                    await trio.lowlevel.checkpoint()
            except StorageUnavailable as error:
                self._log.info("registrar.purge_postponed", error=str(error))


def _requests(errands: Sequence[_Errand]) -> list[str]:
    return [errand.request_id for errand in errands if errand.request_id is not None]


def _take_waiting(errands: list[_Errand], inbox: trio.MemoryReceiveChannel[_Errand], most: int) -> None:
    while len(errands) < most:
        try:
            errands.append(inbox.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            return


def _uuid7() -> UUID:
    """A new UUID of version 7 (RFC 9562): Unix milliseconds, then chance. Later ones sort behind earlier ones."""
    octets = bytearray((time.time_ns() // 1_000_000).to_bytes(6, "big") + os.urandom(10))
    octets[6] = 0x70 | octets[6] & 0x0F
    octets[8] = 0x80 | octets[8] & 0x3F
    return UUID(bytes=bytes(octets))
