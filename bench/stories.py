"""What readers of live events were told, byte for byte: the check that no delivery is lost, doubled or out of place.

Readers with the same subscriptions must be told the same. So the one who is furthest has its bytes read, frame by
frame; those of the others are compared with them, which costs next to nothing and sees each bit that differs. A reader
whose bytes differ gets a story of its own, and that is judged.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import msgspec

NO_EVENT = -1
_POSITION = b'"position":"'
_ID = b"\nid: "
_TEXT = 0x81  # a whole text message in one frame

Walk = Callable[[bytearray, int], Iterator[tuple[int, int]]]
"""Yields, from an offset on, where each whole message ends and the position of its event (NO_EVENT: it is none)."""


def frames(octets: bytearray, start: int) -> Iterator[tuple[int, int]]:
    """The messages of a WebSocket as servers send them: a frame each, not masked."""
    size = len(octets)
    while start + 2 <= size:
        length = octets[start + 1]
        begin = start + 2
        if length >= 126:
            begin += 2 if length == 126 else 8
            if begin > size:
                return
            length = int.from_bytes(octets[start + 2 : begin], "big")
        end = begin + length
        if end > size:
            return
        yield end, _quoted(octets, begin, end) if octets[start] == _TEXT else NO_EVENT
        start = end


def _quoted(octets: bytearray, begin: int, end: int) -> int:
    """The last "position" of a message: that in its payload stands before it."""
    found = octets.rfind(_POSITION, begin, end)
    if found < 0:
        return NO_EVENT
    found += len(_POSITION)
    return _number(octets[found : octets.find(b'"', found, end)])


def chunks(octets: bytearray, start: int) -> Iterator[tuple[int, int]]:
    """Server-Sent Events, each a chunk of an HTTP/1.1 body."""
    while (line := octets.find(b"\r\n", start)) >= 0:
        end = line + 2 + int(octets[start:line], 16) + 2
        if end > len(octets):
            return
        yield end, _id(octets, line + 1, end)
        start = end


def _id(octets: bytearray, begin: int, end: int) -> int:
    found = octets.find(_ID, begin, end)
    if found < 0:
        return NO_EVENT
    found += len(_ID)
    return _number(octets[found : octets.find(b"\n", found, end)])


def _number(digits: bytearray) -> int:
    return int(digits) if digits.isdigit() else NO_EVENT


class Story:
    """What was told from an agreed moment on; `positions` of whole messages, and the offset behind each in `ends`."""

    def __init__(self, walk: Walk) -> None:
        self.positions: list[int] = []
        self.ends: list[int] = []
        self._walk = walk
        self._octets = bytearray()
        self._read = 0

    def take(self, at: int, data: bytes) -> bool:
        """What one reader has received at offset `at` of its own story; False, and nothing taken, if that differs.

        Raises:
            ValueError: it cannot be read as messages at all.
        """
        fresh = at + len(data) - len(self._octets)
        if fresh <= 0:
            return self._octets.startswith(data, at)
        known = len(data) - fresh
        if not self._octets.startswith(data[:known], at):
            return False
        self._octets += data[known:]
        for end, position in self._walk(self._octets, self._read):
            self.ends.append(end)
            self.positions.append(position)
            self._read = end
        return True

    def told(self, at: int, before: int = 0) -> int:
        """How many messages a reader at offset `at` has had whole; it had `before` of them already."""
        return bisect_right(self.ends, at, before)

    def apart(self, at: int) -> Story:
        """The same up to an offset, for a reader who was told something else from there on."""
        own = Story(self._walk)
        own.take(0, bytes(self._octets[:at]))
        return own


class Flaws(msgspec.Struct, kw_only=True):
    """What readers were not told as they should have been, over all of them. Nothing of it may be.

    `strange`: an event that is not theirs, or no event at all.
    """

    lost: int = 0
    doubled: int = 0
    disordered: int = 0
    strange: int = 0

    def add(self, other: Flaws, times: int = 1) -> None:
        """Those of `times` others as well."""
        self.lost += other.lost * times
        self.doubled += other.doubled * times
        self.disordered += other.disordered * times
        self.strange += other.strange * times

    @property
    def total(self) -> int:
        """Of every kind."""
        return self.lost + self.doubled + self.disordered + self.strange


def judge(told: Sequence[int], due: Sequence[int]) -> Flaws:
    """Compare the positions that a reader was told with those, ascending, that it was due."""
    if list(told) == list(due):
        return Flaws()
    wanted, counts = set(due), Counter(told)
    inside = [position for position in told if position in wanted]
    return Flaws(
        lost=len(wanted - counts.keys()),
        doubled=sum(count - 1 for position, count in counts.items() if position in wanted),
        disordered=sum(later < earlier for earlier, later in pairwise(inside)),
        strange=len(told) - len(inside),
    )
