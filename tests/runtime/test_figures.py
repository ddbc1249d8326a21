"""What /metrics says of a whole runtime adds up: nothing is left out, nothing counted twice, and promtool likes it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import httpx
import trio
from in_process import config
from prometheus_client.parser import text_string_to_metric_families
from truth import Books, nothing_wanted
from waiting import eventually

import fluxora
from fluxora.localnet import Network, Script, open_localnet
from fluxora.storage.refold import BIRTH

SEED = 8
BIRTHS = f"%{BIRTH}"  # a second row of one event, for the stream that it makes beside its own
NEW = {
    "sender": "GBTCYEJULCFIW2KAAJA6FHE5D7NZ3SYSYORZNI6MSBGYHT4H3ZPGDWZK",
    "recipient": "GBFTCKGB37APXZFUXIPZ2GCWIPO3FN5SRGNV5CWZZXVMVRF7EHXPZMHE",
    "depositAmount": "10.0000000",
    "ratePerSecond": "1.0000000",
}


class Figures:
    """One scrape; `figures("name", label="value")` adds up the samples of that name that have the labels."""

    def __init__(self, text: str) -> None:
        self.families = list(text_string_to_metric_families(text))

    def __call__(self, name: str, **labels: str) -> float:
        samples = [one for family in self.families for one in family.samples if one.name == name]
        assert samples, f"there is no {name}"
        return sum(one.value for one in samples if labels.items() <= one.labels.items())


async def test_every_event_and_command_is_accounted_for(postgres_url: str, books_of: Callable[[str], Any]) -> None:
    books: Books = await books_of(postgres_url)
    async with open_localnet(seed=SEED, script=Script(SEED, streams_per_ledger=2), retention=None) as net:
        await net.close_ledgers(20)
        async with (
            fluxora.open_runtime(config(net, postgres_url, corrected_soon=True)) as rt,
            httpx.AsyncClient(base_url=rt.url, timeout=30) as client,
        ):
            await followed(rt, net)
            net.faults.duplicate_pages(times=3)
            net.faults.status(500, times=2)
            await net.fork(4)
            await net.close_ledgers(6)
            await eventually(lambda: rt.health().indexer.reorgs == 1, "the fork is seen")
            await followed(rt, net)
            for key in ("a", "b", "a"):
                assert (await client.post("/api/streams", json=NEW, headers={"idempotency-key": key})).is_success
            await nothing_wanted(books)
            seen = await at_rest(client)
            log = await books.position()
            of_ledger, undone = [
                len(await books.rows(f"SELECT FROM events WHERE {which} AND event_id NOT LIKE $1", BIRTHS))
                for which in ("raw IS NOT NULL", "reverted_by IS NOT NULL")
            ]
            if promtool := shutil.which("promtool"):
                await like(promtool, (await client.get("/metrics")).content)
    stages = ("received", "dropped", "sifted", "known", "recorded")
    events = {stage: seen("fluxora_ingest_events_total", stage=stage) for stage in stages}
    assert events["received"] == sum(events[stage] for stage in stages[1:]) > 0, events
    assert events["recorded"] == of_ledger
    assert seen("fluxora_ingest_undone_events_total") == undone > 0
    assert seen("fluxora_ingest_rollbacks_total") == 1
    assert seen("fluxora_ingest_transaction_events_sum") == events["recorded"] + events["known"]
    assert seen("fluxora_feed_position") == seen("fluxora_hub_position") == log
    assert seen("fluxora_feed_in_touch") == seen("fluxora_lease_held") == seen("fluxora_lease_number") == 1
    assert seen("fluxora_write_commands_total") == 3
    assert seen("fluxora_write_commands_total", outcome="replayed") == 1
    assert seen("fluxora_write_group_commands_sum") == 3
    assert seen("fluxora_rpc_calls_total", outcome="http_error") == 2
    answered = seen("fluxora_rpc_calls_total", outcome="ok")
    assert seen("fluxora_rpc_call_duration_seconds_count") >= answered > 0
    actors = {actor.name for actor in rt.health().actors}
    assert {one.labels["actor"] for one in samples(seen, "fluxora_actor_state")} == actors
    limits = {one.labels["actor"]: one.value for one in samples(seen, "fluxora_actor_inbox_limit")}
    assert limits == {"registrar": 4096, "guard": 2, "dedup": 2, "recorder": 5}


def samples(seen: Figures, name: str) -> list[Any]:
    return [one for family in seen.families for one in family.samples if one.name == name]


async def followed(rt: fluxora.Runtime, net: Network) -> None:
    def is_there() -> bool:
        indexer, latest = rt.health().indexer, net.chain.latest
        return (indexer.last_ledger, indexer.last_ledger_hash) == (latest.sequence, latest.hash.hex())

    await eventually(is_there, "the chain is followed")


async def at_rest(client: httpx.AsyncClient) -> Figures:
    """A scrape between which and the one before it nothing has come, and nothing is under way."""
    before: float = -1

    async def look() -> Figures | None:
        nonlocal before
        seen = Figures((await client.get("/metrics")).text)
        before, came = seen("fluxora_ingest_events_total"), before
        still = before == came and seen("fluxora_feed_position") == seen("fluxora_hub_position")
        return seen if still and not seen("fluxora_actor_inbox") else None

    found: Figures = await eventually(look, "all is at rest")
    return found


async def like(promtool: str, text: bytes) -> None:
    done = await trio.to_thread.run_sync(
        lambda: subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
    )
    assert (done.returncode, done.stderr) == (0, b"")
