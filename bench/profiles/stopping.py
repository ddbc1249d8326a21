"""Ctrl-C: the first one ends a run in order, with a report of what there was; the second one ends it at once."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Self


class Stopping:
    """True once the run is to end. A context manager: before and after it, Ctrl-C is what it was."""

    def __init__(self) -> None:
        self._asked = False

    def __bool__(self) -> bool:
        return self._asked

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
