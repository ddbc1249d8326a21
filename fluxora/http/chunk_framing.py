"""The framing of a chunked body (RFC 9112 7.1), followed line by line in its strict form.

Whoever decodes the body may be lenient; what passes here can be read in one way only. A line ends with CRLF and holds
no other CR and no control character, trailers have the form of headers, and no line of theirs is folded.
"""

from __future__ import annotations

import re
from typing import Final

from fluxora.http.request_head import MAX_HEAD_BYTES, Malformed

_VISIBLE: Final = rb"[\t\x20-\x7e\x80-\xff]*+"
_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;" + _VISIBLE + rb")?\r\n")
_TRAILER: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++:" + _VISIBLE + rb"\r\n")
_EMPTY: Final = b"\r\n"


class ChunkFraming:
    """One body, fed as it comes. `ended` once its last line was here."""

    def __init__(self) -> None:
        self.ended = False
        self._line = bytearray()
        self._lines = 0  # bytes of lines since the last data
        self._data = 0  # bytes of the chunk that are to come
        self._behind_data = False
        self._trailing = False

    def feed(self, data: bytes) -> None:
        """Follow the next bytes; those behind the end do not belong to the body and are not looked at.

        Raises:
            Malformed: they are not chunks that can be read in one way only.
        """
        at = 0
        while at < len(data) and not self.ended:
            if self._data:
                step = min(self._data, len(data) - at)
                self._data -= step
                at += step
                continue
            end = data.find(b"\n", at) + 1 or len(data)
            self._line += data[at:end]
            self._lines += end - at
            at = end
            if self._lines > MAX_HEAD_BYTES:
                raise Malformed("the lines between chunks are too long")
            if self._line.endswith(b"\n"):
                self._take(bytes(self._line))
                self._line.clear()

    def _take(self, line: bytes) -> None:
        if self._trailing:
            self.ended = line == _EMPTY
            if not self.ended and not _TRAILER.fullmatch(line):
                raise Malformed("not a trailer")
        elif self._behind_data:
            if line != _EMPTY:
                raise Malformed("the chunk is longer than its size")
            self._behind_data = False
        elif match := _SIZE.fullmatch(line):
            self._data = int(match[1], 16)
            self._behind_data = self._data > 0
            self._trailing = self._data == 0
            self._lines = 0 if self._data else self._lines
        else:
            raise Malformed("not the size of a chunk")
