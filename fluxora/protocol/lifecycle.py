"""Streams that are registered over the API: how one begins, and which status may follow which.

No chain tells of them, so these rules are all that moves them. What a step sets is what the fold sets for the chain's
event of that name, and a stream is worth what the contract's functions make of its state (see `messages.worth`: an end
time of 0 means that there is none).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec.structs import replace

from fluxora.errors import BadRequest, Conflict
from fluxora.protocol.amounts import DEFAULT_DECIMALS, format_amount
from fluxora.protocol.messages import STATUS_NAMES
from fluxora.protocol.streams import StreamState, StreamStatus

if TYPE_CHECKING:
    from collections.abc import Callable

DECIMALS: Final = DEFAULT_DECIMALS
"""Fraction digits of a registered stream's amounts: there is no contract that says otherwise."""

_ACTIVE, _PAUSED, _COMPLETED, _CANCELLED = StreamStatus
_OUT_OF_RANGE: Final = "OUT_OF_RANGE"
_INVALID_TRANSITION: Final = "INVALID_TRANSITION"


class NewStream(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asks for, its fields checked one by one: amounts in base units, times in Unix seconds.

    Absent times: the start is the second of the registration, the cliff (0 too) is the start, and there is no end.
    """

    sender: str
    recipient: str
    deposit_amount: int
    rate_per_second: int
    start_time: int | None = None
    cliff_time: int | None = None
    end_time: int | None = None


class Step(msgspec.Struct, frozen=True, gc=False):
    """One change of a registered stream: the state after it, and the log's `event`, `action` and `change` for it."""

    state: StreamState
    event: str
    action: str
    change: dict[str, Any]


def begin(new: NewStream, at: int) -> Step:
    """The registration of `new` at second `at`.

    Raises:
        BadRequest: its times are not in order; every one that is wrong is named.
    """
    start = at if new.start_time is None else new.start_time
    cliff, end = new.cliff_time or start, new.end_time or 0
    details = []
    if end and end <= start:
        details.append(("endTime", _OUT_OF_RANGE, "endTime must be after startTime; 0 means that there is no end"))
    if cliff < start:
        text = "cliffTime must not be before startTime; 0 means that there is none"
        details.append(("cliffTime", _OUT_OF_RANGE, text))
    elif end > start and cliff > end:
        details.append(("cliffTime", _OUT_OF_RANGE, "cliffTime must not be after endTime"))
    if details:
        raise BadRequest("The times of the stream are not in order", details=details)
    state = StreamState(
        sender=new.sender,
        recipient=new.recipient,
        deposit_amount=new.deposit_amount,
        rate_per_second=new.rate_per_second,
        start_time=start,
        cliff_time=cliff,
        end_time=end,
        checkpointed_at=start,
    )
    return Step(state, "stream.created", "created", _given(new))


def change_status(state: StreamState, to: StreamStatus, at: int) -> Step:
    """The stream's step to the status `to` at second `at`.

    Raises:
        Conflict: no such step leads on from its status.
    """
    step = _STEPS.get((state.status, to))
    was, wanted = STATUS_NAMES[state.status], STATUS_NAMES[to]
    if step is None:
        after = [STATUS_NAMES[there] for here, there in _STEPS if here == state.status]
        text = f"The stream is {was}; it can be {' or '.join(after)} next" if after else f"The stream is {was} for good"
        raise Conflict(text, details=[("status", _INVALID_TRANSITION, f"{wanted} cannot follow {was}")])
    event, action, changes = step
    return Step(replace(state, status=to, **changes(state, at)), event, action, {"from": was, "to": wanted})


def _given(new: NewStream) -> dict[str, Any]:
    """What the client gave, as clients know it."""
    given: dict[str, Any] = {
        "sender": new.sender,
        "recipient": new.recipient,
        "depositAmount": format_amount(new.deposit_amount, DECIMALS),
        "ratePerSecond": format_amount(new.rate_per_second, DECIMALS),
    }
    times = (("startTime", new.start_time), ("cliffTime", new.cliff_time), ("endTime", new.end_time))
    given.update((name, second) for name, second in times if second is not None)
    return given


def _pause(_state: StreamState, at: int) -> dict[str, Any]:
    return {"paused_at_timestamp": at}


def _resume(state: StreamState, at: int) -> dict[str, Any]:
    paused_s = max(0, at - state.paused_at_timestamp)  # clocks of two replicas may differ
    return {"paused_at_timestamp": 0, "cumulative_paused_duration": state.cumulative_paused_duration + paused_s}


def _complete(state: StreamState, _at: int) -> dict[str, Any]:
    """Everything is paid: a completed stream has streamed its deposit and owes nothing."""
    return {"withdrawn_amount": state.deposit_amount, "paid_out": state.deposit_amount}


def _cancel(_state: StreamState, at: int) -> dict[str, Any]:
    return {"cancelled_at": at}


_STEPS: Final[
    dict[tuple[StreamStatus, StreamStatus], tuple[str, str, Callable[[StreamState, int], dict[str, Any]]]]
] = {
    (_ACTIVE, _PAUSED): ("stream.updated", "paused", _pause),
    (_ACTIVE, _COMPLETED): ("stream.updated", "completed", _complete),
    (_ACTIVE, _CANCELLED): ("stream.cancelled", "cancelled", _cancel),
    (_PAUSED, _ACTIVE): ("stream.updated", "resumed", _resume),
    (_PAUSED, _CANCELLED): ("stream.cancelled", "cancelled", _cancel),
}
