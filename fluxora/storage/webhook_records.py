"""What goes into the store of webhooks and what comes out of it. Times are Unix milliseconds by PostgreSQL's clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

import msgspec

from fluxora.protocol.messages import LogEvent
from fluxora.protocol.signing import Secret, delivery_id

DEFAULT_ENDPOINT: Final = "default"
"""The id of the endpoint that the configuration registers."""
DEFAULT_MAX_IN_FLIGHT: Final = 32
MAX_RESPONSE_CHARACTERS: Final = 1024

DeliveryStatus: TypeAlias = Literal["pending", "delivered", "dead"]
DisabledReason: TypeAlias = Literal["operator", "gone", "failing"]
AttemptOutcome: TypeAlias = Literal["delivered", "retry", "dead", "gone"]
ReplayScope: TypeAlias = Literal["failed", "all"]


class NewEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint to create. An empty filter takes everything; those that are not empty must all hold.

    `rate_limit` is the most deliveries a second, 0 for no limit; `max_in_flight` the most on their way at a time.
    """

    url: str
    description: str = ""
    events: tuple[str, ...] = ()
    stream_ids: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    ordered: bool = False
    rate_limit: int = 0
    max_in_flight: int = DEFAULT_MAX_IN_FLIGHT
    enabled: bool = True


class EndpointChanges(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be different about an endpoint; None leaves it as it is."""

    url: str | None = None
    description: str | None = None
    events: tuple[str, ...] | None = None
    stream_ids: tuple[str, ...] | None = None
    addresses: tuple[str, ...] | None = None
    ordered: bool | None = None
    rate_limit: int | None = None
    max_in_flight: int | None = None
    enabled: bool | None = None


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint as stored, without its secrets.

    What is recorded above `created_position` and matches is delivered, but for what was recorded while it was disabled
    (`disabled_reason` says by what: an operator, an answer of 410, five days of failures). `ordered` holds for what is
    recorded while it is set. `failing_since_ms` is the first failure since the last success. Until
    `secret_rotates_until_ms` deliveries are signed with the previous secret as well.
    """

    id: str
    url: str
    description: str
    events: tuple[str, ...]
    stream_ids: tuple[str, ...]
    addresses: tuple[str, ...]
    ordered: bool
    rate_limit: int
    max_in_flight: int
    enabled: bool
    disabled_reason: DisabledReason | None
    created_ms: int
    updated_ms: int
    created_position: int
    failing_since_ms: int | None
    last_success_ms: int | None
    secret_rotates_until_ms: int | None


class DeliveryTarget(msgspec.Struct, frozen=True):
    """Where an endpoint's deliveries go, and the active secrets, the current one first."""

    url: str
    secrets: tuple[Secret, ...]


class Due(msgspec.Struct, frozen=True, kw_only=True):
    """A delivery that a worker has claimed. `attempts` were made before; `secrets` are active, the current one first.

    `ordered`: later events of its stream wait for it. `endpoint_created_ms` tells its endpoint from a later one of the
    same id.
    """

    endpoint_id: str
    endpoint_created_ms: int
    url: str
    event: LogEvent
    attempts: int
    secrets: tuple[Secret, ...]
    ordered: bool

    @property
    def id(self) -> str:
        """The delivery's id."""
        return delivery_id(self.endpoint_id, self.event.position, self.event.event_id)


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """How an attempt at a claimed delivery ended.

    `retry`: again after `delay_ms`. `dead`: never again by itself. `gone`: the endpoint is to be disabled, and the
    delivery waits with what else is pending there. `status` is the answer's, None where there was none; `error` says
    why it failed. Of `response` the first 1,024 characters are kept. `url` is where it was sent to, as claimed: `gone`
    says nothing about an endpoint that has another one by now. `attempts` are those made before, as claimed: a delivery
    that was redelivered meanwhile stays due at once, unless this attempt has delivered it. `endpoint_created_ms` as
    claimed: what was sent to an endpoint that has been deleted says nothing about one that was made under its id since.
    """

    endpoint_id: str
    position: int
    outcome: AttemptOutcome
    delay_ms: int = 0
    status: int | None
    error: str | None
    latency_ms: int
    response: str = ""
    url: str | None = None
    attempts: int | None = None
    endpoint_created_ms: int | None = None


class Wish(msgspec.Struct, frozen=True):
    """What a worker would claim: up to `room`, none of the endpoints in `avoid`, one at a time of those in `single`.

    With `burying` it takes over, too, from those that have not renewed in time.
    """

    room: int
    avoid: Sequence[str] = ()
    single: Sequence[str] = ()
    burying: bool = True


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker's turn gave it.

    `next_due_ms` is the delay after which there may be more to claim (0: now), for a worker that has room left; None
    while only a ring can change that. `settled` counts the results that were taken: those of claims that were no longer
    this worker's are not. `disabled` are the endpoints that the results have disabled. `alive` is False where the
    worker was taken for dead: its claims are gone, and nothing was settled or claimed; it has to enlist again.
    """

    deliveries: list[Due]
    next_due_ms: int | None
    settled: int
    disabled: list[str]
    alive: bool


class Backlog(msgspec.Struct, frozen=True):
    """What waits at enabled endpoints, the age of the oldest (None: there is none), and the dead letters of all."""

    pending: int
    oldest_pending_ms: int | None
    dead_lettered: int


class DeliveryQuery(msgspec.Struct, frozen=True, kw_only=True):
    """A page of deliveries, newest first by when they took their status, behind the one whose id is `before`."""

    endpoint_id: str | None = None
    status: DeliveryStatus | None = None
    before: str | None = None
    limit: int = 20


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """A delivery as stored. `attempts` counts those since it was last sent anew by hand.

    `due_ms` is when the next attempt may be made, None when none follows; `finished_ms` when it was delivered or given
    up, None while it is pending.
    """

    endpoint_id: str
    position: int
    event_id: str
    event: str
    stream_id: str | None
    status: DeliveryStatus
    attempts: int
    due_ms: int | None
    created_ms: int
    finished_ms: int | None
    last_status: int | None
    last_error: str | None

    @property
    def id(self) -> str:
        """The delivery's id."""
        return delivery_id(self.endpoint_id, self.position, self.event_id)


class Attempt(msgspec.Struct, frozen=True):
    """An attempt that ended at `at_ms`; `number` counts from 1 over all of the delivery's life."""

    number: int
    at_ms: int
    status: int | None
    error: str | None
    latency_ms: int
    response: str


class DeliveryDetail(msgspec.Struct, frozen=True):
    """A delivery with its attempts, oldest first."""

    delivery: Delivery
    attempts: list[Attempt]


class Span(msgspec.Struct, frozen=True):
    """A part of the log to send again: above `after` and up to `until` (None: the log's end), and what of it."""

    after: int
    until: int | None
    only: ReplayScope


class Replayed(msgspec.Struct, frozen=True):
    """One piece of a replay: `count` deliveries were made pending; the log was looked through up to `through`.

    `uncertain` of them have no trace, and lie where deliveries that arrived have been purged: they may be such.
    """

    count: int
    uncertain: int
    through: int
    has_more: bool


class AdminEntry(msgspec.Struct, frozen=True):
    """Something that was done: by whom (a principal's id, or `fluxora`), what, to what, and more about it."""

    id: int
    at_ms: int
    actor: str
    action: str
    subject: str
    detail: dict[str, str]
