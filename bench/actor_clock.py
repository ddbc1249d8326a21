"""CPU of each actor: they share a thread, so it is counted where the scheduler begins and ends a step of a task.

A task is of the actor nearest above it, whose task the supervisor has named. A step costs two readings of the thread's
clock more, so that this is for servers that are measured, and not for all.
"""

from __future__ import annotations

import time
from collections import defaultdict

import trio

OTHERS = "start, stop and supervision"
LOOP = "scheduler and waiting for input"


class ActorClock(trio.abc.Instrument):
    """Given to `trio.run`. Made, and read, in the thread that it runs in."""

    def __init__(self) -> None:
        self._owners: dict[trio.lowlevel.Task, str] = {}
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._owner = OTHERS
        self._began = 0.0

    @property
    def seconds(self) -> dict[str, float]:
        """CPU seconds so far by actor; LOOP is what the thread used between steps."""
        return {**self._seconds, LOOP: max(0.0, time.thread_time() - sum(self._seconds.values()))}

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        """Find out whose it is: names of functions have dots, those of actors have none."""
        above = task.parent_nursery
        own = task.name if above is not None and "." not in task.name and not task.name.startswith("<") else None
        self._owners[task] = own or (OTHERS if above is None else self._owners.get(above.parent_task, OTHERS))

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        """Forget it."""
        self._owners.pop(task, None)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Whose step it is, which is not known any more behind a last one, and the clock."""
        self._owner = self._owners.get(task, OTHERS)
        self._began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:  # noqa: ARG002 (asked for by trio)
        """What the step took is its actor's."""
        self._seconds[self._owner] += time.thread_time() - self._began
