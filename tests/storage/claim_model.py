"""What may be claimed, as the rules say it, beside the store that has to agree."""

from __future__ import annotations

import uuid
from collections import Counter, defaultdict
from collections.abc import Sequence
from random import Random

from hooked import HOUR_MS, LIFE_MS, create, pass_time, result
from scripted import execute, query

from fluxora.protocol.streams import StreamStatus
from fluxora.storage.store import Change, Store
from fluxora.storage.webhook_records import Due, Endpoint, Result, Turn

WORKERS = ("a", "b", "c")
Key = tuple[str, int]  # endpoint and position


class World:
    """A store with workers at it, each of which has deliveries in hand; and the model of all of it."""

    def __init__(self, store: Store, random: Random, endpoints: Sequence[Endpoint]) -> None:
        self._store = store
        self._random = random
        self._endpoints = {each.id: each for each in endpoints}
        self._stream: dict[int, str | None] = {}
        self._due: dict[Key, bool] = {}  # pending ones: due now?
        self._since: dict[Key, tuple[int, int]] = {}  # when they became due, and their positions
        self._known: set[Key] = set()
        self._claimed: dict[Key, str] = {}
        self._in_hand: dict[str, list[Due]] = defaultdict(list)
        self.attempts: Counter[Key] = Counter()
        self.ended: dict[Key, str] = {}

    async def record(self) -> None:
        """New streams, and changes of some that there are."""
        await self._store.register([create() for _ in range(3)])
        found = await query(self._store.url, "SELECT id, status FROM streams ORDER BY id")
        for row in self._random.sample(found, min(len(found), 2)):
            to = StreamStatus.ACTIVE if row["status"] == "paused" else StreamStatus.PAUSED
            await self._store.register([Change(row["id"], str(uuid.uuid4()), to)])
        for row in await query(
            self._store.url,
            "SELECT d.endpoint_id, d.position, e.stream_id FROM webhook_deliveries d JOIN events e USING (position) "
            "ORDER BY position",
        ):
            self._stream[row["position"]] = row["stream_id"]
            key = (row["endpoint_id"], row["position"])
            if key not in self._known:
                self._known.add(key)
                self._due[key] = True

    async def let_time_pass(self) -> None:
        """Everything is due."""
        await pass_time(self._store)
        self._due = dict.fromkeys(self._due, True)

    async def _read_times(self) -> None:
        """Times are the server's; the model takes them from the table, and judges the order."""
        for row in await query(
            self._store.url,
            "SELECT endpoint_id, position, due_ms FROM webhook_deliveries WHERE status = 'pending'",
        ):
            self._since[row["endpoint_id"], row["position"]] = (row["due_ms"], row["position"])

    async def kill(self) -> None:
        """A worker is taken for dead by another; what it has to say afterwards is not heard, and it begins anew."""
        dead = self._random.choice(WORKERS)
        await execute(self._store.url, [f"UPDATE webhook_workers SET alive_until_ms = 0 WHERE id = '{dead}'"])
        self._claimed = {key: worker for key, worker in self._claimed.items() if worker != dead}
        await self.turn(self._random.choice([worker for worker in WORKERS if worker != dead]), rooms=(1, 3, 20))
        late = [result(due, "dead") for due in self._in_hand.pop(dead, [])]
        turn = await self._store.webhooks.turn(dead, late, 9, [], [])
        assert (turn.alive, turn.settled, turn.deliveries) == (False, 0, [])
        await self._store.webhooks.enlist(dead, LIFE_MS)

    async def turn(self, worker: str, *, rooms: Sequence[int] = (0, 1, 3, 20)) -> None:
        """Some of what the worker has in hand has ended in some way; it wants some more."""
        ended = [due for due in self._in_hand[worker] if self._random.random() < 0.6]
        results = [
            result(
                due,
                self._random.choice(["delivered", "delivered", "retry", "dead"]),
                delay_ms=self._random.choice([0, HOUR_MS]),
            )
            for due in ended
        ]
        avoid = [id_ for id_ in self._endpoints if self._random.random() < 0.2]
        await self._turn(worker, results, self._random.choice(rooms), avoid)

    async def finish(self) -> None:
        """Deliver all that is left; there is an end to it."""
        idle = 0
        while idle < 2 * len(WORKERS):
            await self.let_time_pass()
            for worker in WORKERS:
                results = [result(due) for due in self._in_hand[worker]]
                turn = await self._turn(worker, results, 100, [])
                idle = 0 if turn.deliveries or results else idle + 1
        assert (self._due, self._claimed) == ({}, {})

    async def _turn(self, worker: str, results: list[Result], room: int, avoid: list[str]) -> Turn:
        turn = await self._store.webhooks.turn(worker, results, room, avoid, [])
        given = {(one.endpoint_id, one.position) for one in results}
        in_hand = [due for due in self._in_hand[worker] if (due.endpoint_id, due.event.position) not in given]
        self._in_hand[worker] = in_hand
        assert turn.alive
        assert turn.settled == self._settle(worker, results)
        await self._read_times()
        self._take(worker, turn, room, avoid)
        self._in_hand[worker] += turn.deliveries
        if room and not avoid and not turn.deliveries and turn.next_due_ms is None:
            self._check_nothing_to_claim(worker)
        return turn

    def _settle(self, worker: str, results: Sequence[Result]) -> int:
        count = 0
        for one in results:
            key = (one.endpoint_id, one.position)
            if self._claimed.get(key) != worker:
                continue
            count += 1
            del self._claimed[key]
            self.attempts[key] += 1
            if one.outcome == "retry":
                self._due[key] = one.delay_ms == 0
            else:
                del self._due[key]
                self.ended[key] = one.outcome
        return count

    def _take(self, worker: str, turn: Turn, room: int, avoid: Sequence[str]) -> None:
        assert len(turn.deliveries) <= room
        eligible = {id_: self._eligible(id_) for id_ in self._endpoints}  # before the turn: a queue gives one at most
        for due in turn.deliveries:
            key = (due.endpoint_id, due.event.position)
            assert key in eligible[due.endpoint_id], (key, self._claimed.get(key), self._due.get(key))
            assert due.endpoint_id not in avoid
            assert due.attempts == self.attempts[key]
            self._claimed[key] = worker
        for id_, made in self._endpoints.items():
            assert sum(key[0] == id_ for key in self._claimed) <= made.max_in_flight
            mine = [due for due in turn.deliveries if due.endpoint_id == id_]
            left = [self._since[key] for key in self._eligible(id_)]
            if mine and left and not made.ordered:  # the oldest go first
                assert max(self._since[id_, due.event.position] for due in mine) < min(left)

    def _check_nothing_to_claim(self, worker: str) -> None:
        """A worker that is told of no time to look again has met a cap, or has its share already."""
        for id_, made in self._endpoints.items():
            capped = sum(key[0] == id_ for key in self._claimed) >= made.max_in_flight
            shared = any(due.endpoint_id == id_ for due in self._in_hand[worker])
            assert capped or shared or not self._eligible(id_), id_

    def _eligible(self, id_: str) -> list[Key]:
        """Due, unclaimed, and the first of their stream where order is kept."""
        mine = [key for key in self._due if key[0] == id_]
        free = [key for key in mine if self._due[key] and key not in self._claimed]
        if not self._endpoints[id_].ordered:
            return free
        first: dict[str | None, int] = {}
        for _, position in mine:
            stream = self._stream[position]
            first[stream] = min(first.get(stream, position), position)
        return [key for key in free if first[self._stream[key[1]]] == key[1]]
