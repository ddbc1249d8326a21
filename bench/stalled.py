"""A WebSocket client that follows something and reads nothing, and in the end what it was told last."""

from __future__ import annotations

import socket
import time
from types import TracebackType
from typing import Self

from bench.openings import UPGRADE, read_until, subscription
from bench.stories import frames
from fluxora.actors.lag import STUCK_S

SEGMENT_BYTES = 1400  # as over a real network; the loopback's own 64 KiB would make the kernel buffer megabytes
RECEIVE_BUFFER_BYTES = 4096
OPEN_WITHIN_S = 30.0
LET_GO_S = 2 * STUCK_S + 1.0  # it takes nothing between two looks
CLOSE_OPCODE = 0x88


class Stalled:
    """One such client, open until the end of its block."""

    def __init__(self, port: int, stream_id: str) -> None:
        self._sock = socket.socket()
        self._sock.settimeout(OPEN_WITHIN_S)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT_BYTES)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        self._sock.connect(("127.0.0.1", port))
        self._sock.sendall(UPGRADE)
        read_until(self._sock, b"\r\n\r\n")
        self._sock.sendall(subscription(stream_id, ref="1"))
        read_until(self._sock, b'"recovered":false}')

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._sock.close()

    def close_code(self, within_s: float, *, still_s: float = LET_GO_S) -> int | None:
        """Read nothing for `still_s`, and then everything: the code of the close frame at the end of it.

        None where there is none in time.
        """
        time.sleep(still_s)  # it would be kept if it read
        received = bytearray()
        until = time.monotonic() + within_s
        start = 0
        while (left := until - time.monotonic()) > 0:
            self._sock.settimeout(left)
            try:
                data = self._sock.recv(1 << 16)
            except OSError:
                return None
            if not data:
                return None
            received += data
            for end, _ in frames(received, start):
                if received[start] == CLOSE_OPCODE:
                    return int.from_bytes(received[start + 2 : start + 4], "big")
                start = end
        return None
