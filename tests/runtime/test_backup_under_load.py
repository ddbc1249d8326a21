"""Backups while everything writes at full speed: each is one moment of it, and what is restored from it goes on."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import httpx
import pytest
import trio
from growth import grow
from processes import environment, following, run, serve
from proof import LONG, chance
from truth import Books, caught_up, judge, nothing_wanted
from waiting import eventually
from webhook_consumer import SECRET, Consumer, consuming

from fluxora.config import StorageConfig
from fluxora.localnet import Network, Script, account, open_localnet
from fluxora.protocol.streams import unpack_state
from fluxora.storage.backup import PASSING
from fluxora.storage.refold import refold
from fluxora.storage.store import open_store

OpenBooks = Callable[[str], Awaitable[Books]]
SEED = 83
BACKUPS = 8 if LONG else 2
APART = 2_000 if LONG else 250  # positions that the log grows by between two backups
WRITERS = 8
BUSY = 503
NEW = {
    "sender": account(SEED, "writer"),
    "recipient": account(SEED, "reader"),
    "depositAmount": "1000",
    "ratePerSecond": "0.0000001",
}
LOG = """
SELECT position, event_id, epoch, ledger, tx_hash, contract_id, stream_id, event, action, timestamp_ms, raw,
    payload::text AS payload, CASE WHEN reverted_by <= $1 THEN reverted_by END AS reverted_by
FROM events WHERE position <= $1 ORDER BY position
"""


class Made(NamedTuple):
    """An archive; the log's position before its making began, and after it had ended."""

    archive: str
    before: int
    after: int


@pytest.fixture
def used_url(postgres_run: Any) -> Iterator[str]:
    """A migrated database in which there has been something."""
    url = postgres_run.create()
    postgres_run.sql("INSERT INTO ledgers VALUES (1, 7, 'other', NULL, 7)", url.partition("?")[0].rpartition("/")[2])
    yield url
    postgres_run.drop(url)


# who writes


async def write(url: str, number: int) -> None:
    """Streams that live fast, one after the other, for ever."""
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        nth = 0
        while True:
            nth += 1
            answer = await client.post("/api/streams", json=NEW, headers={"idempotency-key": f"{number}:{nth}"})
            answer.raise_for_status()
            path = f"/api/streams/{answer.json()['id']}"
            for status in ("paused", "active"):
                (await client.patch(path, json={"status": status})).raise_for_status()
            if nth % 3 == 0:
                (await client.delete(path)).raise_for_status()


@asynccontextmanager
async def everything_writes(url: str, net: Network, rng: Random) -> AsyncIterator[None]:
    """Clients, and a chain that takes back some of what it says."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(grow, net, rng)
        for number in range(WRITERS):
            nursery.start_soon(write, url, number)
        yield
        nursery.cancel_scope.cancel()


def serving(net: Network, url: str, consumer: Consumer) -> dict[str, str]:
    return following(
        net,
        url=url,
        FLUXORA_WEBHOOK_URL=consumer.url,
        FLUXORA_WEBHOOK_SECRET=SECRET,
        FLUXORA_WEBHOOK_ALLOWED_NETWORKS="127.0.0.0/8",
    )


# what is judged


async def told(*command: str, url: str) -> dict[str, Any]:
    done = await run(*command, environ=environment(DATABASE_URL=url))
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


async def sql_of(postgres_run: Any, *command: str) -> str:
    program = [str(postgres_run.server.bin / command[0]), "--restrict-key=x", *command[1:]]
    done = await trio.to_thread.run_sync(
        lambda: subprocess.run(program, capture_output=True, text=True, check=True), abandon_on_cancel=True
    )
    return done.stdout


async def holds_what_the_archive_does(postgres_run: Any, made: Made, url: str) -> None:
    """Both as SQL, by PostgreSQL's own programs: the archive, and the database that was restored from it."""
    without = [f"--exclude-table-data=*.{table}" for table in PASSING]
    archived = await sql_of(postgres_run, "pg_restore", "--file=-", made.archive)
    restored = await sql_of(postgres_run, "pg_dump", *without, "--dbname", url)
    assert archived.count("\n") > made.before
    assert restored == archived


