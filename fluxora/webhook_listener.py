"""`fluxora webhooks listen`: a receiver to try webhooks with. It verifies each delivery and prints a line for it.

It listens on every path, answers 200 to what it accepts and to what it accepted before, and the status that `verify`
gives to all else. On request it fails some deliveries or is slow, to show what the sender makes of that. It is no part
of the server and no model of a production consumer: what it has seen is forgotten when it ends.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import signal
import sys
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TextIO

import h11
import msgspec
import trio

from fluxora.errors import ConfigError
from fluxora.webhooks import MAX_BODY_BYTES, Delivery, Refused, verify

SECRET_VARIABLE: Final = "FLUXORA_WEBHOOK_SECRET"  # noqa: S105 (the variable's name)
DEFAULT_PORT: Final = 4000
MAX_CONNECTIONS: Final = 256
REQUEST_S: Final = 30.0  # for a whole request to arrive, the idle time before it included
WRITE_S: Final = 10.0
REMEMBERED: Final = 10_000
_MAX_HEAD_BYTES: Final = 16 * 1024
_RECEIVE_BYTES: Final = 64 * 1024
_UNSAFE: Final = re.compile(r"[^ -~]")  # what comes from outside may not steer the terminal
_MOST_SHOWN: Final = 96

Line = dict[str, Any]


class Behaviour(msgspec.Struct, frozen=True):
    """How to answer: `fail` is the share that is answered with 500; each waits `slow_s`; `count` deliveries end it."""

    fail: float = 0.0
    slow_s: float = 0.0
    count: int | None = None


class Receiver:
    """Judges deliveries; `done` is set once as many as were asked for are accepted and answered.

    `show` is given one object a request, fit for JSON; `draw` makes random numbers in [0, 1).
    """

    def __init__(
        self,
        secret: str,
        behaviour: Behaviour,
        show: Callable[[Line], Awaitable[None]],
        *,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.done = trio.Event()
        self._secret = secret
        self._behaviour = behaviour
        self._show = show
        self._draw = draw
        self._left = math.inf if behaviour.count is None else behaviour.count
        self._answering = 0
        self._open = 0
        self._accepted: OrderedDict[str, None] = OrderedDict()

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Serve one connection to its end. Raises nothing but cancellation, and what `show` raises."""
        if self._open >= MAX_CONNECTIONS:
            await trio.aclose_forcefully(stream)
            return
        self._open += 1
        connection = _Connection(stream)
        try:
            while (request := await connection.request()) is not None:
                self._answering += 1
                try:
                    await self._answer(connection, *request)
                finally:
                    self._answering -= 1
                    if self._left == 0 and self._answering == 0:
                        self.done.set()
        except h11.RemoteProtocolError as error:
            text = f"this is not HTTP/1.1 ({error}); the listener speaks plain http, not https"
            await self._show({"status": 400, "outcome": "not_http", "message": text})
        except (trio.BrokenResourceError, trio.TooSlowError):
            pass  # it broke off or took too long; a sender tries again
        finally:
            self._open -= 1
            await trio.aclose_forcefully(stream)

    async def _answer(self, connection: _Connection, head: h11.Request, body: bytes) -> None:
        if head.method == b"POST":
            status, line = self._judge(head.headers.raw_items(), body)
        else:
            status, line = 405, {"outcome": "method_not_allowed", "message": "deliveries are POSTs"}
        if self._behaviour.slow_s:
            await trio.sleep(self._behaviour.slow_s)
        await self._show({"status": status, **line})
        await connection.answer(status, {"outcome": line["outcome"]})

    def _judge(self, headers: list[tuple[bytes, bytes]], body: bytes) -> tuple[int, Line]:
        try:
            delivery = verify(body, headers, secret=self._secret, known=self._accepted)
        except Refused as refused:
            claimed = {name.lower(): value for name, value in headers}.get(b"x-fluxora-delivery-id", b"")
            line: Line = {"outcome": refused.code, "id": claimed.decode("latin-1"), "message": refused.message}
            return refused.answer_status, line
        line = {"id": delivery.id, "timestamp": delivery.timestamp, "event": _event(delivery)}
        if self._left == 0:
            return 503, {"outcome": "not_wanted", **line, "message": "as many have come as --count asked for"}
        if self._draw() < self._behaviour.fail:
            return 500, {"outcome": "failed_on_purpose", **line}
        self._accepted[delivery.id] = None
        if len(self._accepted) > REMEMBERED:
            self._accepted.popitem(last=False)
        self._left -= 1
        return 200, {"outcome": "accepted", **line}


def _event(delivery: Delivery) -> Any:
    try:
        return delivery.json()
    except (ValueError, RecursionError):  # well signed, but by somebody else
        return None


