"""What processes cost, read from /proc: resident memory over time and CPU seconds, children of a server included."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
LISTENING, WAITING_AFTER_CLOSE = "0A", "06"  # states in /proc/net/tcp
PARENT, OWN, OWN_AND_REAPED = 1, slice(11, 13), slice(11, 15)  # places in what _stat returns


class Sampler:
    """Samples named processes from enter to exit on a thread of its own; `pid` may be a server with many children."""

    def __init__(self, pids: dict[str, int], *, interval_s: float = 0.25) -> None:
        self._pids = pids
        self._interval_s = interval_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="bench-sampler", daemon=True)
        self._cpu_before = {name: cpu_seconds(pid) for name, pid in pids.items()}
        self._cpu_last = dict(self._cpu_before)
        self._machine_before = self._machine_last = machine_cpu_seconds()
        self._began = time.monotonic()
        self.resident: dict[str, list[tuple[float, float]]] = {name: [] for name in pids}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    @property
    def cpu_s(self) -> dict[str, float]:
        """CPU seconds that each used between the first sample and the last."""
        return {name: self._cpu_last[name] - before for name, before in self._cpu_before.items()}

    @property
    def machine_cpu_s(self) -> float:
        """CPU seconds that the whole machine was busy in the same time: what is above the sum was for others."""
        return self._machine_last - self._machine_before

    def _sample(self) -> None:
        ending = False
        while not ending:
            ending = self._done.wait(self._interval_s)
            at = time.monotonic() - self._began
            self._machine_last = machine_cpu_seconds()
            for name, pid in self._pids.items():
                try:
                    self._cpu_last[name] = max(self._cpu_last[name], cpu_seconds(pid))
                    self.resident[name].append((at, float(resident_bytes(pid))))
                except OSError:
                    continue  # it has ended; what was sampled before stands


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, its living children and those it has waited for."""
    ticks = sum(_stat(pid)[OWN_AND_REAPED])
    return (ticks + sum(sum(numbers[OWN]) for _, numbers in _living_children(pid))) / TICKS_PER_S


def cpu_clock(pid: int) -> float:
    """CPU seconds of a process and its threads by the kernel's own clock of it: exact, where `cpu_seconds` has ticks.

    (Linux: the clock's number is the process's, see clock_getcpuclockid(3).)
    """
    return time.clock_gettime(~pid << 3 | 2)


def machine_cpu_seconds() -> float:
    """Time that all cores together were neither idle nor waiting for I/O, since boot."""
    first = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0]
    user, nice, system, _idle, _io_wait, *interrupts = (int(number) for number in first.split()[1:9])
    return (user + nice + system + sum(interrupts)) / TICKS_PER_S


def resident_bytes(pid: int) -> int:
    """Memory resident in RAM, of the process alone."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * PAGE_BYTES


def connections_of(port: int) -> int:
    """TCP connections that whoever listens on the local port holds, over IPv4."""
    found = 0
    for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        _, local, _, state, *_ = line.split()
        found += int(local.rpartition(":")[2], 16) == port and state not in {LISTENING, WAITING_AFTER_CLOSE}
    return found


def slope(points: list[tuple[float, float]]) -> float:
    """Least-squares growth per second; 0 for fewer than two points."""
    if len(points) < 2:
        return 0.0
    mean_t = sum(t for t, _ in points) / len(points)
    mean_v = sum(v for _, v in points) / len(points)
    spread = sum((t - mean_t) ** 2 for t, _ in points)
    return sum((t - mean_t) * (v - mean_v) for t, v in points) / spread if spread else 0.0


def children(pid: int) -> list[int]:
    """The living children of a process."""
    return [child for child, _ in _living_children(pid)]


def _living_children(pid: int) -> list[tuple[int, list[int]]]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        child = int(path.parent.name)
        try:
            numbers = _stat(child)
        except (OSError, ValueError):
            continue  # ended since; its time is in its parent's by now
        if numbers[PARENT] == pid:
            found.append((child, numbers))
    return found


def _stat(pid: int) -> list[int]:
    """The numbers of /proc/PID/stat from the state (here 0) on, as proc_pid_stat(5) lists them from field 3 on.

    The name in parentheses may hold spaces, so the line is cut behind it.
    """
    numbers = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    return [0, *(int(number) for number in numbers[1:])]
