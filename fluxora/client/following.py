"""What a correct client of `/ws/streams` knows and does, without a socket: the rules, to be read and to be copied.

It follows one or more selectors over as many connections as it takes, and hands on each event once.

- A position belongs to a subscription: `after` is where everything that its selector matches has been had. A new
  connection subscribes again from there.
- Subscriptions are made one after the other, each when the one before is acknowledged. So at most one is catching up,
  and a `reset`, which names no subscription, can only mean that one.
- While one catches up, its history comes mixed with what is new to the others, and an event does not say whose it is.
  So an event moves `after` only where that is certain. All else is remembered by its position, and known again when a
  cut makes a subscription tell it once more.
- Once all are acknowledged, events come in the order of the log, and each one moves them all.

With one selector this is the simple rule: keep the last position, and subscribe behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from fluxora.errors import FollowRefused, FollowReset
from fluxora.protocol.close_codes import CLOSE_CODES, Reconnect
from fluxora.protocol.sockets import Selector

SUBPROTOCOL: Final = "fluxora.v2"
MOST_SELECTORS: Final = 30  # a connection may send that many messages in 10 s, and begins with one for each
FIRST_DELAY_S: Final = 0.5
MOST_DELAY_S: Final = 30.0
PAUSE_S: Final = 10.0  # the window in which messages are counted
MOST_PATIENCE_S: Final = 300.0  # of what a server may ask for
MOST_SAID: Final = 300  # characters of what a server says that are repeated to the user

_MEMBERS: Final = {"stream": "streamId", "sender": "sender", "recipient": "recipient", "all": "streamId"}
_AFTER_CLOSE: Final[dict[int, Reconnect]] = {close.code: close.reconnect for close in CLOSE_CODES}


class Update(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """One event of the log; `text` is the message as it came."""

    position: int
    event: str
    event_id: str
    action: str
    stream_id: str | None = None
    ledger: int | None = None
    timestamp: str
    payload: msgspec.Raw
    text: str = ""


class _Message(msgspec.Struct, frozen=True):
    """What every kind of message may have beside what an update has."""

    type: str
    ref: str | None = None
    position: str | None = None
    reason: str = ""
    code: str = ""
    message: str = ""


_read_message: Final = msgspec.json.Decoder(_Message).decode
_read_update: Final = msgspec.json.Decoder(Update, strict=False).decode  # a position is digits in a string


class Following:
    """What one client has had of the log. `after` None begins with what is new once the first subscription stands."""

    def __init__(self, selectors: Sequence[Selector], after: int | None = None) -> None:
        self._after: dict[Selector, int | None] = dict.fromkeys(selectors, after)
        self._had: set[int] = set()  # positions above the lowest `after`
        self._acknowledged: dict[Selector, int] = {}  # on this connection
        self._asked: Selector | None = None

    @property
    def live(self) -> bool:
        """Whether every subscription stands on this connection: what is had from now on is new."""
        return len(self._acknowledged) == len(self._after)

    @property
    def after(self) -> int | None:
        """Everything up to here has been had; None where nothing has begun yet."""
        return min((after for after in self._after.values() if after is not None), default=None)

    @property
    def _ref(self) -> str:
        return str(len(self._acknowledged))

    def connected(self) -> None:
        """A new connection stands, on which nothing has been said yet."""
        self._acknowledged.clear()
        self._asked = None

    def ask(self) -> str | None:
        """The message to send now; None while there is none."""
        if self._asked is not None or self.live:
            return None
        selector = next(one for one in self._after if one not in self._acknowledged)
        self._asked = selector
        value = "*" if selector.kind == "all" else selector.value
        message: dict[str, Any] = {"type": "subscribe", _MEMBERS[selector.kind]: value, "ref": self._ref}
        after = self._after[selector]
        if after is not None:
            message["after"] = str(after)
        return msgspec.json.encode(message).decode()

    def take(self, text: str) -> Update | str | None:
        """Take a message in: an event that was not had before, a line for the user, or None.

        Raises:
            FollowReset: what was missed cannot be told whole.
            FollowRefused: the server does not take a subscription, or says what no such server says.
        """
        try:
            message = _read_message(text)
            if message.type == "stream_update":
                return self._update(msgspec.structs.replace(_read_update(text), text=text))
            if message.type == "ack" and self._asked is not None and message.ref == self._ref:
                return self._acknowledge(self._asked, int(message.position or ""))
        except (msgspec.MsgspecError, ValueError) as error:
            raise FollowRefused(f"This is no {SUBPROTOCOL} that the server speaks: {error}") from error
        if message.type == "reset":
            position = None if message.position is None else message.position[:20]
            raise FollowReset(message.reason[:MOST_SAID], position=position, after=self.after)
        if message.type == "error":
            said = f"{message.code}: {message.message}"[:MOST_SAID]
            raise FollowRefused(f"The server does not take a subscription: {said}")
        if message.type in {"service.degraded", "service.recovered"}:
            return f"{message.type}: {message.reason[:MOST_SAID]}"
        return None

    def _update(self, update: Update) -> Update | None:
        position, asked, lowest = update.position, self._asked, self.after or 0
        new = position > lowest and position not in self._had
        if self.live:
            self._after = {one: max(position, after or 0) for one, after in self._after.items()}
            if self._had:
                self._forget()
        elif asked is not None and all(position <= acknowledged for acknowledged in self._acknowledged.values()):
            self._after[asked] = position  # nobody else has it to tell: those that stand tell what is above their own
        if position > (self.after or 0):
            self._had.add(position)
        return update if new else None

    def _acknowledge(self, selector: Selector, position: int) -> str | None:
        if self._after[selector] is None:
            self._after = dict.fromkeys(self._after, position)  # where the first one begins, all of them begin
        self._after[selector] = position
        self._acknowledged[selector] = position
        self._asked = None
        self._forget()
        return f"connected, at position {position}" if self.live else None

    def _forget(self) -> None:
        """What is at or below every `after` cannot be told again."""
        lowest = self.after or 0
        self._had = {position for position in self._had if position > lowest}


def after_close(code: int | None) -> Reconnect:
    """What to do once a connection has ended with that close code; None where it broke without one."""
    return _AFTER_CLOSE.get(code or 0, "resume")


class Backoff:
    """How long to wait before the next connection: longer with each one that came to nothing, and never in step."""

    def __init__(self) -> None:
        self._failures = 0

    def reset(self) -> None:
        """A connection was of use."""
        self._failures = 0

    def delay_s(self, then: Reconnect, chance: float, *, asked_s: float = 0.0) -> float:
        """Seconds to wait; `chance` is from 0 to 1, `asked_s` what the server asks for (Retry-After)."""
        most = min(MOST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(self._failures, 10))
        self._failures += 1
        least = max(PAUSE_S if then == "after_pause" else 0.0, min(asked_s, MOST_PATIENCE_S))
        return least + most * (0.5 + chance / 2)
