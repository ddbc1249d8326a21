"""A webhook consumer of the tests' own: trio and h11 on a free port, every answer scripted by a function.

It knows nothing of the code under test, but takes the signatures apart with a library that we did not write.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import h11
import trio
from standardwebhooks import Webhook

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLawUvzRZgG0tN5k="


@dataclass
class Request:
    """One delivery as it arrived; header names are lower case."""

    number: int
    path: str
    headers: dict[str, str]
    body: bytes
    at: float
    repeated: list[str]  # names of headers that came more than once

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def event(self) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(self.body)
        return event

    @property
    def position(self) -> int:
        return int(self.event["position"])

    def verified(self, secret: str = SECRET) -> Any:
        """The body, once the Standard Webhooks library has found its signature good."""
        return Webhook(secret).verify(self.body, self.headers)


@dataclass
class Answer:
    """`chunks` replace the length and the body, and may be endless; each waits for `every_s`."""

    status: int = 200
    body: bytes = b""
    headers: list[tuple[str, str]] = field(default_factory=list)
    gate: trio.Event | None = None  # wait for it before the answer
    after_s: float = 0.0  # take so long before the answer
    hang: bool = False  # never answer
    drop: bool = False  # close without a byte
    raw: bytes | None = None  # instead of all that, then close
    cut: int | None = None  # announce the whole body, send only so many bytes of it, then close
    chunks: Iterable[bytes] | None = None
    every_s: float = 0.0


OK = Answer()
Respond = Callable[[Request], Answer]


class Consumer:
    """`requests` are the deliveries that arrived whole, `acknowledged` those that were answered whole with a 2xx."""

    def __init__(self, respond: Respond) -> None:
        self.respond = respond
        self.requests: list[Request] = []
        self.acknowledged: list[Request] = []
        self.connections = 0
        self.open_requests = 0
        self.most_open_requests = 0
        self.arrived = trio.Event()  # renewed at each request
        self.answered = trio.Event()  # renewed at each answer
        self.closed = trio.Event()  # renewed whenever a connection has ended
        self.port = 0
        self.url = ""

    @property
    def ids(self) -> list[str]:
        return [request.id for request in self.requests]

    async def until(self, true: Callable[[], bool], within_s: float = 30.0) -> None:
        """Wait until `true`, which is looked at whenever something has been answered."""
        with trio.fail_after(within_s):
            while not true():
                await self.answered.wait()

    async def serve(
        self, *, tls: ssl.SSLContext | None, host: str, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        listeners: list[Any] = list(await trio.open_tcp_listeners(0, host=host))
        self.port = listeners[0].socket.getsockname()[1]
        self.url = f"http://{host}:{self.port}/hook"
        if tls is not None:
            self.url = f"https://node.test:{self.port}/hook"
            listeners = [trio.SSLListener(listener, tls) for listener in listeners]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._connection, listeners)
            task_status.started()

    async def _connection(self, stream: Any) -> None:
        self.connections += 1
        try:
            connection = h11.Connection(h11.SERVER)
            while await self._exchange(stream, connection):
                connection.start_next_cycle()
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
            pass
        finally:
            await trio.aclose_forcefully(stream)
            self.closed.set()
            self.closed = trio.Event()

    async def _exchange(self, stream: Any, connection: h11.Connection) -> bool:
        request = await self._read(stream, connection)
        if request is None:
            return False
        self.requests.append(request)
        self.arrived.set()
        self.arrived = trio.Event()
        self.open_requests += 1
        self.most_open_requests = max(self.most_open_requests, self.open_requests)
        try:
            answer = self.respond(request)
            if answer.gate is not None:
                await answer.gate.wait()
            await trio.sleep(answer.after_s)
        finally:
            self.open_requests -= 1
        whole = await self._answer(stream, connection, answer)
        if whole and 200 <= answer.status < 300:
            self.acknowledged.append(request)
        self.answered.set()
        self.answered = trio.Event()
        return whole and connection.our_state is h11.DONE

    async def _read(self, stream: Any, connection: h11.Connection) -> Request | None:
        body, head = b"", None
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some(65536))
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                assert head.method == b"POST"
                names = [name.decode() for name, _ in head.headers]
                return Request(
                    len(self.requests) + 1,
                    head.target.decode(),
                    {name.decode(): value.decode() for name, value in head.headers},
                    body,
                    trio.current_time(),
                    [name for name in set(names) if names.count(name) > 1],
                )
            else:
                return None

    async def _answer(self, stream: Any, connection: h11.Connection, answer: Answer) -> bool:
        if answer.hang:
            await stream.receive_some(1)  # until the sender gives up
            return False
        if answer.drop:
            return False
        if answer.raw is not None:
            await stream.send_all(answer.raw)
            return False
        if answer.chunks is not None:
            head = h11.Response(status_code=answer.status, headers=[("Transfer-Encoding", "chunked"), *answer.headers])
            await stream.send_all(connection.send(head))
            for chunk in answer.chunks:
                await trio.sleep(answer.every_s)
                await stream.send_all(connection.send(h11.Data(data=chunk)))
            await stream.send_all(connection.send(h11.EndOfMessage()))
            return True
        headers = [("Content-Length", str(len(answer.body))), *answer.headers]
        sent = connection.send(h11.Response(status_code=answer.status, headers=headers))
        if answer.cut is not None:
            await stream.send_all(sent + answer.body[: answer.cut])
            return False
        rest = connection.send(h11.Data(data=answer.body)) + connection.send(h11.EndOfMessage())
        await stream.send_all(sent + rest)
        return True


@asynccontextmanager
async def consuming(
    respond: Respond | Answer = OK, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[Consumer]:
    """A consumer for the length of the block."""
    consumer = Consumer(respond if callable(respond) else lambda _request: respond)
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: consumer.serve(tls=tls, host=host, task_status=task_status))
        yield consumer
        nursery.cancel_scope.cancel()


def in_turn(*answers: Answer) -> Respond:
    """The answers one after the other, then the last one for ever."""
    waiting = itertools.chain(answers, itertools.repeat(answers[-1]))
    return lambda _request: next(waiting)


def moody(rng: Random, *, stalls: bool = True) -> Callable[[Request], Answer]:
    """A consumer that mostly takes what it gets, and else fails, resets, breaks off, stalls, or takes its time."""

    def respond(request: Request) -> Answer:
        assert request.verified() == request.event
        mood = rng.random()
        if mood < 0.06:
            return Answer(rng.choice([400, 404, 429, 500, 502, 503]), b"not now")
        if mood < 0.10:
            return Answer(drop=True)
        if mood < 0.12:
            return Answer(200, b"x" * 1000, cut=rng.randrange(1000))
        if mood < 0.125 and stalls:
            return Answer(hang=True)
        if mood < 0.25:
            return Answer(200, after_s=rng.uniform(0, 0.2))
        return OK

    return respond


async def run(seed: int) -> None:
    """Serve as a process of its own. On standard output: the URL, then a line for each delivery that was taken."""
    async with consuming(moody(Random(seed), stalls=False)) as consumer:
        _say({"url": consumer.url})
        told = 0
        while True:
            answered = consumer.answered
            for request in consumer.acknowledged[told:]:
                digest = hashlib.sha256(request.body).hexdigest()
                _say({"id": request.id, "position": request.position, "body": digest})
            told = len(consumer.acknowledged)
            await answered.wait()


def _say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    trio.run(run, int(sys.argv[1]))
