"""Forks and resets through the whole runtime: whatever is taken back, the tables equal those of a clean replay."""

from __future__ import annotations

import asyncio
import os
import random
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import httpx
import pytest
import trio
from in_process import config
from structlog.testing import capture_logs

import fluxora
from fluxora.localnet import Network, Script, open_localnet
from fluxora.runtime import Runtime

LONG = os.environ.get("FLUXORA_PROOF") == "long"
PATIENCE_S = 120


async def until(condition: Callable[[], bool]) -> None:
    """Wait for the runtime, which lives in real threads and sockets; the bound only ends a broken test."""
    with trio.fail_after(PATIENCE_S):
        while not condition():
            await trio.sleep(0.01)


def caught_up(rt: Runtime, net: Network) -> bool:
    indexer, latest = rt.health().indexer, net.chain.latest
    return (indexer.last_ledger, indexer.last_ledger_hash) == (latest.sequence, latest.hash.hex())


async def settle(rt: Runtime, net: Network) -> None:
    await until(lambda: caught_up(rt, net))


class Snapshot:
    """All that REST shows, without what may differ between two logs of one chain.

    That is positions and epochs, and when a ledger entry was read: corrections' own rows, and the stream as it was
    shown with an event before or after one. The streams at the end and each event's own data must be the same.
    """

    def __init__(self, streams: list[dict[str, Any]], events: list[dict[str, Any]]) -> None:
        self.streams = {plain(stream["id"]): neutral(stream) for stream in streams}
        self.log = events
        self.reverts = [event for event in events if event["event"] == "stream.reverted"]
        live: list[dict[str, Any]] = []  # an id that was taken back may come again
        for event in events:
            if event["event"] == "stream.reverted":
                undone = set(event["payload"]["reverts"])
                live = [earlier for earlier in live if earlier["eventId"] not in undone]
            else:
                live.append(event)
        self.live_ids = [event["eventId"] for event in live]
        newest = max((event["eventId"].split("-")[0] for event in live), default="1")
        self.live = {
            plain_id(event["eventId"]): neutral(event | {"payload": event["payload"]["change"]})
            for event in live
            if event["action"] != "corrected" and event["eventId"].startswith(f"{newest}-")
        }


def plain(stream_id: str) -> str:
    return re.sub(r"-e\d+$", "", stream_id)


def plain_id(event_id: str) -> str:
    return event_id.partition("-")[2]


def neutral(value: Any) -> Any:
    if isinstance(value, dict):
        dropped = {"position", "asOf", "streamedAmount", "withdrawableAmount", "remainingAmount"}
        return {key: neutral(item) for key, item in value.items() if key not in dropped}
    if isinstance(value, str):
        return re.sub(r"^\d-(\d{19}-)", r"\1", plain(value))
    return value


async def snapshot(rt: Runtime) -> Snapshot:
    streams: list[dict[str, Any]] = []
    events: list[dict[str, Any]] = []
    async with httpx.AsyncClient(base_url=rt.url) as client:
        cursor: str | None = ""
        while cursor is not None:
            query = {"limit": 100, "asOf": 1} | ({"cursor": cursor} if cursor else {})
            page = (await client.get("/api/streams", params=query)).raise_for_status().json()
            streams += page["streams"]
            cursor = page["nextCursor"] if page["hasMore"] else None
        more = True
        while more:
            after = events[-1]["position"] if events else "0"
            page = (await client.get("/api/events", params={"limit": 1000, "after": after})).raise_for_status().json()
            events += page["events"]
            more = page["hasMore"]
    assert [int(event["position"]) for event in events] == list(range(1, len(events) + 1))
    return Snapshot(streams, events)


@asynccontextmanager
async def followed(url: str, *, ledgers: int, seed: int) -> AsyncIterator[tuple[Runtime, Network]]:
    async with open_localnet(seed=seed, script=Script(seed, streams_per_ledger=1)) as net:
        await net.close_ledgers(ledgers)
        async with fluxora.open_runtime(config(net, url, corrected_soon=True)) as rt:
            await settle_corrections(rt, net)
            yield rt, net


