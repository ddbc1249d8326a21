"""Bytes that wait for a peer, in memory that is hardly more than they are."""

from __future__ import annotations

from collections import deque

BLOCK = 1 << 16


class Backlog:
    """First in, first out, in blocks: one buffer that grows has an eighth more than it holds, and goes as a whole."""

    __slots__ = ("_blocks", "_last", "_size")

    def __init__(self) -> None:
        self._blocks: deque[bytes] = deque()  # of BLOCK bytes each
        self._last = bytearray()  # shorter than that
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, data: bytes) -> None:
        """Take in bytes behind the others."""
        self._size += len(data)
        start, room = 0, BLOCK - len(self._last)
        while len(data) - start >= room:
            self._blocks.append(bytes(self._last) + data[start : start + room])
            start, room = start + room, BLOCK
            self._last = bytearray()
        self._last += data[start:]

    def take(self) -> bytes:
        """Take out the first block, of at most BLOCK bytes; b"" where there is none."""
        block = self._blocks.popleft() if self._blocks else bytes(self._last)
        if len(block) < BLOCK:  # it was the last one
            self._last = bytearray()
        self._size -= len(block)
        return block

    def clear(self) -> None:
        """Let go of all of it."""
        self._blocks.clear()
        self._last = bytearray()
        self._size = 0
