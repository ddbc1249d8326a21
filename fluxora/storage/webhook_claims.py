"""Turns: a worker says what has become of its deliveries, and gets others. Functions run on the bridge's thread.

A turn is one short transaction, and no lock outlives it:
- The rows of the endpoints concerned are locked, so that caps, rates and order hold over all replicas. Settling waits
  for them, in the order of their ids; claiming passes over those that another worker has locked.
- A claim is a row with the worker's name. A result counts only while that row is there, so a process that slept while
  others took its work over cannot overwrite theirs.
- Of a queue (one stream at an ordered endpoint) only the first pending delivery may be claimed. Others that are met
  are put aside as held, each once; when one is done, the next of its queue is let go.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

from fluxora.storage import webhook_pacing as pacing
from fluxora.storage.pool import Connection
from fluxora.storage.reads import log_event
from fluxora.storage.webhook_endpoints import active_secrets
from fluxora.storage.webhook_records import Due, Result, Turn, Wish
from fluxora.storage.webhook_settling import Settled, settle
from fluxora.storage.webhook_workers import Watch, bury, watch

LOOK_AHEAD: Final = 64  # deliveries that may be put aside in one turn, of each ordered endpoint
CONTENDED_MS: Final = 20  # until one looks again at what another worker has locked

# Tables of a queue are empty when a statement is planned and full when it runs, or the other way round: only plans that
# are good for both may be made, those by the indexes.
_BEGIN = """
BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off;
SET LOCAL enable_mergejoin = off; SET LOCAL enable_bitmapscan = off
"""

LOCK_DUE: Final = """
SELECT e.id, e.url, e.secret, e.previous_secret, e.previous_until_ms, e.ordered, e.rate_limit, e.max_in_flight,
    e.paced_us, e.created_ms
FROM webhook_endpoints e
WHERE e.enabled AND NOT e.deleted AND e.id <> ALL($1::text[]) AND EXISTS (
    SELECT FROM webhook_deliveries d
    WHERE d.endpoint_id = e.id AND d.status = 'pending' AND NOT d.held AND d.due_ms <= $2
)
FOR NO KEY UPDATE OF e SKIP LOCKED
"""

_CLAIMED = """
SELECT endpoint_id, count(*) AS claimed, count(*) FILTER (WHERE worker = $1) AS own
FROM webhook_claims GROUP BY endpoint_id
"""

PICK: Final = """
SELECT e.id, d.position, d.due_ms, d.attempts, d.queue IS NOT NULL AS ordered, d.queue IS NOT NULL AND EXISTS (
    SELECT FROM webhook_deliveries b
    WHERE b.endpoint_id = e.id AND b.queue = d.queue AND b.status = 'pending' AND b.position < d.position
) AS behind
FROM unnest($1::text[], $2::integer[]) AS e(id, most) CROSS JOIN LATERAL (
    SELECT p.position, p.due_ms, p.attempts, p.queue FROM webhook_deliveries p
    WHERE p.endpoint_id = e.id AND p.status = 'pending' AND NOT p.held AND p.due_ms <= $3
      AND NOT EXISTS (SELECT FROM webhook_claims c WHERE c.endpoint_id = p.endpoint_id AND c.position = p.position)
    ORDER BY p.due_ms, p.position LIMIT e.most
) AS d
"""

_HOLD = """
UPDATE webhook_deliveries d SET held = true FROM unnest($1::text[], $2::bigint[]) AS v(endpoint_id, position)
WHERE d.endpoint_id = v.endpoint_id AND d.position = v.position
"""

_CLAIM = """
WITH claimed AS (
    INSERT INTO webhook_claims (endpoint_id, position, worker)
    SELECT endpoint_id, position, $3 FROM unnest($1::text[], $2::bigint[]) AS v(endpoint_id, position)
    RETURNING endpoint_id, position
)
SELECT c.endpoint_id, v.position, v.event_id, v.event, v.action, v.stream_id, v.ledger, v.tx_hash, v.contract_id,
    v.timestamp_ms, v.payload
