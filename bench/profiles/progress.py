"""How a run is getting on: one line on a terminal, written anew each second; nothing where there is none."""

from __future__ import annotations

import shutil
import sys


class Progress:
    """The line."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()

    def show(self, text: str) -> None:
        """Put this in place of what is there."""
        if self._shown:
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(f"\r\x1b[K  {text}"[: width + 4])
            sys.stderr.flush()

    def clear(self) -> None:
        """Leave an empty line."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
