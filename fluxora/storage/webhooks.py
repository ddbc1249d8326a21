"""The store of webhooks: endpoints, their deliveries, and who is sending which. One method is one transaction.

Every method raises StorageUnavailable when PostgreSQL cannot answer; see `Store`. `actor` is the id of the principal
whom the admin log names. Times and due times are PostgreSQL's, so that the clocks of replicas do not matter.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, TypeVarTuple

import trio

from fluxora.config import WebhookConfig
from fluxora.protocol.signing import Secret
from fluxora.storage import admin_log
from fluxora.storage import webhook_claims as claims
from fluxora.storage import webhook_deliveries as deliveries
from fluxora.storage import webhook_endpoints as endpoints
from fluxora.storage import webhook_tallies as tallies
from fluxora.storage import webhook_workers as workers
from fluxora.storage.webhook_records import (
    DEFAULT_ENDPOINT,
    AdminEntry,
    Backlog,
    Delivery,
    DeliveryDetail,
    DeliveryQuery,
    DeliveryTarget,
    Endpoint,
    EndpointChanges,
    NewEndpoint,
    Replayed,
    ReplayScope,
    Result,
    Span,
    Turn,
    Wish,
)

CLEARED_AT_ONCE = 5_000

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Run(Protocol):
    """Runs a unit of work on a connection, with a deadline."""

    async def __call__(self, unit: Callable[[Any, *Ts], Awaitable[T]], *args: *Ts) -> T:
        """Await `unit(connection, *args)` on the bridge's thread."""
        ...


