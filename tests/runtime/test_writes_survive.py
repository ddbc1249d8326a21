"""Registrations that were acknowledged survive kill -9, and a retry with the same key finds what was done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
import trio
from processes import Served, environment, serve
from proof import LONG, chance
from truth import Books
from waiting import eventually

from fluxora.protocol.addresses import AddressKind, encode

OpenBooks = Callable[[str], Awaitable[Books]]
SEED = 29
ROUNDS = 30 if LONG else 4
WRITERS = 8
SENDER, RECIPIENT = (encode(AddressKind.ACCOUNT, bytes([number] * 32)) for number in (1, 2))


class Writer:
    """Registers one stream after the other, each with a key of its own, as a client does that retries what it must.

    `made` are the streams that were acknowledged, by key; `pending` is the request whose answer has not come.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.made: dict[str, dict[str, Any]] = {}
        self.replayed = 0
        self.pending: str | None = None

    async def write(self, url: str) -> None:
        """Until the server goes away."""
        async with httpx.AsyncClient(base_url=url, timeout=10) as client:
            while True:
                if self.pending is None:
                    self.pending = f"w{self.number}:{len(self.made)}"
                try:
                    answer = await self.send(client, self.pending)
                except httpx.TransportError:
                    return
                self._take(answer, self.pending)

    async def send(self, client: httpx.AsyncClient, key: str) -> httpx.Response:
        """The request of that key, always the same."""
        body = {
            "sender": SENDER,
            "recipient": RECIPIENT,
            "depositAmount": f"{1 + int(key.partition(':')[2])}",
            "ratePerSecond": "0.0000001",
            "startTime": 1_700_000_000 + self.number,
        }
        return await client.post("/api/streams", json=body, headers={"idempotency-key": key})

    def _take(self, answer: httpx.Response, key: str) -> None:
        assert answer.status_code == 201, answer.text
        self.replayed += "idempotency-replayed" in answer.headers
        self.made[key] = answer.json()
        self.pending = None


# A request whose connection breaks leaves its body unread, which httpx tells of.
@pytest.mark.filterwarnings("ignore:Async generator 'httpx._content:ResourceWarning")
async def test_acknowledged_registrations_survive_kill_9(
    postgres_url: str, books_of: OpenBooks, tmp_path: Path
) -> None:
    """Many writers, killed at any moment and started again; each goes on with the request that had no answer."""
    rng = chance(SEED)
    books = await books_of(postgres_url)
    environ = environment(PORT="0", DATABASE_URL=postgres_url, FLUXORA_RATE_LIMIT="0")
    writers = [Writer(number) for number in range(WRITERS)]
    for number in range(ROUNDS):
        async with serve(environ, tmp_path / f"serve-{number}.log") as served:
            await round_of(served, writers, rng)
    async with serve(environ, tmp_path / "last.log") as served:
        await check(await served.ready(), writers, rng)
        assert await served.stop() == 0
    made = {stream["id"] for writer in writers for stream in writer.made.values()}
    stored = {row["id"] for row in await books.rows("SELECT id FROM streams")}
    logged = [row["stream_id"] for row in await books.rows("SELECT stream_id FROM events ORDER BY position")]
    assert stored == made, "what was acknowledged is there, and nothing besides it"
    assert sorted(logged) == sorted(stored), "each of them once in the log"
    positions = [row["position"] for row in await books.rows("SELECT position FROM events ORDER BY position")]
    assert positions == list(range(1, len(positions) + 1))
    assert await books.value("SELECT position FROM log_head") == len(positions)
    print(f"{ROUNDS} kills, {len(made)} streams, {sum(writer.replayed for writer in writers)} answers replayed")
    assert len(made) > ROUNDS * WRITERS, "the kills must find the writers at work"


async def round_of(served: Served, writers: list[Writer], rng: Random) -> None:
    """All write at once; the server is killed once it has acknowledged some, at a moment that only chance knows."""
    url = await served.ready()
    before = acknowledged(writers)
    more = rng.randint(WRITERS * 2, WRITERS * 20)
    async with trio.open_nursery() as nursery:
        for writer in writers:
            nursery.start_soon(writer.write, url)
        await eventually(lambda: acknowledged(writers) >= before + more, "the writers get on")
        await trio.sleep(rng.uniform(0, 0.02))
        await served.kill()


def acknowledged(writers: list[Writer]) -> int:
    return sum(len(writer.made) for writer in writers)


async def check(url: str, writers: list[Writer], rng: Random) -> None:
    """What was acknowledged is served as it was, and sent again gets the first answer byte for byte."""
    async with httpx.AsyncClient(base_url=url, timeout=10) as client:
        for writer in writers:
            assert writer.pending is not None, "each was in the middle of a request"
            first = await writer.send(client, writer.pending)
            assert first.status_code == 201
            for key, stream in rng.sample(sorted(writer.made.items()), min(10, len(writer.made))):
                replayed = await writer.send(client, key)
                assert (replayed.json(), replayed.headers["idempotency-replayed"]) == (stream, "true")
                shown = (await client.get(f"/api/streams/{stream['id']}?asOf={stream['asOf']}")).json()
                assert shown == stream
            writer.made[writer.pending] = first.json()
