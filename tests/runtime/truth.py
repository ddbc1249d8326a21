"""What a database must hold after following a local network: judged against the network's own books."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import msgspec
import trio
from waiting import eventually

from fluxora.localnet import BulkHistory, Network
from fluxora.protocol.streams import StreamState, unpack_state
from fluxora.storage.bridge import Bridge, open_bridge

# No event tells these, and nothing is worth more or less by them: a flag of the creation, and whether a payment was
# part of a cancellation in bulk. They are known where the stream's entry was read for another reason.
NOT_TOLD = ("irrevocable", "last_withdraw_ledger")
LIVE_CHAIN_EVENTS = """
    SELECT event_id, tx_hash, ledger, timestamp_ms, contract_id, stream_id, event, action, raw,
           payload->>'change' AS change
    FROM events
    WHERE reverted_by IS NULL AND raw IS NOT NULL AND action <> 'corrected' AND event_id NOT LIKE '%.1'
    ORDER BY event_id
"""


class Books:
    """A connection of the test's own to a database; made again after a failure. Whoever asks waits for their turn."""

    def __init__(self, bridge: Bridge, url: str) -> None:
        self.url = url
        self._bridge = bridge
        self._connection: asyncpg.Connection | None = None
        self._turn = trio.Lock()

    async def rows(self, text: str, *args: Any) -> list[asyncpg.Record]:
        async def ask() -> list[asyncpg.Record]:
            if self._connection is None or self._connection.is_closed():
                self._connection = await asyncpg.connect(self.url, timeout=10)
            try:
                return await self._connection.fetch(text, *args, timeout=60)
            except BaseException:
                self._connection.terminate()
                raise

        async with self._turn:
            return await self._bridge.run(ask, deadline_s=80)

    async def value(self, text: str, *args: Any) -> Any:
        return (await self.rows(text, *args))[0][0]

    async def position(self) -> int:
        """Of the log; 0 while there is no schema, -1 while PostgreSQL does not answer."""
        try:
            return int(await self.value("SELECT position FROM log_head"))
        except asyncpg.UndefinedTableError:
            return 0
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return -1

    async def close(self) -> None:
        async def end() -> None:
            if self._connection is not None:
                self._connection.terminate()

        await self._bridge.run(end)


@asynccontextmanager
async def open_books(url: str) -> AsyncIterator[Books]:
    async with open_bridge() as bridge:
        books = Books(bridge, url)
        try:
            yield books
        finally:
            await books.close()


async def caught_up(books: Books, net: Network, *, within_s: float = 60.0) -> None:
    """Wait until everything up to the chain's tip is recorded, the tip of this very branch."""
    tip = net.chain.latest

    async def done() -> bool:
        try:
            rows = await books.rows(
                "SELECT c.complete_through, l.hash FROM ingest_cursor c "
                "LEFT JOIN ledgers l ON l.epoch = c.epoch AND l.sequence = $1",
                tip.sequence,
            )
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        return (rows[0]["complete_through"], rows[0]["hash"]) == (tip.sequence, tip.hash.hex())

    await eventually(done, f"ledger {tip.sequence} is recorded", within_s=within_s)


async def nothing_wanted(books: Books, *, within_s: float = 60.0) -> None:
    """Wait until no ledger entry is to be read any more."""

    async def left() -> bool:
        return int(await books.value("SELECT count(*) FROM entry_wants")) == 0

    await eventually(left, "every wanted ledger entry is read", within_s=within_s)


def chain_events(net: Network) -> list[tuple[str, str, int]]:
    """Every event on the chain as it is now: id, transaction hash, ledger."""
    found = []
    for ledger in net.chain.ledgers(net.chain.oldest.sequence, net.chain.latest.sequence):
        for text in ledger.events().rendered:
            event = json.loads(text)
            found.append((event["id"], event["txHash"], event["ledger"]))
    return found


