"""The backups actor: writes the whole database to its target now and then, while everything else goes on.

When the next one is due is read from the names of the archives at the target, so restarts and replicas make no more of
them than one process that never stops would. (Two that begin within the same second both write one, which harms none.)
What fails is logged, counted and tried again; it stops nothing else.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial

import msgspec
import trio

from fluxora import logs
from fluxora.config import BackupConfig
from fluxora.storage.backup import BackupResult, Stop, backup, newest

RETRY_S = 600.0
GIVE_UP_S = 3.0  # for what is stopped to take back what it has written; a bucket may not answer for minutes
LONGEST_LOOK_S = 3_600.0  # between two looks at the clock, which may be set, and at what others have written
JITTER = 0.02  # of the interval


class BackupStatus(msgspec.Struct, frozen=True):
    """For metrics. `newest_s`: Unix seconds of the newest archive that is known of."""

    newest_s: float | None = None
    failures: int = 0


class Backups:
    """`url` is that of the database. `clock` returns Unix seconds, `draw` draws from [0, 1)."""

    name = "backups"

    def __init__(
        self,
        url: str,
        config: BackupConfig,
        *,
        clock: Callable[[], float] = time.time,
        draw: Callable[[], float] = random.random,
    ) -> None:
        assert config.target is not None
        self._url = url
        self._target = config.target
        self._config = config
        self._clock = clock
        self._draw = draw
        self._newest_s: float | None = None
        self._failures = 0
        self._stop = Stop()
        self._writing = False
        self._scope = trio.CancelScope()
        self._log = logs.get(self.name)

    @property
    def status(self) -> BackupStatus:
        """For metrics."""
        return BackupStatus(self._newest_s, self._failures)

    def drain(self) -> None:
        """End the actor; an archive that is being written is given up, and leaves nothing behind.

        A bucket that does not answer is not waited for: what was uploaded of an archive then stays there unfinished.
        """
        self._stop()
        if self._writing:
            self._scope.deadline = min(self._scope.deadline, trio.current_time() + GIVE_UP_S)
        else:
            self._scope.cancel(reason="the backups are stopping")

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Back up whenever it is time, until stopped."""
        task_status.started()
        with trio.CancelScope() as self._scope:  # one for each run, since the supervisor may run it again
            self._stop = Stop()
            while True:
                wait_s = await self._wait_s()
                await trio.sleep(min(LONGEST_LOOK_S, wait_s))

    async def _wait_s(self) -> float:
        """Back up if it is time; seconds until it may be again."""
        # A bucket may not answer for minutes; the thread that asks it changes nothing, and ends by itself.
        found = await trio.to_thread.run_sync(newest, self._target, abandon_on_cancel=True)
        if found.error is not None:
            self._failed(found.error)
            return RETRY_S
        self._newest_s = found.at_s
        if found.at_s is not None:
            wait_s = found.at_s + self._config.every_s * (1 + JITTER * self._draw()) - self._clock()
            if wait_s > 0:
                return wait_s
        result = await self._back_up()
        if not result.success:
            self._failed(result.error or "")
            return RETRY_S
        self._newest_s = self._clock()
        self._log.info(
            "backups.written",
            archive=result.archive,
            bytes=result.bytes,
            seconds=result.seconds,
            removed=result.removed,
        )
        return self._config.every_s

    async def _back_up(self) -> BackupResult:
        # `drain` ends the program that the thread waits for, and gives it a while to clear away what is at the target.
        work = partial(backup, self._url, self._target, keep=self._config.keep, stop=self._stop)
        self._writing = True
        try:
            result = await trio.to_thread.run_sync(work, abandon_on_cancel=True)
        except trio.Cancelled:  # from outside: nobody waits for it, so it has to end
            self._stop()
            raise
        finally:
            self._writing = False
        if self._stop.stopped:  # which is no failure
            self._scope.cancel(reason="the backups are stopping")
            await trio.lowlevel.checkpoint_if_cancelled()
        return result

    def _failed(self, reason: str) -> None:
        self._failures += 1
        self._log.error("backups.failed", reason=reason, again_in_s=RETRY_S)
