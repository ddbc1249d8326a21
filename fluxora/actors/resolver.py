"""Names to addresses, off the loop's thread and bounded.

The system's resolver blocks a thread, for half a minute where a name's servers are silent, and cannot be cancelled. So
there are at most `THREADS` of them, at most one for each name, and whoever asks for a name that is being resolved gets
that answer too: a name that hangs takes one thread, however often it is asked for. Nothing is kept: each answer goes to
those who wait for it.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address

import trio

from fluxora.errors import FluxoraError

THREADS = 32
WITHIN_S = 5.0

Lookup = Callable[[str], Sequence[str]]
Address = IPv4Address | IPv6Address


class NameUnresolved(FluxoraError):
    """A name has no address, or its servers did not answer in time."""

    code = "NAME_UNRESOLVED"
    retryable = True


def system_lookup(host: str) -> list[str]:
    """The addresses of `host` as the system has them, the best first. Blocks.

    Raises:
        OSError: it has none, or nobody answers.
    """
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class _Question:
    """A name that is to be resolved, and what became of it."""

    __slots__ = ("answer", "answered", "host")

    def __init__(self, host: str) -> None:
        self.host = host
        self.answered = trio.Event()
        self.answer: list[Address] | Exception | None = None


class Resolver:
    """`lookup` is asked in a thread; it may block."""

    def __init__(self, lookup: Lookup = system_lookup, *, threads: int = THREADS, within_s: float = WITHIN_S) -> None:
        self._lookup = lookup
        self._free = threads
        self._within_s = within_s
        self._questions: dict[str, _Question] = {}
        self._waiting: deque[_Question] = deque()  # for a thread

    async def addresses(self, host: str) -> list[Address]:
        """All addresses of `host`, the best first; at least one.

        Raises:
            NameUnresolved: there is none, or none was found in time.
        """
        question = self._questions.get(host)
        if question is None:
            question = self._questions[host] = _Question(host)
            self._waiting.append(question)
            self._begin(trio.lowlevel.current_trio_token())
        with trio.move_on_after(self._within_s):
            await question.answered.wait()
        answer = question.answer
        if answer is None:
            raise NameUnresolved(f"{host} was not resolved within {self._within_s:g} s")
        if isinstance(answer, Exception):
            raise NameUnresolved(f"{host} cannot be resolved: {answer}") from answer
        if not answer:
            raise NameUnresolved(f"{host} has no address")
        return answer

    def _begin(self, token: trio.lowlevel.TrioToken) -> None:
        """Give free threads to those that wait."""
        while self._waiting and self._free:
            question = self._waiting.popleft()
            self._free -= 1
            # No task waits for the thread, so that no caller's cancellation gives its place away while it still runs.
            trio.lowlevel.start_thread_soon(
                partial(self._ask, token, question), lambda _outcome: None, "fluxora-resolver"
            )

    def _ask(self, token: trio.lowlevel.TrioToken, question: _Question) -> None:
        """In a thread: find the answer and hand it over."""
        answer: list[Address] | Exception
        try:
            answer = [ip_address(text) for text in self._lookup(question.host)]
        except Exception as error:  # noqa: BLE001 (whatever it is, it goes to those who wait)
            answer = error
        try:
            token.run_sync_soon(self._settle, token, question, answer)
        except trio.RunFinishedError:
            return  # nobody waits any more

    def _settle(self, token: trio.lowlevel.TrioToken, question: _Question, answer: list[Address] | Exception) -> None:
        self._free += 1
        del self._questions[question.host]
        question.answer = answer
        question.answered.set()
        self._begin(token)