async def judge(books: Books, net: Network, *histories: BulkHistory, corrected: bool = True) -> dict[str, int]:
    """Nothing lost, nothing doubled, nothing wrong; the counts that were compared. `histories`: those on the chain.

    With `corrected` every open stream must equal the contract's own books in all of its storage fields, which needs all
    wanted entries to be read. Without it the streams need only be the right ones.
    """
    log = await books.rows(  # the head in the same snapshot: ledger entries may still be read meanwhile
        "SELECT position, event_id, event, action, reverted_by, (SELECT position FROM log_head) AS head "
        "FROM events ORDER BY position"
    )
    assert [row["position"] for row in log] == list(range(1, len(log) + 1)), "the log has a gap"
    assert {row["head"] for row in log} <= {len(log)}
    names = {row["position"]: row["event"] for row in log}
    undone = [row for row in log if row["reverted_by"] is not None]
    assert all(names[row["reverted_by"]] == "stream.reverted" for row in undone)
    live = [row["event_id"] for row in log if row["reverted_by"] is None]
    assert len(live) == len(set(live)), "an event is live twice"
    births = {row["event_id"] for row in log if row["reverted_by"] is None and row["event_id"].endswith(".1")}
    assert {birth.removesuffix(".1") for birth in births} <= set(live)

    expected = chain_events(net)
    recorded = [
        (row["event_id"].partition("-")[2], row["tx_hash"], row["ledger"])
        for row in await books.rows(LIVE_CHAIN_EVENTS)
    ]
    assert sorted(set(expected) - set(recorded)) == [], "lost"
    assert sorted(set(recorded) - set(expected)) == [], "of no chain, or of another branch"
    assert recorded == sorted(expected), "doubled"

    stored = {
        row["sequence"]: row["hash"] for row in await books.rows("SELECT sequence, hash FROM ledgers WHERE epoch = 1")
    }
    for ledger in net.chain.ledgers(net.chain.oldest.sequence, net.chain.latest.sequence):
        assert stored.pop(ledger.sequence, None) == ledger.hash.hex(), f"header of ledger {ledger.sequence}"
    assert stored == {}
    assert await books.value("SELECT complete_through FROM ingest_cursor") == net.chain.latest.sequence
    streams = await _judge_streams(books, models(net, *histories), corrected=corrected)
    return {"events": len(recorded), "positions": len(log), "undone": len(undone), "streams": streams}


Model = tuple[str, dict[int, dict[str, Any]], dict[int, dict[str, Any]]]


def models(net: Network, *histories: BulkHistory) -> list[Model]:
    """The network's own books: contract, then storage fields of the open streams and of the closed ones."""
    scripted = [(one.contract_id, one.model_streams(), one.closed_streams()) for one in net.contracts]
    return [
        *scripted,
        *((one.contract_id, {n: one.stream(n) or {} for n in range(one.streams)}, {}) for one in histories),
    ]


async def _judge_streams(books: Books, expected: list[Model], *, corrected: bool) -> int:
    states = await stream_states(books)
    differences = []
    for contract_id, open_, closed in expected:
        mine = {state.stream_id: state for (owner, _), state in states.items() if owner == contract_id}
        assert {n for n, state in mine.items() if state.closed_at is None} == open_.keys(), "the open streams"
        assert {n for n, state in mine.items() if state.closed_at is not None} == closed.keys(), "the closed streams"
        if corrected:
            differences += [
                f"stream {number}: {name} is {getattr(mine[number], name)!r}, on the ledger {value!r}"
                for number, fields in open_.items()
                for name, value in fields.items()
                if name not in NOT_TOLD and getattr(mine[number], name) != value
            ]
    assert not differences, "\n".join(differences[:20])
    return len(states)


async def stream_states(books: Books) -> dict[tuple[str, str], StreamState]:
    """What is folded, by contract and stream; the columns that queries use must say the same."""
    rows = await books.rows(
        "SELECT id, contract_id, status, sender, recipient, deposit_amount::text, withdrawn_amount::text, "
        "end_time::text, chain_stream_id::text, state FROM streams WHERE NOT parked AND origin = 'chain'"
    )
    states = {}
    for row in rows:
        state = states[row["contract_id"], row["id"]] = unpack_state(row["state"])
        told = (row["status"], row["sender"], row["recipient"], row["deposit_amount"], row["withdrawn_amount"])
        assert told == (
            state.status.name.lower(),
            state.sender,
            state.recipient,
            str(state.deposit_amount),
            str(state.withdrawn_amount),
        )
        assert (row["end_time"], row["chain_stream_id"]) == (str(state.end_time), str(state.stream_id))
    return states


async def assert_same(one: Books, other: Books) -> None:
    """Two databases that followed the same chain tell the same, whenever each of them read which ledger entry."""
    assert [dict(row) for row in await one.rows(LIVE_CHAIN_EVENTS)] == [
        dict(row) for row in await other.rows(LIVE_CHAIN_EVENTS)
    ]
    mine, theirs = await stream_states(one), await stream_states(other)
    assert mine.keys() == theirs.keys()
    corrected = await _corrected(one) | await _corrected(other)
    for key, state in mine.items():
        if key[1] not in corrected:
            assert state == theirs[key]
        elif state.closed_at is None:  # of a closed one no entry is left that could settle what was in doubt
            unsettled = dict.fromkeys((*NOT_TOLD, "kind_known"))
            assert msgspec.structs.replace(state, **unsettled) == msgspec.structs.replace(theirs[key], **unsettled)


async def _corrected(books: Books) -> set[str]:
    return {row[0] for row in await books.rows("SELECT stream_id FROM events WHERE action = 'corrected'")}


def assert_in_order(positions: Sequence[int], after: int = 0) -> None:
    """A follower saw every position once, in order."""
    assert list(positions) == list(range(after + 1, after + 1 + len(positions)))
