"""One grep tells a story: what belongs together in the log carries one id, through all actors that have a part."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, MutableMapping
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import httpx
import in_process
import pytest
from outages import Stopped, own_server
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs
from waiting import eventually
from webhook_consumer import SECRET, Answer, Consumer, consuming

import fluxora
from fluxora.actors.guard import Guard
from fluxora.localnet import Script, open_localnet
from fluxora.protocol.signing import Secret
from fluxora.storage.register import _Group

SEED = 5
NEW = {
    "sender": "GBTCYEJULCFIW2KAAJA6FHE5D7NZ3SYSYORZNI6MSBGYHT4H3ZPGDWZK",
    "recipient": "GBFTCKGB37APXZFUXIPZ2GCWIPO3FN5SRGNV5CWZZXVMVRF7EHXPZMHE",
    "depositAmount": "10.0000000",
    "ratePerSecond": "1.0000000",
}
ID = "story-1"
Lines = list[MutableMapping[str, Any]]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Every line of the log, at whatever level, with what is bound to the task that wrote it."""
    with capture_logs(processors=(merge_contextvars,)) as captured:
        yield captured


def named(lines: Lines, event: str) -> Lines:
    return [line for line in lines if line["event"] == event]


def about(lines: Lines, wanted: str) -> list[str]:
    """The events of the lines that a grep for `wanted` finds."""
    return [line["event"] for line in lines if wanted in map(str, line.values()) or wanted in values_of_lists(line)]


def values_of_lists(line: MutableMapping[str, Any]) -> list[Any]:
    return [item for value in line.values() if isinstance(value, list) for item in value]


def config(url: str, **sections: Any) -> fluxora.Config:
    return fluxora.Config(
        storage=fluxora.StorageConfig(database_url=url, pool_size=4),
        http=fluxora.HttpConfig(port=0, limits=fluxora.LimitConfig(enabled=False)),
        **sections,
    )


@asynccontextmanager
async def client_of(settings: fluxora.Config) -> AsyncIterator[httpx.AsyncClient]:
    async with fluxora.open_runtime(settings) as rt, httpx.AsyncClient(base_url=rt.url, timeout=30) as client:
        yield client


async def test_a_registration_down_to_its_webhook(postgres_url: str, lines: Lines) -> None:
    async with consuming(Answer(500)) as consumer:
        webhooks = fluxora.WebhookConfig(
            url=consumer.url, secret=Secret.parse(SECRET), allowed_networks=(ip_network("127.0.0.0/8"),)
        )
        async with client_of(config(postgres_url, webhooks=webhooks)) as client:
            made = await client.post("/api/streams", json=NEW, headers={"x-request-id": ID})
            assert made.status_code == 201
            await eventually(partial(attempts, consumer, lines, 1), "the first attempt is over")
    assert about(lines, ID) == ["outbox.deliveries_added", "registrar.group_committed", "http.request_served"]
    [group] = named(lines, "registrar.group_committed")
    [ended, *_] = named(lines, "dispatcher.attempt_ended")
    assert (ended["delivery"], ended["endpoint"], ended["position"]) == (consumer.ids[0], "default", group["position"])
    assert (ended["outcome"], ended["attempt"], ended["status"]) == ("retry", 1, 500)


def attempts(consumer: Consumer, lines: Lines, count: int) -> bool:
    return len(consumer.requests) >= count <= len(named(lines, "dispatcher.attempt_ended"))


async def test_a_defect_is_found_by_the_request_id_of_its_500(
    postgres_url: str, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: Any) -> None:
        raise ZeroDivisionError("injected")

    monkeypatch.setattr(_Group, "_create", broken)
    async with client_of(config(postgres_url)) as client:
        refused = await client.post("/api/streams", json=NEW)
    assert (refused.status_code, refused.json()["error"]) == (500, "INTERNAL_ERROR")
    found = about(lines, refused.json()["requestId"])
    assert found == ["registrar.command_failed", "http.request_failed", "http.request_served"]
    assert all(line["exc_info"] for line in lines if line["event"] in found[:2]), "with its traceback"


async def test_who_waited_when_the_database_went(short_dir: Path, lines: Lines) -> None:
    with own_server(short_dir) as server:
        away = Stopped(server)
        async with client_of(config(server.url)) as client:
            assert (await client.post("/api/streams", json=NEW)).status_code == 201
            away.leave()
            try:
                refused = await client.post("/api/streams", json=NEW, headers={"x-request-id": ID})
            finally:
                away.come_back()
    assert refused.status_code == 503
    assert about(lines, ID) == ["registrar.database_lost", "http.request_served"]


async def test_a_round_from_the_node_to_the_log(postgres_url: str, lines: Lines) -> None:
    async with open_localnet(seed=SEED, script=Script(SEED)) as net:
        await net.close_ledgers(5)
        async with fluxora.open_runtime(in_process.config(net, postgres_url)) as rt:
            await eventually(lambda: rt.health().indexer.last_ledger == net.chain.latest.sequence, "all is recorded")
            net.faults.status(500, times=20)
            await eventually(lambda: named(lines, "ingester.source_failed"), "the node fails")
            net.faults.clear()
            await net.fork(2)
            await eventually(lambda: named(lines, "guard.fork_detected"), "the fork is seen")
            await eventually(lambda: rollbacks(lines), "it is taken back")
    [failed, *_] = named(lines, "ingester.source_failed")
    assert "source.call_failed" in about(lines, failed["round"])
    [fork] = named(lines, "guard.fork_detected")
    assert "recorder.batch_committed" in about(lines, fork["round"])
    rounds = [line["round"] for line in named(lines, "ingester.source_failed")]
    assert len(set(rounds)) == len(rounds), "each round has its own"


def rollbacks(lines: Lines) -> bool:
    fork = named(lines, "guard.fork_detected")[0]["round"]
    return any(fork in line["rounds"] for line in named(lines, "recorder.batch_committed"))


async def test_a_crash_names_the_round_that_it_happened_in(
    postgres_url: str, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, broken = Guard._judge, [True]

    async def breaking(guard: Guard, parcel: Any) -> Any:
        if broken.pop() if broken else False:
            raise ZeroDivisionError(parcel.round)
        return await judge(guard, parcel)

    monkeypatch.setattr(Guard, "_judge", breaking)
    async with open_localnet(seed=SEED, script=Script(SEED)) as net:
        await net.close_ledgers(3)
        async with fluxora.open_runtime(in_process.config(net, postgres_url)) as rt:
            await eventually(lambda: rt.health().indexer.last_ledger == net.chain.latest.sequence, "all is recorded")
    [crash] = named(lines, "supervisor.actor_crashed")
    assert crash["error"] == f"ZeroDivisionError: {crash['round']}"