class _Connection:
    """The requests on one connection, one after the other."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._protocol = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD_BYTES)
        self._bodiless = False

    async def request(self) -> tuple[h11.Request, bytes] | None:
        """The next request; None where there is none. A body that is too long is cut one byte beyond the limit.

        Raises:
            TooSlowError: it did not come in time.
            BrokenResourceError: the connection broke.
            ProtocolError: it is not HTTP/1.1.
        """
        if self._protocol.our_state is h11.DONE and self._protocol.their_state is h11.DONE:
            self._protocol.start_next_cycle()
        elif self._protocol.our_state is not h11.IDLE:
            return None  # the last answer, or the last request, was to be the end
        with trio.fail_after(REQUEST_S):
            head = await self._next()
            if not isinstance(head, h11.Request):
                return None
            self._bodiless = head.method == b"HEAD"
            body = bytearray()
            while len(body) <= MAX_BODY_BYTES and isinstance(part := await self._next(), h11.Data):
                body += part.data
        return head, bytes(body[: MAX_BODY_BYTES + 1])

    async def answer(self, status: int, content: Line) -> None:
        """Write the answer. A connection whose request was not read to its end is closed after it.

        Raises:
            TooSlowError: the peer did not take it in time.
            BrokenResourceError: the connection broke.
        """
        body = json.dumps(content).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        if status == 405:
            headers.append(("Allow", "POST"))
        unread = self._protocol.their_state is not h11.DONE
        if unread:
            headers.append(("Connection", "close"))
        parts: list[h11.Event] = [h11.Response(status_code=status, headers=headers), h11.EndOfMessage()]
        if not self._bodiless:
            parts.insert(1, h11.Data(data=body))
        with trio.fail_after(WRITE_S):
            await self._stream.send_all(b"".join(self._protocol.send(part) or b"" for part in parts))
            if unread:
                await self._linger()

    async def _linger(self) -> None:
        """Read on for a while: a connection that is closed over unread bytes takes the answer with it."""
        if isinstance(self._stream, trio.abc.HalfCloseableStream):
            await self._stream.send_eof()
        while await self._stream.receive_some(_RECEIVE_BYTES):
            pass

    async def _next(self) -> Any:
        while (event := self._protocol.next_event()) is h11.NEED_DATA:
            if self._protocol.they_are_waiting_for_100_continue:
                go_on = h11.InformationalResponse(status_code=100, headers=[])
                await self._stream.send_all(self._protocol.send(go_on) or b"")
            self._protocol.receive_data(bytes(await self._stream.receive_some(_RECEIVE_BYTES)))
        return event


# the command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=_port, default=DEFAULT_PORT, help="port, 0 for a free one (default %(default)s)")
    parser.add_argument(
        "--secret-from",
        default=SECRET_VARIABLE,
        metavar="VARIABLE",
        help="environment variable that holds the endpoint's secret (default %(default)s)",
    )
    parser.add_argument(
        "--fail", type=_share, default=0.0, metavar="SHARE", help="share of deliveries to answer with 500, 0 to 1"
    )
    parser.add_argument("--slow", type=_seconds, default=0.0, metavar="S", help="seconds before each answer")
    ends = parser.add_mutually_exclusive_group()
    ends.add_argument("--count", type=_count, metavar="N", help="end after N accepted deliveries")
    ends.add_argument("--once", dest="count", action="store_const", const=1, help="end after the first one")
    parser.add_argument("--json", action="store_true", help="print one JSON object a request, with the whole event")


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 5 or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (0 to 65535)")
    return int(text)


def _number(text: str, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to {most:g}")
    return value


def _share(text: str) -> float:
    return _number(text, 1)


def _seconds(text: str) -> float:
    return _number(text, 3_600)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 9 or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 999999999")
    return int(text)


async def main(arguments: argparse.Namespace, environ: Mapping[str, str]) -> None:
    """Receive until enough has come, SIGINT or SIGTERM.

    Raises:
        ConfigError: the variable holds no secret, or the address cannot be listened on.
    """
    secret = environ.get(arguments.secret_from, "")
    if not secret:
        raise ConfigError(
            f"{arguments.secret_from}: set it to the endpoint's secret, with which deliveries are verified"
        )
    printer = _Printer(as_json=arguments.json)
    behaviour = Behaviour(fail=arguments.fail, slow_s=arguments.slow, count=arguments.count)

    async def show(line: Line) -> None:
        try:
            await printer.show(line)
        except BrokenPipeError:  # whoever read the lines has gone
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would fail to flush at its end
            receiver.done.set()

    receiver = Receiver(secret, behaviour, show)
    try:
        listeners = await trio.open_tcp_listeners(arguments.port, host=arguments.host)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host, --port: cannot listen on {arguments.host}:{arguments.port}: {error}") from error
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, receiver.serve, listeners)
        nursery.start_soon(_until_signalled, receiver.done)
        host, port = listeners[0].socket.getsockname()[:2]
        await printer.greet(f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/")
        await receiver.done.wait()
        nursery.cancel_scope.cancel(reason="enough was received")


async def _until_signalled(done: trio.Event) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            done.set()


class _Printer:
    """Writes to standard output in a thread, since a pipe or a terminal may be slow; one line at a time."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._turn = trio.Lock()

    async def greet(self, url: str) -> None:
        text = (
            f"Listening on {url}; Ctrl-C ends it. A server that is to send here must admit this address: "
            "FLUXORA_WEBHOOK_ALLOWED_NETWORKS=127.0.0.0/8\n"
        )
        # Where the output is JSON, it is nothing else.
        await self._write(sys.stderr if self._as_json else sys.stdout, text)

    async def show(self, line: Line) -> None:
        await self._write(sys.stdout, (json.dumps(line) if self._as_json else as_text(line)) + "\n")

    async def _write(self, file: TextIO, text: str) -> None:
        async with self._turn:
            await trio.to_thread.run_sync(_write, file, text)


def _write(file: TextIO, text: str) -> None:
    file.write(text)
    file.flush()


def as_text(line: Line) -> str:
    """One line for a reader: status, outcome, then what happened to which stream, or why it was refused."""
    event = line.get("event")
    shown = [str(line["status"]), f"{line['outcome']:<18}"]
    if isinstance(event, dict):
        shown += [str(event[name]) for name in ("event", "action", "streamId") if event.get(name)]
        shown.append(f"position {event.get('position')}")
    shown += [str(line[name]) for name in ("id", "message") if line.get(name)]
    return "  ".join(_UNSAFE.sub("?", part[:_MOST_SHOWN]) for part in shown)
