"""What the HTTP front stands on: the store, the push source, the health report and the bounds it keeps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import trio

from fluxora.actors.status import HealthReport
from fluxora.config import HttpConfig
from fluxora.protocol.contract import ContractEvent
from fluxora.storage.store import Store


class Pushed(Protocol):
    """What became of a pushed batch. Ids are the network's event ids."""

    @property
    def inserted(self) -> Sequence[str]:
        """Recorded by this call."""
        ...

    @property
    def duplicates(self) -> Sequence[str]:
        """Recorded before."""
        ...

    @property
    def position(self) -> int:
        """Position of the log after it."""
        ...

    @property
    def rolled_back_from(self) -> int | None:
        """First ledger that a contradicting hash undid, if any."""
        ...

    @property
    def rolled_back(self) -> int:
        """Number of events undone."""
        ...


class Push(Protocol):
    """The way into the pipeline for events that arrive over HTTP."""

    async def submit(self, events: Sequence[ContractEvent], hashes: Mapping[int, str]) -> Pushed:
        """Record the events (ascending by id) of the ledgers whose hashes are given; returns once they are committed.

        Raises:
            StorageUnavailable: the database is away; nothing was half stored.
            LeaseLost, Unavailable: this replica does not ingest now.
        """
        ...


class Listening(msgspec.Struct, frozen=True):
    """Where the front accepts connections."""

    host: str
    port: int


@dataclass
class Backend:
    """Handed to every handler. `clock` returns Unix seconds; setting `stopping` starts the graceful stop."""

    config: HttpConfig
    store: Store
    push: Push | None
    health: Callable[[], HealthReport]
    version: str
    clock: Callable[[], float] = time.time
    stopping: trio.Event = field(default_factory=trio.Event)
