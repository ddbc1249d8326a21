"""A store with endpoints and recorded events for the tests of webhooks, and what the tables say about deliveries."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
import trio
from scripted import ACCOUNTS, DECIMALS, execute, query

from fluxora.config import StorageConfig
from fluxora.protocol.lifecycle import NewStream
from fluxora.protocol.signing import Secret
from fluxora.protocol.streams import StreamStatus
from fluxora.storage import lease as leases
from fluxora.storage.lease import Lease
from fluxora.storage.store import Change, Create, Store, open_store
from fluxora.storage.webhook_records import Due, Endpoint, NewEndpoint, Result, Turn

SECRET = Secret.from_bytes(bytes(range(32)))
URL = "https://consumer.example/hook"
HOUR_MS = 3_600_000
LIFE_MS = HOUR_MS  # of workers that are not meant to die


@asynccontextmanager
async def opened(config: StorageConfig) -> AsyncIterator[tuple[Store, Lease]]:
    """A store and its ingest lease."""
    async with open_store(config, decimals=DECIMALS) as store:
        lease = None
        while lease is None:  # the server may not have ended the last holder's connection yet
            lease = await store.try_lease()
        yield store, lease
        await lease.aclose()


async def endpoint(store: Store, **fields: Any) -> Endpoint:
    return await store.webhooks.create(NewEndpoint(**{"url": URL, **fields}), SECRET, "test")


def create(number: int | str | None = None, recipient: str = ACCOUNTS[1]) -> Create:
    new = NewStream(sender=ACCOUNTS[0], recipient=recipient, deposit_amount=10**10, rate_per_second=1)
    name = uuid.uuid4().hex if number is None else number
    return Create(f"stream-{name}", str(uuid.uuid4()), new, None)


async def record(store: Store, streams: int, changes: int = 0) -> None:
    """Register streams 0 to `streams` - 1, and pause and resume each in turn: `streams` * (1 + `changes`) events."""
    commands: list[Create | Change] = [create(number) for number in range(streams)]
    for turn in range(changes):
        to = StreamStatus.ACTIVE if turn % 2 else StreamStatus.PAUSED
        commands += [Change(f"stream-{number}", str(uuid.uuid4()), to) for number in range(streams)]
    for first in range(0, len(commands), 200):
        await store.register(commands[first : first + 200])


def result(due: Due, outcome: str = "delivered", **fields: Any) -> Result:
    plain = {"status": 200, "error": None, "latency_ms": 5, "response": "ok"}
    if outcome != "delivered":
        plain = {"status": 500, "error": "answered 500", "latency_ms": 7, "response": "no"}
    told = {"attempts": due.attempts, **plain, **fields}
    return Result(endpoint_id=due.endpoint_id, position=due.event.position, outcome=outcome, **told)


async def enlisted(store: Store, *workers: str) -> None:
    for worker in workers:
        await store.webhooks.enlist(worker, LIFE_MS)


async def claim(store: Store, worker: str = "w", room: int = 1_000, **wish: list[str]) -> Turn:
    return await store.webhooks.turn(worker, [], room, wish.get("avoid", []), wish.get("single", []))


async def settle(store: Store, *results: Result, worker: str = "w") -> Turn:
    return await store.webhooks.turn(worker, results, 0, [], [])


def positions(turn: Turn) -> list[int]:
    return [due.event.position for due in turn.deliveries]


async def rows(store: Store) -> dict[tuple[str, int], asyncpg.Record]:
    """Every delivery, by endpoint and position."""
    found = await query(store.url, "SELECT * FROM webhook_deliveries")
    return {(row["endpoint_id"], row["position"]): row for row in found}


async def pass_time(store: Store, ms: int = 100 * HOUR_MS) -> None:
    """As if so much later: what is pending is due sooner, and rates have recovered."""
    await execute(
        store.url,
        [
            f"UPDATE webhook_deliveries SET due_ms = due_ms - {ms} WHERE status = 'pending'",
            f"UPDATE webhook_endpoints SET paced_us = paced_us - {ms}000",
        ],
    )


async def check_tables(url: str) -> None:
    """What holds after any transaction."""
    counted = await query(
        url,
        "SELECT endpoint_id, count(*) FILTER (WHERE status = 'pending') AS pending, "
        "count(*) FILTER (WHERE status = 'dead') AS dead FROM webhook_deliveries GROUP BY endpoint_id",
    )
    summed = await query(
        url,
        "SELECT endpoint_id, sum(pending)::bigint AS pending, sum(dead)::bigint AS dead FROM webhook_tallies "
        "GROUP BY endpoint_id",
    )
    nothing = (0, 0)
    assert {row["endpoint_id"]: tuple(row)[1:] for row in counted if tuple(row)[1:] != nothing} == {
        row["endpoint_id"]: tuple(row)[1:] for row in summed if tuple(row)[1:] != nothing
    }
    strays = await query(
        url,
        "SELECT c.* FROM webhook_claims c LEFT JOIN webhook_deliveries d USING (endpoint_id, position) "
        "LEFT JOIN webhook_workers w ON w.id = c.worker WHERE d.status IS DISTINCT FROM 'pending' OR w.id IS NULL",
    )
    assert strays == []
    heads = await query(
        url,
        "SELECT endpoint_id, queue FROM webhook_deliveries WHERE status = 'pending' AND queue IS NOT NULL "
        "GROUP BY 1, 2 HAVING (array_agg(held ORDER BY position))[1]",
    )
    assert heads == []  # the first of a queue is never held


def matches(endpoint_: Endpoint, event: asyncpg.Record) -> bool:
    """The rule of the wire contract, in other words than the program's."""
    payload = json.loads(event["payload"])
    shown = payload["stream"] if event["event"] == "stream.reverted" else payload
    named = {(shown or {}).get("sender"), (shown or {}).get("recipient")}
    change = (shown or {}).get("change") or {}
    named |= {change.get("oldSender"), change.get("oldRecipient")}
    if event["stream_id"] is None:
        named = set()
    return (
        (not endpoint_.events or event["event"] in endpoint_.events)
        and (not endpoint_.stream_ids or event["stream_id"] in endpoint_.stream_ids)
        and (not endpoint_.addresses or bool(named & set(endpoint_.addresses)))
    )