async def is_a_moment_of(original: Books, made: Made, restored: Books) -> int:
    """A prefix of the log that was written, with all that belongs to it and nothing else; its length."""
    (head,) = await restored.rows("SELECT position FROM log_head")
    position = int(head["position"])
    assert made.before <= position <= made.after
    log = await restored.rows(LOG, 2**60)
    assert [row["position"] for row in log] == list(range(1, position + 1))
    assert log == await original.rows(LOG, position)
    sent = await restored.rows("SELECT position FROM webhook_deliveries ORDER BY position")
    assert [row["position"] for row in sent] == [row["position"] for row in log], "each event has its delivery"
    [pending] = await restored.rows("SELECT count(*) FROM webhook_deliveries WHERE status = 'pending'")
    assert [pending] == await restored.rows("SELECT sum(pending)::bigint FROM webhook_tallies")
    delivered = await restored.rows("SELECT count(*) FROM webhook_deliveries WHERE status = 'delivered'")
    assert delivered == await restored.rows(
        "SELECT count(DISTINCT a.position) FROM webhook_attempts a "
        "JOIN webhook_deliveries d USING (endpoint_id, position) WHERE d.status = 'delivered'"
    )
    return position


async def is_what_its_log_says(restored: Books) -> int:
    """Each stream of the chain is the fold of its events, and each by API what its last event shows; their number."""
    rows = await restored.rows("SELECT id, state FROM streams WHERE origin = 'chain'")
    keys = {row["id"] for row in rows}
    async with open_store(StorageConfig(database_url=restored.url), decimals={}) as store:
        again = await store._write(refold, 1, set(keys))
    assert again.births == []
    assert {row["id"]: unpack_state(row["state"]) for row in rows} == {
        key: slot.state for key, slot in again.streams.items() if slot.state is not None
    }
    differing = await restored.rows(
        "SELECT s.id FROM streams s LEFT JOIN events e ON e.position = s.position AND e.stream_id = s.id "
        "WHERE s.origin = 'api' AND (e.payload->>'status') IS DISTINCT FROM s.status"
    )
    assert differing == []
    lost = await restored.rows(
        "SELECT e.position FROM events e WHERE e.reverted_by IS NULL AND e.event <> 'stream.reverted' "
        "AND e.stream_id IS NOT NULL AND NOT EXISTS (SELECT FROM streams s WHERE s.id = e.stream_id)"
    )
    assert lost == []
    return len(rows)


async def goes_on(net: Network, books: Books, consumer: Consumer, log: Path) -> dict[str, int]:
    """A server on it follows the chain to its end, takes a write, and sends what is and was pending."""
    async with serve(serving(net, books.url, consumer), log) as served:
        url = await served.ready()
        await caught_up(books, net)
        await nothing_wanted(books)
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            made = await client.post("/api/streams", json=NEW)
            assert made.status_code == 201, made.text
        counts = await judge(books, net)

        async def all_sent() -> bool:
            found = await books.rows("SELECT DISTINCT status FROM webhook_deliveries")
            return [row["status"] for row in found] == ["delivered"]

        await eventually(all_sent, "nothing is pending", within_s=120)
        sent = await books.rows("SELECT position FROM webhook_deliveries")
        assert {row["position"] for row in sent} == set(range(1, await books.position() + 1))
        assert await served.stop() == 0
    return counts


async def test_each_backup_is_one_moment_and_what_is_restored_from_it_goes_on(
    postgres_run: Any,
    postgres_url: str,
    bare_url: str,
    used_url: str,
    *,
    books_of: OpenBooks,
    tmp_path: Path,
) -> None:
    rng = chance(SEED)
    books = await books_of(postgres_url)
    archives: list[Made] = []
    async with open_localnet(seed=SEED, script=Script(SEED, streams_per_ledger=3)) as net, consuming() as consumer:
        async with serve(serving(net, postgres_url, consumer), tmp_path / "serve.log") as served:
            async with everything_writes(await served.ready(), net, rng):
                for number in range(BACKUPS):
                    grown = await books.position() + APART

                    async def has_grown(least: int = grown) -> bool:
                        return await books.position() >= least

                    await eventually(has_grown, "the log grows", within_s=120)
                    before = await books.position()
                    result = await told("backup", str(tmp_path / f"{number}.dump"), url=postgres_url)
                    after = await books.position()
                    assert after > before, "nothing was written meanwhile"
                    archives.append(Made(result["archive"], before, after))
            assert consumer.acknowledged, "nothing was sent meanwhile"
            assert await served.stop() == 0

        for number, made in enumerate(archives):
            for target in (bare_url, used_url) if number in {0, BACKUPS - 1} else (used_url,):
                result = await told("restore", "--yes", "--disconnect", made.archive, url=target)
                await holds_what_the_archive_does(postgres_run, made, target)
                restored = await books_of(target)
                position = await is_a_moment_of(books, made, restored)
                assert result["position"] == position
                streams = await is_what_its_log_says(restored)
                await restored.close()
            print(f"{position} positions, {streams} streams of the chain, {made.after - made.before} written meanwhile")
        for target in (bare_url, used_url) if LONG else (used_url,):
            counts = await goes_on(net, await books_of(target), consumer, tmp_path / "again.log")
            print(counts)
