"""A process of a benchmark: it says what it has to say as JSON lines, may be asked in the same way, and ends with its
input. So nothing outlives the benchmark, however that ends.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

ROOT = Path(__file__).parent.parent
STOP_S = 30.0


class ChildFailed(Exception):
    """A process ended, or stayed silent, where a line was due; carries the end of its log."""


class Program:
    """Any program that keeps to this, its log in a file; a context manager that ends it."""

    def __init__(self, name: str, command: Sequence[str], *, log: Path) -> None:
        self.name = name
        self._log = log
        self._buffer = b""
        with log.open("ab") as errors:  # which may be cut short while it runs
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=ROOT,
                start_new_session=True,  # Ctrl-C is for the benchmark, which ends them in its order
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def alive(self) -> None:
        """Raise when it has ended.

        Raises:
            ChildFailed: it has.
        """
        code = self._process.poll()
        if code is not None:
            raise ChildFailed(f"{self.name} ended with {code}: {self._last_words()}")

    def read(self, *, within_s: float) -> dict[str, Any]:
        """Its next line.

        Raises:
            ChildFailed: it ended or said nothing in time.
        """
        assert self._process.stdout is not None
        until = time.monotonic() + within_s
        pipe = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([pipe], [], [], max(0.0, until - time.monotonic()))
            data = os.read(pipe, 65536) if ready else b""
            if not data:
                state = "said nothing in time" if not ready else f"ended with {self._process.wait()}"
                raise ChildFailed(f"{self.name} {state}: {self._last_words()}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        found: dict[str, Any] = msgspec.json.decode(line, type=dict[str, Any])
        return found

    def fileno(self) -> int:
        """What `select` waits for until it says something."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def lines(self) -> list[dict[str, Any]]:
        """The lines that are there, without waiting for more.

        Raises:
            ChildFailed: it ended.
        """
        while select.select([self], [], [], 0)[0]:
            data = os.read(self.fileno(), 65536)
            if not data:
                raise ChildFailed(f"{self.name} ended with {self._process.wait()}: {self._last_words()}")
            self._buffer += data
        *whole, self._buffer = self._buffer.split(b"\n")
        return [msgspec.json.decode(line, type=dict[str, Any]) for line in whole]

    def ask(self, question: object, *, within_s: float) -> dict[str, Any]:
        """Its answer to one line of input.

        Raises:
            ChildFailed: it ended or said nothing in time.
        """
        self.tell(question)
        return self.read(within_s=within_s)

    def tell(self, line: object) -> None:
        """Write one line of its input.

        Raises:
            ChildFailed: it ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(msgspec.json.encode(line) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise ChildFailed(f"{self.name} ended with {self._process.wait()}: {self._last_words()}") from error

    def stop(self) -> None:
        """End its input and wait for it; kill it when it does not end."""
        assert self._process.stdin is not None
        if not self._process.stdin.closed:
            with suppress(BrokenPipeError):  # what was written to one that has ended
                self._process.stdin.close()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """`stop`, and no more lines."""
        self.stop()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _last_words(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")[-2000:].strip() or "(no log)"


class Child(Program):
    """`python -m MODULE TASK`, the task as JSON."""

    def __init__(self, module: str, task: object, *, log: Path) -> None:
        super().__init__(module, [sys.executable, "-m", module, msgspec.json.encode(task).decode()], log=log)


def say(line: object) -> None:
    """In a child: one line to the benchmark."""
    sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
    sys.stdout.flush()


class Input:
    """In a child: the lines of its input, for who waits for other things as well."""

    def __init__(self) -> None:
        self._buffer = b""

    def fileno(self) -> int:
        """What `select` waits for."""
        return 0

    def take(self) -> bool:
        """Read what is there, or wait for something; False at the end."""
        data = os.read(self.fileno(), 65536)
        self._buffer += data
        return bool(data)

    def line(self) -> bytes | None:
        """The next line that has come whole, None while there is none."""
        line, end, rest = self._buffer.partition(b"\n")
        if not end:
            return None
        self._buffer = rest
        return line

    def next_line(self) -> bytes:
        """The next line, waited for; b"" at the end."""
        while (line := self.line()) is None:
            if not self.take():
                return b""
        return line