class WebhookStore:
    """Made by `Store`, which lends it the two ways of running a unit of work."""

    def __init__(self, read: Run, write: Run) -> None:
        self._read = read
        self._write = write

    # -- endpoints -----------------------------------------------------------------------------------------------------

    async def create(
        self, new: NewEndpoint, secret: Secret, actor: str, *, most: int = WebhookConfig.max_endpoints
    ) -> Endpoint:
        """Register an endpoint. It gets every event that is recorded above `created_position` and matches.

        Raises:
            TooManyEndpoints: there are `most` already, that of the configuration not counted.
        """
        return await self._write(endpoints.create, new, secret, actor, most)

    async def endpoints(self) -> list[Endpoint]:
        """All of them, in the order of their creation."""
        return await self._read(endpoints.endpoints)

    async def endpoint(self, endpoint_id: str) -> Endpoint | None:
        """One of them; None where there is none."""
        return await self._read(endpoints.endpoint, endpoint_id)

    async def target(self, endpoint_id: str) -> DeliveryTarget | None:
        """Where one's deliveries go and how they are signed; None where there is none."""
        return await self._read(endpoints.target, endpoint_id)

    async def update(self, endpoint_id: str, changes: EndpointChanges, actor: str) -> Endpoint | None:
        """Change one; it holds for what is recorded from then on. None where there is none.

        Enabling one forgets its failures, and what is pending there goes on.
        """
        return await self._write(endpoints.update, endpoint_id, changes, actor)

    async def delete(self, endpoint_id: str, actor: str) -> bool:
        """Delete one; False where there is none. Its deliveries are gone at once, their rows by and by (`purge`)."""
        return await self._write(endpoints.delete, endpoint_id, actor)

    async def rotate(self, endpoint_id: str, secret: Secret, grace_ms: int, actor: str) -> Endpoint | None:
        """Sign with `secret` from now on, and for `grace_ms` with the one before as well. None where there is none."""
        return await self._write(endpoints.rotate, endpoint_id, secret, grace_ms, actor)

    async def ensure_default(self, url: str, secret: Secret) -> Endpoint:
        """Register the endpoint of the configuration, or bring it up to that. Does nothing where it is so already.

        Another URL enables it; another secret is a rotation with a day's grace.
        """
        while await self._write(deliveries.clear, DEFAULT_ENDPOINT, CLEARED_AT_ONCE) == CLEARED_AT_ONCE:
            await trio.lowlevel.checkpoint()
        return await self._write(endpoints.ensure_default, url, secret)

    # -- sending -------------------------------------------------------------------------------------------------------

    async def enlist(self, worker: str, life_ms: int) -> None:
        """Begin to send as `worker`, an id that nobody had before. Unless renewed, it is dead after `life_ms`."""
        await self._write(workers.enlist, worker, life_ms)

    async def renew(self, worker: str, life_ms: int) -> bool:
        """Live on for `life_ms`. False: it was taken for dead, and others have its claims; it has to enlist again."""
        return await self._write(workers.renew, worker, life_ms)

    async def retire(self, worker: str) -> None:
        """Stop sending; what the worker still has claimed can be claimed by others at once."""
        await self._write(workers.retire, worker)

    async def turn(
        self,
        worker: str,
        results: Sequence[Result],
        room: int,
        avoid: Sequence[str],
        single: Sequence[str],
        *,
        burying: bool = True,
    ) -> Turn:
        """Settle attempts that have ended, and claim up to `room` deliveries that are due, in one transaction.

        Nothing is claimed of the endpoints in `avoid`, and of those in `single` only while the worker has none of
        theirs, and then one. Of what the other endpoints leave of the worker's capacity (the room and what it has
        claimed) none has more than half, so that there is always some left. A result of a claim that is no longer the
        worker's is not taken; one that is given twice counts once. Without `burying` nobody is taken for dead.
        """
        return await self._write(claims.turn, worker, results, Wish(room, avoid, single, burying))

    async def backlog(self) -> Backlog:
        """How much waits. Its cost does not grow with that."""
        return await self._read(tallies.backlog)

    # -- deliveries ----------------------------------------------------------------------------------------------------

    async def deliveries(self, query: DeliveryQuery) -> list[Delivery]:
        """A page of deliveries, newest first."""
        return await self._read(deliveries.deliveries, query)

    async def delivery(self, delivery_id: str) -> DeliveryDetail | None:
        """One delivery with its attempts; None where there is none."""
        return await self._read(deliveries.delivery, delivery_id)

    async def redeliver(self, delivery_id: str, actor: str) -> Delivery | None:
        """Send one again, whatever became of it: due at once, with all attempts before it. None where there is none."""
        return await self._write(deliveries.redeliver, delivery_id, actor)

    async def replay(
        self, endpoint_id: str, after: int, until: int | None, only: ReplayScope, actor: str
    ) -> Replayed | None:
        """Send a part of the log again, what lies above `after` and up to `until` (None: the log's end) and matches.

        `failed`: what was dead-lettered or never recorded for the endpoint, and what was purged, which leaves no trace
        that would tell it from that (`Replayed.uncertain`); `all`: also what was delivered. What is pending stays so.
        One call looks through a bounded piece; the next one goes on behind `through`. None where there is no such
        endpoint.
        """
        return await self._write(deliveries.replay, endpoint_id, Span(after, until, only), actor)

    async def purge(self, age_ms: int, limit: int) -> int:
        """Delete up to `limit` deliveries that are finished for longer than `age_ms`, or whose endpoint was deleted.

        The number of them; less than `limit` says that nothing is left.
        """
        return await self._write(deliveries.purge, age_ms, limit)

    async def note(self, actor: str, action: str, subject: str, detail: Mapping[str, object]) -> None:
        """Add what changes nothing here to the admin log. `detail` holds no secret."""
        await self._write(admin_log.add, actor, action, subject, detail)

    async def purge_admin_log(self, age_ms: int, limit: int) -> int:
        """Delete up to `limit` entries of the admin log that are older than `age_ms`; the number of them."""
        return await self._write(admin_log.purge, age_ms, limit)

    async def admin_log(self, after: int, limit: int) -> list[AdminEntry]:
        """What was done, oldest first, behind the entry `after`."""
        return await self._read(admin_log.entries, after, limit)
