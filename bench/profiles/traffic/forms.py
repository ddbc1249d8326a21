"""What a scenario of the mixed load is: requests, each due at a moment, followers, each of whom stays, or receivers."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Protocol

from bench.profiles.scene import Scene


class Wrong(Exception):
    """The server did not do what it should; carries why, in few words and without what differs each time."""


class Asked(Protocol):
    """One request on its way."""

    @property
    def octets(self) -> bytes:
        """All of it."""

    def judge(self, status: int, body: bytes) -> tuple[str, ...]:
        """What the server says is stored: event ids as the network has them, or ids of streams.

        Raises:
            Wrong: it is not the answer that is due.
        """


class Requests(ABC):
    """A scenario of requests. `connections`: how many it may use at a time, None for as many as the run has.

    With one connection its requests are answered in order, and share it with no other scenario.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    weight: ClassVar[float]
    connections: ClassVar[int | None]

    @abstractmethod
    def __init__(self, scene: Scene, chance: random.Random) -> None: ...

    @abstractmethod
    def ask(self, due_s: float) -> Asked:
        """The request that is due at a moment of the run."""


class Sort(Enum):
    """What a message to a follower is: its beginning, an event, a ping to answer, the end, or nothing of these."""

    START = "start"
    EVENT = "event"
    PING = "ping"
    END = "end"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Message:
    """One message; `end` is the offset behind it."""

    sort: Sort
    end: int
    position: int = 0
    event_id: bytes = b""


class Followers(ABC):
    """A scenario of followers: connections that are told of events until they close. `latency` names its metric."""

    name: ClassVar[str]
    summary: ClassVar[str]
    weight: ClassVar[float]
    latency: ClassVar[str]
    pong: ClassVar[bytes]

    @abstractmethod
    def hello(self, scene: Scene, follows: str) -> bytes:
        """The request that opens one. `follows`: the id of a stream, or "*"."""

    @abstractmethod
    def welcome(self, head: bytes, follows: str) -> bytes:
        """What is sent once the head of the answer is there.

        Raises:
            Wrong: it is a refusal.
        """

    @abstractmethod
    def messages(self, octets: bytearray) -> Iterator[Message]:
        """The whole messages at the beginning of these bytes."""


@dataclass(frozen=True, slots=True)
class Registered:
    """An endpoint: what is behind position `start` comes, signed with the secret."""

    id: str
    start: int
    secret: str

    def __repr__(self) -> str:
        return f"Registered({self.id}, {self.start})"


class Receivers(ABC):
    """A scenario of receivers: endpoints of this machine that the server sends events to. `latency` names its metric.

    They are weighed among the followers.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    weight: ClassVar[float]
    latency: ClassVar[str]

    @abstractmethod
    def register(self, scene: Scene, url: str, follows: str) -> bytes:
        """The request that makes an endpoint. `follows`: the id of a stream, whose order is kept, or "*"."""

    @abstractmethod
    def registered(self, status: int, body: bytes) -> Registered:
        """What the answer says of it.

        Raises:
            Wrong: it is a refusal.
        """

    @abstractmethod
    def remove(self, scene: Scene, endpoint: Registered) -> bytes:
        """The request that takes it away."""

    @abstractmethod
    def event(self, headers: Sequence[tuple[str, str]], body: bytes, endpoint: Registered) -> Message:
        """What a request to the endpoint tells.

        Raises:
            Wrong: it is no delivery to it.
        """


def one_in(chance: random.Random, names: list[str]) -> str:
    """Any of the names."""
    return names[int(chance.random() * len(names))]