FROM claimed c JOIN events v ON v.position = c.position
"""

_PACE = """
UPDATE webhook_endpoints e SET paced_us = v.full_us FROM unnest($1::text[], $2::bigint[]) AS v(id, full_us)
WHERE e.id = v.id
"""

NEXT: Final = """
SELECT e.id, e.rate_limit, e.max_in_flight, e.paced_us, d.due_ms
FROM webhook_endpoints e CROSS JOIN LATERAL (
    SELECT p.due_ms FROM webhook_deliveries p
    WHERE p.endpoint_id = e.id AND p.status = 'pending' AND NOT p.held
      AND NOT EXISTS (SELECT FROM webhook_claims c WHERE c.endpoint_id = p.endpoint_id AND c.position = p.position)
    ORDER BY p.due_ms, p.position LIMIT 1
) AS d
WHERE e.enabled AND NOT e.deleted AND e.id <> ALL($1::text[])
"""


async def turn(connection: Connection, worker: str, results: Sequence[Result], wish: Wish) -> Turn:
    """Settle `results` and claim what is wished for. Where nothing changes, no flush is waited for."""
    await connection.execute(_BEGIN)
    try:
        moment = await watch(connection, worker)
        if moment is None:
            await connection.execute("ROLLBACK")
            return Turn(deliveries=[], next_due_ms=None, settled=0, disabled=[], alive=False)
        # After an outage all are overdue: one that is so itself, or only settles, leaves the others time to speak.
        burying = wish.burying and moment.deaths and not moment.expired and wish.room > 0
        buried = await bury(connection, worker, moment.now_ms) if burying else 0
        settled = await settle(connection, worker, results, moment.now_ms) if results else Settled(0, [])
        claim = _Claim(connection, worker, moment, wish)
        deliveries = await claim.take(0 if moment.expired else wish.room)
        next_due_ms = await claim.next_due_ms() if len(deliveries) < wish.room else None
        changed = buried or settled.count or deliveries or claim.put_aside
        await connection.execute("COMMIT" if changed else "ROLLBACK")
    except BaseException:
        await connection.execute("ROLLBACK")
        raise
    return Turn(
        deliveries=deliveries,
        next_due_ms=next_due_ms,
        settled=settled.count,
        disabled=settled.disabled,
        alive=True,
    )


class _Claim:
    """The second half of a turn: what may be claimed, and what is."""

    def __init__(self, connection: Connection, worker: str, moment: Watch, wish: Wish) -> None:
        self._connection = connection
        self._worker = worker
        self._moment = moment
        self._avoid = list(wish.avoid)
        self._single = frozenset(wish.single)
        self._burying = wish.burying
        self._locked: dict[str, Any] = {}
        self._claimed: Counter[str] = Counter()  # by endpoint, of all workers
        self._own: Counter[str] = Counter()  # by endpoint, of this one
        self._capacity = 0
        self.put_aside = 0

    async def take(self, room: int) -> list[Due]:
        """Claim up to `room`."""
        if room <= 0:
            return []
        rows = await self._connection.fetch(LOCK_DUE, self._avoid, self._moment.now_ms)
        self._locked = {row["id"]: row for row in rows}
        for row in await self._connection.fetch(_CLAIMED, self._worker):
            self._claimed[row["endpoint_id"]] = row["claimed"]
            self._own[row["endpoint_id"]] = row["own"]
        self._capacity = room + self._own.total()
        if not rows:
            return []
        chosen = self._allot(await self._candidates(room), room)
        return await self._claim(chosen) if chosen else []

    async def _candidates(self, room: int) -> list[Any]:
        """Due deliveries that nothing holds back, for each endpoint the oldest first; others are put aside."""
        most: dict[str, int] = {}
        for id_, row in self._locked.items():
            left = min(room, self._left(row), pacing.allowed(row["rate_limit"], row["paced_us"], self._moment.now_us))
            if left > 0:
                most[id_] = left + LOOK_AHEAD if row["ordered"] else left
        found = await self._connection.fetch(PICK, list(most), list(most.values()), self._moment.now_ms)
        behind = [row for row in found if row["behind"]]
        if behind:
            self.put_aside = len(behind)
            ids, positions = [row["id"] for row in behind], [row["position"] for row in behind]
            await self._connection.execute(_HOLD, ids, positions)
        return [row for row in found if not row["behind"]]

    def _left(self, endpoint: Any) -> int:
        """How many more of an endpoint this worker may have, apart from the rate.

        It never has more than half of what the other endpoints leave of its capacity, and so always keeps room for one
        that has nothing on its way yet.
        """
        id_ = endpoint["id"]
        own = self._own[id_]
        share = max(1, (self._capacity - (self._own.total() - own)) // 2)
        left: int = min(endpoint["max_in_flight"] - self._claimed[id_], share - own)
        return min(left, 1 - own) if id_ in self._single else left

    def _allot(self, candidates: Iterable[Any], room: int) -> list[Any]:
        """What is claimed of the candidates: the first of each endpoint, then the second of each, and so on."""
        ranks: Counter[str] = Counter()
        ranked = []
        for row in candidates:
            ranks[row["id"]] += 1
            ranked.append((ranks[row["id"]], row["due_ms"], row["position"], row["id"], row))
        allowed = {
            id_: pacing.allowed(row["rate_limit"], row["paced_us"], self._moment.now_us)
            for id_, row in self._locked.items()
        }
        chosen: list[Any] = []
        for *_, id_, row in sorted(ranked, key=lambda one: one[:4]):
            if len(chosen) == room:
                break
            if allowed[id_] > 0 and self._left(self._locked[id_]) > 0:
                allowed[id_] -= 1
                self._own[id_] += 1
                self._claimed[id_] += 1
                chosen.append(row)
        return chosen

    async def _claim(self, chosen: list[Any]) -> list[Due]:
        ids, positions = [row["id"] for row in chosen], [row["position"] for row in chosen]
        rows = await self._connection.fetch(_CLAIM, ids, positions, self._worker)
        events = {(row["endpoint_id"], row["position"]): log_event(row) for row in rows}
        counts = Counter(id_ for id_ in ids if self._locked[id_]["rate_limit"])
        if counts:
            full = []
            for id_, count in counts.items():
                endpoint = self._locked[id_]
                full.append(pacing.taken(endpoint["rate_limit"], endpoint["paced_us"], self._moment.now_us, count))
            await self._connection.execute(_PACE, list(counts), full)
        secrets = {id_: active_secrets(self._locked[id_], self._moment.now_ms) for id_ in set(ids)}
        return [
            Due(
                endpoint_id=row["id"],
                endpoint_created_ms=self._locked[row["id"]]["created_ms"],
                url=self._locked[row["id"]]["url"],
                event=events[row["id"], row["position"]],
                attempts=row["attempts"],
                secrets=secrets[row["id"]],
                ordered=row["ordered"],
            )
            for row in chosen
        ]

    async def next_due_ms(self) -> int | None:
        """The delay after which there may be more to claim; what a result of this worker's must precede is left out."""
        now_ms = self._moment.now_ms
        until = self._moment.others_until_ms if self._burying else None
        delays = [] if until is None else [max(0, until - now_ms) + 1]
        for row in await self._connection.fetch(NEXT, self._avoid):
            if self._left(row) <= 0:
                continue
            paced = pacing.wait_ms(row["rate_limit"], row["paced_us"], self._moment.now_us)
            delay = max(0, row["due_ms"] - now_ms, paced)
            delays.append(max(delay, 0 if row["id"] in self._locked else CONTENDED_MS))
        return min(delays, default=None)
