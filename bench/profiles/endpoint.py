"""The server's address, and HTTP/1.1 as far as a load generator needs it: sockets, requests, and their answers."""

from __future__ import annotations

import argparse
import socket
import ssl
from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec

CONNECT_WITHIN_S = 10.0
ONCE = 1 << 18  # bytes read at a time
_END = b"\r\n\r\n"


class Endpoint(msgspec.Struct, frozen=True):
    """Where a server is."""

    host: str
    port: int
    tls: bool = False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"

    @property
    def authority(self) -> str:
        """The value of the header Host."""
        return str(self).partition("//")[2]

    def connect(self) -> socket.socket:
        """A connection that does not block from here on.

        Raises:
            OSError: there is none within CONNECT_WITHIN_S.
        """
        sock = socket.create_connection((self.host, self.port), CONNECT_WITHIN_S)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.tls:
                sock = ssl.create_default_context().wrap_socket(sock, server_hostname=self.host)
            sock.settimeout(0)
        except BaseException:
            sock.close()
            raise
        return sock


def parse(text: str) -> Endpoint:
    """The endpoint of an option.

    Raises:
        argparse.ArgumentTypeError: it is none; says which form is needed.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if (
        parts.scheme not in {"http", "https"}
        or not parts.hostname
        or parts.path.strip("/")
        or parts.query
        or "@" in text
    ):
        raise argparse.ArgumentTypeError(f"{text!r} is no server; write http://HOST[:PORT] or https://HOST[:PORT]")
    tls = parts.scheme == "https"
    return Endpoint(parts.hostname, port or (443 if tls else 80), tls)


def received(sock: socket.socket) -> bytes | None:
    """What has come, b"" where the connection has ended, None where nothing is there after all."""
    try:
        data = sock.recv(ONCE)
        while isinstance(sock, ssl.SSLSocket) and sock.pending():  # the kernel would not tell of these
            data += sock.recv(ONCE)
    except (BlockingIOError, ssl.SSLWantReadError):
        return None
    except OSError:
        return b""
    return data


def request(
    method: str, path: str, *, host: str, headers: Mapping[str, str], body: bytes | None = None, more: str = ""
) -> bytes:
    """The bytes of a request; `more` are header lines of its own."""
    shared = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    length = "" if body is None else f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return f"{method} {path} HTTP/1.1\r\nhost: {host}\r\n{shared}{length}{more}\r\n".encode() + (body or b"")


class Malformed(Exception):
    """What was received is no answer that can be read here."""


def answer(octets: bytearray) -> tuple[int, bytes, bool] | None:
    """The one answer in these bytes: status, body, and whether the connection is kept. None while it is not whole.

    Bodies have a length or come in chunks; JSON never holds the bytes of the last chunk.

    Raises:
        Malformed: it is none.
    """
    end = octets.find(_END)
    if end < 0:
        return None
    head = bytes(octets[:end]).lower()
    if not head.startswith(b"http/1.") or not head[9:12].isdigit():
        raise Malformed(f"no answer: {head[:80]!r}")
    status, kept = int(head[9:12]), b"\r\nconnection: close" not in head
    begin = end + len(_END)
    _, named, value = head.partition(b"\r\ncontent-length:")
    if named:
        length = value.partition(b"\r\n")[0].strip()
        if not length.isdigit():
            raise Malformed(f"no length: {length[:80]!r}")
        whole = begin + int(length)
        return None if len(octets) < whole else (status, bytes(octets[begin:whole]), kept and len(octets) == whole)
    if b"\r\ntransfer-encoding: chunked" in head:
        return (status, _joined(octets, begin), kept) if octets.endswith(b"0\r\n\r\n") else None
    if status in {204, 304}:
        return status, b"", kept
    raise Malformed("an answer without a length, and not in chunks")


def exchange(endpoint: Endpoint, octets: bytes, *, within_s: float) -> tuple[int, bytes]:
    """Status and body of the answer to one request, on a connection of its own.

    Raises:
        OSError: it did not come, or not in time.
        Malformed: it is none.
    """
    with endpoint.connect() as sock:
        sock.settimeout(within_s)
        sock.sendall(octets)
        got = bytearray()
        while (found := answer(got)) is None:
            data = sock.recv(ONCE)
            if not data:
                raise ConnectionError("the connection ended before the answer")
            got += data
        return found[0], found[1]


def _joined(octets: bytearray, begin: int) -> bytes:
    body = bytearray()
    while (line := octets.find(b"\r\n", begin)) >= 0:
        try:
            size = int(octets[begin:line].partition(b";")[0], 16)
        except ValueError as error:
            raise Malformed("a chunk without a size") from error
        if size == 0:
            break
        body += octets[line + 2 : line + 2 + size]
        begin = line + 2 + size + 2
    return bytes(body)