def differences(mine: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    return [
        f"{stream_id}.{name}: {mine[stream_id].get(name)} != {theirs[stream_id].get(name)}"
        for stream_id in mine
        for name in mine[stream_id].keys() | theirs[stream_id].keys()
        if mine[stream_id].get(name) != theirs[stream_id].get(name)
    ]


async def settle_corrections(rt: Runtime, net: Network) -> None:
    """Until every wanted ledger entry has been read as of the tip."""
    await settle(rt, net)
    url = rt.config.storage.database_url
    with trio.fail_after(PATIENCE_S):
        while await trio.to_thread.run_sync(wants, url):
            await trio.sleep(0.02)


def wants(url: str) -> int:
    """How many ledger entries are wanted, those that are postponed included."""

    async def ask() -> int:
        connection = await asyncpg.connect(url)
        try:
            return int(await connection.fetchval("SELECT count(*) FROM entry_wants"))
        finally:
            await connection.close()

    return asyncio.run(ask())


async def assert_equals_clean_replay(rt: Runtime, net: Network, clean_url: str) -> Snapshot:
    await settle_corrections(rt, net)
    async with fluxora.open_runtime(config(net, clean_url, corrected_soon=True)) as clean:
        await settle_corrections(clean, net)
        mine, theirs = await snapshot(rt), await snapshot(clean)
    assert len(mine.live_ids) == len(set(mine.live_ids)), "an event is live twice"
    assert mine.live == theirs.live
    assert mine.streams.keys() == theirs.streams.keys()
    assert differences(mine.streams, theirs.streams) == []
    assert theirs.reverts == []
    return mine


@pytest.fixture
def clean_url(postgres_run: Any) -> Any:
    url = postgres_run.create()
    yield url
    postgres_run.drop(url)


@pytest.mark.parametrize("depth", [1, 2, 10, 200])
async def test_a_fork_is_taken_back_and_told(depth: int, postgres_url: str, clean_url: str) -> None:
    with capture_logs() as lines:
        async with followed(postgres_url, ledgers=depth + 12, seed=depth) as (rt, net):
            before = await snapshot(rt)
            ancestor = net.chain.latest.sequence - depth
            old_hash = net.chain.ledger(ancestor + 1).hash.hex()  # type: ignore[union-attr]
            await net.fork(depth, regrow=False)
            await net.close_ledger()
            new_hash = net.chain.latest.hash.hex()
            await until(lambda: rt.health().indexer.reorg_detected)
            report = rt.health()
            assert report.status == "degraded"
            assert str(ancestor + 1) in report.indexer.summary
            await net.close_ledgers(depth + 1)
            await until(lambda: not rt.health().indexer.reorg_detected)
            assert rt.health().indexer.reorgs == 1
            after = await assert_equals_clean_replay(rt, net, clean_url)
    undone = {event["eventId"] for event in before.log if event["ledger"] > ancestor}
    told = [event_id for row in after.reverts for event_id in row["payload"]["reverts"]]
    assert sorted(told) == sorted(undone)
    assert undone
    for row in after.reverts:
        assert row["action"] == "reverted"
    warned = [line for line in lines if line["event"] == "guard.fork_detected"]
    assert [(w["log_level"], w["existingHash"], w["incomingHash"], w["rollbackTo"]) for w in warned] == [
        ("warning", old_hash, new_hash, ancestor)
    ]


async def test_a_fork_inside_a_fork(postgres_url: str, clean_url: str) -> None:
    async with followed(postgres_url, ledgers=40, seed=5) as (rt, net):
        await net.fork(20)
        await net.close_ledger()
        await settle(rt, net)
        await net.fork(7)  # on the new branch
        await net.close_ledger()
        await settle(rt, net)
        await net.fork(12)  # and one that nobody had time to look at before the next
        await net.fork(3)
        await net.close_ledger()
        await assert_equals_clean_replay(rt, net, clean_url)
        assert rt.health().indexer.reorgs >= 3


async def test_a_reset_parks_the_old_network(postgres_url: str, clean_url: str) -> None:
    async with followed(postgres_url, ledgers=40, seed=6) as (rt, net):
        old = await snapshot(rt)
        await net.reset()
        await net.close_ledgers(15)
        new = await assert_equals_clean_replay(rt, net, clean_url)
        assert new.streams
        async with httpx.AsyncClient(base_url=rt.url) as client:
            for stream_id in old.streams:
                assert (await client.get(f"/api/streams/{stream_id}")).status_code == 200
            listed = (await client.get("/api/streams", params={"limit": 100})).json()["streams"]
        assert all(stream["id"].endswith("-e2") for stream in listed)
        assert new.log[: len(old.log)] == old.log, "a log row is never changed"


async def test_a_reset_to_sequences_that_were_never_seen(postgres_url: str, clean_url: str) -> None:
    async with open_localnet(seed=8, script=Script(8, streams_per_ledger=1), first_ledger=10_000) as net:
        await net.close_ledgers(20)
        async with fluxora.open_runtime(config(net, postgres_url, corrected_soon=True)) as rt:
            await settle(rt, net)
            net.chain.reset(first_ledger=2)
            await net.close_ledgers(12)
            new = await assert_equals_clean_replay(rt, net, clean_url)
            assert rt.health().indexer.reorgs == 1
    assert new.streams


async def test_a_node_that_goes_back_on_the_same_history_is_waited_for(postgres_url: str) -> None:
    async with followed(postgres_url, ledgers=30, seed=7) as (rt, net):
        before = await snapshot(rt)
        net.faults.lag = 10
        async with httpx.AsyncClient(base_url=rt.url) as client:
            await client.get("/health")
        with capture_logs() as lines:
            await until(lambda: any(line["event"] == "ingester.node_behind" for line in lines))
        net.faults.lag = 0
        await net.close_ledger()
        await settle(rt, net)
        after = await snapshot(rt)
        assert after.log[: len(before.log)] == before.log
        assert rt.health().indexer.reorgs == 0


@pytest.mark.parametrize("seed", range(20 if LONG else 2))
async def test_any_history_of_forks_and_resets(seed: int, postgres_url: str, clean_url: str) -> None:
    chance = random.Random(seed)
    async with followed(postgres_url, ledgers=30, seed=100 + seed) as (rt, net):
        for _ in range(40 if LONG else 8):
            match chance.choices(["grow", "fork", "look", "reset"], [4, 4, 3, 1])[0]:
                case "grow":
                    await net.close_ledgers(chance.randint(1, 8))
                case "fork":
                    held = net.chain.latest.sequence - net.chain.oldest.sequence
                    if held > 1:
                        await net.fork(chance.randint(1, min(held, 25)), regrow=chance.random() < 0.5)
                case "look":
                    await net.close_ledger()
                    await settle(rt, net)
                case "reset":
                    await net.reset()
                    await net.close_ledgers(chance.randint(1, 8))
        await net.close_ledgers(60)  # past whatever was recorded before
        await assert_equals_clean_replay(rt, net, clean_url)