async def owed(url: str, endpoints: Sequence[Endpoint]) -> set[tuple[str, int]]:
    """The deliveries that there must be: what matches above `created_position`, and what takes such an event back."""
    log = await query(url, "SELECT * FROM events ORDER BY position")
    due: set[tuple[str, int]] = set()
    for each in endpoints:
        mine = [row for row in log if row["position"] > each.created_position]
        told = {row["position"] for row in mine if matches(each, row)}
        if not each.events or "stream.reverted" in each.events:
            told |= {row["reverted_by"] for row in mine if row["position"] in told and row["reverted_by"] is not None}
        due |= {(each.id, position) for position in told}
    return due


class Faults:
    """Cuts a connection of the store at one of its statements, before the server has it or after it was carried out."""

    METHODS = ("execute", "fetch", "fetchrow", "fetchval", "copy_to_table")

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.statements: list[str] = []
        self._at: int | None = None
        self._after = False
        for name in self.METHODS:
            patch.setattr(asyncpg.Connection, name, self._wrapped(getattr(asyncpg.Connection, name)))

    def arm(self, at: int | None, *, after: bool = False) -> None:
        """Count statements from here on, and cut the connection at the `at`-th."""
        self.statements = []
        self._at, self._after = at, after

    def _wrapped(self, method: Any) -> Any:
        async def wrapped(connection: Any, *args: Any, **kwargs: Any) -> Any:
            if args[:1] == (leases._CUT_HUNG,):  # it comes when it likes, and is no part of what is cut
                return await method(connection, *args, **kwargs)
            self.statements.append(str(args[0]).strip() if args else "")
            here = self._at is not None and len(self.statements) == self._at
            answer = None
            if not here or self._after:
                answer = await method(connection, *args, **kwargs)
            if here:
                self._at = None
                connection.terminate()
                raise asyncpg.ConnectionDoesNotExistError("cut by the test")
            return answer

        wrapped.__name__ = method.__name__
        wrapped.__doc__ = method.__doc__
        return wrapped


async def quiet(url: str) -> None:
    """Wait until no connection of the store is in a transaction, so that one that was cut is rolled back."""
    with trio.fail_after(20):
        while await query(
            url,
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
            "AND backend_type = 'client backend' AND state <> 'idle'",
        ):
            await trio.sleep(0.01)
