"""`fluxora tail`: the log as it grows, on standard output; how the connection fares, on standard error."""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import msgspec
import trio

from fluxora.client.connection import follow
from fluxora.client.following import MOST_SELECTORS, Following, Update
from fluxora.client.lines import json_line, line
from fluxora.client.settings import DEFAULT_URL, Settings, socket_url
from fluxora.errors import ConfigError, FollowError
from fluxora.protocol import sockets
from fluxora.protocol.sockets import ALL, MAX_POSITION, Selector
from fluxora.variables import CLIENT_VARIABLES

WAITING = 1_024  # events that are printed together at most
LOOK_EVERY_S = 1.0

EPILOG = """\
environment:
{variables}

One line an event: position, time, action, stream, its status, and what it has come to. With several selectors an event
that more than one matches comes once; the history of one comes before that of the next.

When the connection is lost it connects again and goes on behind what it has shown. Where the server cannot tell what
was missed, it ends with exit code 1 and says from which position to go on: it never leaves a gap in silence.

Exit codes: 0 stopped, by Ctrl-C, --count, or the end of whoever reads its output; 1 refused, or what was missed cannot
be told; 2 wrong usage.

examples:
  fluxora tail                                      everything that happens from now on
  fluxora tail --after 0 --json | jq .payload       all of the log, then what is new
  fluxora tail --recipient G... https://fluxora.example"""


# arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "url", nargs="?", type=_url, metavar="URL", help=f"the server (default: FLUXORA_URL, else {DEFAULT_URL})"
    )
    for option, member, metavar, help_ in (
        ("--stream", "streamId", "ID", "follow one stream"),
        ("--sender", "sender", "ADDRESS", "follow the streams that an address (G... or C...) sends"),
        ("--recipient", "recipient", "ADDRESS", "follow the streams that an address receives"),
    ):
        parser.add_argument(
            option,
            dest="selectors",
            action="append",
            type=partial(_selector, member),
            metavar=metavar,
            help=f"{help_}; may be repeated (default: everything)",
        )
    parser.add_argument(
        "--after",
        type=_whole(0, MAX_POSITION),
        metavar="POSITION",
        help="begin behind a position of the log; 0: all of it (default: what is new)",
    )
    parser.add_argument("--json", action="store_true", help="print each update as one line of JSON, as it came")
    parser.add_argument("--count", type=_whole(1, MAX_POSITION), metavar="N", help="end after N events")
    variables = "\n".join(f"  {variable.name:<15}{variable.help}" for variable in CLIENT_VARIABLES)
    parser.epilog = EPILOG.format(variables=variables)


def _url(text: str) -> str:
    try:
        return socket_url(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _selector(member: str, text: str) -> Selector:
    """As the server will read it."""
    try:
        wanted = sockets.parse(msgspec.json.encode({"type": "subscribe", member: text}))
    except (sockets.MessageError, UnicodeEncodeError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    assert isinstance(wanted, sockets.Subscribe)
    return wanted.selector


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if len(text) > 20 or not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"a whole number from {low} to {high} is needed, got {text[:40]!r}")
        return int(text)

    return parse


# the command


async def main(arguments: argparse.Namespace, settings: Settings) -> int:
    """Follow until SIGINT or SIGTERM, until enough was shown, or until nobody reads any more; the exit code.

    Raises:
        ConfigError: there are too many selectors.
        FollowRefused: the server does not let this client follow, or does not let it any more.
        FollowReset: what was missed cannot be told whole.
    """
    selectors = tuple(dict.fromkeys(arguments.selectors or (ALL,)))
    if len(selectors) > MOST_SELECTORS:
        raise ConfigError(f"--stream, --sender, --recipient: at most {MOST_SELECTORS} are followed at a time")
    url = arguments.url or settings.url
    tell, told = trio.open_memory_channel[Update](WAITING)
    failures: list[FollowError] = []

    async def followed() -> None:
        """The last events are printed before it is said why there are no more."""
        async with tell:
            try:
                await follow(url, Following(selectors, arguments.after), headers=settings.headers, tell=tell, say=_say)
            except FollowError as error:
                failures.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_until_signalled, nursery.cancel_scope)
        nursery.start_soon(_until_unread, nursery.cancel_scope)
        nursery.start_soon(followed)
        await _print(told, json_line if arguments.json else line, arguments.count)
        nursery.cancel_scope.cancel(reason="everything was shown")
    for failure in failures:
        raise failure
    return 0


async def _until_signalled(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel(reason="a signal came")


async def _until_unread(scope: trio.CancelScope) -> None:
    """Ends it when whoever reads a pipe has gone, though there may be nothing to write that would show it."""
    if sys.platform == "win32":
        return
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    while True:
        if any(seen & (select.POLLERR | select.POLLNVAL) for _, seen in output.poll(0)):
            scope.cancel(reason="nobody reads the output")
        await trio.sleep(LOOK_EVERY_S)


async def _print(told: trio.MemoryReceiveChannel[Update], shown: Callable[[Update], str], count: int | None) -> None:
    """Print what comes until that was `count` events, or nobody reads it."""
    left = count
    async for update in told:
        updates = [update]
        with suppress(trio.WouldBlock):
            while len(updates) < WAITING:
                updates.append(told.receive_nowait())
        if left is not None:
            updates = updates[:left]
            left -= len(updates)
        data = "".join(f"{shown(one)}\n" for one in updates).encode("utf-8", "replace")
        try:
            # In a thread: whoever reads may let it wait, and Ctrl-C must not.
            await trio.to_thread.run_sync(_write, sys.stdout.fileno(), data, abandon_on_cancel=True)
        except BrokenPipeError:
            return
        if left == 0:
            return


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _say(text: str) -> None:
    """A line on standard error, which nobody need be reading."""
    printable = "".join(one if one.isprintable() else " " for one in text)
    with suppress(OSError):
        sys.stderr.write(f"fluxora: {printable}\n")
        sys.stderr.flush()
